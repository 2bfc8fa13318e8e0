"""Drift tests: two samples of numbers, two category distributions, and a promised proportion.

confidences of 403 rows and of 12,000 requests   -> largest difference of their distributions 0.041, p 0.53
labels of the same                               -> 4.2% of the answers would have to change, p 0.31
180 of 200 answers right, promised 0.95          -> p 0.0027

With a fixed first sample, the size of the first sample limits the detectable difference: about 0.08 at 400 rows,
0.05 at 1,000 rows (p 0.01). More rows in the second sample do not lower it. Observations count as independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Largest sample with the exact null distribution instead of the asymptotic one. Exact takes a second at 1,000.
MAX_EXACT_SAMPLE = 100
# Cochran's rule: categories with a lower expected count are merged.
MIN_EXPECTED_COUNT = 5.0


@dataclass(frozen=True)
class TwoSampleResult:
    """Distance of two samples and its p-value."""

    distance: float
    """0 (equal) to 1."""
    p_value: float


def ks_statistic(reference: Mapping[int, int], current: Mapping[int, int]) -> float:
    """Return the largest difference of two cumulative distributions, each as {value: count}; 0 if one is empty."""
    total_reference, total_current = sum(reference.values()), sum(current.values())
    if not total_reference or not total_current:
        return 0.0
    difference, largest = 0.0, 0.0
    for value in sorted({*reference, *current}):
        difference += reference.get(value, 0) / total_reference - current.get(value, 0) / total_current
        largest = max(largest, abs(difference))
    return largest


def ks_test(reference: Mapping[int, int], current: Mapping[int, int]) -> TwoSampleResult:
    """Return the two-sample Kolmogorov-Smirnov test of values as {value: count}.

    Equal values make it conservative. Raises ValueError if a sample is empty.
    """
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
    """Return the fraction of one distribution that must change to equal the other; 0 if one is empty."""
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
    """Return Pearson's chi-square test of two distributions, each as {category: count}.

    Categories with an expected count below 5 in one of them are merged. The distance is the total variation. Raises
    ValueError if a sample is empty.
    """
    from scipy.stats import chi2_contingency

    names = sorted({*reference, *current})
    table = np.array([[counts.get(name, 0) for name in names] for counts in (reference, current)], dtype=np.int64)
    sizes, total = table.sum(axis=1), table.sum()
    if not sizes.all():
        raise ValueError("a sample is empty")
    rare = table.sum(axis=0) * sizes.min() / total < MIN_EXPECTED_COUNT
    merged = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)]) if rare.any() else table
    # If the merged category is still rare, it joins the most frequent one.
    if rare.any() and merged.shape[1] > 1 and merged[:, -1].sum() * sizes.min() / total < MIN_EXPECTED_COUNT:
        merged[:, np.argmax(merged[:, :-1].sum(axis=0))] += merged[:, -1]
        merged = merged[:, :-1]
    p_value = float(chi2_contingency(merged, correction=False).pvalue) if merged.shape[1] > 1 else 1.0
    return TwoSampleResult(total_variation(reference, current), p_value)


def binomial_p_value(correct: int, n: int, promised: float) -> float:
    """Return the one-sided exact binomial p-value of at most `correct` of n, if the true proportion is `promised`.

    The p-value is 1 if n is 0.
    """
    from scipy.stats import binom

    return float(binom.cdf(correct, n, promised)) if n else 1.0


def find_largest_change(reference: Mapping[str, int], current: Mapping[str, int]) -> tuple[str, float, float]:
    """Return the category with the largest change of its proportion, and its two proportions.

    Raises ValueError if a sample is empty.
    """
    total_reference, total_current = sum(reference.values()), sum(current.values())
    if not total_reference or not total_current:
        raise ValueError("a sample is empty")
    shares = {
        category: (reference.get(category, 0) / total_reference, current.get(category, 0) / total_current)
        for category in sorted({*reference, *current})
    }
    name = max(shares, key=lambda category: abs(shares[category][1] - shares[category][0]))
    return name, *shares[name]
