"""Rows that say the same, within a split and across splits.

A row's key (insource/tasks/text_keys.py) decides. Test rows never leave. What is in test leaves train, validation and
calibration, whatever its label; what is in validation or calibration leaves train. Within a split, rows with one key
and one label are kept once; train rows with one key and several labels are a conflict, and the recipe says what becomes
of them. A text may have several free-text answers and several pairs of answers; that two rows prefer the opposite is a
conflict. Then near-duplicates leave train (near.py).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.dedup import near
from data_prep.parallel import WorkerPool
from data_prep.row_table import Table
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.data import SPLITS, Data
from insource.tasks.labels import display_label

Array = npt.NDArray[Any]

# Who keeps a text that two splits have: the one named first.
SPLIT_PRECEDENCE = ("test", "calibration", "validation", "train")
TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")

DROP_REASONS = (
    "kept",
    "in_test",
    "in_calibration",
    "in_validation",
    "conflict",
    "duplicate",
    "near_test",
    "near_calibration",
    "near_validation",
    "near_duplicate",
    "too_long",
    "group_in_test",
    "group_in_validation",
    "group_in_calibration",
    "not_before_test",
    "too_long_to_serve",
    "rare_label",
    "too_long_for_base",
)


@dataclass
class DropDecisions:
    """Which rows leave: why (the place in REASONS), because of which row (-1: none), and how near that is."""

    reason: Array
    other: Array
    similarity: Array

    @classmethod
    def none(cls, rows: int) -> "DropDecisions":
        """Returns the state in which every row stays."""
        return cls(np.zeros(rows, np.int8), np.full(rows, -1, np.int64), np.zeros(rows, np.float32))

    @property
    def stays(self) -> Array:
        return np.equal(self.reason, 0)

    def drop(self, rows: Array, reason: str, other: Array | int = -1) -> None:
        self.reason[rows] = DROP_REASONS.index(reason)
        self.other[rows] = other


def deduplicate(table: Table, splits: Array, recipe: Recipe, spread: WorkerPool, left: DropDecisions) -> None:
    """Adds to `left` the rows that leave. Raises RecipeError on a conflict where data.conflicts is fail."""
    _drop_cross_split(table, splits, left)
    _resolve_conflicts(table, splits, left, recipe.data)
    _drop_within_split(table, splits, left)
    found = near.find_near_duplicates(
        table.folder,
        splits,
        table.columns["target"],
        table.columns["order"],
        left.stays,
        recipe.data.deduplicate,
        spread,
    )
    for one in found:
        split = SPLITS[splits[one.other]]
        reason = "near_duplicate" if split == "train" else f"near_{split}"
        left.drop(np.array([one.row]), reason, one.other)
        left.similarity[one.row] = one.similarity


def count_leaks(table: Table, splits: Array) -> dict[str, int]:
    """Returns how many test rows the other splits have too, by ever more forgiving comparisons.

    verbatim: the text as it was given; cleaned: after Unicode and white space are evened out; normalised: by the key,
    which is how they are found and removed.
    """
    test = splits == TEST
    names = {"verbatim": "raw", "cleaned": "clean", "normalised": "key"}
    return {
        name: int(np.isin(table.columns[column][test], table.columns[column][~test]).sum())
        for name, column in names.items()
    }


def _drop_cross_split(table: Table, splits: Array, left: DropDecisions) -> None:
    keys = table.columns["key"]
    for at, name in enumerate(SPLIT_PRECEDENCE[:-1]):
        below = np.isin(splits, [SPLITS.index(one) for one in SPLIT_PRECEDENCE[at + 1 :]])
        # A test row whose label is left out is not asked.
        rows = np.flatnonzero((splits == SPLITS.index(name)) & left.stays)
        if not len(rows):
            continue
        rows = rows[np.lexsort((table.columns["order"][rows], keys[rows]))]
        leaving = np.flatnonzero(below & left.stays & np.isin(keys, keys[rows]))
        left.drop(leaving, f"in_{name}", rows[np.searchsorted(keys[rows], keys[leaving])])


def _resolve_conflicts(table: Table, splits: Array, left: DropDecisions, data: Data) -> None:
    """Resolves train rows of one subject and several targets: what may bear one target alone is the task's to say."""
    rows = np.flatnonzero((splits == TRAIN) & left.stays)
    _, text = np.unique(table.columns["subject"][rows], return_inverse=True)
    _, pair = np.unique(np.stack([text, table.columns["target"][rows]]), axis=1, return_inverse=True)
    pair = pair.reshape(-1)
    labels_of_text = np.bincount(text[np.unique(pair, return_index=True)[1]])
    torn = labels_of_text[text] > 1
    if not torn.any():
        return
    if data.conflicts == "fail":
        same = rows[text == text[torn][0]]
        bear = sorted({display_label(table.texts.value("target", int(row))) for row in same})[:5]
        places = [table.place(int(row)) for row in same[:3]]
        raise RecipeError(
            f"{', '.join(places)}: {len(np.unique(text[torn]))} texts bear several answers, this one "
            f"{', '.join(bear)}; correct the rows, or set data.conflicts to drop or majority"
        )
    leaving = torn
    if data.conflicts == "majority":
        votes = np.bincount(pair)
        most = np.zeros(len(labels_of_text), np.int64)
        np.maximum.at(most, text, votes[pair])
        firsts = np.unique(pair, return_index=True)[1]
        winners = np.bincount(text[firsts], weights=(votes[pair[firsts]] == most[text[firsts]]))
        leaving = torn & ~((votes[pair] == most[text]) & (winners[text] == 1))
    rows, text = rows[torn], text[torn]
    # Each conflict names a row that says the same with another answer.
    by_text = np.lexsort((table.columns["target"][rows], text))
    first = rows[by_text[np.searchsorted(text[by_text], text)]]
    last = rows[by_text[np.searchsorted(text[by_text], text, side="right") - 1]]
    other = np.where(table.columns["target"][first] == table.columns["target"][rows], last, first)
    gone = leaving[torn]
    left.drop(rows[gone], "conflict", other[gone])


def _drop_within_split(table: Table, splits: Array, left: DropDecisions) -> None:
    """Keeps the first, in the order of what they say, of rows with one key and one label in one split."""
    rows = np.flatnonzero((splits != TEST) & left.stays)
    columns = [table.columns["key"][rows], table.columns["target"][rows], splits[rows]]
    rows = rows[np.lexsort((table.columns["order"][rows], *columns))]
    if not len(rows):
        return
    columns = [table.columns["key"][rows], table.columns["target"][rows], splits[rows]]
    new = np.r_[True, np.any([column[1:] != column[:-1] for column in columns], axis=0)]
    first = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    left.drop(rows[~new], "duplicate", first[~new])
