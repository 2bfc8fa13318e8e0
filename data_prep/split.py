"""The split of each row, decided by a keyed hash of its group, or without a group by a hash of its content.

The split of a row does not depend on other rows. Added rows therefore do not move existing ones, and duplicates go to
the same split. The hash ignores the label. Each label is therefore distributed like all rows, up to chance, which is
the stratification. data.json has the deviation of each split and label.

A split by time puts the rows from `data.split.cut` on into test, and hashes the rows before it. With a cut, newer rows
do not move older ones. Without a cut, test is the newest fraction of the rows. Its boundary then moves when newer rows
arrive, and old test rows go to other splits. data.json has the boundary, so that it can be set in the recipe.
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
from insource.tracking.data_report import SplitFractions

HELD_OUT_SPLITS = ("test", "validation", "calibration")


@dataclass(frozen=True)
class SplitAssignment:
    """The split of each row, as an index in SPLITS.

    `assignable` (bool) marks the rows that this stage assigns. `fractions` has the requested fraction of each split.
    `test_from` is the time at which test begins, None without a split by time.
    """

    splits: Array
    assignable: Array
    fractions: dict[str, float]
    test_from: str | None = None


def assign_splits(table: Table, settings: Split, given_splits: set[str]) -> SplitAssignment:
    """Return the split of every row. `given_splits` names the splits that have files of their own.

    Raise RecipeError if `data.split.cut` is not a time, or if one side of the cut has no rows.
    """
    fractions = {
        name: fraction for name in HELD_OUT_SPLITS if name not in given_splits and (fraction := getattr(settings, name))
    }
    # The stage assigns rows of a source without splits and rows of a given train file. Rows of labelled files stay in
    # train: a model was uncertain of them, so they would bias a held-out split. So do rows of a teacher.
    is_own_row = table.columns["provenance"] == 0
    assignable = hash_split = is_own_row & np.isin(table.columns["given_split"], (-1, SPLITS.index("train")))
    splits = np.where(assignable, SPLITS.index("train"), table.columns["given_split"]).astype(np.int8)
    # A number in [0, 1) for each row; each split gets a part of this interval.
    position = table.columns["split_hash"].astype(np.float64) / 2.0**64
    test_from = None
    if settings.time is not None and "test" in fractions:
        newest, test_from = _find_newest_rows(table.columns["time"], assignable, settings)
        splits[newest] = SPLITS.index("test")
        hash_split = assignable & ~newest
        # The fractions refer to all rows, and test has its own by time. The number of rows is not used: it changes with
        # newer rows, and these would then move older ones.
        position = position * (1 - settings.test)
    low = 0.0
    for name, fraction in fractions.items():
        if name == "test" and settings.time is not None:
            continue
        splits[hash_split & (position >= low) & (position < low + fraction)] = SPLITS.index(name)
        low += fraction
    return SplitAssignment(splits, assignable, fractions, test_from)


def _find_newest_rows(times: Array, assignable: Array, settings: Split) -> tuple[Array, str]:
    """Return which rows are test by time (bool), and the time at which test begins."""
    if settings.cut is not None:
        parsed = parse_iso_seconds(settings.cut)
        if parsed is None:
            raise RecipeError(
                f"data.split.cut: {settings.cut!r} is not an ISO 8601 time, such as 2026-03-01 or 2026-03-01T12:00:00Z",
                code="INS-D030",
            )
        seconds = parsed
    else:
        oldest_first = np.sort(times[assignable])
        seconds = float(oldest_first[int(len(oldest_first) * (1 - settings.test))])
    newest = assignable & (times >= seconds)
    boundary = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if not newest.any() or newest.sum() == assignable.sum():
        side = "before" if newest.any() else "from"
        raise RecipeError(
            f"data.split.time: no row is {side} {boundary}, where test begins; set data.split.cut", code="INS-D030"
        )
    return newest, boundary


def compute_deviations(table: Table, assignment: SplitAssignment, sets: LabelSets) -> dict[str, SplitFractions]:
    """Return the requested fraction, the actual fraction and the worst label deviation of each assigned split.

    The figures are those before deduplication. `sets` has the labels of each target hash. Labels with fewer than ten
    rows are ignored, because their fractions are meaningless.
    """
    targets = table.columns["target"][assignment.assignable]
    totals = {label: rows for label, rows in label_sets.count_rows_per_label(sets, targets).items() if rows >= 10}
    deviations: dict[str, SplitFractions] = {}
    for name, fraction in assignment.fractions.items():
        mask = (assignment.splits == SPLITS.index(name))[assignment.assignable]
        counts = label_sets.count_rows_per_label(sets, targets[mask])
        offsets = [abs(counts[label] / rows - fraction) for label, rows in totals.items()]
        deviations[name] = SplitFractions(
            requested=fraction, actual=float(mask.mean()), worst_label_deviation=max(offsets, default=0.0)
        )
    return deviations
