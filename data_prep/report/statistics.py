"""Statistics of prepared data, for data.json and data.html."""

from collections import Counter

import numpy as np

from data_prep import minhash, split
from data_prep.dedup.drops import DROP_REASONS, TEST, TRAIN
from data_prep.labels import label_sets
from data_prep.prepared_data import PreparedData
from data_prep.readers.source_row import PROVENANCES
from data_prep.row_table import Table
from data_prep.rows.columns import slice_columns
from data_prep.teacher.labelling import TeacherLabels
from data_prep.write import SliceCounts
from insource.config.schema.data import NotInTrain
from insource.config.schema.source import SPLITS
from insource.tasks import TASKS
from insource.tasks.pii import redaction
from insource.tasks.task_kind import FreeTextTaskKind
from insource.tracking.data_report import (
    LabelReport,
    LabelsPerRow,
    NearDuplicateSettings,
    PersonalDataReport,
    RowCounts,
    ServedLimit,
    SliceReport,
    SplitReport,
    TeacherReport,
    TokenReport,
)

HISTOGRAM_BINS = 30
MAX_LOCATIONS = 5


def count_rows(prepared: PreparedData) -> RowCounts:
    """Return the numbers of rows read, filtered, unlabelled, written by split, and rejected and dropped by reason."""
    dropped = Counter(DROP_REASONS[reason] for reason in prepared.drops.reason[~prepared.drops.kept])
    return RowCounts(
        read=len(prepared.table) + len(prepared.rejected) + prepared.filtered + prepared.unlabelled,
        filtered=prepared.filtered,
        unlabelled=prepared.unlabelled,
        written={name: int(mask.sum()) for name, mask in prepared.kept_by_split.items()},
        rejected=dict(Counter(row.reason for row in prepared.rejected)),
        dropped=dict(sorted(dropped.items())),
    )


def describe_split(prepared: PreparedData) -> SplitReport:
    """Return how the rows were split."""
    return SplitReport(
        by=_describe_split_method(prepared),
        cut=prepared.assignment.test_from,
        rows_without_group=_count_rows_without_group(prepared),
        fractions=split.compute_deviations(prepared.table, prepared.assignment, prepared.label_sets),
    )


def describe_near_duplicates(prepared: PreparedData) -> NearDuplicateSettings:
    """Return the settings of the search for near-duplicates."""
    settings = prepared.recipe.data.deduplicate
    return NearDuplicateSettings(
        threshold=settings.near, shingle=settings.shingle, recall_at_threshold=round(minhash.recall(settings.near), 6)
    )


def count_provenance(prepared: PreparedData) -> dict[str, dict[str, int]]:
    """Return {provenance: {split: rows written}} of the provenances that occur."""
    provenance = prepared.table.columns["provenance"]
    return {
        name: {split_name: int((mask & (provenance == index)).sum()) for split_name, mask in kept_by_split.items()}
        for kept_by_split in [prepared.kept_by_split]
        for index, name in enumerate(PROVENANCES)
        if (provenance == index).any()
    }


def describe_labels(prepared: PreparedData) -> dict[str, LabelReport]:
    """Return the rows written of each label, and its spellings unless the only one is the label."""
    if not prepared.label_descriptions:
        return {}
    targets = prepared.table.columns["target"]
    counts_by_split = {
        name: label_sets.count_rows_per_label(prepared.label_sets, targets[mask])
        for name, mask in prepared.kept_by_split.items()
    }
    entries: dict[str, LabelReport] = {}
    for label, description in prepared.label_descriptions.items():
        spellings = {
            spelling: count
            for spelling, count in prepared.table.targets.items()
            if prepared.canonical_labels.get(spelling) == label
        }
        rows = {name: counts_by_split[name][label] for name in SPLITS}
        has_spellings = bool(set(spellings) - {label})
        entry = LabelReport.model_validate({"description": description, **rows})
        entries[label] = entry.model_copy(update={"spellings": spellings}) if has_spellings else entry
    return entries


def find_empty_label_columns(prepared: PreparedData) -> list[str]:
    """Return one line per label column that marks no row."""
    columns = prepared.recipe.data.columns.label_columns or []
    return [f"column {name!r} marks no row: it is no label" for name in columns if name not in prepared.table.targets]


def count_labels_per_row(prepared: PreparedData) -> LabelsPerRow | None:
    """Return the numbers of labels of the written rows; None for tasks that are not multi-label."""
    if not TASKS[prepared.recipe.task.task_name].IS_MULTILABEL:
        return None
    targets = prepared.table.columns["target"][prepared.drops.kept]
    return LabelsPerRow(
        may_be_empty=prepared.may_be_empty, rows=label_sets.count_set_sizes(prepared.label_sets, targets)
    )


