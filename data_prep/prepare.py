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
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep import data_checks, parallel, split, straddling_rows, token_counts, write
from data_prep.dedup import exact
from data_prep.dedup.drops import DropDecisions
from data_prep.labels import label_errors, label_sets, rare_label_policy
from data_prep.prepared_data import PreparedData
from data_prep.readers import sources
from data_prep.readers.source_row import SourceFile
from data_prep.report import html, statistics
from data_prep.row_table import Table
from data_prep.source_reading import ReadRows, read_sources
from data_prep.split import SplitAssignment
from data_prep.teacher import labelling, table_rows
from data_prep.teacher.answers import make_row
from data_prep.teacher.labelling import TeacherLabels
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.system.timestamps import utc_timestamp
from insource.tasks import TASKS
from insource.tasks.task_kind import LabelledTaskKind
from insource.text.labels import display_label, find_label, map_spellings
from insource.text.text_keys import DUPLICATE_KEY_RULE
from insource.tracking import digests
from insource.tracking.data_report import REPORT_FILE, DataReport

# Below this, starting another process costs more time than it saves.
MIN_BYTES_PER_PROCESS = 2_000_000
LOG_STEP_SECONDS = 1.0


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
            log_line(f"data      {name}: {self.seconds[name]:.1f} s")


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


@dataclass(frozen=True)
class SelectedRows:
    """The rows that are written, and why others are not."""

    assignment: SplitAssignment
    drops: DropDecisions
    canonical_labels: dict[str, str]
    """{label as written in the source: canonical label}."""
    rare_labels: list[str]
    """One line per decision on labels with few rows."""
    straddling: Mapping[str, int]
    """{reason: train rows} that share something with held-out rows."""


def prepare_rows(
    recipe: Recipe, runs: Path, replaced: Sequence[str] = (), teacher_labels: TeacherLabels | None = None
) -> tuple[Path, bool]:
    """Return the folder of the prepared rows of people, and of the labels of a teacher if they are given.

    The second value is whether this call prepared it. Raise RecipeError as `main` does.
    """
    files = sources.find_files(recipe.data.source)
    hashes = [sources.sha256(file, recipe.data.source) for file in files]
    folder = runs / ".data" / _compute_digest(recipe, files, hashes, teacher_labels)
    if (folder / REPORT_FILE).exists():
        return folder, False
    started_at, steps = utc_timestamp(), StepTimer()
    with atomic_files.atomic_folder(folder, keep_existing=True) as temp_folder:
        work_folder = temp_folder / ".work"
        with parallel.worker_pool(_choose_process_count(recipe, files)) as pool:
            with steps("read and clean"):
                teacher_rows = [make_row(label, recipe) for label in teacher_labels.labels] if teacher_labels else []
                read_rows = read_sources(files, hashes, recipe, work_folder, pool, teacher_rows)
            _check_unique_ids(read_rows.table)
            empty_field_notes = data_checks.check_fields(read_rows.table, read_rows.sources, recipe)
            selected = _select_rows(read_rows.table, files, recipe, pool, steps)
        prepared = _describe_rows(read_rows, selected, recipe, steps)
        row_counts = statistics.count_rows(prepared)
        not_learnable = data_checks.check_learnable(prepared, row_counts, replaced)
        with steps("doubt labels"):
            issues = label_errors.find_task_label_issues(
                read_rows.table, selected.assignment.splits, selected.canonical_labels, selected.drops, recipe
            )
        with steps("write"):
            extra_columns = teacher_labels.extra_columns() if teacher_labels else {}
            slices = _write_rows(temp_folder, prepared, issues, extra_columns)
        report = _make_report(
            prepared,
            teacher_labels,
            digest=folder.name,
            started=started_at,
            processes=pool.processes,
            seconds=steps.seconds,
            sources=read_rows.sources,
            rows=row_counts,
            where_unmatched=read_rows.unmatched,
            rare_labels=selected.rare_labels,
            not_learnable=[*not_learnable, *empty_field_notes, *statistics.find_empty_label_columns(prepared)],
            straddling=selected.straddling,
            slices=statistics.describe_slices(prepared, slices),
            label_issues=issues.summarize(),
            sha256={path.name: atomic_files.sha256(path) for path in sorted(temp_folder.iterdir()) if path.is_file()},
        )
        html.write(temp_folder / "data.html", report, prepared, issues.issues)
        atomic_files.write_json(temp_folder / REPORT_FILE, report.to_json())
        shutil.rmtree(work_folder)
    return folder, True


def _select_rows(
    table: Table, files: Sequence[SourceFile], recipe: Recipe, pool: parallel.WorkerPool, steps: StepTimer
) -> SelectedRows:
    """Return the split of each row, and the rows that are dropped for their group, time, label or text."""
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
    counts = {reason: len(rows) for reason, (rows, _) in straddling.items()}
    return SelectedRows(assignment, drops, canonical_labels, rare_labels, counts)


def _describe_rows(read_rows: ReadRows, selected: SelectedRows, recipe: Recipe, steps: StepTimer) -> PreparedData:
    """Return the prepared data. Rows over the limits of tokens are dropped.

    Raise RecipeError if all rows have the same label.
    """
    table, drops, canonical_labels = read_rows.table, selected.drops, selected.canonical_labels
    data_checks.check_labels(canonical_labels, table, recipe)
    descriptions = list_label_descriptions(canonical_labels, recipe)
    sets = label_sets.build_label_sets(table, canonical_labels, recipe)
    may_be_empty = "0" in label_sets.count_set_sizes(sets, table.columns["target"][drops.kept])
    with steps("count tokens"):
        token_counts.count_tokens(table, recipe, descriptions, drops, may_be_empty)
        table_rows.drop_long_rows(table, selected.assignment.splits, recipe, drops)
        context_limit = token_counts.drop_too_long(table, selected.assignment.splits, recipe, drops)
    return PreparedData(
        recipe=recipe,
        table=table,
        assignment=selected.assignment,
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


def _make_report(prepared: PreparedData, teacher_labels: TeacherLabels | None, **fields: object) -> DataReport:
    """Return data.json. `fields` are those that need more than the prepared data."""
    described = {
        "schema_version": 2,
        "left_out": sources.find_ignored_files(prepared.recipe.data.source),
        "split": statistics.describe_split(prepared),
        "duplicate_key": DUPLICATE_KEY_RULE,
        "near_duplicates": statistics.describe_near_duplicates(prepared),
        "test_rows_also_elsewhere": exact.count_leaks(prepared.table, prepared.assignment.splits),
        "labels": statistics.describe_labels(prepared),
        "labels_per_row": statistics.count_labels_per_row(prepared),
        "fields": statistics.count_field_states(prepared.table),
        "answers": statistics.describe_answers(prepared),
        "tokens": statistics.describe_tokens(prepared),
        "personal_data": statistics.count_personal_data(prepared),
        "system_prompts_replaced": len(prepared.table.systems),
        "provenance": statistics.count_provenance(prepared),
        "teacher": statistics.describe_teacher(prepared, teacher_labels),
    }
    return DataReport.model_validate(described | fields)


def find_prepared(recipe: Recipe, runs: Path) -> Path | None:
    """Return the folder of the prepared rows of people, None if they are not prepared."""
    files = sources.find_files(recipe.data.source)
    hashes = [sources.sha256(file, recipe.data.source) for file in files]
    folder = runs / ".data" / _compute_digest(recipe, files, hashes)
    return folder if (folder / REPORT_FILE).exists() else None


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
