"""Difference of two systems on the same rows: interval, test, and smallest detectable difference.

a right in 912 of 1,000 rows, b in 887; only a right in 60, only b right in 35
  -> delta 0.025, 0.005 to 0.045, p 0.013 (exact McNemar), smallest detectable difference 0.027
margin 0.02 -> superior: all of the interval is above 0
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import Literal

import numpy as np

from insource.stats.bounded_mean import mean_interval, proportion_interval
from insource.stats.intervals import ALPHA, ATOL, RESAMPLES, SEED, bca, expanded_quantile
from insource.stats.metric_stats import Array, MetricStats, mean
from insource.stats.resampling import (
    IntArray,
    ResamplingUnits,
    bootstrap,
    find_nonzero_rows,
    group_units,
    hstack_rows,
    index_clusters,
    jackknife,
    permute,
)

Conclusion = Literal["superior", "non-inferior", "worse", "undecided"]
PERMUTATIONS = 10_000
POWER = 0.8
# Upper limit of required rows; larger numbers are not worth labelling.
MAX_ROWS = 10_000_000


@dataclass(frozen=True)
class PairedDifference:
    """The metric of a minus that of b, on the same rows."""

    n: int
    delta: float
    low: float
    high: float
    p_value: float
    """Two-sided p-value of no difference."""
    test: str
    """exact McNemar | paired permutation | paired permutation by cluster."""
    alpha: float
    """The interval is at 1 - alpha."""
    discordant: int | None
    """Rows that exactly one of the two has right; proportions only."""
    row_std: float
    """Standard deviation of one row's difference: standard error times sqrt(n), clusters included."""
    mde: float
    """Smallest true difference that n such rows detect with a power of 80%, at alpha, two-sided."""
    clusters: int | None


def compute_paired_difference(
    a: MetricStats,
    b: MetricStats,
    clusters: Sequence[str | None] | None = None,
    *,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
    distribution_free: bool = False,
) -> PairedDifference:
    """Return the difference a - b of one metric on the same rows.

    Proportions of independent rows: exact McNemar test and Gaffke's interval (bounded_mean.py), which excludes 0
    exactly if the test rejects. All else: a permutation test that swaps a and b within a row or cluster, and the BCa
    interval of the paired difference, which contains 0 if the test does not reject.

    With `distribution_free`, a mean of scores in [0, 1] of independent rows has Gaffke's interval for any distribution.
    Swapping a and b negates the signs and changes nothing else. Raises ValueError if a and b are not one metric of the
    same rows, or if `distribution_free` is set for scores outside [0, 1].
    """
    if not a.n or a.row_stats.shape != b.row_stats.shape or a.from_sums is not b.from_sums:
        raise ValueError(f"tallies of {a.row_stats.shape} and {b.row_stats.shape} are not one metric of the same rows")
    if a.compute_value() < b.compute_value():
        # (a, b) and (b, a) must draw the same resamples.
        swapped = compute_paired_difference(
            b,
            a,
            clusters,
            alpha=alpha,
            resamples=resamples,
            permutations=permutations,
            seed=seed,
            distribution_free=distribution_free,
        )
        return replace(swapped, delta=-swapped.delta, low=0.0 - swapped.high, high=0.0 - swapped.low)
    cluster_indices, are_proportions = index_clusters(clusters, a.n), a.is_proportion and b.is_proportion
    if are_proportions and cluster_indices is None:
        return _compare_proportions(a, b, alpha)
    difference = _compare_by_resampling(a, b, cluster_indices, alpha, resamples, permutations, seed)
    if distribution_free and cluster_indices is None and a.from_sums is mean:
        rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])
        low, high = mean_interval(a.row_stats[:, 0] - b.row_stats[:, 0], alpha, rng)
        difference = replace(difference, low=min(low, difference.delta), high=max(high, difference.delta))
    return replace(difference, discordant=sum(_count_discordant(a, b))) if are_proportions else difference


def classify_difference(difference: PairedDifference, margin: float) -> Conclusion:
    """Return the conclusion that the interval supports for a against b.

    superior: above 0. non-inferior: above -margin. worse: below -margin. An end that equals 0 or -margin up to rounding
    has not passed it.
    """
    if difference.low > ATOL:
        return "superior"
    if difference.low > ATOL - margin:
        return "non-inferior"
    return "worse" if difference.high < -margin - ATOL else "undecided"