def count_field_states(table: Table) -> dict[str, dict[str, dict[str, int]]]:
    """Return {field: {given split: {state: rows}}} before deduplication; {} for tasks other than extraction."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for (split_name, name, state), count in sorted(table.states.items()):
        counts.setdefault(name, {}).setdefault(split_name, {})[state] = count
    return counts


def describe_answers(prepared: PreparedData) -> dict[str, dict[str, float]]:
    """Return {trait: {"mean", "median"}} of the written free-text answers; {} for other tasks."""
    task = TASKS[prepared.recipe.task.task_name]
    if not isinstance(task, FreeTextTaskKind):
        return {}
    trait_values: dict[str, list[float]] = {}
    for start, batch in prepared.table.texts.batches():
        kept = prepared.drops.kept[start : start + batch.num_rows]
        for row in batch.select(["text", "target"]).filter(kept).to_pylist():
            for trait, value in task.describe_answer(row["text"], task.parse_target(row["target"])).items():
                trait_values.setdefault(trait, []).append(value)
    return {
        trait: {"mean": round(float(np.mean(values)), 4), "median": round(float(np.median(values)), 4)}
        for trait, values in trait_values.items()
    }


def describe_tokens(prepared: PreparedData) -> TokenReport:
    """Return token counts: a histogram per split, and the numbers of rows over the limits."""
    limit, lengths = prepared.recipe.train.max_length, prepared.table.columns["tokens"]
    known_lengths = lengths[lengths >= 0]
    if not len(known_lengths):
        return TokenReport(max_length=limit)
    fits = prepared.context_limit.fits(prepared.table)
    edges = np.unique(np.linspace(known_lengths.min(), known_lengths.max() + 1, HISTOGRAM_BINS + 1).astype(int))
    return TokenReport(
        max_length=limit,
        longest=int(known_lengths.max()),
        median=int(np.median(known_lengths)),
        over_max_length={name: int((lengths[mask] > limit).sum()) for name, mask in prepared.kept_by_split.items()},
        served=ServedLimit(
            tokens=prepared.context_limit.tokens,
            limit=prepared.context_limit.key,
            for_the_answer=prepared.context_limit.answer,
            test_rows_that_do_not_fit=int((prepared.kept_by_split["test"] & ~fits).sum()),
            train_rows_that_do_not_fit=int((prepared.kept_by_split["train"] & ~fits).sum()),
        ),
        histogram={
            "edges": edges.tolist(),
            **{name: np.histogram(lengths[mask], edges)[0].tolist() for name, mask in prepared.kept_by_split.items()},
        },
    )


def count_personal_data(prepared: PreparedData) -> dict[str, PersonalDataReport]:
    """Return the counts and first locations of each kind of personal data, never values."""
    flags, summary = prepared.table.columns["pii_flags"], dict[str, PersonalDataReport]()
    for bit, kind in enumerate(redaction.PII_KINDS):
        rows = np.flatnonzero(flags >> bit & 1)
        summary[kind] = PersonalDataReport(
            rows=len(rows),
            redacted=kind in prepared.recipe.privacy.redact,
            locations=[prepared.table.location(int(row)) for row in rows[:MAX_LOCATIONS]],
        )
    return summary


def describe_slices(prepared: PreparedData, counts: SliceCounts) -> dict[str, SliceReport]:
    """Return the rows written of each value of each slice.

    A not_in_train slice of a source with given test rows also has `test_rows_known_to_given_train`. It counts the test
    rows whose value, as written, occurs in the given train rows. Fewer occur in train after validation and calibration
    are split off.
    """
    slices: dict[str, SliceReport] = {}
    columns = slice_columns(prepared.recipe)
    for index, (name, spec) in enumerate(prepared.recipe.data.slices.items()):
        extra: dict[str, int] = {}
        if isinstance(spec, NotInTrain) and (prepared.table.columns["given_split"] == TEST).any():
            extra["test_rows_known_to_given_train"] = _count_known_to_given_train(prepared.table, index)
        slices[name] = SliceReport(column=columns[name], values=counts[name], **extra)
    return slices


def _count_known_to_given_train(table: Table, slice_number: int) -> int:
    """Return how many given test rows have a slice value of the recipe's own given train rows."""
    given_splits = np.where(table.columns["provenance"] == 0, table.columns["given_split"], -1)
    values = {TRAIN: Counter[str](), TEST: Counter[str]()}
    for start, batch in table.texts.batches():
        batch_values = [lines.split("\n")[slice_number] for lines in batch.column("slices").to_pylist()]
        for split_index, counter in values.items():
            counter.update(
                value
                for value, row_split in zip(batch_values, given_splits[start : start + len(batch_values)], strict=True)
                if row_split == split_index
            )
    return sum(count for value, count in values[TEST].items() if value in values[TRAIN])


def describe_teacher(prepared: PreparedData, labels: TeacherLabels | None) -> TeacherReport | None:
    """Return teacher.json with `written`, the rows of the teacher in train; None without a teacher."""
    if labels is None:
        return None
    n_written = int((prepared.table.by_teacher & prepared.drops.kept).sum())
    return labels.report.model_copy(update={"written": n_written, "labels_sha256": labels.sha256})


def _count_rows_without_group(prepared: PreparedData) -> int:
    """Return how many assignable rows have an empty group; 0 if the recipe names no group column."""
    ungrouped = prepared.assignment.assignable & ~prepared.table.columns["has_group"]
    return int(ungrouped.sum()) if prepared.recipe.data.split.group else 0


def _describe_split_method(prepared: PreparedData) -> str:
    """Return the split method as text."""
    table, settings = prepared.table, prepared.recipe.data.split
    given_splits = table.columns["given_split"][table.columns["provenance"] == 0]
    unit = f"group {settings.group}" if settings.group else "what the row says"
    method = f"keyed hash of {unit}, seed {settings.seed}"
    if settings.time is not None:
        method = f"time {settings.time} (test), {method}"
    return method if (given_splits == -1).all() else f"given files, {method} for the rest"
