"""The table of rows during preparation: texts in an Arrow file, and a few numbers per row in memory.

The texts stay on disk and are read batch by batch, however many rows there are. Hashes, split positions and line
numbers are NumPy arrays of about 80 bytes per row. The memory for texts therefore does not grow with the source.

    table.columns["key"][7]           8 bytes; equal for two rows that are duplicates
    table.texts.value("text", 7)      "my parcel is late"
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from data_prep import minhash
from data_prep.arrays import Array
from data_prep.arrow_texts import TEXT_SCHEMA, ArrowTexts
from data_prep.parallel import WorkerPool
from data_prep.readers import limits
from data_prep.readers.source_row import PROVENANCES, SourceRow
from data_prep.rows.data_row import Rejected, Row, make_row
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS
from insource.tasks import TASKS
from insource.tasks.pii import redaction
from insource.tasks.task_kind import LabelledTaskKind, TaskKind
from insource.text.split_hash import hash_texts, make_split_unit
from insource.text.text_keys import clean, duplicate_key

BATCH_ROWS = 2000
# An additional field state: the span of the field begins or ends inside a word.
CUT_STATE = "cut"


@dataclass(frozen=True)
class RowBatch:
    """The result of one process for up to BATCH_ROWS source rows; fewer if the rows are long."""

    texts: pa.RecordBatch
    columns: dict[str, Array]
    bands: Array
    sketches: Array
    rejected: list[Rejected]
    targets: Counter[str]
    systems: Counter[str]
    states: Counter[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """All usable rows of the source, in source order."""

    folder: Path
    columns: dict[str, Array] = field(repr=False)
    targets: Counter[str]
    """Rows per label as written in the source; empty for tasks without labels."""
    systems: Counter[str]
    """System prompts of chat rows, with their numbers of rows."""
    states: Counter[tuple[str, str, str]]
    """Rows per (given split or "all", field, state) for extraction tasks; `rows/data_row.py` defines the states."""

    def __len__(self) -> int:
        return len(self.columns.get("line", ()))

    @property
    def by_teacher(self) -> Array:
        """Return which rows have a label of a teacher (bool)."""
        return np.equal(self.columns["provenance"], PROVENANCES.index("teacher"))

    @cached_property
    def texts(self) -> ArrowTexts:
        """Return the texts of the table, opened on first use."""
        return ArrowTexts(self.folder)

    def location(self, row: int) -> str:
        """Return "file:line" of a row."""
        return f"{self.texts.value('file', row)}:{self.columns['line'][row]}"


class TableWriter:
    """Context manager that writes the table into a folder, batch by batch."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        folder.mkdir(parents=True)
        self.folder, self.recipe = folder, recipe
        self.targets: Counter[str] = Counter()
        self.systems: Counter[str] = Counter()
        self.states: Counter[tuple[str, str, str]] = Counter()
        self._columns: dict[str, list[Array]] = {}
        self._stack = ExitStack()
        self._texts = self._stack.enter_context(
            pa.ipc.new_file(self._stack.enter_context(pa.OSFile(str(folder / "texts.arrow"), "wb")), TEXT_SCHEMA)
        )
        self._sizes = self._stack.enter_context((folder / "batch_rows.i64").open("wb"))
        self._sketches = self._stack.enter_context(minhash.SketchFiles(folder, recipe.data.deduplicate))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, split: int, rows: Iterable[SourceRow], pool: WorkerPool) -> Iterator[Rejected]:
        """Add the rows of one file and yield the rows that cannot be used.

        `split` is the index of the given split in SPLITS, or -1 if the row is still to be assigned.
        """
        chunks = limits.split_into_chunks(rows, BATCH_ROWS, lambda row: limits.estimate_bytes(row.values))
        for batch in pool.map(partial(_process_batch, recipe=self.recipe), chunks):
            self._write(split, batch)
            # Labels of a teacher do not count: rare labels and spellings are those of people.
            self.targets += batch.targets
            self.systems += batch.systems
            yield from batch.rejected

    def add_teacher_rows(self, rows: Sequence[Row]) -> None:
        """Add rows that a teacher labelled."""
        for start in range(0, len(rows), BATCH_ROWS):
            self._write(SPLITS.index("train"), _make_batch(rows[start : start + BATCH_ROWS], [], self.recipe))

    def _write(self, split: int, batch: RowBatch) -> None:
        count = batch.texts.num_rows
        self._texts.write_batch(batch.texts)
        self._sizes.write(np.int64(count).tobytes())
        self._sketches.add(batch.bands, batch.sketches)
        numbers = {**batch.columns, "given_split": np.full(count, split, np.int8)}
        for column, values in numbers.items():
            self._columns.setdefault(column, []).append(values)
        split_name = "all" if split < 0 else SPLITS[split]
        self.states.update({(split_name, *state): count for state, count in batch.states.items()})

    def table(self) -> Table:
        """Close the files and return the table. No row can be added afterwards."""
        self._stack.close()
        columns = {name: np.concatenate(arrays) for name, arrays in self._columns.items()}
        return Table(self.folder, columns, self.targets, self.systems, self.states)


