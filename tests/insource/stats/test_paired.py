"""Differences of two systems: published examples, what must not matter, and what is said of them."""

from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.statistics.paired_intervals import bca_upper_bound
from insource.stats import metric_stats, paired
from insource.stats.metric_stats import MetricStats
from insource.stats.paired import PairedDifference

# Darwin's maize, crossed minus self-fertilised, in eighths of an inch (Fisher 1935, The Design of Experiments).
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[MetricStats, MetricStats]:
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return metric_stats.mean_metric(a), metric_stats.mean_metric(b)


def tally_of(score: float, rows: int, n: int) -> MetricStats:
    """The score in so many rows, and 1 in the others."""
    return metric_stats.mean_metric([score] * rows + [1.0] * (n - rows))


def labels(pairs: list[tuple[int, int, int]]) -> tuple[MetricStats, MetricStats]:
    targets, a, b = zip(*pairs, strict=True)
    return metric_stats.macro_f1_metric(targets, a, 4), metric_stats.macro_f1_metric(targets, b, 4)


answered = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3), st.integers(-1, 3)), min_size=2, max_size=60)
seen = PairedDifference(
    n=1000,
    delta=-0.005,
    low=-0.02,
    high=0.01,
    p_value=0.5,
    test="exact McNemar",
    alpha=0.05,
    discordant=60,
    row_std=0.25,
    mde=0.022,
    clusters=None,
)


@pytest.mark.parametrize(
    ("counts", "delta", "low", "high", "p_value"),
    [
        # Complete response before and after therapy (Cavo et al. 2012), in Fagerland, Lydersen and Laake 2017,
        # Statistical Analysis of Contingency Tables, chapter 8; the p-value is that of its authors' R package.
        ((59, 6, 16, 80), -0.0621, -0.1268, 0.0006, 0.052479),
        # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), the same chapter's other
        # table, by hand.
        ((1, 1, 7, 12), -0.2857, -0.5455, 0.0205, 0.0703),
    ],
)
def test_shares_are_compared_as_published(
    counts: tuple[int, int, int, int], delta: float, low: float, high: float, p_value: float
) -> None:
    difference = paired.compute_paired_difference(*table(*counts))
    assert (difference.test, difference.discordant, difference.clusters) == (
        "exact McNemar",
        counts[1] + counts[2],
        None,
    )
    assert [difference.delta, difference.low, difference.high] == pytest.approx([delta, low, high], abs=5e-5)
    assert difference.p_value == pytest.approx(p_value, abs=5e-5)


def test_five_of_128_rows_lost_do_not_prove_a_drop() -> None:
    # The BCa bootstrap that the parity check had before claims at least 1.6 points of these rows.
    difference = paired.compute_paired_difference(*table(109, 0, 5, 14))
    assert paired.classify_difference(difference, 0.01) == paired.classify_difference(difference, 0.016) == "undecided"
    assert difference.high > 0 and bca_upper_bound(5, 0, 128) < -0.015
    assert paired.classify_difference(paired.compute_paired_difference(*table(109, 0, 10, 9)), 0.01) == "worse"


@pytest.mark.parametrize("rows", [64, 128, 500])
def test_no_discordant_row_is_the_rule_of_three(rows: int) -> None:
    # Nothing in n rows: at most 1 - (alpha / 2)^(1 / n), Clopper and Pearson 1934.
    difference = paired.compute_paired_difference(*table(rows, 0, 0, 0), distribution_free=True)
    assert difference.high == -difference.low == pytest.approx(1 - 0.025 ** (1 / rows))
    assert paired.classify_difference(difference, 0.01) == ("non-inferior" if rows == 500 else "undecided")


def test_scores_are_compared_like_shares_where_they_are_distribution_free() -> None:
    # Rows that lose half of their score: half of the difference, and about half of the interval.
    zeros, halves = tally_of(0.0, 20, 300), tally_of(0.5, 20, 300)
    full, ones = paired.compute_paired_difference(zeros, tally_of(1.0, 20, 300)), tally_of(1.0, 20, 300)
    difference = paired.compute_paired_difference(halves, ones, distribution_free=True)
    assert difference.delta == pytest.approx(full.delta / 2) and difference.low == pytest.approx(full.low / 2, abs=5e-3)
    assert difference == paired.compute_paired_difference(halves, ones, distribution_free=True)
    swapped = paired.compute_paired_difference(ones, halves, distribution_free=True)
    assert [swapped.low, swapped.high] == [-difference.high, -difference.low]


def test_scores_outside_0_to_1_have_no_distribution_free_interval() -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        paired.compute_paired_difference(
            metric_stats.mean_metric([3.0, 1.0]), metric_stats.mean_metric([0.5, 1.0]), distribution_free=True
        )


