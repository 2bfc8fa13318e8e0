"""What doubling the labels would bring, and whether that is clear.

    gain 0.8 points (0.1 to 1.6), curve.target_gain 1.0 point   -> undecided
    gain 0.3 points (0.0 to 0.7)                                -> enough: less than the target
    gain 2.4 points (1.2 to 3.9)                                -> helps: at least the target

The interval follows from the paired difference of the two largest sizes: the next doubling gains at most as much as the
last one, and at least a quarter of it (2 ** -MAX_EXPONENT). Every power law with an exponent of at most 2 does so. The
gain itself is that of the law fitted to the FITTED_SIZES largest sizes (insource/stats/power_law.py). Smaller sizes are
shown, but do not count: where a model barely begins to learn, no power law holds.
"""

from dataclasses import dataclass
from typing import Literal

from compare.curve.points import LearningCurve
from insource.stats import paired
from insource.stats.bounded_mean import proportion_interval
from insource.stats.power_law import MAX_EXPONENT, MIN_SIZES, PowerLawFit, fit_power_law
from insource.stats.resampling import index_clusters

Conclusion = Literal["helps", "enough", "undecided"]
FITTED_SIZES = 3


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
    """Return the power law of the FITTED_SIZES largest sizes, None with fewer than MIN_SIZES points."""
    if len(curve.points) < MIN_SIZES:
        return None
    fitted = curve.points[-FITTED_SIZES:]
    return fit_power_law([point.train_rows for point in fitted], [point.stats for point in fitted], curve.clusters)


def estimate_doubling(curve: LearningCurve, fit: PowerLawFit | None, alpha: float) -> Doubling:
    """Return the gain from twice the rows of the largest point. Raise ValueError for a curve of one point."""
    if len(curve.points) < 2:
        raise ValueError("the gain from more rows needs at least two sizes")
    largest, previous = curve.largest, curve.points[-2]
    last = paired.compute_paired_difference(largest.stats, previous.stats, curve.clusters, alpha=alpha)
    low = max(last.low, 0.0) * 2**-MAX_EXPONENT
    # n rows without one that differs still leave room for a gain of this size.
    high = max(last.high, proportion_interval(0, 0, count_units(curve), alpha)[1])
    # Without a fit the exponent is 1/2.
    gain = max(last.delta, 0.0) * 2**-0.5 if fit is None else fit.compute_gain(2 * largest.train_rows)
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


def is_clear(curve: LearningCurve, target_gain: float, alpha: float) -> bool:
    """Return whether no smaller size is trained: the stopping rule.

    It is applied once, to the curve of the two largest sizes, which alone decide.
    """
    if len(curve.points) != 2:
        return False
    return classify_doubling(estimate_doubling(curve, None, alpha), target_gain) != "undecided"