def _process_batch(rows: list[SourceRow], recipe: Recipe) -> RowBatch:
    """Return the batch of columns for these source rows; runs in a worker process."""
    results = [make_row(row, recipe) for row in rows]
    usable = [result for result in results if isinstance(result, Row)]
    return _make_batch(usable, [result for result in results if isinstance(result, Rejected)], recipe)


def _make_batch(usable: Sequence[Row], rejected: list[Rejected], recipe: Recipe) -> RowBatch:
    """Return the batch of columns for usable rows."""
    task = TASKS[recipe.task.task_name]
    keys = [duplicate_key(row.text) for row in usable]
    texts = {
        "id": [row.id for row in usable],
        "file": [row.file for row in usable],
        "text": [row.text for row in usable],
        "target": [row.target for row in usable],
        "references": [json.dumps(row.references) if row.references else None for row in usable],
        "group": [row.group for row in usable],
        "slices": [_join_slice_values(row.slices) for row in usable],
        "key": keys,
    }
    bands, sketches = minhash.sketch(keys, recipe.data.deduplicate)
    return RowBatch(
        texts=pa.record_batch(texts, schema=TEXT_SCHEMA),
        columns=_compute_columns(usable, keys, recipe),
        bands=bands,
        sketches=sketches,
        rejected=rejected,
        targets=Counter(label for row in usable for label in task.target_labels(row.target))
        if isinstance(task, LabelledTaskKind)
        else Counter(),
        systems=Counter(row.system for row in usable if row.system),
        states=Counter(
            chain.from_iterable(
                (*row.field_states.items(), *((name, CUT_STATE) for name in row.cut_fields)) for row in usable
            )
        ),
    )


def _compute_columns(rows: Sequence[Row], keys: list[str], recipe: Recipe) -> dict[str, Array]:
    """Return the arrays that stay in memory, with one entry per row."""
    seed = recipe.data.split.seed
    task = TASKS[recipe.task.task_name]
    equality_keys = {row.answers: _equality_key(row.answers, task, recipe) for row in rows}
    targets = [equality_keys[row.answers] for row in rows]
    subjects = (task.conflict_key(key, target) for key, target in zip(keys, targets, strict=True))
    by_id = bool(recipe.data.split.group and recipe.data.columns.id)
    units = [make_split_unit(row.group, row.id, key, by_id=by_id) for row, key in zip(rows, keys, strict=True)]
    contents = ("\x1f".join((row.text, row.target, row.group or "", *row.references)) for row in rows)
    return {
        "line": np.array([row.line for row in rows], np.int64),
        "id": hash_texts((row.id for row in rows), 0),
        "key": hash_texts(keys, 0),
        "raw": hash_texts((row.text_before_cleaning for row in rows), 0),
        "clean": hash_texts((row.text for row in rows), 0),
        "target": hash_texts(targets, 0),
        # Rows with one subject and several targets conflict.
        "subject": hash_texts(subjects, 0),
        # A number in [0, 2**64) that decides the split of the row.
        "split_hash": hash_texts(units, seed),
        "has_group": np.array([row.group is not None for row in rows], np.bool_),
        # A rank that does not depend on the source order: of two duplicates, the row of the lower rank is kept.
        "rank": hash_texts(contents, seed),
        "time": np.array([np.nan if row.time is None else row.time for row in rows], np.float64),
        "pii_flags": np.array(
            [sum(1 << redaction.PII_KINDS.index(kind) for kind in row.pii_kinds) for row in rows], np.uint8
        ),
        # An index in PROVENANCES.
        "provenance": np.array([PROVENANCES.index(row.provenance) for row in rows], np.int8),
        "tokens": np.full(len(rows), -1, np.int32),
        "answer_tokens": np.zeros(len(rows), np.int32),
    }


def _equality_key(answers: tuple[str, ...], task: TaskKind, recipe: Recipe) -> str:
    """Return a key that equal targets share. The order of several reference answers does not matter."""
    return "\x1e".join(sorted({task.equality_key(answer, recipe) for answer in answers}))


def hash_target(target: str, recipe: Recipe) -> int:
    """Return the hash that compares targets; it is the same for all spellings of a label."""
    return int(hash_texts([TASKS[recipe.task.task_name].equality_key(target, recipe)], 0)[0])


def _join_slice_values(values: Mapping[str, str]) -> str:
    """Return the slice values of a row as one text, one per line; clean() removes line breaks from values."""
    return "\n".join(" ".join(clean(value).split()) for value in values.values())
