"""The difference of two systems on the same rows: its interval, its test, and what these rows could have shown.

a right in 912 of 1,000 rows, b in 887; a alone right in 60, b alone in 35
  -> delta 0.025, 0.005 to 0.045, p 0.013 (exact McNemar), smallest detectable difference 0.027
margin 0.02 -> superior: the whole interval is above 0
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import Literal

import numpy as np

from insource.stats.bounded_mean import mean_interval, share_interval
from insource.stats.intervals import ALPHA, RESAMPLES, SAME, SEED, bca, quantile
from insource.stats.metric_stats import Array, Tally, mean
from insource.stats.resampling import (
    Counts,
    Units,
    beside,
    bootstrapped,
    jackknifed,
    not_zero,
    numbered,
    swapped,
    units_of,
)

Judged = Literal["superior", "non-inferior", "worse", "undecided"]
PERMUTATIONS = 10_000
POWER = 0.8
# Nobody labels more than this to decide.
MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class Difference:
    """The metric of a minus that of b, on the same rows."""

    n: int
    delta: float
    low: float
    high: float
    p_value: float
    """Two-sided, of no difference."""
    test: str
    """exact McNemar | paired permutation | paired permutation by cluster."""
    alpha: float
    """The interval is at 1 - alpha."""
    discordant: int | None
    """Rows that one of the two alone has right, for shares."""
    spread: float
    """Standard deviation of one row's difference: the standard error times sqrt(n), so that clusters are in it."""
    mde: float
    """The smallest true difference that n such rows find with a power of 80%, at alpha, two-sided."""
    clusters: int | None


def of(
    a: Tally,
    b: Tally,
    clusters: Sequence[str | None] | None = None,
    *,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
    distribution_free: bool = False,
) -> Difference:
    """Returns the difference a - b of one metric on the same rows.

    Shares of independent rows: the exact McNemar test, and Gaffke's interval (bounded_mean.py), which excludes 0
    exactly where the test rejects. Anything else: a permutation test that swaps a and b within a row, or within a whole
    cluster, and the BCa interval of the paired difference, which contains 0 where the test does not reject.
    With `distribution_free`, a mean of scores from 0 to 1 of independent rows has Gaffke's interval too, whatever their
    distribution. Swapping a and b turns the signs and changes nothing else. Raises ValueError where a and b are not one
    metric of the same rows, or where `distribution_free` is given for scores outside 0 to 1.
    """
    if not a.n or a.rows.shape != b.rows.shape or a.value is not b.value:
        raise ValueError(f"tallies of {a.rows.shape} and {b.rows.shape} are not one metric of the same rows")
    if a.figure() < b.figure():
        # One order for both, so that both draw the same resamples.
        other = of(
            b,
            a,
            clusters,
            alpha=alpha,
            resamples=resamples,
            permutations=permutations,
            seed=seed,
            distribution_free=distribution_free,
        )
        return replace(other, delta=-other.delta, low=0.0 - other.high, high=0.0 - other.low)
    numbers, shares = numbered(clusters, a.n), a.proportion and b.proportion
    if shares and numbers is None:
        return _of_shares(a, b, alpha)
    found = _resampled(a, b, numbers, alpha, resamples, permutations, seed)
    if distribution_free and numbers is None and a.value is mean:
        rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[2])
        low, high = mean_interval(a.rows[:, 0] - b.rows[:, 0], alpha, rng)
        found = replace(found, low=min(low, found.delta), high=max(high, found.delta))
    return replace(found, discordant=sum(_alone(a, b))) if shares else found


def judged(difference: Difference, margin: float) -> Judged:
    """Returns what the interval says of a against b: better, not worse by the margin, worse by it, or nothing.

    An end that is at 0 or at the margin but for rounding has not passed it.
    """
    if difference.low > SAME:
        return "superior"
    if difference.low > SAME - margin:
        return "non-inferior"
    return "worse" if difference.high < -margin - SAME else "undecided"


