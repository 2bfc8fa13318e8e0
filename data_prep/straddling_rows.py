"""Groups and times that occur both in train and in a given held-out split.

Splits assigned by this stage keep groups together and put test after train. Given files may not: train rows that share
a group with a held-out row, or are not older than test, are counted and reported. With `data.split.straddling: drop`
they are dropped from train.
"""

from collections.abc import Iterator

import numpy as np

from data_prep.arrays import Array
from data_prep.dedup.drops import TEST, TRAIN, DropDecisions
from data_prep.row_table import Table
from data_prep.split import HELD_OUT_SPLITS
from insource.config.schema.data import Split
from insource.config.schema.source import SPLITS


def find_straddling(table: Table, splits: Array, settings: Split, kept: Array) -> dict[str, tuple[Array, Array]]:
    """Return {reason: (kept train rows, for each the held-out row that causes it)}, without empty reasons."""
    given_splits = table.columns["given_split"]
    train = np.flatnonzero(kept & (splits == TRAIN) & np.isin(given_splits, (-1, TRAIN)))
    return {reason: pair for reason, pair in _iterate_reasons(table, given_splits, train, settings) if len(pair[0])}


def drop_straddling(straddling: dict[str, tuple[Array, Array]], drops: DropDecisions) -> None:
    """Drop the train rows, each for its first reason."""
    for reason, (rows, reason_rows) in straddling.items():
        kept = drops.kept[rows]
        drops.drop(rows[kept], reason, reason_rows[kept])


def drop_labelled_groups(table: Table, splits: Array, drops: DropDecisions) -> None:
    """Drop the rows of labelled files whose group is in a held-out split, whatever data.split.straddling is."""
    groups, has_group = table.columns["split_hash"], table.columns["has_group"]
    labelled = np.flatnonzero((table.columns["provenance"] > 0) & has_group)
    for name in HELD_OUT_SPLITS:
        rows = np.flatnonzero((splits == SPLITS.index(name)) & has_group)
        rows = rows[np.argsort(groups[rows], kind="stable")]
        straddling = labelled[np.isin(groups[labelled], groups[rows]) & drops.kept[labelled]]
        if len(straddling):
            drops.drop(straddling, f"group_in_{name}", rows[np.searchsorted(groups[rows], groups[straddling])])


def _iterate_reasons(
    table: Table, given_splits: Array, train: Array, settings: Split
) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """Yield (reason, (train rows, held-out rows)), also for reasons without rows."""
    if settings.group is not None:
        # The split hash of a row is the hash of its group if it has one.
        groups, has_group = table.columns["split_hash"], table.columns["has_group"]
        for name in HELD_OUT_SPLITS:
            rows = np.flatnonzero((given_splits == SPLITS.index(name)) & has_group)
            rows = rows[np.argsort(groups[rows], kind="stable")]
            train_rows = train[has_group[train] & np.isin(groups[train], groups[rows])]
            yield (
                f"group_in_{name}",
                (train_rows, rows[np.searchsorted(groups[rows], groups[train_rows])] if len(rows) else train_rows),
            )
    if settings.time is not None:
        times = table.columns["time"]
        rows = np.flatnonzero((given_splits == TEST) & ~np.isnan(times))
        if len(rows):
            oldest = rows[np.argmin(times[rows])]
            train_rows = train[times[train] >= times[oldest]]
            yield "not_before_test", (train_rows, np.full(len(train_rows), oldest))
