"""Whether new observations look like those of before: two samples of numbers, two mixes of categories, and a share that
was promised.

confidences of 403 rows and of 12,000 requests   -> largest difference of their distributions 0.041, p 0.53
labels of the same                               -> 4.2% of the answers would have to change, p 0.31
180 of 200 answers right, promised 0.95          -> p 0.0027

With a fixed first sample, more of the second finds no smaller differences than the first one's size allows: at 400
rows about 0.08, at 1,000 about 0.05 (p 0.01). Observations count as independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Up to so many in both samples the null distribution of the largest difference is counted and not approximated, which
# takes a second at 1,000.
MAX_EXACT_SAMPLE = 100
# Cochran's rule: categories that are expected less often are put together.
MIN_EXPECTED_COUNT = 5.0


@dataclass(frozen=True)
class TwoSampleResult:
    """Two samples side by side."""

    distance: float
    """From 0, alike, to 1."""
    p_value: float


def ks_statistic(before: Mapping[int, int], now: Mapping[int, int]) -> float:
    """Returns the largest difference of two cumulative distributions, each given as {value: how often}; 0 where one of
    them is empty."""
    total_before, total_now = sum(before.values()), sum(now.values())
    if not total_before or not total_now:
        return 0.0
    difference, most = 0.0, 0.0
    for value in sorted({*before, *now}):
        difference += before.get(value, 0) / total_before - now.get(value, 0) / total_now
        most = max(most, abs(difference))
    return most


def ks_test(before: Mapping[int, int], now: Mapping[int, int]) -> TwoSampleResult:
    """Returns the two-sample test of Kolmogorov and Smirnov on values given as {value: how often}; equal values make it
    conservative. Raises ValueError where a sample is empty."""
    from scipy.stats import ks_2samp

    first, second = (np.repeat(sorted(one), [one[value] for value in sorted(one)]) for one in (before, now))
    if not len(first) or not len(second):
        raise ValueError("a sample is empty")
    found = ks_2samp(first, second, method="exact" if max(len(first), len(second)) <= MAX_EXACT_SAMPLE else "asymp")
    return TwoSampleResult(float(found.statistic), float(found.pvalue))


def total_variation(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """Returns the share of one mix that would have to change for it to be the other; 0 where one of them is empty."""
    total_before, total_now = sum(before.values()), sum(now.values())
    if not total_before or not total_now:
        return 0.0
    return sum(abs(before.get(one, 0) / total_before - now.get(one, 0) / total_now) for one in {*before, *now}) / 2


def chi_square_test(before: Mapping[str, int], now: Mapping[str, int]) -> TwoSampleResult:
    """Returns Pearson's chi-square test of two mixes, given as {category: how often}. Categories that are expected
    fewer than 5 times in one of them are put together. Raises ValueError where a sample is empty."""
    from scipy.stats import chi2_contingency

    names = sorted({*before, *now})
    table = np.array([[one.get(name, 0) for name in names] for one in (before, now)], dtype=np.int64)
    sizes, total = table.sum(axis=1), table.sum()
    if not sizes.all():
        raise ValueError("a sample is empty")
    rare = table.sum(axis=0) * sizes.min() / total < MIN_EXPECTED_COUNT
    kept = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)]) if rare.any() else table
    # Together they may still be few: then they join the most frequent one.
    if rare.any() and kept.shape[1] > 1 and kept[:, -1].sum() * sizes.min() / total < MIN_EXPECTED_COUNT:
        kept[:, np.argmax(kept[:, :-1].sum(axis=0))] += kept[:, -1]
        kept = kept[:, :-1]
    p_value = float(chi2_contingency(kept, correction=False).pvalue) if kept.shape[1] > 1 else 1.0
    return TwoSampleResult(total_variation(before, now), p_value)


def binomial_p_value(right: int, n: int, promised: float) -> float:
    """Returns the exact one-sided binomial p-value of so few of n being right where at least `promised` of them should
    be; 1 of none."""
    from scipy.stats import binom

    return float(binom.cdf(right, n, promised)) if n else 1.0


def find_largest_change(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[str, float, float]:
    """Returns the category whose share changed most, with its two shares. Raises ValueError where a sample is empty."""
    total_before, total_now = sum(before.values()), sum(now.values())
    if not total_before or not total_now:
        raise ValueError("a sample is empty")
    shares = {one: (before.get(one, 0) / total_before, now.get(one, 0) / total_now) for one in sorted({*before, *now})}
    name = max(shares, key=lambda one: abs(shares[one][1] - shares[one][0]))
    return name, *shares[name]
