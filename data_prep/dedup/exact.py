"""Duplicates and conflicts, within a split and across splits.

Two rows are duplicates if their keys are equal (`insource/text/text_keys.py`). Test rows are never dropped. Duplicates
of test rows are dropped from train, validation and calibration, whatever their label. Duplicates of validation and
calibration rows are dropped from train.

Within a split, one of the rows with the same key and the same label is kept. Train rows with the same key and several
labels are a conflict; `data.conflicts` decides. A text may have several free-text answers and several pairs of answers;
two rows with opposite preferences are a conflict. Near-duplicates are dropped from train last (`near.py`).
"""

import numpy as np

from data_prep.arrays import Array
from data_prep.dedup import near
from data_prep.dedup.drops import TEST, TRAIN, DropDecisions
from data_prep.parallel import WorkerPool
from data_prep.row_table import Table
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.data import Data
from insource.config.schema.source import SPLITS
from insource.text.labels import display_label

# If two splits share a text, the split named first keeps it.
SPLIT_PRECEDENCE = ("test", "calibration", "validation", "train")


def deduplicate(table: Table, splits: Array, recipe: Recipe, pool: WorkerPool, drops: DropDecisions) -> None:
    """Drop duplicates, conflicts and near-duplicates in `drops`.

    Raise RecipeError at a conflict if data.conflicts is "fail".
    """
    _drop_cross_split(table, splits, drops)
    _resolve_conflicts(table, splits, drops, recipe.data)
    _drop_within_split(table, splits, drops)
    near_duplicates = near.find_near_duplicates(
        table.folder,
        splits,
        table.columns["target"],
        table.columns["rank"],
        drops.kept,
        recipe.data.deduplicate,
        pool,
    )
    for duplicate in near_duplicates:
        split = SPLITS[splits[duplicate.reason_row]]
        reason = "near_duplicate" if split == "train" else f"near_{split}"
        drops.drop(np.array([duplicate.row]), reason, duplicate.reason_row)
        drops.similarity[duplicate.row] = duplicate.similarity


def count_leaks(table: Table, splits: Array) -> dict[str, int]:
    """Return how many test rows have a duplicate in another split, by three comparisons.

    "verbatim" compares the original text, "cleaned" the text after Unicode and white space normalization. "normalised"
    compares the duplicate keys, which decide the removal.
    """
    test = splits == TEST
    names = {"verbatim": "raw", "cleaned": "clean", "normalised": "key"}
    return {
        name: int(np.isin(table.columns[column][test], table.columns[column][~test]).sum())
        for name, column in names.items()
    }


def _drop_cross_split(table: Table, splits: Array, drops: DropDecisions) -> None:
    """Drop the rows whose key occurs in a split of higher precedence."""
    keys = table.columns["key"]
    for rank, name in enumerate(SPLIT_PRECEDENCE[:-1]):
        lower = np.isin(splits, [SPLITS.index(split_name) for split_name in SPLIT_PRECEDENCE[rank + 1 :]])
        # Dropped rows, such as test rows with a rare label, cause no drop.
        rows = np.flatnonzero((splits == SPLITS.index(name)) & drops.kept)
        if not len(rows):
            continue
        rows = rows[np.lexsort((table.columns["rank"][rows], keys[rows]))]
        duplicates = np.flatnonzero(lower & drops.kept & np.isin(keys, keys[rows]))
        drops.drop(duplicates, f"in_{name}", rows[np.searchsorted(keys[rows], keys[duplicates])])


def _resolve_conflicts(table: Table, splits: Array, drops: DropDecisions, data: Data) -> None:
    """Drop train rows with one subject and several targets, by `data.conflicts`. The task defines the subject."""
    rows = np.flatnonzero((splits == TRAIN) & drops.kept)
    _, text_ids = np.unique(table.columns["subject"][rows], return_inverse=True)
    _, pair_ids = np.unique(np.stack([text_ids, table.columns["target"][rows]]), axis=1, return_inverse=True)
    pair_ids = pair_ids.reshape(-1)
    targets_per_text = np.bincount(text_ids[np.unique(pair_ids, return_index=True)[1]])
    conflicting = targets_per_text[text_ids] > 1
    if not conflicting.any():
        return
    if data.conflicts == "fail":
        same_text = rows[text_ids == text_ids[conflicting][0]]
        answers = sorted({display_label(table.texts.value("target", int(row))) for row in same_text})[:5]
        locations = [table.location(int(row)) for row in same_text[:3]]
        raise RecipeError(
            f"{', '.join(locations)}: {len(np.unique(text_ids[conflicting]))} texts have several answers, this one "
            f"{', '.join(answers)}; correct the rows, or set data.conflicts to drop or majority",
            code="INS-D029",
        )
    is_dropped = conflicting
    if data.conflicts == "majority":
        votes = np.bincount(pair_ids)
        max_votes = np.zeros(len(targets_per_text), np.int64)
        np.maximum.at(max_votes, text_ids, votes[pair_ids])
        pair_rows = np.unique(pair_ids, return_index=True)[1]
        winners = np.bincount(
            text_ids[pair_rows], weights=(votes[pair_ids[pair_rows]] == max_votes[text_ids[pair_rows]])
        )
        is_dropped = conflicting & ~((votes[pair_ids] == max_votes[text_ids]) & (winners[text_ids] == 1))
    rows, text_ids = rows[conflicting], text_ids[conflicting]
    # The reason row is a row with the same subject and another target.
    by_text = np.lexsort((table.columns["target"][rows], text_ids))
    lowest = rows[by_text[np.searchsorted(text_ids[by_text], text_ids)]]
    highest = rows[by_text[np.searchsorted(text_ids[by_text], text_ids, side="right") - 1]]
    reason_rows = np.where(table.columns["target"][lowest] == table.columns["target"][rows], highest, lowest)
    dropped = is_dropped[conflicting]
    drops.drop(rows[dropped], "conflict", reason_rows[dropped])


def _drop_within_split(table: Table, splits: Array, drops: DropDecisions) -> None:
    """Keep the row of the lowest rank among rows with the same key, label and split; test is not changed."""
    rows = np.flatnonzero((splits != TEST) & drops.kept)
    columns = [table.columns["key"][rows], table.columns["target"][rows], splits[rows]]
    rows = rows[np.lexsort((table.columns["rank"][rows], *columns))]
    if not len(rows):
        return
    columns = [table.columns["key"][rows], table.columns["target"][rows], splits[rows]]
    is_new = np.r_[True, np.any([column[1:] != column[:-1] for column in columns], axis=0)]
    first_rows = rows[np.maximum.accumulate(np.where(is_new, np.arange(len(rows)), 0))]
    drops.drop(rows[~is_new], "duplicate", first_rows[~is_new])