def rows_to_decide(difference: Difference, margin: float, power: float = POWER) -> int | None:
    """Returns how many rows would probably put the whole interval on one side of minus the margin, if the difference is
    truly the one seen; None where that is about at the margin, so that ten million would not do."""
    distance = abs(difference.delta + margin)
    reach = _reach(difference.alpha, power) * difference.spread
    rows = (reach / distance) ** 2 if distance > SAME else inf
    return max(2, ceil(rows)) if rows <= MOST_ROWS else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number (Holm 1979), in their order."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def expected_mde(n: int, discordance: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Returns the smallest difference of two shares that n independent rows find, `discordance` being the share of rows
    that one of the two alone has right: 0.045 for 391 rows and 0.1."""
    return _reach(alpha, power) * sqrt(discordance / n)


def _of_shares(a: Tally, b: Tally, alpha: float) -> Difference:
    from statsmodels.stats.contingency_tables import mcnemar

    n, (only_a, only_b) = a.n, _alone(a, b)
    low, high = share_interval(only_a, only_b, n, alpha)
    error = _share_error(only_a, only_b, n)
    # The test reads nothing but the corners in which the two differ.
    p_value = float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue) if only_a + only_b else 1.0
    return Difference(
        n=n,
        delta=a.figure() - b.figure(),
        low=low,
        high=high,
        p_value=p_value,
        test="exact McNemar",
        alpha=alpha,
        discordant=only_a + only_b,
        spread=sqrt(n) * error,
        mde=_reach(alpha, POWER) * error,
        clusters=None,
    )


def _resampled(
    a: Tally, b: Tally, numbers: Counts | None, alpha: float, resamples: int, permutations: int, seed: int
) -> Difference:
    columns, delta = a.rows.shape[1], a.figure() - b.figure()

    def difference(sums: Array) -> Array:
        return a.value(sums[:, :columns]) - a.value(sums[:, columns:])

    pairs = units_of(beside(a.rows, b.rows), numbers)
    draws, tosses = (np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(2))
    changes = _changes(pairs, columns)
    if changes.n == 0 or pairs.n == 1:
        # No draw can differ from these rows, which is no proof that rows to come cannot: as of shares.
        (low, high), error = share_interval(0, 0, pairs.n, alpha), _share_error(0, 0, pairs.n)
        low, high = max(min(-1.0, delta), delta + low), min(max(1.0, delta), delta + high)
    else:
        resampled = bootstrapped(pairs, difference, resamples, draws)
        low, high = bca(delta, resampled, jackknifed(pairs, difference), pairs.counts, quantile(alpha, pairs.n))
        error = float(np.std(resampled)) * sqrt(pairs.n / (pairs.n - 1))
    p_value = _p_value(changes, pairs.total, difference, permutations, tosses)
    if p_value > alpha:
        # Resamples of a few units that differ, all to one side, hardly ever reach 0; the exact test knows how few.
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(
        n=a.n,
        delta=delta,
        low=low,
        high=high,
        p_value=p_value,
        test="paired permutation" if numbers is None else "paired permutation by cluster",
        alpha=alpha,
        discordant=None,
        spread=sqrt(a.n) * error,
        mde=_reach(alpha, POWER) * error,
        clusters=None if numbers is None else pairs.n,
    )


def _changes(pairs: Units, columns: int) -> Units:
    """Returns what a unit adds to the sums of both where a and b change places in it, for units that differ."""
    to_a = pairs.sums[:, columns:] - pairs.sums[:, :columns]
    differ = np.flatnonzero(not_zero(to_a))
    return Units(beside(to_a[differ], -to_a[differ]), pairs.counts[differ])


def _p_value(
    changes: Units, total: Array, difference: Callable[[Array], Array], permutations: int, rng: np.random.Generator
) -> float:
    """Returns the share of permutations with a difference as large as that seen, which counts as one of them."""
    if changes.n == 0:
        return 1.0
    seen = abs(float(difference(total[None, :])[0]))
    found = swapped(changes, lambda sums: difference(total + sums), permutations, rng)
    return (1 + int(np.sum(np.abs(found) >= seen - SAME))) / (1 + permutations)


def _alone(a: Tally, b: Tally) -> tuple[int, int]:
    """Returns the rows that a alone has right, and those of b."""
    return int(np.sum(a.rows[:, 0] > b.rows[:, 0])), int(np.sum(a.rows[:, 0] < b.rows[:, 0]))


def _share_error(only_a: int, only_b: int, n: int) -> float:
    """Returns the standard error of a difference of shares, with one row more for each (Bonett and Price 2012,
    J. Educational and Behavioral Statistics 37, 479-488), so that it is not 0 without discordant rows."""
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    return sqrt((share_a + share_b - (share_a - share_b) ** 2) / (n + 2))


def _reach(alpha: float, power: float) -> float:
    """Returns how many standard errors a true difference must have to be found."""
    from scipy.special import ndtri

    return float(ndtri(power) - ndtri(alpha / 2))
