"""The data stage: source files in, `.data/<digest>/` out.

train.jsonl validation.jsonl calibration.jsonl test.jsonl   {"id", "input": {"text"}, "target", "group"}
rejected.jsonl    {"id", "file", "line", "kind", "reason", "detail"}
suspects.csv      likely label errors, found by a linear model
data.json         all counts, everything detected, and the hashes of all other files
data.html         the report for people

`main` is the stage from top to bottom. The stage fails unless rows read = rows written + rejected + dropped + filtered
+ unlabelled.
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
from data_prep.dedup import exact
from data_prep.dedup.drops import DropDecisions
from data_prep.labels import label_errors, label_sets, rare_label_policy
from data_prep.prepared_data import PreparedData
from data_prep.readers import dotted_paths, read, sources
from data_prep.readers.source_row import LABELLED, FileInfo, SourceFile, SourceRow
from data_prep.report import html, statistics
from data_prep.row_table import Table, TableWriter
from data_prep.rows import labelled_rows
from data_prep.rows.columns import check_answer_columns, check_columns, columns_to_read, find_missing_columns
from data_prep.rows.data_row import Rejected, Row
from data_prep.rows.row_filter import RowFilter
from data_prep.teacher import labelling, table_rows
from data_prep.teacher.answers import make_row
from data_prep.teacher.labelling import TeacherLabels
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.system.timestamps import utc_timestamp
from insource.tasks import TASKS
from insource.tasks.task_kind import LabelledTaskKind
from insource.text.labels import display_label, find_label, map_spellings
from insource.text.text_keys import DUPLICATE_KEY_RULE
from insource.tracking import digests
from insource.tracking.data_report import DataReport, SourceReport

# Below this, starting another process costs more time than it saves.
MIN_BYTES_PER_PROCESS = 2_000_000
LOG_STEP_SECONDS = 1.0
# JSON objects may omit keys without a value: all columns must occur within this many rows.
COLUMN_CHECK_ROWS = 1000


@dataclass
class StepTimer:
    """Duration of each step in seconds. Steps of LOG_STEP_SECONDS or more are logged to stderr."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block and record its duration under `name`."""
        started_at = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started_at, 3)
        if self.seconds[name] >= LOG_STEP_SECONDS:
            print(f"data      {name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)


def main(recipe: Recipe, runs: Path, replaced: Sequence[str] = ()) -> tuple[Path, bool]:
    """Return the folder of the prepared data, and whether this call prepared it.

    `replaced` lists the values that the hardware file and SET changed in the recipe; error messages name them.

    With data.teacher, the rows of people are prepared first, in a folder of their own. Then the teacher labels other
    rows, and both are prepared together.

    Raise RecipeError if the source cannot be used; no folder is left behind then. Raise StageError if the teacher does
    not answer.
    """
    if recipe.data.teacher is None:
        return prepare_rows(recipe, runs, replaced)
    people_folder, _ = prepare_rows(without_teacher(recipe), runs, replaced)
    teacher_labels = labelling.label_rows(recipe, people_folder, runs)
    folder, was_prepared = prepare_rows(recipe, runs, replaced, teacher_labels)
    table_rows.check_held_out_unchanged(people_folder, folder)
    return folder, was_prepared


def without_teacher(recipe: Recipe) -> Recipe:
    """Return the recipe for the rows that people labelled."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"teacher": None})})


def prepare_rows(
    recipe: Recipe, runs: Path, replaced: Sequence[str] = (), teacher_labels: TeacherLabels | None = None
) -> tuple[Path, bool]:
    """Return the folder of the prepared rows of people, and of the labels of a teacher if they are given.

    The second value is whether this call prepared it. Raise RecipeError as `main` does.
    """
    files = sources.find_files(recipe.data.source)
    hashes = [sources.sha256(file, recipe.data.source) for file in files]
    folder = runs / ".data" / _compute_digest(recipe, files, hashes, teacher_labels)
    if (folder / "data.json").exists():
        return folder, False
    started_at, steps = utc_timestamp(), StepTimer()
    with atomic_files.atomic_folder(folder, keep_existing=True) as temp_folder:
        work_folder = temp_folder / ".work"
        with parallel.worker_pool(_choose_process_count(recipe, files)) as pool:
            with steps("read and clean"):
                teacher_rows = [make_row(label, recipe) for label in teacher_labels.labels] if teacher_labels else []
                read_rows = _read_sources(files, hashes, recipe, work_folder, pool, teacher_rows)
            table = read_rows.table
            _check_unique_ids(table)
            empty_field_notes = data_checks.check_fields(table, read_rows.sources, recipe)
            with steps("split"):
                assignment = split.assign_splits(table, recipe.data.split, {file.split for file in files})
            with steps("deduplicate"):
                canonical_labels = map_canonical_labels(table, recipe)
                drops = DropDecisions.none(len(table))
                straddling_rows.drop_labelled_groups(table, assignment.splits, drops)
                straddling = straddling_rows.find_straddling(table, assignment.splits, recipe.data.split, drops.kept)
                canonical_labels, rare_labels = rare_label_policy.apply_rare_label_policy(
                    table, canonical_labels, recipe, drops
                )
                if recipe.data.split.straddling == "drop":
                    straddling_rows.drop_straddling(straddling, drops)
                table_rows.yield_to_people(table, drops)
                exact.deduplicate(table, assignment.splits, recipe, pool, drops)
        data_checks.check_labels(canonical_labels, table, recipe)
        descriptions = list_label_descriptions(canonical_labels, recipe)
        sets = label_sets.build_label_sets(table, canonical_labels, recipe)
        may_be_empty = "0" in label_sets.count_set_sizes(sets, table.columns["target"][drops.kept])
        with steps("count tokens"):
            token_counts.count_tokens(table, recipe, descriptions, drops, may_be_empty)
            table_rows.drop_long_rows(table, assignment.splits, recipe, drops)
            context_limit = token_counts.drop_too_long(table, assignment.splits, recipe, drops)
        prepared = PreparedData(
            recipe=recipe,
            table=table,
            assignment=assignment,
            drops=drops,
            canonical_labels=canonical_labels,
            label_descriptions=descriptions,
            rejected=read_rows.rejected,
            context_limit=context_limit,
            filtered=read_rows.filtered,
            unlabelled=read_rows.unlabelled,
            label_sets=sets,
            may_be_empty=may_be_empty,
        )
        row_counts = statistics.count_rows(prepared)
        not_learnable = data_checks.check_learnable(prepared, row_counts, replaced)
        with steps("doubt labels"):
            issues = label_errors.find_task_label_issues(table, assignment.splits, canonical_labels, drops, recipe)
        with steps("write"):
            extra_columns = teacher_labels.extra_columns() if teacher_labels else {}
            slices = _write_rows(temp_folder, prepared, issues, extra_columns)
        report = DataReport(
            schema_version=2,
            digest=folder.name,
            started=started_at,
            processes=pool.processes,
            seconds=steps.seconds,
            sources=read_rows.sources,
            left_out=sources.find_ignored_files(recipe.data.source),
            rows=row_counts,
            split=statistics.describe_split(prepared),
            duplicate_key=DUPLICATE_KEY_RULE,
            near_duplicates=statistics.describe_near_duplicates(prepared),
            test_rows_also_elsewhere=exact.count_leaks(table, assignment.splits),
            labels=statistics.describe_labels(prepared),
            labels_per_row=statistics.count_labels_per_row(prepared),
            fields=statistics.count_field_states(table),
            answers=statistics.describe_answers(prepared),
            tokens=statistics.describe_tokens(prepared),
            personal_data=statistics.count_personal_data(prepared),
            system_prompts_replaced=len(table.systems),
            provenance=statistics.count_provenance(prepared),
            where_unmatched=read_rows.unmatched,
            rare_labels=rare_labels,
            not_learnable=[*not_learnable, *empty_field_notes, *statistics.find_empty_label_columns(prepared)],
            straddling={reason: len(rows) for reason, (rows, _) in straddling.items()},
            slices=statistics.describe_slices(prepared, slices),
            suspects=issues.summarize(),
            teacher=statistics.describe_teacher(prepared, teacher_labels),
            sha256={path.name: atomic_files.sha256(path) for path in sorted(temp_folder.iterdir()) if path.is_file()},
        )
        html.write(temp_folder / "data.html", report, prepared, issues.issues)
        atomic_files.write_json(temp_folder / "data.json", report.to_json())
        shutil.rmtree(work_folder)
    return folder, True


def find_prepared(recipe: Recipe, runs: Path) -> Path | None:
    """Return the folder of the prepared rows of people, None if they are not prepared."""
    files = sources.find_files(recipe.data.source)
    hashes = [sources.sha256(file, recipe.data.source) for file in files]
    folder = runs / ".data" / _compute_digest(recipe, files, hashes)
    return folder if (folder / "data.json").exists() else None


def _compute_digest(
    recipe: Recipe, files: Sequence[SourceFile], hashes: Sequence[str], labels: TeacherLabels | None = None
) -> str:
    inputs = [(file.split, file.name, sha256) for file, sha256 in zip(files, hashes, strict=True)]
    if labels is not None:
        inputs.append(("teacher", "labels.jsonl", labels.sha256))
    return digests.compute_data_digest(recipe, inputs)


def _write_rows(
    folder: Path,
    prepared: PreparedData,
    issues: label_errors.LabelIssues,
    extra_columns: Mapping[str, Mapping[str, object]],
) -> write.SliceCounts:
    """Write the split files, rejected.jsonl and suspects.csv. Return the rows written by slice, as `write_splits`."""
    table, splits, drops, recipe = prepared.table, prepared.assignment.splits, prepared.drops, prepared.recipe
    task, map_label = TASKS[recipe.task.task_name], None
    if prepared.canonical_labels and isinstance(task, LabelledTaskKind):
        map_label = task.make_label_mapper(prepared.canonical_labels, list(prepared.label_descriptions))
    slices = write.write_splits(folder, table, splits, drops, recipe, map_label, extra_columns)
    write.write_rejected(folder / "rejected.jsonl", prepared.rejected, table, splits, drops)
    label_errors.write_label_issues(folder / "suspects.csv", issues.issues, table, splits)
    return slices


def _choose_process_count(recipe: Recipe, files: list[SourceFile]) -> int:
    """Return `data.num_proc`, or for "auto" one process per MIN_BYTES_PER_PROCESS of source, at most one per core."""
    if recipe.data.num_proc != "auto":
        return recipe.data.num_proc
    paths = (path for file in files for path in file.documents or [file.path])
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return max(1, min(len(os.sched_getaffinity(0)), size // MIN_BYTES_PER_PROCESS))


@dataclass(frozen=True)
class _ReadRows:
    """The rows of all files, and the findings of reading them."""

    table: Table
    rejected: list[Rejected]
    sources: list[SourceReport]
    """One per file."""
    filtered: int
    """Number of rows that data.where filters out."""
    unlabelled: int
    """Number of rows of labelled files that nobody has labelled."""
    unmatched: list[str]
    """One line per value in data.where that no row has."""


def _read_sources(
    files: list[SourceFile],
    hashes: list[str],
    recipe: Recipe,
    work_folder: Path,
    pool: parallel.WorkerPool,
    teacher_rows: Sequence[Row],
) -> _ReadRows:
    """Read all files into a table. Raise RecipeError if a file has no rows, or if too many rows cannot be used."""
    rejected: list[Rejected] = []
    filtered, unlabelled, row_filter, columns = 0, 0, RowFilter(recipe.data.where), set[str]()
    source_info: list[SourceReport] = []
    with TableWriter(work_folder, recipe) as writer:
        for file, sha256 in zip(files, hashes, strict=True):
            is_labelled_file = file.split == LABELLED
            source = labelled_rows.make_labelled_source(recipe.data.source) if is_labelled_file else recipe.data.source
            info, rows = read.read(file, source, columns_to_read(recipe, file.split))
            counter = _CountingReader(rows, file, recipe, row_filter)
            given_split = -1 if file.split == "all" else SPLITS.index("train" if is_labelled_file else file.split)
            rejected += writer.add(given_split, counter, pool)
            if not counter.rows_read:
                location = " below the header" if file.kind in ("csv", "tsv", "xlsx") else " in it"
                raise RecipeError(f"{file.name}: the file has no rows{location}", code="INS-D007")
            filtered += counter.rows_filtered
            unlabelled += counter.rows_unlabelled
            columns |= counter.columns
            source_info.append(_describe_source(file, sha256, info, counter))
            _print_notes(file, info)
        writer.add_teacher_rows(teacher_rows)
        table = writer.table()
    check_answer_columns([source.lacks_answers for source in source_info], columns, recipe)
    data_checks.check_rejected(rejected, len(table), filtered, row_filter.list_unmatched(), recipe)
    return _ReadRows(table, rejected, source_info, filtered, unlabelled, row_filter.list_unmatched())


def _describe_source(file: SourceFile, sha256: str, info: FileInfo, counter: "_CountingReader") -> SourceReport:
    """Return the entry of data.json of a file that was read."""
    optional = {"bytes": file.path.stat().st_size} if file.path.is_file() else {}
    optional |= {"rows_unlabelled": counter.rows_unlabelled} if file.split == LABELLED else {}
    return SourceReport(
        split=file.split,
        file=file.name,
        sha256=sha256,
        rows_read=counter.rows_read,
        detected=info,
        lacks=sorted(counter.missing),
        lacks_answers=sorted(counter.missing_answers),
        **optional,
    )


def _print_notes(file: SourceFile, info: FileInfo) -> None:
    """Print a line if the encoding of a file is a guess, and a line if it has arrays that are not read."""
    if info.get("encoding_guessed"):
        note = f"{file.name} is no UTF-8: read as {info['encoding']}; data.source.encoding says it for sure"
        print(f"data      {note}", file=sys.stderr)
    if unread_arrays := info.get("arrays_not_read"):
        note = f"{file.name}: the rows are those of {info['array']!r}; not read: {', '.join(unread_arrays[:10])}"
        print(f"data      {note}", file=sys.stderr)


class _CountingReader:
    """Iterator over the rows of a file that counts them, checks their columns and applies data.where.

    `missing` has the columns for groups and times that no row of the file has; held-out files do not need them.
    `missing_answers` has the target columns that no row has. `columns` has the columns of the first rows.
    """

    def __init__(self, rows: Iterator[SourceRow], file: SourceFile, recipe: Recipe, row_filter: RowFilter) -> None:
        self.rows_read = self.rows_filtered = self.rows_unlabelled = 0
        self._source_rows, self._file, self._recipe, self._row_filter = rows, file, recipe, row_filter
        settings = recipe.data.split
        self.columns = set[str]()
        self.missing = {column for column in (settings.group, settings.time) if column is not None}
        self.missing_answers = {*recipe.data.columns.target_columns.values()}

    def __iter__(self) -> Iterator[SourceRow]:
        is_filtered, seen = bool(self._recipe.data.where), dict[str, Any]()
        nested_columns = [column for column in columns_to_read(self._recipe, "all") if "." in column]
        complete = False
        for row in self._restored_rows():
            if nested_columns and not row.problem:
                row.values.update(dotted_paths.resolve_columns(row.values, nested_columns))
            if not complete and not row.problem:
                seen |= row.values
                complete = self._has_all_columns(seen)
                self.columns.update(seen)
            self.rows_read += 1
            if self.missing:
                self.missing.difference_update(row.values)
            if self.missing_answers:
                self.missing_answers.difference_update(row.values)
            if is_filtered and not row.problem and not self._row_filter.accepts(row.values):
                self.rows_filtered += 1
            else:
                yield row
        if seen and not complete:
            check_columns(str(self._file.path), self._file.split, seen, self._recipe)

    def _restored_rows(self) -> Iterator[SourceRow]:
        """Yield the rows of the file; of a labelled file, those that a person has labelled."""
        if self._file.split != LABELLED:
            yield from self._source_rows
            return
        for row in labelled_rows.iter_labelled(self._source_rows, self._file, self._recipe):
            if row is None:
                self.rows_read += 1
                self.rows_unlabelled += 1
            else:
                yield row

    def _has_all_columns(self, seen: Mapping[str, object]) -> bool:
        """Return whether the rows so far have every column that the recipe names.

        Raise RecipeError if a column is missing and no later row can have it.
        """
        complete = not find_missing_columns(self._file.split, seen, self._recipe)
        if not complete and (self._file.kind not in ("json", "jsonl") or self.rows_read >= COLUMN_CHECK_ROWS):
            check_columns(str(self._file.path), self._file.split, seen, self._recipe)
        return complete


def map_canonical_labels(table: Table, recipe: Recipe) -> dict[str, str]:
    """Return {label as written in the source: canonical label}; {} for tasks without labels.

    The canonical label is the one in the recipe's list, or without a list the most frequent spelling.
    """
    listed, fold = recipe.task.labels, recipe.data.normalize_labels
    if listed == "auto":
        return map_spellings(table.targets, fold)
    return {alias: find_label(alias, listed, fold) or alias for alias in table.targets}


def list_label_descriptions(canonical_labels: dict[str, str], recipe: Recipe) -> dict[str, str]:
    """Return {label: description} in prompt order: the order of the recipe, or without a list alphabetical order."""
    listed = recipe.task.labels
    if listed == "auto":
        return dict.fromkeys(sorted(set(canonical_labels.values())), "")
    return dict(listed) if isinstance(listed, dict) else dict.fromkeys(listed, "")


def _check_unique_ids(table: Table) -> None:
    """Raise RecipeError with both locations if two rows have the same id."""
    ids = table.columns["id"]
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(repeated):
        row, previous = int(order[repeated[0] + 1]), int(order[repeated[0]])
        row_id = display_label(table.texts.value("id", row))
        raise RecipeError(
            f"{table.location(row)}: id {row_id} is used at {table.location(previous)} already; ids must be unique. "
            "Correct it, or leave data.columns.id out",
            code="INS-D028",
        )
