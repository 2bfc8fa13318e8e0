"""Labels with few rows: dropped, merged into one label, or refused, by `data.rare_labels`.

rare_labels: {min_rows: 10, do: other}    {"refund": 120, "typo": 2, "fax": 4}  ->  {"refund": 120, "other": 6}
"""

from collections import Counter

import numpy as np

from data_prep.dedup.drops import DropDecisions
from data_prep.labels import label_sets
from data_prep.row_table import Table, hash_target
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.data import RareLabels
from insource.tasks import TASKS
from insource.tasks.task_kind import LabelledTaskKind
from insource.text.labels import clean_label, display_label, find_label

# Labels in one message.
MAX_LABELS_SHOWN = 10


def apply_rare_label_policy(
    table: Table, canonical_labels: dict[str, str], recipe: Recipe, drops: DropDecisions
) -> tuple[dict[str, str], list[str]]:
    """Return {spelling: label} without the rare labels, and the lines for the report.

    With "drop", the rows of rare labels are dropped, test rows too: their answer is not among the labels.

    Raise RecipeError if `data.rare_labels.do` is "fail" and there is a rare label.
    """
    settings = recipe.data.rare_labels
    counts = Counter[str]()
    for spelling, rows in table.targets.items():
        counts[canonical_labels[spelling]] += rows
    rare = [label for label, rows in counts.items() if settings is not None and rows < settings.min_rows]
    if settings is None or not rare:
        return canonical_labels, []
    sets = label_sets.build_label_sets(table, canonical_labels, recipe)
    targets, first_rows, inverse = np.unique(table.columns["target"], return_index=True, return_inverse=True)
    is_rare = np.array([not {*rare}.isdisjoint(sets.get(target_hash, ())) for target_hash in targets.tolist()])
    mask = is_rare[inverse]
    message = _format_message(rare, counts, settings, int(mask.sum()))
    if settings.do == "fail":
        raise RecipeError(f"data.rare_labels: {message}", code="INS-D026")
    if settings.do == "drop":
        drops.drop(mask, "rare_label")
        return {spelling: label for spelling, label in canonical_labels.items() if label not in rare}, [
            f"{message}: left out"
        ]
    # The label may exist already, in another spelling.
    frequent = [label for label in counts if label not in rare]
    replacement = find_label(settings.other, frequent, recipe.data.normalize_labels) or clean_label(settings.other)
    merged = {spelling: replacement if label in rare else label for spelling, label in canonical_labels.items()}
    task = TASKS[recipe.task.task_name]
    assert isinstance(task, LabelledTaskKind)
    map_label = task.make_label_mapper(merged, sorted(set(merged.values())))
    for index in np.flatnonzero(is_rare):
        targets[index] = hash_target(map_label(table.texts.value("target", int(first_rows[index]))), recipe)
    table.columns["target"][mask] = targets[inverse][mask]
    return merged, [f"{message}: now {display_label(replacement)}"]


def _format_message(rare: list[str], counts: Counter[str], settings: RareLabels, rows: int) -> str:
    """Return the rare labels with their numbers of rows, the most frequent first."""
    ranked = sorted(rare, key=lambda label: (-counts[label], label))
    listing = ", ".join(f"{display_label(label)} {counts[label]}" for label in ranked[:MAX_LABELS_SHOWN])
    remainder = f" and {len(ranked) - MAX_LABELS_SHOWN} more" if len(ranked) > MAX_LABELS_SHOWN else ""
    return f"{len(rare)} labels of fewer than {settings.min_rows} rows, {rows} rows in all ({listing}{remainder})"
