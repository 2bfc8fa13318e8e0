"""The labels of each target: a target is one label or a set of labels.

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


def build_label_sets(table: Table, canonical_labels: Mapping[str, str], recipe: Recipe) -> LabelSets:
    """Return {hash of a target: its labels}; {} for tasks without labels.

    `canonical_labels` is {label as written: label}. A written label that it does not contain is omitted.
    """
    task = TASKS[recipe.task.task_name]
    if not (task.IS_MULTILABEL and isinstance(task, LabelledTaskKind)):
        return {hash_target(label, recipe): (label,) for label in set(canonical_labels.values())}
    hashes, rows = np.unique(table.columns["target"], return_index=True)
    sets = {}
    for target_hash, row in zip(hashes.tolist(), rows.tolist(), strict=True):
        spellings = task.target_labels(table.texts.value("target", row))
        sets[target_hash] = tuple(sorted({canonical_labels[label] for label in spellings if label in canonical_labels}))
    return sets


def count_rows_per_label(sets: LabelSets, targets: Array) -> Counter[str]:
    """Return the number of rows with each label. `targets` has the target hash of each row."""
    counts = Counter[str]()
    for target_hash, rows in zip(*(part.tolist() for part in np.unique(targets, return_counts=True)), strict=True):
        for label in sets.get(target_hash, ()):
            counts[label] += rows
    return counts


def count_set_sizes(sets: LabelSets, targets: Array) -> dict[str, int]:
    """Return {number of labels: rows}, the smallest number first. `targets` has the target hash of each row."""
    counts = Counter[int]()
    for target_hash, rows in zip(*(part.tolist() for part in np.unique(targets, return_counts=True)), strict=True):
        counts[len(sets.get(target_hash, ()))] += rows
    return {str(size): rows for size, rows in sorted(counts.items())}


def format_labels(sets: LabelSets, target: Any) -> str | None:
    """Return the labels of a target as text; None for tasks without labels."""
    labels = sets.get(int(target))
    return None if labels is None else ", ".join(labels) or "(no label)"
