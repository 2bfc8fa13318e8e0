"""Which labels the rows of one target have: the target of a row is one label, or a set of them.

columns["target"] 0x5f.. of "Refund "                      {0x5f..: ("refund",)}
columns["target"] 0x1b.. of ["late", "Torn"]               {0x1b..: ("late", "torn")}
columns["target"] 0x77.. of []                             {0x77..: ()}
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.arrays import Array
from data_prep.row_table import Table, hash_target
from insource.config.recipe import Recipe
from insource.tasks import TASKS
from insource.tasks.task_kind import LabelledTaskKind

LabelSets = Mapping[int, tuple[str, ...]]


def build_label_sets(table: Table, labels: Mapping[str, str], recipe: Recipe) -> LabelSets:
    """Returns {hash of a target: its labels}, by {label as written: its label}; a label that is not in there is left
    out of its sets. {} for tasks without labels."""
    task = TASKS[recipe.task.variant]
    if not (task.IS_MULTILABEL and isinstance(task, LabelledTaskKind)):
        return {hash_target(label, recipe): (label,) for label in set(labels.values())}
    hashes, rows = np.unique(table.columns["target"], return_index=True)
    sets = {}
    for target_hash, row in zip(hashes.tolist(), rows.tolist(), strict=True):
        spellings = task.target_labels(table.texts.value("target", row))
        sets[target_hash] = tuple(sorted({labels[label] for label in spellings if label in labels}))
    return sets


def count_rows_per_label(sets: LabelSets, targets: Array) -> Counter[str]:
    """Returns how many of the rows with these target hashes have each label."""
    counts = Counter[str]()
    for target_hash, rows in zip(*(part.tolist() for part in np.unique(targets, return_counts=True)), strict=True):
        for label in sets.get(target_hash, ()):
            counts[label] += rows
    return counts


def count_set_sizes(sets: LabelSets, targets: Array) -> dict[str, int]:
    """Returns {how many labels: rows that have so many}, the fewest first."""
    counts = Counter[int]()
    for target_hash, rows in zip(*(part.tolist() for part in np.unique(targets, return_counts=True)), strict=True):
        counts[len(sets.get(target_hash, ()))] += rows
    return {str(size): rows for size, rows in sorted(counts.items())}


def format_labels(sets: LabelSets, target: Any) -> str | None:
    """Returns the labels of a target as a person reads them, None for tasks without labels."""
    labels = sets.get(int(target))
    return None if labels is None else ", ".join(labels) or "(no label)"
