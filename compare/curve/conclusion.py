"""What doubling the labels would bring, and whether that is clear.

    gain 0.8 points (0.1 to 1.6), curve.target_gain 1.0 point   -> undecided
    gain 0.3 points (0.0 to 0.7)                                -> enough: less than the target
    gain 2.4 points (1.2 to 3.9)                                -> helps: at least the target

With three sizes or more the gain is that of a power law (insource/stats/power_law.py). With two sizes it follows from
their paired difference: of all power laws with an exponent of at most MAX_EXPONENT, the next doubling gains between
2 ** -MAX_EXPONENT (a quarter) and all of what the last one gained.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from compare.curve.points import LearningCurve
from insource.stats import paired
from insource.stats.bounded_mean import proportion_interval
from insource.stats.power_law import MAX_EXPONENT, MIN_SIZES, PowerLawFit, fit_power_law
from insource.stats.resampling import index_clusters

Conclusion = Literal["helps", "enough", "undecided"]


@dataclass(frozen=True)
class Doubling:
    """The gain of the metric from twice as many train rows."""

    train_rows: int
    gain: float
    low: float
    high: float
    alpha: float
    """The interval is at 1 - alpha."""
    n: int
    """Scored validation rows."""
    sizes: int

    @property
    def doubled_rows(self) -> int:
        """Return twice the number of train rows."""
        return 2 * self.train_rows


def fit_curve(curve: LearningCurve) -> PowerLawFit | None:
    """Return the power law of a curve, None with fewer than MIN_SIZES points."""
    if len(curve.points) < MIN_SIZES:
        return None
    sizes = [point.train_rows for point in curve.points]
    return fit_power_law(sizes, [point.stats for point in curve.points], curve.clusters)


def estimate_doubling(curve: LearningCurve, fit: PowerLawFit | None, alpha: float) -> Doubling:
    """Return the gain from twice the rows of the largest point. Raise ValueError for a curve of one point."""
    if len(curve.points) < 2:
        raise ValueError("the gain from more rows needs at least two sizes")
    largest = curve.largest
    if fit is None:
        previous = curve.points[-2]
        last = paired.compute_paired_difference(largest.stats, previous.stats, curve.clusters, alpha=alpha)
        # An exponent of 1/2 lies between the two bounds.
        gain = max(last.delta, 0.0) * 2**-0.5
        low, high = max(last.low, 0.0) * 2**-MAX_EXPONENT, last.high
    else:
        gains = fit.compute_gains(2 * largest.train_rows)
        gain = fit.compute_gain(2 * largest.train_rows)
        low, high = (float(end) for end in np.quantile(gains, [alpha / 2, 1 - alpha / 2]))
    # n rows without one that differs still leave room for a gain of this size.
    high = max(high, proportion_interval(0, 0, count_units(curve), alpha)[1])
    return Doubling(
        largest.train_rows, gain, min(low, gain), max(high, gain), alpha, largest.stats.n, len(curve.points)
    )


def count_units(curve: LearningCurve) -> int:
    """Return the number of independent validation rows: rows without a group, and groups."""
    indices = index_clusters(curve.clusters, len(curve.rows))
    return len(curve.rows) if indices is None else int(indices.max()) + 1


def classify_doubling(doubling: Doubling, target_gain: float) -> Conclusion:
    """Return whether the gain reaches the target: helps, enough (it does not), or undecided."""
    if doubling.low >= target_gain:
        return "helps"
    return "enough" if doubling.high < target_gain else "undecided"


def is_clear(curve: LearningCurve, target_gain: float, alpha: float, planned_sizes: int) -> bool:
    """Return whether no further training is needed: the stopping rule.

    The curve is examined after each size from the second on, so at most `planned_sizes` - 1 times. Each time the
    interval is at 1 - alpha / (planned_sizes - 1). All rounds together are then wrong with a probability of at most
    alpha, as far as one interval holds what it promises (Bonferroni).
    """
    if len(curve.points) < 2:
        return False
    doubling = estimate_doubling(curve, fit_curve(curve), alpha / max(1, planned_sizes - 1))
    return classify_doubling(doubling, target_gain) != "undecided"
