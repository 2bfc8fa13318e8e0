"""Decisions to drop rows: the reason, the row that caused it and their similarity, for each row."""

from dataclasses import dataclass

import numpy as np

from data_prep.arrays import Array
from insource.config.schema.source import SPLITS

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
    """The drop decision of each row.

    `reason` is an index in DROP_REASONS (0: kept). `reason_row` is the row that causes the drop (-1: none), and
    `similarity` the similarity to it.
    """

    reason: Array
    reason_row: Array
    similarity: Array

    @classmethod
    def none(cls, rows: int) -> "DropDecisions":
        """Return decisions that keep all of `rows` rows."""
        return cls(np.zeros(rows, np.int8), np.full(rows, -1, np.int64), np.zeros(rows, np.float32))

    @property
    def kept(self) -> Array:
        """Return which rows are kept (bool)."""
        return np.equal(self.reason, 0)

    def drop(self, rows: Array, reason: str, reason_row: Array | int = -1) -> None:
        """Drop `rows` (indices or bool) for a reason.

        `reason_row` is the row that causes it, one for all rows or one for each.
        """
        self.reason[rows] = DROP_REASONS.index(reason)
        self.reason_row[rows] = reason_row