def test_approval_of_the_prime_minister_fell() -> None:
    # Agresti 2002, Categorical Data Analysis, table 10.1: 4 points, 95% interval 2 to 6, z = -4.17.
    difference = paired.compute_paired_difference(*table(794, 150, 86, 570))
    assert difference.delta == pytest.approx(0.04) and difference.p_value == pytest.approx(3.1e-5, rel=0.3)
    assert [difference.low, difference.high] == pytest.approx([0.0207, 0.0594], abs=1e-4)
    assert difference.row_std / 40 == pytest.approx(0.0095, abs=1e-4)


def test_a_paired_test_sees_what_an_unpaired_one_does_not() -> None:
    difference = paired.compute_paired_difference(*table(852, 60, 35, 53))
    assert difference.p_value == pytest.approx(0.013, abs=5e-4) and difference.low > 0


def test_the_permutation_test_is_fishers_of_darwins_maize() -> None:
    # 863 of the 32,768 signs give as much or more: 0.0263, and twice that on both sides.
    crossed = metric_stats.mean_metric([100 + height / 2 for height in DARWIN])
    selfed = metric_stats.mean_metric([100 - height / 2 for height in DARWIN])
    difference = paired.compute_paired_difference(crossed, selfed, permutations=20_000)
    assert (difference.test, difference.discordant) == ("paired permutation", None)
    assert difference.delta == pytest.approx(314 / 15)
    assert difference.p_value == pytest.approx(2 * 863 / 32_768, abs=0.006)


def test_a_few_rows_that_differ_all_to_one_side_are_no_proof() -> None:
    # Four of 280 rows, each a little better: one in eight of all signs does as much.
    better = metric_stats.mean_metric([0.9] * 4 + [0.8] * 276)
    difference = paired.compute_paired_difference(better, metric_stats.mean_metric([0.6, 0.7, 0.75, 0.8] + [0.8] * 276))
    assert difference.p_value == pytest.approx(2 / 16, abs=0.02)
    assert difference.low <= 0 < difference.delta < difference.high
    assert paired.classify_difference(difference, margin=0.02) == "non-inferior"


def test_clusters_with_one_discordant_row_each_are_mcnemars() -> None:
    # A concordant row beside each of 40 discordant ones changes neither test.
    a, b = table(40, 27, 13, 0)
    clusters: list[str | None] = [str(index % 40) for index in range(80)]
    difference, rows = paired.compute_paired_difference(a, b, clusters), paired.compute_paired_difference(a, b)
    assert (difference.test, difference.clusters, difference.discordant) == ("paired permutation by cluster", 40, 40)
    assert difference.p_value == pytest.approx(rows.p_value, abs=0.01)
    assert difference.row_std == pytest.approx(rows.row_std, rel=0.1)


