"""Test sets of two systems whose true figures are known, for bench.coverage.

    wanted 3 0 0 7 ...   one system 3 0 2 7 ...   the other 3 1 0 7 ...   clusters "0" "0" "0" "0" "0" "1" ...

The rows are SYNTHETIC: ten labels, the most frequent ten times as frequent as the least, on which a system is right in
96% to 80% of rows. Two systems find the same rows hard. In clusters, five rows share a difficulty for both systems, one
for each, and often the label. True figures follow from the probabilities, not from a large sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from insource.stats import metric_stats
from insource.stats.metric_stats import Array, Tally

LABELS, CLUSTER = 10, 5
FREQUENCY: Array = 1 / np.arange(1, LABELS + 1) / np.sum(1 / np.arange(1, LABELS + 1))
RIGHT: Array = np.linspace(0.96, 0.80, LABELS)
# What a wrong answer to a label is: another, as often as it occurs.
MISTAKEN: Array = np.where(np.eye(LABELS) == 1, 0, FREQUENCY) / (1 - FREQUENCY)[:, None]
# Parts of a row's difficulty, of 1: for both systems alike, and of that the cluster's; the cluster's for one system.
FOR_BOTH, OF_CLUSTER, OF_CLUSTER_FOR_ONE = 0.6, 0.2, 0.2
SAME_LABEL = 0.5

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """A metric of answers, and its true value."""

    name: str
    tally: Callable[[Labels, Labels], Tally]
    """Of what is wanted and what was said."""
    truth: Callable[[Array], float]
    """Share right of each label -> the figure of infinitely many rows."""


@dataclass(frozen=True)
class Answers:
    """One test set."""

    wanted: Labels
    clusters: list[str | None] | None
    system: Labels
    others: Mapping[float, Labels]
    """What another system says that is worse by a loss."""


def true_accuracy(right: Array) -> float:
    """Returns the share of rows that are right."""
    return float(FREQUENCY @ right)


def true_macro_f1(right: Array) -> float:
    """Returns the mean of the labels' F1 where a share `right` of each is."""
    hit = FREQUENCY * right
    said = hit + (FREQUENCY * (1 - right)) @ MISTAKEN
    return float(np.mean(2 * hit / (said + FREQUENCY)))


METRICS = (
    Metric("accuracy", lambda wanted, said: metric_stats.of_scores((wanted == said).tolist()), true_accuracy),
    Metric(
        "macro-F1", lambda wanted, said: metric_stats.of_labels(wanted.tolist(), said.tolist(), LABELS), true_macro_f1
    ),
)


def loss_of(metric: Metric, difference: float) -> float:
    """Returns by how much less often each label must be right for the metric to fall by so much."""
    from scipy.optimize import brentq

    full = metric.truth(RIGHT)
    return float(brentq(lambda loss: metric.truth(RIGHT - loss) - full + difference, 0, 0.5, xtol=1e-14))


def drawn(n: int, clustered: bool, losses: Sequence[float], rng: np.random.Generator) -> Answers:
    """Returns a test set of n rows. The other system, worse by each loss in turn, makes the same mistakes and more."""
    cluster = np.arange(n) // CLUSTER if clustered else np.arange(n)
    units = int(cluster[-1]) + 1
    wanted = rng.choice(LABELS, n, p=FREQUENCY)
    if clustered:
        together = rng.random(n) < SAME_LABEL
        wanted[together] = rng.choice(LABELS, units, p=FREQUENCY)[cluster[together]]

    def difficulty(part: float, of_cluster: float) -> Array:
        of_cluster *= clustered
        shared = np.sqrt(of_cluster) * rng.standard_normal(units)[cluster]
        return np.asarray(np.sqrt(part - of_cluster) * rng.standard_normal(n) + shared)

    def mistakes() -> Labels:
        found = (rng.random(n)[:, None] > np.cumsum(MISTAKEN, axis=1)[wanted]).sum(axis=1)
        return np.asarray(np.minimum(found, LABELS - 1), dtype=np.int64)

    both = difficulty(FOR_BOTH, OF_CLUSTER)
    one, other = (both + difficulty(1 - FOR_BOTH, OF_CLUSTER_FOR_ONE) for _ in range(2))
    slip, other_slip = mistakes(), mistakes()
    return Answers(
        wanted,
        [str(number) for number in cluster] if clustered else None,
        np.where(one < _passed(0.0)[wanted], wanted, slip),
        {loss: np.where(other < _passed(loss)[wanted], wanted, other_slip) for loss in losses},
    )


def _passed(loss: float) -> Array:
    """Returns for each label the difficulty up to which its rows are right."""
    from scipy.special import ndtri

    return np.asarray(ndtri(RIGHT - loss))
