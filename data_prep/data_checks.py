"""Checks whether the remaining rows are enough to train and evaluate on; errors give the causes in a few lines.

labels with too few rows (the first 5 of 12):
  'refund': 9 rows, none left in train (too_long 6, in_test 3): it cannot be learnt
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from data_prep.dedup.drops import DROP_REASONS
from data_prep.labels import label_sets
from data_prep.prepared_data import PreparedData
from data_prep.row_table import Table
from data_prep.rows.columns import field_names
from data_prep.rows.data_row import Rejected
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.tasks import TASKS
from insource.text.labels import display_label
from insource.tracking.data_report import RowCounts, SourceReport

# Labels and hints in one message: with its first and last line it has at most ten lines.
MAX_LABELS_SHOWN, MAX_HINTS = 5, 3
MAX_COLUMNS_SHOWN = 20
RECIPE_KEY_BY_REASON = {
    "too_long": "train.max_length",
    "conflict": "data.conflicts",
    "near_test": "data.deduplicate.near",
    "near_duplicate": "data.deduplicate.near",
    "group_in_test": "data.split.straddling",
    "not_before_test": "data.split.straddling",
}


def check_rejected(
    rejected: list[Rejected], usable: int, filtered: int, unmatched: Sequence[str], recipe: Recipe
) -> None:
    """Raise RecipeError if no row is usable, or if more than data.max_rejected of the rows are unusable.

    The message has the reasons and the first locations. `unmatched` has one line per value in data.where that no row
    has.
    """
    rows_read = usable + len(rejected)
    if filtered and not rows_read:
        hints = [f"  {line}" for line in unmatched[:MAX_LABELS_SHOWN]] or [
            "  each value occurs, but not in the same row"
        ]
        raise RecipeError("\n".join([f"data.where: none of {filtered} rows matches:", *hints]), code="INS-D023")
    if usable and len(rejected) <= recipe.data.max_rejected * rows_read:
        return
    reasons = _format_reasons(Counter(row.reason for row in rejected))
    lines = [f"  {row.file}:{row.line}  {row.reason}: {row.detail}" for row in rejected[:5]]
    remainder = [f"  ... and {len(rejected) - 5} more"] if len(rejected) > 5 else []
    raise RecipeError(
        f"{len(rejected)} of {rows_read} rows cannot be used ({reasons}); data.max_rejected is "
        f"{recipe.data.max_rejected:.2%}:\n" + "\n".join(lines + remainder),
        code="INS-D022",
    )


def check_fields(table: Table, sources: Sequence[SourceReport], recipe: Recipe) -> list[str]:
    """Return one line per record field without a value in any row, with the column that may be meant.

    Raise RecipeError if no row has a value of any field.
    """
    missing_counts = {name: Counter(dict.fromkeys(("absent", "empty"), 0)) for name in field_names(recipe)}
    for (_, path, state), rows in table.states.items():
        if path in missing_counts and state in missing_counts[path]:
            missing_counts[path][state] += rows
    empty_fields = [name for name, states in missing_counts.items() if states.total() == len(table)]
    if empty_fields and len(empty_fields) == len(missing_counts) and len(table):
        available = list(dict.fromkeys(column for source in sources for column in source.detected.get("columns", ())))
        listing = ", ".join(available[:MAX_COLUMNS_SHOWN]) + (", ..." if len(available) > MAX_COLUMNS_SHOWN else "")
        column_hint = f"; the columns are {listing}" if available else ""
        raise RecipeError(
            f"no row has a value of any field of task.json_schema ({', '.join(missing_counts)}); set "
            f"data.columns.target to the column with whole records, or name a column after each field{column_hint}",
            code="INS-D024",
        )
    return [f"field {name}: no row has a value of it{_suggest_column(name, sources, recipe)}" for name in empty_fields]


def _suggest_column(field: str, sources: Sequence[SourceReport], recipe: Recipe) -> str:
    """Return a hint to the column with the most similar name; "" if there is none or the field is a column."""
    columns = recipe.data.columns
    if columns.target or columns.targets or columns.slot_columns:
        return ""
    available = [column for source in sources for column in source.detected.get("columns", ())]
    folded = {column.casefold().replace("_", " "): column for column in available}
    matches = get_close_matches(field.casefold().replace("_", " "), list(folded), 1)
    return f"; did you mean the column {folded[matches[0]]!r}?" if matches and field not in available else ""


def check_labels(canonical_labels: dict[str, str], table: Table, recipe: Recipe) -> None:
    """Raise RecipeError if all rows have the same label. `canonical_labels` is {spelling: label}."""
    if TASKS[recipe.task.task_name].IS_MULTILABEL and len(table) and len(set(canonical_labels.values())) < 2:
        names = ", ".join(map(display_label, sorted(set(canonical_labels.values())))) or "none"
        raise RecipeError(
            f"data.columns.label: {len(table)} rows have fewer than two different labels: {names}; "
            "check whether the export was filtered",
            code="INS-D025",
        )
    if len(set(canonical_labels.values())) == 1 and len(table):
        label = next(iter(canonical_labels.values()))
        raise RecipeError(
            f"data.columns.label: all {len(table)} rows have the label {display_label(label)}; two labels are the "
            "minimum. Check whether the export was filtered",
            code="INS-D025",
        )


def check_learnable(prepared: PreparedData, row_counts: RowCounts, replaced: Sequence[str]) -> list[str]:
    """Return one line per listed label that cannot be learnt because all its train rows conflict with others.

    `row_counts` has the row counts of `report.statistics.count_rows`. `replaced` lists what was changed in the recipe.

    Raise RecipeError if any other label cannot be learnt or evaluated, or if a split is empty.
    """
    problems, conflicting, drop_reasons = [], [], Counter[str]()
    for label, (n_read, written_counts, reasons) in _count_by_label(prepared).items():
        problem = _find_label_problem(n_read, written_counts, reasons)
        if problem is None:
            continue
        problem = f"{display_label(label)}{problem}"
        if prepared.recipe.task.labels != "auto" and reasons and reasons.keys() <= {"conflict", "duplicate"}:
            # The recipe both lists this label and drops its conflicting rows: a note, not an error.
            conflicting.append(f"label {problem}")
            continue
        problems.append(f"  {problem}")
        drop_reasons += reasons
    if problems:
        count_note = f" (the first {MAX_LABELS_SHOWN} of {len(problems)})" if len(problems) > MAX_LABELS_SHOWN else ""
        hints = [f"  {line}" for line in _make_hints(drop_reasons, prepared, replaced)]
        advice = "  Merge such a label into another, leave its rows out, or add rows."
        raise RecipeError(
            "\n".join([f"labels with too few rows{count_note}:", *problems[:MAX_LABELS_SHOWN], *hints, advice]),
            code="INS-D026",
        )
    for name in ("train", "validation", "test"):
        if not row_counts.written[name]:
            reasons = Counter(row_counts.dropped) + Counter(row_counts.rejected)
            reason_note = f" ({_format_reasons(reasons)})" if reasons else ""
            keys = "".join(f"\n  {line}" for line in _make_hints(reasons, prepared, replaced))
            raise RecipeError(
                f"no rows are left for {name}: {row_counts.read} were read{reason_note}; see data.split{keys}",
                code="INS-D027",
            )
    accounted = sum(row_counts.written.values()) + sum(row_counts.rejected.values()) + sum(row_counts.dropped.values())
    accounted += row_counts.filtered + row_counts.unlabelled
    if accounted != row_counts.read:
        raise AssertionError(f"rows read {row_counts.read} != written + rejected + dropped {accounted}")
    return conflicting


def _count_by_label(prepared: PreparedData) -> dict[str, tuple[int, dict[str, int], Counter[str]]]:
    """Return {label: (usable rows read, {split: rows written}, {reason: rows dropped})}."""
    if not prepared.label_descriptions:
        return {}
    sets, targets, reason = prepared.label_sets, prepared.table.columns["target"], prepared.drops.reason
    rows_read = label_sets.count_rows_per_label(sets, targets)
    written_by_split = {
        name: label_sets.count_rows_per_label(sets, targets[mask]) for name, mask in prepared.kept_by_split.items()
    }
    dropped_by_code = {
        code: label_sets.count_rows_per_label(sets, targets[reason == code])
        for code in np.unique(reason).tolist()
        if code
    }
    counts = {}
    for label in prepared.label_descriptions:
        reasons = Counter({DROP_REASONS[code]: rows[label] for code, rows in dropped_by_code.items()})
        counts[label] = (rows_read[label], {name: rows[label] for name, rows in written_by_split.items()}, +reasons)
    return counts


def _find_label_problem(n_read: int, written_counts: dict[str, int], drop_reasons: Counter[str]) -> str | None:
    """Return the problem of a label as the text after its name, None if there is none."""
    reason_note = f" ({_format_reasons(drop_reasons)})" if drop_reasons else ""
    if n_read < 2:
        occurs = "occurs once" if n_read else "does not occur"
        return f" {occurs}: a label needs rows for training and rows for evaluation"
    if sum(written_counts.values()) < 2:
        return f": {n_read} rows, {sum(written_counts.values())} left{reason_note}"
    if written_counts["train"] == 0:
        elsewhere = ", ".join(f"{name} {rows}" for name, rows in written_counts.items() if rows)
        return f": {n_read} rows, none left in train{reason_note or f' ({elsewhere})'}: it cannot be learnt"
    return None


def _format_reasons(reasons: Counter[str]) -> str:
    """Return "too_long 6, in_test 3", the most frequent reason first."""
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())


def _make_hints(reasons: Counter[str], prepared: PreparedData, replaced: Sequence[str]) -> list[str]:
    """Return one line per setting that dropped rows, with its value and its origin if that is not the recipe."""
    lines = []
    for reason, count in reasons.most_common():
        if reason == "too_long_to_serve":
            key, value = prepared.context_limit.key, prepared.context_limit.tokens
        elif reason == "too_long_for_base":
            lines.append(f"{count} rows left as {reason}: they are more than model.base can process")
            continue
        elif reason in RECIPE_KEY_BY_REASON:
            key, value = RECIPE_KEY_BY_REASON[reason], _recipe_value(prepared.recipe, RECIPE_KEY_BY_REASON[reason])
        else:
            continue
        set_by = "".join(f" ({note})" for note in replaced if note.startswith(f"{key}: "))
        lines.append(f"{count} rows left as {reason}: {key} is {value}{set_by}")
    return lines[:MAX_HINTS]


def _recipe_value(recipe: Recipe, key: str) -> Any:
    """Return the value of a dotted recipe key."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value
