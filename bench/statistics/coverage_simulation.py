"""Test sets of two systems with known true figures, for bench.coverage.

    targets 3 0 0 7 ...   tuned 3 0 2 7 ...   baseline 3 1 0 7 ...   clusters "0" "0" "0" "0" "0" "1" ...

The rows are SYNTHETIC: ten labels, the most frequent ten times as frequent as the least. A system is right in 96% to
80% of a label's rows. Two systems find the same rows hard. The five rows of a cluster share one difficulty for both
systems, one for each system, and often the label. True figures follow from the probabilities, not from a large sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from insource.stats import metric_stats
from insource.stats.metric_stats import Array, MetricStats

N_LABELS, CLUSTER_ROWS = 10, 5
LABEL_FREQUENCIES: Array = 1 / np.arange(1, N_LABELS + 1) / np.sum(1 / np.arange(1, N_LABELS + 1))
LABEL_ACCURACIES: Array = np.linspace(0.96, 0.80, N_LABELS)
# A wrong answer is another label, drawn by its frequency.
CONFUSION: Array = np.where(np.eye(N_LABELS) == 1, 0, LABEL_FREQUENCIES) / (1 - LABEL_FREQUENCIES)[:, None]
# Parts of a row's difficulty, of 1: shared by both systems; of that the cluster's; the cluster's for one system.
SHARED_DIFFICULTY, CLUSTER_DIFFICULTY, SYSTEM_CLUSTER_DIFFICULTY = 0.6, 0.2, 0.2
SAME_LABEL_RATE = 0.5

LabelArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SimulatedMetric:
    """A metric of answers, and its true value."""

    name: str
    stats: Callable[[LabelArray, LabelArray], MetricStats]
    """(targets, answers) -> the metric's sums."""
    truth: Callable[[Array], float]
    """Accuracy of each label -> the metric of infinitely many rows."""


@dataclass(frozen=True)
class SimulatedTestSet:
    """One test set."""

    targets: LabelArray
    clusters: list[str | None] | None
    tuned: LabelArray
    baselines: Mapping[float, LabelArray]
    """{loss: answers of another system that is worse by this loss}."""


def true_accuracy(accuracies: Array) -> float:
    """Return the fraction of rows that are right."""
    return float(LABEL_FREQUENCIES @ accuracies)


def true_macro_f1(accuracies: Array) -> float:
    """Return the mean F1 of the labels if a fraction `accuracies` of each label's rows is right."""
    correct = LABEL_FREQUENCIES * accuracies
    answer_frequencies = correct + (LABEL_FREQUENCIES * (1 - accuracies)) @ CONFUSION
    return float(np.mean(2 * correct / (answer_frequencies + LABEL_FREQUENCIES)))


METRICS = (
    SimulatedMetric(
        "accuracy", lambda targets, answers: metric_stats.mean_metric((targets == answers).tolist()), true_accuracy
    ),
    SimulatedMetric(
        "macro-F1",
        lambda targets, answers: metric_stats.macro_f1_metric(targets.tolist(), answers.tolist(), N_LABELS),
        true_macro_f1,
    ),
)


def accuracy_loss_for(metric: SimulatedMetric, difference: float) -> float:
    """Return the loss of accuracy of each label that lowers the metric by `difference`."""
    from scipy.optimize import brentq

    full = metric.truth(LABEL_ACCURACIES)
    return float(brentq(lambda loss: metric.truth(LABEL_ACCURACIES - loss) - full + difference, 0, 0.5, xtol=1e-14))


def draw_test_set(n: int, clustered: bool, losses: Sequence[float], rng: np.random.Generator) -> SimulatedTestSet:
    """Return a test set of n rows. The other system, worse by each loss in turn, makes the same mistakes and more."""
    cluster = np.arange(n) // CLUSTER_ROWS if clustered else np.arange(n)
    units = int(cluster[-1]) + 1
    targets = rng.choice(N_LABELS, n, p=LABEL_FREQUENCIES)
    if clustered:
        shares_label = rng.random(n) < SAME_LABEL_RATE
        targets[shares_label] = rng.choice(N_LABELS, units, p=LABEL_FREQUENCIES)[cluster[shares_label]]

    def difficulty(part: float, cluster_part: float) -> Array:
        cluster_part *= clustered
        shared = np.sqrt(cluster_part) * rng.standard_normal(units)[cluster]
        return np.asarray(np.sqrt(part - cluster_part) * rng.standard_normal(n) + shared)

    def mistakes() -> LabelArray:
        labels = (rng.random(n)[:, None] > np.cumsum(CONFUSION, axis=1)[targets]).sum(axis=1)
        return np.asarray(np.minimum(labels, N_LABELS - 1), dtype=np.int64)

    shared_difficulty = difficulty(SHARED_DIFFICULTY, CLUSTER_DIFFICULTY)
    tuned_difficulty, baseline_difficulty = (
        shared_difficulty + difficulty(1 - SHARED_DIFFICULTY, SYSTEM_CLUSTER_DIFFICULTY) for _ in range(2)
    )
    tuned_mistakes, baseline_mistakes = mistakes(), mistakes()
    return SimulatedTestSet(
        targets,
        [str(number) for number in cluster] if clustered else None,
        np.where(tuned_difficulty < _difficulty_threshold(0.0)[targets], targets, tuned_mistakes),
        {
            loss: np.where(baseline_difficulty < _difficulty_threshold(loss)[targets], targets, baseline_mistakes)
            for loss in losses
        },
    )


def _difficulty_threshold(loss: float) -> Array:
    """Return for each label the difficulty below which its rows are right."""
    from scipy.special import ndtri

    return np.asarray(ndtri(LABEL_ACCURACIES - loss))
