"""The stage: source files in, `.data/<digest>/` out.

train.jsonl validation.jsonl calibration.jsonl test.jsonl   {"id", "input": {"text"}, "target", "group"}
rejected.jsonl    {"id", "file", "line", "kind", "reason", "detail"}
suspects.csv      rows whose label a linear model doubts
data.json         every count, what was detected, the hashes of all of these
data.html         the same for people

Read `main` from top to bottom. Whatever happens, rows read = rows written + rejected + dropped, or the stage fails.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import data_checks, parallel, split, straddling_rows, token_counts, write
from data_prep.dedup.exact import DropDecisions, deduplicate
from data_prep.labels import label_errors, label_sets, rare_label_policy
from data_prep.readers import dotted_paths, read, sources
from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.report import html, statistics
from data_prep.row_table import Table, TableWriter
from data_prep.rows.columns import check_answer_columns, check_columns, columns_to_read, find_missing_columns
from data_prep.rows.data_row import Rejected
from data_prep.rows.row_filter import RowFilter
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.data import SPLITS
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tasks import labels as spelling
from insource.tracking import digests
from insource.tracking.run import utc_timestamp

# Below this, starting another process costs more than it saves.
MIN_BYTES_PER_PROCESS = 2_000_000
LOG_STEP_SECONDS = 1.0
# Objects leave out what they have no value for: so many of them together must have every column.
COLUMN_CHECK_ROWS = 1000


@dataclass
class StepTimer:
    """How long each step took, told where that is worth a line."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)
        if self.seconds[name] >= LOG_STEP_SECONDS:
            print(f"data      {name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)


def main(recipe: Recipe, runs: Path, replaced: Sequence[str] = ()) -> tuple[Path, bool]:
    """Returns the folder of the prepared data and whether it was made now, because it was not there yet.

    `replaced` tells what hardware file and SET changed of the recipe, for messages about a key among them. Raises
    RecipeError where the source cannot be used: then nothing is left behind.
    """
    found = sources.find_files(recipe.data.source)
    hashes = [sources.sha256(file, recipe.data.source) for file in found]
    digest = digests.compute_data_digest(
        recipe, [(file.split, file.name, sha) for file, sha in zip(found, hashes, strict=True)]
    )
    folder = runs / ".data" / digest
    if (folder / "data.json").exists():
        return folder, False
    started, steps = utc_timestamp(), StepTimer()
    with atomic_files.atomic_folder(folder, keep=True) as aside:
        work = aside / ".work"
        with parallel.worker_pool(_choose_process_count(recipe, found)) as pool:
            with steps("read and clean"):
                table, unusable, read_from, filtered, unmatched = _read_sources(found, hashes, recipe, work, pool)
            _check_unique_ids(table)
            without_values = data_checks.check_fields(table, read_from, recipe)
            with steps("split"):
                assigned = split.assign(table, recipe.data.split, {file.split for file in found})
            with steps("deduplicate"):
                labels = map_label_aliases(table, recipe)
                left, straddling = (
                    DropDecisions.none(len(table)),
                    straddling_rows.find_straddling(table, assigned.splits, recipe.data.split),
                )
                labels, rare_labels = rare_label_policy.apply_rare_label_policy(table, labels, recipe, left)
                if recipe.data.split.straddling == "drop":
                    straddling_rows.drop_straddling(straddling, left)
                deduplicate(table, assigned.splits, recipe, pool, left)
        data_checks.check_labels(labels, table, recipe)
        about, sets = list_label_descriptions(labels, recipe), label_sets.build_label_sets(table, labels, recipe)
        may_be_empty = "0" in label_sets.count_set_sizes(sets, table.columns["target"][left.stays])
        with steps("count tokens"):
            token_counts.count_tokens(table, recipe, about, left, may_be_empty)
            room = token_counts.drop_too_long(table, assigned.splits, recipe, left)
        prepared = statistics.PreparedData(
            recipe, table, assigned, left, labels, about, unusable, room, filtered, sets, may_be_empty
        )
        counted = statistics.count_rows(prepared)
        not_learnable = data_checks.check_learnable(prepared, counted, replaced)
        with steps("doubt labels"):
            doubts = label_errors.find_task_label_issues(table, assigned.splits, labels, left, recipe)
        with steps("write"):
            respelt = TASKS[recipe.task.variant].make_label_mapper(labels, list(about)) if labels else None
            slices = write.write_splits(aside, table, assigned.splits, left, recipe, respelt)
            write.write_rejected(aside / "rejected.jsonl", unusable, table, assigned.splits, left)
            label_errors.write_label_issues(aside / "suspects.csv", doubts.found, table, assigned.splits)
        told = {
            "schema_version": 2,
            "digest": digest,
            "started": started,
            "processes": pool.processes,
            "seconds": steps.seconds,
            "sources": read_from,
            "left_out": sources.find_ignored_files(recipe.data.source),
            "rows": counted,
            **statistics.compute_statistics(prepared),
            "where_unmatched": unmatched,
            "rare_labels": rare_labels,
            "not_learnable": [*not_learnable, *without_values, *statistics.find_empty_label_columns(prepared)],
            "straddling": {reason: len(rows) for reason, (rows, _) in straddling.items()},
            "slices": statistics.describe_slices(prepared, slices),
            "suspects": doubts.told(),
        }
        told["sha256"] = {path.name: atomic_files.sha256(path) for path in sorted(aside.iterdir()) if path.is_file()}
        html.write(aside / "data.html", told, prepared, doubts.found)
        atomic_files.write_json(aside / "data.json", told)
        shutil.rmtree(work)
    return folder, True


def _choose_process_count(recipe: Recipe, found: list[SourceFile]) -> int:
    if recipe.data.num_proc != "auto":
        return recipe.data.num_proc
    paths = (path for file in found for path in file.documents or [file.path])
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return max(1, min(len(os.sched_getaffinity(0)), size // MIN_BYTES_PER_PROCESS))


def _read_sources(
    found: list[SourceFile], hashes: list[str], recipe: Recipe, work: Path, pool: parallel.WorkerPool
) -> tuple[Table, list[Rejected], list[dict[str, Any]], int, list[str]]:
    """Reads all files into a table. Returns it, the rows that cannot be used, what each file was found to be, how many
    rows are not those that data.where asks for, and lines about values in it that no row has."""
    unusable: list[Rejected] = []
    filtered, where, columns = 0, RowFilter(recipe.data.where), set[str]()
    told: list[dict[str, Any]] = []
    with TableWriter(work, recipe) as writer:
        for file, sha256 in zip(found, hashes, strict=True):
            about, rows = read.read(file, recipe.data.source, columns_to_read(recipe, file.split))
            counter = _CountingReader(rows, file, recipe, where)
            given = -1 if file.split == "all" else SPLITS.index(file.split)
            unusable += writer.add(given, counter, pool)
            if not counter.rows:
                below = " below the header" if file.kind in ("csv", "tsv", "xlsx") else " in it"
                raise RecipeError(f"{file.name}: there are no rows{below}")
            filtered += counter.filtered
            columns |= counter.columns
            size = {"bytes": file.path.stat().st_size} if file.path.is_file() else {}
            lacks = {"lacks": sorted(counter.lacks), "lacks_answers": sorted(counter.unanswered)}
            counts = {"rows_read": counter.rows, "detected": about, **lacks}
            told.append({"split": file.split, "file": file.name, "sha256": sha256, **size, **counts})
            if about.get("encoding_guessed"):
                guess = f"{file.name} is no UTF-8: read as {about['encoding']}; data.source.encoding says it for sure"
                print(f"data      {guess}", file=sys.stderr)
            if others := about.get("arrays_not_read"):
                told_of = f"{file.name}: the rows are those of {about['array']!r}; not read: {', '.join(others[:10])}"
                print(f"data      {told_of}", file=sys.stderr)
        table = writer.table()
    check_answer_columns([one["lacks_answers"] for one in told], columns, recipe)
    data_checks.check_rejected(unusable, len(table), filtered, where.unmatched(), recipe)
    return table, unusable, told, filtered, where.unmatched()


class _CountingReader:
    """The rows of a file, counted as they pass, and their columns checked.

    `lacks` names the columns of groups and times that no row of a given held-out file has: they are not needed there;
    `unanswered` those of several answers, and `columns` those that the first rows have.
    """

    def __init__(self, rows: Iterator[SourceRow], file: SourceFile, recipe: Recipe, where: RowFilter) -> None:
        self.rows, self.filtered, self._source, self._file, self._recipe = 0, 0, rows, file, recipe
        self._where, split = where, recipe.data.split
        self.columns = set[str]()
        self.lacks = {column for column in (split.group, split.time) if column is not None}
        self.unanswered = {*recipe.data.columns.of_targets.values()}

    def __iter__(self) -> Iterator[SourceRow]:
        filters, seen = bool(self._recipe.data.where), dict[str, Any]()
        inside = [column for column in columns_to_read(self._recipe, "all") if "." in column]
        complete = False
        for row in self._source:
            if inside and not row.problem:
                row.values.update(dotted_paths.resolve_columns(row.values, inside))
            if not complete and not row.problem:
                seen |= row.values
                complete = self._has_all(seen)
                self.columns.update(seen)
            self.rows += 1
            if self.lacks:
                self.lacks.difference_update(row.values)
            if self.unanswered:
                self.unanswered.difference_update(row.values)
            if filters and not row.problem and not self._where.takes(row.values):
                self.filtered += 1
            else:
                yield row
        if seen and not complete:
            check_columns(str(self._file.path), self._file.split, seen, self._recipe)

    def _has_all(self, seen: Mapping[str, Any]) -> bool:
        """Whether the rows so far have every column that the recipe names. Raises RecipeError where they should."""
        complete = not find_missing_columns(self._file.split, seen, self._recipe)
        if not complete and (self._file.kind not in ("json", "jsonl") or self.rows >= COLUMN_CHECK_ROWS):
            check_columns(str(self._file.path), self._file.split, seen, self._recipe)
        return complete


def map_label_aliases(table: Table, recipe: Recipe) -> dict[str, str]:
    """Returns {label as the source writes it: label that it stands for}; {} for tasks without labels.

    That is the listed one where the recipe lists labels, and the most frequent spelling where it does not.
    """
    listed, fold = recipe.task.labels, recipe.data.normalize_labels
    if listed == "auto":
        return spelling.map_spellings(table.targets, fold)
    return {written: spelling.find_label(written, listed, fold) or written for written in table.targets}


def list_label_descriptions(labels: dict[str, str], recipe: Recipe) -> dict[str, str]:
    """Returns {label: description} in prompt order: as the recipe lists them, or those of the rows by alphabet."""
    listed = recipe.task.labels
    if listed == "auto":
        return dict.fromkeys(sorted(set(labels.values())), "")
    return dict(listed) if isinstance(listed, dict) else dict.fromkeys(listed, "")


def _check_unique_ids(table: Table) -> None:
    ids = table.columns["id"]
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(twice):
        row, other = int(order[twice[0] + 1]), int(order[twice[0]])
        raise RecipeError(
            f"{table.place(row)}: id {spelling.display_label(table.texts.value('id', row))} stands at "
            f"{table.place(other)} "
            "already; ids must differ, or leave data.columns.id out"
        )
