"""Which split a row goes to: decided by a keyed hash of its group (or of what it says), and by nothing else.

A row's split does not depend on the other rows, so adding rows moves no old one, and rows that say the same go the
same way. That is also how stratification is kept: a hash does not look at the label, so every label is spread alike,
up to chance. data.json states how far off each split and each label is.

By time, test is what happened from `data.split.cut` on, and a hash spreads the rows before it: with a cut, newer rows
move no old one either. Without a cut test is the newest share, whose edge moves as newer rows come, and old test rows
fall to the other splits: data.json states the edge, to be written into the recipe.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from data_prep.arrays import Array
from data_prep.labels import label_sets
from data_prep.labels.label_sets import LabelSets
from data_prep.row_table import Table
from data_prep.rows.timestamps import parse_iso_seconds
from insource.config.errors import RecipeError
from insource.config.schema.data import Split
from insource.config.schema.source import SPLITS

HELD_OUT_SPLITS = ("test", "validation", "calibration")


@dataclass(frozen=True)
class SplitAssignment:
    """The split of each row (its place in SPLITS), whether that was ours to choose, the shares that were asked for, and
    where time cut test off."""

    splits: Array
    ours: Array
    shares: dict[str, float]
    cut: str | None = None


def assign(table: Table, split: Split, given_splits: set[str]) -> SplitAssignment:
    """Returns the split of every row; `given_splits` names the splits that came as files of their own.

    Raises RecipeError where `data.split.cut` is no time, or leaves nothing on one side.
    """
    fractions = {
        name: fraction for name in HELD_OUT_SPLITS if name not in given_splits and (fraction := getattr(split, name))
    }
    # Rows of a source without splits, or of a given train file, are ours to spread.
    assignable = hash_split = np.isin(table.columns["given"], (-1, SPLITS.index("train")))
    splits = np.where(assignable, SPLITS.index("train"), table.columns["given"]).astype(np.int8)
    position = table.columns["position"].astype(np.float64) / 2.0**64
    test_from = None
    if split.time is not None and "test" in fractions:
        newest, test_from = _find_newest_rows(table.columns["time"], assignable, split)
        splits[newest] = SPLITS.index("test")
        hash_split = assignable & ~newest
        # Their shares are shares of all rows, and test is meant to have its own. How many rows there are does not
        # enter: newer ones would move old ones from split to split.
        position = position * (1 - split.test)
    low = 0.0
    for name, fraction in fractions.items():
        if name == "test" and split.time is not None:
            continue
        splits[hash_split & (position >= low) & (position < low + fraction)] = SPLITS.index(name)
        low += fraction
    return SplitAssignment(splits, assignable, fractions, test_from)


def _find_newest_rows(times: Array, assignable: Array, split: Split) -> tuple[Array, str]:
    """Returns which rows are test by time, and the time from which on they are."""
    if split.cut is not None:
        parsed = parse_iso_seconds(split.cut)
        if parsed is None:
            raise RecipeError(
                f"data.split.cut: {split.cut!r} is no ISO 8601 time, such as 2026-03-01 or 2026-03-01T12:00:00Z"
            )
        seconds = parsed
    else:
        oldest_first = np.sort(times[assignable])
        seconds = float(oldest_first[int(len(oldest_first) * (1 - split.test))])
    newest = assignable & (times >= seconds)
    boundary = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if not newest.any() or newest.sum() == assignable.sum():
        side = "before" if newest.any() else "from"
        raise RecipeError(f"data.split.time: no row is {side} {boundary}, where test begins; set data.split.cut")
    return newest, boundary


def compute_deviations(table: Table, assignment: SplitAssignment, sets: LabelSets) -> dict[str, dict[str, float]]:
    """Returns for each split that is ours to make the share of rows asked for, the share it has, and how far the label
    farthest off is off.

    Before duplicates leave. `sets` are the labels of each target. Labels of fewer than ten rows are passed over: no
    share of them means anything.
    """
    targets = table.columns["target"][assignment.ours]
    totals = {label: rows for label, rows in label_sets.count_rows_per_label(sets, targets).items() if rows >= 10}
    deviations = {}
    for name, fraction in assignment.shares.items():
        mask = (assignment.splits == SPLITS.index(name))[assignment.ours]
        counts = label_sets.count_rows_per_label(sets, targets[mask])
        offsets = [abs(counts[label] / rows - fraction) for label, rows in totals.items()]
        deviations[name] = {
            "asked": fraction,
            "share": float(mask.mean()),
            "worst_label_deviation": max(offsets, default=0.0),
        }
    return deviations