def estimate_required_rows(difference: PairedDifference, margin: float, power: float = POWER) -> int | None:
    """Return the number of rows that would probably put the interval on one side of -margin.

    Assumes that the true difference is the observed one. None if it is so close to -margin that MAX_ROWS do not
    suffice.
    """
    distance = abs(difference.delta + margin)
    reach = _detectable_z(difference.alpha, power) * difference.row_std
    rows = (reach / distance) ** 2 if distance > ATOL else inf
    return max(2, ceil(rows)) if rows <= MAX_ROWS else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values in their order, adjusted for their number (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def _compare_proportions(a: MetricStats, b: MetricStats, alpha: float) -> PairedDifference:
    from statsmodels.stats.contingency_tables import mcnemar

    n, (only_a, only_b) = a.n, _count_discordant(a, b)
    low, high = proportion_interval(only_a, only_b, n, alpha)
    error = _bonett_price_error(only_a, only_b, n)
    # The test reads only the discordant cells.
    p_value = float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue) if only_a + only_b else 1.0
    return PairedDifference(
        n=n,
        delta=a.compute_value() - b.compute_value(),
        low=low,
        high=high,
        p_value=p_value,
        test="exact McNemar",
        alpha=alpha,
        discordant=only_a + only_b,
        row_std=sqrt(n) * error,
        mde=_detectable_z(alpha, POWER) * error,
        clusters=None,
    )


def _compare_by_resampling(
    a: MetricStats,
    b: MetricStats,
    cluster_indices: IntArray | None,
    alpha: float,
    resamples: int,
    permutations: int,
    seed: int,
) -> PairedDifference:
    columns, delta = a.row_stats.shape[1], a.compute_value() - b.compute_value()

    def difference(sums: Array) -> Array:
        return a.from_sums(sums[:, :columns]) - a.from_sums(sums[:, columns:])

    pairs = group_units(hstack_rows(a.row_stats, b.row_stats), cluster_indices)
    bootstrap_rng, permutation_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    swap_deltas = _compute_swap_deltas(pairs, columns)
    if swap_deltas.n == 0 or pairs.n == 1:
        # No resample can differ from these rows, but future rows can: use the interval of proportions.
        (low, high), error = proportion_interval(0, 0, pairs.n, alpha), _bonett_price_error(0, 0, pairs.n)
        low, high = max(min(-1.0, delta), delta + low), min(max(1.0, delta), delta + high)
    else:
        resampled = bootstrap(pairs, difference, resamples, bootstrap_rng)
        low, high = bca(delta, resampled, jackknife(pairs, difference), pairs.counts, expanded_quantile(alpha, pairs.n))
        error = float(np.std(resampled)) * sqrt(pairs.n / (pairs.n - 1))
    p_value = _permutation_p_value(swap_deltas, pairs.total, difference, permutations, permutation_rng)
    if p_value > alpha:
        # Resamples of few discordant units, all on one side, almost never reach 0, but the exact test accounts for it.
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedDifference(
        n=a.n,
        delta=delta,
        low=low,
        high=high,
        p_value=p_value,
        test="paired permutation" if cluster_indices is None else "paired permutation by cluster",
        alpha=alpha,
        discordant=None,
        row_std=sqrt(a.n) * error,
        mde=_detectable_z(alpha, POWER) * error,
        clusters=None if cluster_indices is None else pairs.n,
    )


def _compute_swap_deltas(pairs: ResamplingUnits, columns: int) -> ResamplingUnits:
    """Return the change of both sums if a and b swap places in a unit, for units where they differ."""
    deltas = pairs.sums[:, columns:] - pairs.sums[:, :columns]
    differ = np.flatnonzero(find_nonzero_rows(deltas))
    return ResamplingUnits(hstack_rows(deltas[differ], -deltas[differ]), pairs.counts[differ])


def _permutation_p_value(
    swap_deltas: ResamplingUnits,
    total: Array,
    difference: Callable[[Array], Array],
    permutations: int,
    rng: np.random.Generator,
) -> float:
    """Return the fraction of permutations with a difference at least as large as the observed one, itself included."""
    if swap_deltas.n == 0:
        return 1.0
    observed = abs(float(difference(total[None, :])[0]))
    permuted = permute(swap_deltas, lambda sums: difference(total + sums), permutations, rng)
    return (1 + int(np.sum(np.abs(permuted) >= observed - ATOL))) / (1 + permutations)


def _count_discordant(a: MetricStats, b: MetricStats) -> tuple[int, int]:
    """Return the number of rows that only a has right, and that only b has right."""
    return int(np.sum(a.row_stats[:, 0] > b.row_stats[:, 0])), int(np.sum(a.row_stats[:, 0] < b.row_stats[:, 0]))


def _bonett_price_error(only_a: int, only_b: int, n: int) -> float:
    """Return the standard error of a difference of proportions, with one row added to each discordant count.

    The added rows keep it above 0 without discordant rows (Bonett and Price 2012, J. Educational and Behavioral
    Statistics 37, 479-488).
    """
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    return sqrt((share_a + share_b - (share_a - share_b) ** 2) / (n + 2))


def _detectable_z(alpha: float, power: float) -> float:
    """Return the true difference that is detected with this power, in standard errors."""
    from scipy.special import ndtri

    return float(ndtri(power) - ndtri(alpha / 2))
