"""Intervals of a paired difference that bench.parity_check compares with the parity check's own.

16 rows lost, 6 won of 161 -> a drop of 0.0054 to 0.1240 (Tango), 0.0032 to 0.1195 (Bonett and Price)
"""

from math import sqrt

import numpy as np

from insource.stats.intervals import bca
from insource.stats.metric_stats import Array, mean
from insource.stats.resampling import bootstrap, group_units, jackknife, permute

ALPHA, Z, RESAMPLES = 0.05, 1.959964, 2_000


def bca_mean(differences: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the interval that the check used before: the plain BCa bootstrap of the mean of differences, (n,)."""
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    units = group_units(np.column_stack([differences, np.ones_like(differences)]))
    resampled = bootstrap(units, mean, resamples, rng)
    return bca(float(differences.mean()), resampled, jackknife(units, mean), units.counts, Z)


def sign_flip_p_value(differences: Array, drop: float, flips: int, rng: np.random.Generator) -> float:
    """Return the one-sided p-value of "the mean is at least -drop".

    The signs of the differences around it are flipped at random.
    """
    shifted = differences + drop
    units = group_units(np.column_stack([shifted, np.ones_like(shifted)]))
    sums = shifted.sum() - 2 * permute(units, lambda summed: summed[:, 0], flips, rng)
    return (1 + int(np.sum(sums <= shifted.sum() + 1e-12))) / (1 + flips)


def tango(lost: int, won: int, n: int, correction: float = 0.0) -> tuple[float, float]:
    """Return the score interval of the drop (Tango 1998, Statistics in Medicine 17, 891-908).

    `correction`: rows subtracted from the distance, for continuity.
    """

    def low(n_first: int, n_second: int) -> float:
        from scipy.optimize import brentq

        def score(delta: float) -> float:
            b = (2 * n - n_first + n_second) * delta - n_first - n_second
            probability = (sqrt(b * b + 8 * n * n_second * delta * (1 - delta)) - b) / (4 * n) if delta < 1 else 0.0
            scale = sqrt(max(n * (2 * max(probability, 0.0) + delta * (1 - delta)), 1e-300))
            return (n_first - n_second - n * delta - correction) / scale - Z

        if n_first - n_second <= -n:
            return -1.0
        return float(brentq(score, -1 + 1e-9, (n_first - n_second) / n, xtol=1e-10))

    return low(lost, won), -low(won, lost)


def bonett_price(lost: int, won: int, n: int) -> tuple[float, float]:
    """Return Wald's interval of the drop with one row added to each count.

    Source: Bonett and Price 2012, J. Educational and Behavioral Statistics 37, 479-488.
    """
    lost_rate, won_rate = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half_width = Z * sqrt((lost_rate + won_rate - (lost_rate - won_rate) ** 2) / (n + 2))
    return lost_rate - won_rate - half_width, lost_rate - won_rate + half_width


def fay_lumbard(lost: int, won: int, n: int) -> float:
    """Return the lower end of the drop, from two combined beta distributions (Fay and Lumbard 2021)."""
    from scipy.optimize import brentq
    from scipy.special import betainc, betaincinv

    if lost == 0:
        return -1.0
    middles, n_discordant = (np.arange(1000) + 0.5) / 1000, lost + won
    weights = [betaincinv(n_discordant, n - n_discordant + 1, middles)]
    weights += [betaincinv(n_discordant + 1, n - n_discordant, middles) if n_discordant < n else np.ones(1)]

    def below(drop: float) -> float:
        parts = [np.mean(betainc(lost, won + 1, np.clip((1 + drop / weight) / 2, 0, 1))) for weight in weights]
        return float(max(parts)) - ALPHA / 2

    return float(brentq(below, -1, 1))


def bca_upper_bound(lost: int, won: int, n: int) -> float:
    """Return the upper end of served minus trained that the check used before, with its seed."""
    differences = np.repeat([-1.0, 1.0, 0.0], [lost, won, n - lost - won])
    return bca_mean(differences, np.random.default_rng(17))[1]
