"""A metric as a function of sums over rows, so that any resample of the rows can be evaluated.

accuracy    columns right, 1                             sums (912, 1000)      -> 0.912
macro-F1    columns right, predicted, expected by label  sums (3 times 77)     -> the mean of 77 F1
field F1    columns right, predicted, expected           sums (800, 950, 1000) -> 0.82

A row is a vector of counts; a resample of rows is a sum of vectors. Bootstrap, jackknife and permutation need neither
the answers nor the task.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricStats:
    """A metric of n rows."""

    row_stats: Any
    """(n, k) counts or scores: a float64 array, or a scipy.sparse.csr_array where most are 0."""
    from_sums: Callable[[Array], Array]
    """Sums (b, k) -> the metric of each of the b resamples, (b,)."""

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return int(self.row_stats.shape[0])

    @property
    def is_proportion(self) -> bool:
        """Return whether the metric is a proportion: the mean of rows that are right (1) or wrong (0)."""
        return (
            self.from_sums is mean
            and not np.any(self.row_stats[:, 0] % 1)
            and float(np.max(self.row_stats, initial=0)) <= 1
        )

    def subset(self, indices: Sequence[int]) -> "MetricStats":
        """Return the same metric of the rows at these indices."""
        return replace(self, row_stats=self.row_stats[np.asarray(indices, dtype=np.int64)])

    def compute_value(self) -> float:
        """Return the metric of all rows."""
        return float(self.from_sums(np.asarray(self.row_stats.sum(axis=0)).reshape(1, -1))[0])


def mean_metric(scores: Sequence[float]) -> MetricStats:
    """Return the mean of one score per row; right and wrong are 1 and 0."""
    values = np.asarray(scores, dtype=np.float64)
    return MetricStats(np.column_stack([values, np.ones_like(values)]), mean)


def micro_f1_metric(correct: Sequence[float], predicted: Sequence[float], expected: Sequence[float]) -> MetricStats:
    """Return micro F1: F1 over the predicted and expected counts of all rows together."""
    return MetricStats(np.column_stack([correct, predicted, expected]).astype(np.float64), micro_f1)


def macro_f1_metric(targets: Sequence[int], predictions: Sequence[int], n_labels: int) -> MetricStats:
    """Return macro-F1 over the labels that occur.

    Labels are integers below `n_labels`; prediction -1 is an answer without a label.
    """
    from scipy.sparse import csr_array

    expected, predicted = np.asarray(targets), np.asarray(predictions)
    rows = np.arange(len(expected))
    correct, has_label = expected == predicted, predicted >= 0
    row_indices = np.concatenate([rows[correct], rows[has_label], rows])
    column_indices = np.concatenate([expected[correct], n_labels + predicted[has_label], 2 * n_labels + expected])
    counts = csr_array((np.ones(len(row_indices)), (row_indices, column_indices)), shape=(len(expected), 3 * n_labels))
    return MetricStats(counts, macro_f1)


def multilabel_macro_f1_metric(
    targets: Sequence[AbstractSet[int]], predictions: Sequence[AbstractSet[int]], n_labels: int
) -> MetricStats:
    """Return macro-F1 over the labels that occur, for rows with sets of labels.

    Labels are integers below `n_labels`.
    """
    from scipy.sparse import csr_array

    correct = [expected & predicted for expected, predicted in zip(targets, predictions, strict=True)]
    cells = [
        (row, part * n_labels + label)
        for part, sets in enumerate((correct, predictions, targets))
        for row, row_labels in enumerate(sets)
        for label in row_labels
    ]
    positions = np.array(cells, dtype=np.int64).reshape(-1, 2)
    counts = csr_array(
        (np.ones(len(positions)), (positions[:, 0], positions[:, 1])), shape=(len(targets), 3 * n_labels)
    )
    return MetricStats(counts, macro_f1)


def precision_recall(correct: int, predicted: int, expected: int) -> dict[str, float]:
    """Return {"precision", "recall", "f1", "n"} from counts; n is `expected`. Undefined values are 0."""
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / expected if expected else 0.0,
        "f1": 2 * correct / (predicted + expected) if predicted + expected else 0.0,
        "n": expected,
    }


def mean(sums: Array) -> Array:
    """Return the mean of scores summed over rows; sums are (b, 2)."""
    values: Array = sums[:, 0] / sums[:, 1]
    return values


def micro_f1(sums: Array) -> Array:
    """Return 2 right / (predicted + expected); 1 if both are 0."""
    total = sums[:, 1] + sums[:, 2]
    return np.where(total > 0, 2 * sums[:, 0] / np.maximum(total, 1e-12), 1.0)


def macro_f1(sums: Array) -> Array:
    """Return the mean over labels of 2 right / (predicted + expected), without labels whose counts are 0."""
    correct, predicted, expected = np.split(sums, 3, axis=1)
    total = predicted + expected
    occurs = total > 0
    f1 = np.where(occurs, 2 * correct / np.maximum(total, 1e-12), 0.0)
    mean_f1: Array = f1.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    return mean_f1
