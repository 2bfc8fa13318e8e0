"""The error as a power law of the number of train rows, with its uncertainty.

    error(n) = asymptote + scale * n ** -exponent

    1,000, 2,000 and 4,000 rows, errors 0.150, 0.115, 0.090  -> exponent 0.5, asymptote 0.03
    doubling to 8,000 rows                                   -> gain 0.018

The law is fitted by least squares with weights 1 / (error * (1 - error)). Asymptote and scale are not negative. So the
error never rises with the rows, and each doubling gains at most as much as the one before. The exponent is the best of
a grid. Sources: Hestness et al. 2017 (arXiv:1712.00409); Viering and Loog 2023 (IEEE TPAMI 45, 7799-7819).

The uncertainty is a bootstrap of the scored rows: all sizes are evaluated on the same draw of rows, and the law is
fitted to each draw. As the interval of a prediction that is too narrow, because few curves are exact power laws. In
bench/curve.py such intervals missed the real gain in most cases; compare/curve/conclusion.py does not use them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from insource.stats.intervals import RESAMPLES, SEED
from insource.stats.metric_stats import Array, MetricStats
from insource.stats.resampling import SumsToValue, bootstrap, group_units, hstack_rows, index_clusters

# An exponent of 1 is the fastest rate of a parametric model; early sizes can be steeper.
MIN_EXPONENT, MAX_EXPONENT = 0.05, 2.0
EXPONENTS = np.geomspace(MIN_EXPONENT, MAX_EXPONENT, 75)
MIN_SIZES = 3
# The weights use errors of at least this distance from 0 and 1.
CLIP_ERROR = 0.01


@dataclass(frozen=True)
class PowerLawFit:
    """The law fitted to all rows, and to each resample of them."""

    sizes: Sequence[int]
    """The fitted sizes, smallest first."""
    asymptote: float
    scale: float
    """The part of the error at `largest_size` that more rows reduce."""
    exponent: float
    asymptotes: Array
    """(resamples,), as `scales` and `exponents`."""
    scales: Array
    exponents: Array

    @property
    def largest_size(self) -> int:
        """Return the largest fitted size."""
        return self.sizes[-1]

    def compute_error(self, size: float) -> float:
        """Return the error at a number of train rows."""
        return float(self.asymptote + self.scale * (size / self.largest_size) ** -self.exponent)

    def compute_gain(self, size: float) -> float:
        """Return how much lower the error is at `size` than at the largest size."""
        return self.compute_error(self.largest_size) - self.compute_error(size)


def fit_power_law(
    sizes: Sequence[int],
    stats: Sequence[MetricStats],
    clusters: Sequence[str | None] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> PowerLawFit:
    """Return the law of 1 - metric, from the same metric of the same rows at each number of train rows.

    A cluster of rows is drawn as a unit. Raise ValueError for fewer than MIN_SIZES different sizes, or if the metrics
    are not of the same rows.
    """
    if len(sizes) != len(stats) or len(set(sizes)) != len(sizes) or len(sizes) < MIN_SIZES:
        raise ValueError(f"a power law needs a metric of at least {MIN_SIZES} different sizes, given {list(sizes)}")
    errors = np.array([[1 - metric.compute_value() for metric in stats]])
    resampled = 1 - bootstrap_jointly(stats, clusters, resamples=resamples, seed=seed)
    bounded = np.clip(errors[0], CLIP_ERROR, 1 - CLIP_ERROR)
    weights = 1 / (bounded * (1 - bounded))
    asymptote, scale, exponent = _fit(sizes, errors, weights)
    return PowerLawFit(
        sorted(sizes), float(asymptote[0]), float(scale[0]), float(exponent[0]), *_fit(sizes, resampled, weights)
    )


def bootstrap_jointly(
    stats: Sequence[MetricStats],
    clusters: Sequence[str | None] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Array:
    """Return several metrics of the same draws of rows, (resamples, metrics). Raise ValueError for different rows."""
    if len({metric.row_stats.shape for metric in stats}) != 1:
        raise ValueError("metrics of different rows cannot be resampled jointly")
    n, columns = stats[0].row_stats.shape
    units = group_units(reduce(hstack_rows, (metric.row_stats for metric in stats)), index_clusters(clusters, n))

    def compute_metric(sums: Array, from_sums: SumsToValue, start: int) -> Array:
        return from_sums(sums[:, start : start + columns])

    # The draws depend only on the units and the seed: every metric gets the same ones.
    values = [
        bootstrap(
            units,
            partial(compute_metric, from_sums=metric.from_sums, start=index * columns),
            resamples,
            np.random.default_rng(seed),
        )
        for index, metric in enumerate(stats)
    ]
    return np.column_stack(values)


def _fit(sizes: Sequence[int], errors: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return asymptote, scale and exponent for each row of errors (r, sizes)."""
    # The scale is that at the largest size, where the basis is 1.
    basis = (np.asarray(sizes) / max(sizes))[None, :] ** -EXPONENTS[:, None]
    total, sum_x, sum_xx = weights.sum(), basis @ weights, basis**2 @ weights
    sum_y, sum_xy = (errors @ weights)[:, None], errors @ (basis * weights).T
    scales = (total * sum_xy - sum_x * sum_y) / (total * sum_xx - sum_x**2)
    asymptotes = (sum_y - scales * sum_x) / total
    # Where one of the two would be negative, the constrained optimum has it at 0.
    scales_without_asymptote = sum_xy / sum_xx
    asymptotes, scales = (
        np.where(scales < 0, sum_y / total, np.where(asymptotes < 0, 0.0, asymptotes)),
        np.where(scales < 0, 0.0, np.where(asymptotes < 0, scales_without_asymptote, scales)),
    )
    residuals = errors[:, None, :] - asymptotes[..., None] - scales[..., None] * basis
    best = np.argmin((residuals**2) @ weights, axis=1)
    rows = np.arange(len(errors))
    return asymptotes[rows, best], scales[rows, best], EXPONENTS[best]
