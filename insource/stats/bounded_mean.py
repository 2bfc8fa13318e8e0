"""The interval of a mean of paired differences from -1 to 1, without a normal approximation.

500 rows, only a right in 2, only b right in 14, alpha 0.05 -> -0.0433 to -0.0070
500 rows, no difference in any row, alpha 0.05              -> -0.0074 to 0.0074

The low end is the alpha / 2 quantile of a weighted mean: of the n differences and one more of -1, the worst that a row
can be, with weights that are uniform on the simplex (Dirichlet, all parameters 1). The high end adds 1 instead. This is
Gaffke's interval (Gaffke 2005; Learned-Miller and Thomas 2020, arXiv:1905.06208). Of values 0 and 1 it is Clopper and
Pearson's. Of -1, 0 and 1 it excludes 0 exactly where the exact McNemar test rejects equality; Fay and Lumbard (2021,
Statistics in Medicine 40, 1147-1159) combine two beta distributions to the same end. That no distribution misses more
often than alpha is proven in special cases only; bench.parity_check computes it for those that occur here.
"""

import numpy as np

from insource.stats.metric_stats import Array
from insource.stats.resampling import iter_chunks

DRAWS = 10_000
# Nodes of the integral over the discordant weight: twenty times as many move no end by more than 1e-5.
NODES = 2_000


def proportion_interval(only_a: int, only_b: int, n: int, alpha: float) -> tuple[float, float]:
    """Returns low and high of the difference of two shares of the same n rows.

    only_a, only_b: rows that only a, or only b, has right. Raises ValueError where they are not counts of n rows.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n or n < 1:
        raise ValueError(f"{only_a} and {only_b} discordant rows are not counts of {n} rows")
    return _proportion_low(only_a, only_b, n, alpha / 2), 0.0 - _proportion_low(only_b, only_a, n, alpha / 2)


def mean_interval(
    differences: Array, alpha: float, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[float, float]:
    """Returns low and high of the mean of differences (n,), by drawing the weights.

    Raises ValueError where there is no difference, or where one is outside -1 to 1.
    """
    if not len(differences) or np.max(np.abs(differences)) > 1:
        raise ValueError("an interval of bounded differences needs at least one, all from -1 to 1")
    values, counts = np.unique(differences, return_counts=True)
    low, high = np.empty(draws), np.empty(draws)
    for chunk in iter_chunks(draws, len(values)):
        # Gamma variables divided by their sum are Dirichlet weights; equal differences share one.
        weights = rng.standard_gamma(counts, size=(chunk.stop - chunk.start, len(values)))
        extra = rng.standard_exponential(chunk.stop - chunk.start)
        weighted, total = weights @ values, weights.sum(axis=1) + extra
        low[chunk], high[chunk] = (weighted - extra) / total, (weighted + extra) / total
    return float(np.quantile(low, alpha / 2)), float(np.quantile(high, 1 - alpha / 2))


def _proportion_low(only_a: int, only_b: int, n: int, tail: float) -> float:
    """Returns the quantile of the weight of a's rows minus that of b's, b having one row more.

    The weight of both together and a's part of it are independent and beta distributed.
    """
    from scipy.optimize import brentq
    from scipy.special import betainc, betaincinv

    discordant = only_a + only_b
    midpoints = (np.arange(NODES) + 0.5) / NODES
    both = betaincinv(discordant + 1, n - discordant, midpoints) if discordant < n else np.ones(1)
    if only_a == 0:
        return -float(betaincinv(discordant + 1, n - discordant, 1 - tail)) if discordant < n else -1.0

    def excess_probability(difference: float) -> float:
        part = np.clip((1 + difference / both) / 2, 0, 1)
        return float(np.mean(betainc(only_a, only_b + 1, part))) - tail

    return float(brentq(excess_probability, -1, 1, xtol=1e-9))