def test_a_difference_that_whole_clusters_share_is_less_certain() -> None:
    a, b = table(80, 15, 5, 0)
    clusters: list[str | None] = [str(index // 5) for index in range(100)]
    difference, rows = paired.compute_paired_difference(a, b, clusters), paired.compute_paired_difference(a, b)
    assert (
        difference.p_value > rows.p_value
        and difference.high - difference.low > rows.high - rows.low
        and difference.mde > rows.mde
    )


def test_holm_adjusts_as_published() -> None:
    # Holm 1979 by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, and no less than the one before.
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([]) == [] and paired.holm([0.7]) == [0.7]


@pytest.mark.parametrize(("n", "points"), [(391, 4.5), (1000, 2.8), (3080, 1.6)])
def test_the_detectable_difference_is_that_of_the_rows_seen(n: int, points: float) -> None:
    # (z of power 0.8 + z of 0.975) x sqrt(share of discordant rows / n), with 10% of the rows discordant.
    half = round(n * 0.05)
    difference = paired.compute_paired_difference(*table(n - 2 * half, half, half, 0))
    assert 100 * difference.mde == pytest.approx(points, abs=0.15)
    assert difference.mde == pytest.approx((0.8416 + 1.96) * (2 * half / n / n) ** 0.5, rel=0.03)


@pytest.mark.parametrize("rows", [10, 400])
def test_systems_that_answer_alike_are_not_proven_equal_by_few_rows(rows: int) -> None:
    equal_scores, scores = metric_stats.mean_metric([1.0] * rows), metric_stats.mean_metric([0.5] * rows)
    clusters: list[str | None] = [str(index // 2) for index in range(2 * rows)]
    paired_rows = metric_stats.mean_metric([1.0] * 2 * rows)
    for difference in (
        paired.compute_paired_difference(equal_scores, equal_scores),
        paired.compute_paired_difference(scores, scores),
        paired.compute_paired_difference(paired_rows, paired_rows, clusters),
    ):
        assert difference.delta == 0 and difference.p_value == 1 and difference.low == -difference.high < 0
        assert paired.classify_difference(difference, 0.02) == ("undecided" if rows == 10 else "non-inferior")


def test_one_cluster_proves_nothing() -> None:
    difference = paired.compute_paired_difference(*table(5, 5, 0, 0), ["a"] * 10)
    assert difference.clusters == 1 and paired.classify_difference(difference, 0.02) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "classification"),
    [
        (0.001, 0.03, "superior"),
        (0.0, 0.03, "non-inferior"),
        (1e-17, 0.03, "non-inferior"),
        (-0.019, -0.001, "non-inferior"),
        (-0.02, 0.03, "undecided"),
        (-0.03, 0.001, "undecided"),
        (-0.03, -0.02, "undecided"),
        (-0.05, -0.021, "worse"),
    ],
)
def test_what_an_interval_says(low: float, high: float, classification: str) -> None:
    assert paired.classify_difference(replace(seen, low=low, high=high), 0.02) == classification


def test_rows_that_would_decide() -> None:
    required_rows = paired.estimate_required_rows(seen, 0.02)
    # (2.80 x 0.25 / 0.015)^2, and there the distance to the margin is just detectable.
    assert required_rows == pytest.approx(2181, abs=3)
    assert 2.8016 * seen.row_std / np.sqrt(2181) == pytest.approx(0.015, rel=1e-3)
    assert paired.estimate_required_rows(replace(seen, delta=-0.035), 0.02) == required_rows
    assert paired.estimate_required_rows(seen, 0.02, power=0.9) > 1.3 * 2181  # type: ignore[operator]
    assert paired.estimate_required_rows(replace(seen, delta=-0.02), 0.02) is None
    assert paired.estimate_required_rows(replace(seen, delta=-0.0201), 0.02) is None


def test_tallies_of_other_rows_or_metrics_are_refused() -> None:
    ten_rows, eleven_rows = metric_stats.mean_metric([1.0] * 10), metric_stats.mean_metric([1.0] * 11)
    for mismatched in (
        eleven_rows,
        metric_stats.macro_f1_metric([0] * 10, [0] * 10, 2),
        MetricStats(ten_rows.row_stats, metric_stats.micro_f1),
    ):
        with pytest.raises(ValueError, match="not one metric of the same rows"):
            paired.compute_paired_difference(ten_rows, mismatched)


@settings(deadline=None)
@given(answered, st.integers(1, 4))
def test_swapping_the_systems_turns_the_signs(pairs: list[tuple[int, int, int]], size: int) -> None:
    correct = [metric_stats.mean_metric([float(row[0] == row[index]) for row in pairs]) for index in (1, 2)]
    for (a, b), clusters in product(
        (labels(pairs), correct), (None, [str(index // size) for index in range(len(pairs))])
    ):
        if a.compute_value() == b.compute_value():
            continue
        forward, backward = (
            paired.compute_paired_difference(*systems, clusters, resamples=99, permutations=99)
            for systems in ((a, b), (b, a))
        )
        assert [forward.delta, forward.low, forward.high] == [-backward.delta, -backward.high, -backward.low]
        unchanged = ("n", "p_value", "test", "discordant", "row_std", "mde", "clusters")
        assert [getattr(forward, name) for name in unchanged] == [getattr(backward, name) for name in unchanged]
        assert -1 - 1e-9 <= forward.low <= forward.delta <= forward.high <= 1 + 1e-9 and 0 < forward.p_value <= 1


@settings(deadline=None)
@given(answered, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_rows_means_nothing(pairs: list[tuple[int, int, int]], size: int, random: Random) -> None:
    clusters: list[str | None] = [str(index // size) for index in range(len(pairs))]
    order = list(range(len(pairs)))
    random.shuffle(order)
    for groups, shuffled_groups in ((None, None), (clusters, [clusters[index] for index in order])):
        difference = paired.compute_paired_difference(*labels(pairs), groups, resamples=99, permutations=99)
        shuffled_difference = paired.compute_paired_difference(
            *labels([pairs[index] for index in order]), shuffled_groups, resamples=99, permutations=99
        )
        assert [difference.delta, difference.low, difference.high] == pytest.approx(
            [shuffled_difference.delta, shuffled_difference.low, shuffled_difference.high], abs=1e-12
        )
        assert difference.p_value == shuffled_difference.p_value


def test_the_same_seed_gives_the_same_and_another_nearly() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 4, 400)
    a, b = (np.where(rng.random(400) < accuracy, targets, rng.integers(0, 4, 400)) for accuracy in (0.9, 0.8))
    systems = labels(list(zip(targets.tolist(), a.tolist(), b.tolist(), strict=True)))
    first, repeated, other_seed = (
        paired.compute_paired_difference(*systems),
        paired.compute_paired_difference(*systems),
        paired.compute_paired_difference(*systems, seed=18),
    )
    assert first == repeated != other_seed
    assert [first.low, first.high] == pytest.approx(
        [other_seed.low, other_seed.high], abs=0.1 * (first.high - first.low)
    )
