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


def ks_statistic(reference: Mapping[int, int], current: Mapping[int, int]) -> float:
    """Returns the largest difference of two cumulative distributions, each given as {value: how often}; 0 where one of
    them is empty."""
    total_reference, total_current = sum(reference.values()), sum(current.values())
    if not total_reference or not total_current:
        return 0.0
    difference, largest = 0.0, 0.0
    for value in sorted({*reference, *current}):
        difference += reference.get(value, 0) / total_reference - current.get(value, 0) / total_current
        largest = max(largest, abs(difference))
    return largest


def ks_test(reference: Mapping[int, int], current: Mapping[int, int]) -> TwoSampleResult:
    """Returns the two-sample test of Kolmogorov and Smirnov on values given as {value: how often}; equal values make it
    conservative. Raises ValueError where a sample is empty."""
    from scipy.stats import ks_2samp

    reference_values, current_values = (
        np.repeat(sorted(counts), [counts[value] for value in sorted(counts)]) for counts in (reference, current)
    )
    if not len(reference_values) or not len(current_values):
        raise ValueError("a sample is empty")
    result = ks_2samp(
        reference_values,
        current_values,
        method="exact" if max(len(reference_values), len(current_values)) <= MAX_EXACT_SAMPLE else "asymp",
    )
    return TwoSampleResult(float(result.statistic), float(result.pvalue))


def total_variation(reference: Mapping[str, int], current: Mapping[str, int]) -> float:
    """Returns the share of one mix that would have to change for it to be the other; 0 where one of them is empty."""
    total_reference, total_current = sum(reference.values()), sum(current.values())
    if not total_reference or not total_current:
        return 0.0
    return (
        sum(
            abs(reference.get(category, 0) / total_reference - current.get(category, 0) / total_current)
            for category in {*reference, *current}
        )
        / 2
    )


def chi_square_test(reference: Mapping[str, int], current: Mapping[str, int]) -> TwoSampleResult:
    """Returns Pearson's chi-square test of two mixes, given as {category: how often}. Categories that are expected
    fewer than 5 times in one of them are put together. Raises ValueError where a sample is empty."""
    from scipy.stats import chi2_contingency

    names = sorted({*reference, *current})
    table = np.array([[counts.get(name, 0) for name in names] for counts in (reference, current)], dtype=np.int64)
    sizes, total = table.sum(axis=1), table.sum()
    if not sizes.all():
        raise ValueError("a sample is empty")
    rare = table.sum(axis=0) * sizes.min() / total < MIN_EXPECTED_COUNT
    merged = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)]) if rare.any() else table
    # Together they may still be few: then they join the most frequent one.
    if rare.any() and merged.shape[1] > 1 and merged[:, -1].sum() * sizes.min() / total < MIN_EXPECTED_COUNT:
        merged[:, np.argmax(merged[:, :-1].sum(axis=0))] += merged[:, -1]
        merged = merged[:, :-1]
    p_value = float(chi2_contingency(merged, correction=False).pvalue) if merged.shape[1] > 1 else 1.0
    return TwoSampleResult(total_variation(reference, current), p_value)


def binomial_p_value(right: int, n: int, promised: float) -> float:
    """Returns the exact one-sided binomial p-value of so few of n being right where at least `promised` of them should
    be; 1 of none."""
    from scipy.stats import binom

    return float(binom.cdf(right, n, promised)) if n else 1.0


def find_largest_change(reference: Mapping[str, int], current: Mapping[str, int]) -> tuple[str, float, float]:
    """Returns the category whose share changed most, with its two shares. Raises ValueError where a sample is empty."""
    total_reference, total_current = sum(reference.values()), sum(current.values())
    if not total_reference or not total_current:
        raise ValueError("a sample is empty")
    shares = {
        category: (reference.get(category, 0) / total_reference, current.get(category, 0) / total_current)
        for category in sorted({*reference, *current})
    }
    name = max(shares, key=lambda category: abs(shares[category][1] - shares[category][0]))
    return name, *shares[name]
