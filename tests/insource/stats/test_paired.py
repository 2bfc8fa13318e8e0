"""Differences of two systems: published examples, what must not matter, and what is said of them."""

from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.statistics.paired_intervals import bca_rates
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
    wanted, a, b = zip(*pairs, strict=True)
    return metric_stats.macro_f1_metric(wanted, a, 4), metric_stats.macro_f1_metric(wanted, b, 4)


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
    spread=0.25,
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
    found = paired.compute_paired_difference(*table(*counts))
    assert (found.test, found.discordant, found.clusters) == ("exact McNemar", counts[1] + counts[2], None)
    assert [found.delta, found.low, found.high] == pytest.approx([delta, low, high], abs=5e-5)
    assert found.p_value == pytest.approx(p_value, abs=5e-5)


def test_five_of_128_rows_lost_do_not_prove_a_drop() -> None:
    # The BCa bootstrap that the parity check had before claims at least 1.6 points of these rows.
    found = paired.compute_paired_difference(*table(109, 0, 5, 14))
    assert paired.classify_difference(found, 0.01) == paired.classify_difference(found, 0.016) == "undecided"
    assert found.high > 0 and bca_rates(5, 0, 128) < -0.015
    assert paired.classify_difference(paired.compute_paired_difference(*table(109, 0, 10, 9)), 0.01) == "worse"


@pytest.mark.parametrize("rows", [64, 128, 500])
def test_no_discordant_row_is_the_rule_of_three(rows: int) -> None:
    # Nothing in n rows: at most 1 - (alpha / 2)^(1 / n), Clopper and Pearson 1934.
    found = paired.compute_paired_difference(*table(rows, 0, 0, 0), distribution_free=True)
    assert found.high == -found.low == pytest.approx(1 - 0.025 ** (1 / rows))
    assert paired.classify_difference(found, 0.01) == ("non-inferior" if rows == 500 else "undecided")


def test_scores_are_compared_like_shares_where_they_are_distribution_free() -> None:
    # Rows that lose half of their score: half of the difference, and about half of the interval.
    whole, half = tally_of(0.0, 20, 300), tally_of(0.5, 20, 300)
    full, right = paired.compute_paired_difference(whole, tally_of(1.0, 20, 300)), tally_of(1.0, 20, 300)
    found = paired.compute_paired_difference(half, right, distribution_free=True)
    assert found.delta == pytest.approx(full.delta / 2) and found.low == pytest.approx(full.low / 2, abs=5e-3)
    assert found == paired.compute_paired_difference(half, right, distribution_free=True)
    back = paired.compute_paired_difference(right, half, distribution_free=True)
    assert [back.low, back.high] == [-found.high, -found.low]


def test_scores_outside_0_to_1_have_no_distribution_free_interval() -> None:
    with pytest.raises(ValueError, match="from -1 to 1"):
        paired.compute_paired_difference(
            metric_stats.mean_metric([3.0, 1.0]), metric_stats.mean_metric([0.5, 1.0]), distribution_free=True
        )


def test_approval_of_the_prime_minister_fell() -> None:
    # Agresti 2002, Categorical Data Analysis, table 10.1: 4 points, 95% interval 2 to 6, z = -4.17.
    found = paired.compute_paired_difference(*table(794, 150, 86, 570))
    assert found.delta == pytest.approx(0.04) and found.p_value == pytest.approx(3.1e-5, rel=0.3)
    assert [found.low, found.high] == pytest.approx([0.0207, 0.0594], abs=1e-4)
    assert found.spread / 40 == pytest.approx(0.0095, abs=1e-4)


def test_a_paired_test_sees_what_an_unpaired_one_does_not() -> None:
    found = paired.compute_paired_difference(*table(852, 60, 35, 53))
    assert found.p_value == pytest.approx(0.013, abs=5e-4) and found.low > 0


def test_the_permutation_test_is_fishers_of_darwins_maize() -> None:
    # 863 of the 32,768 signs give as much or more: 0.0263, and twice that on both sides.
    crossed = metric_stats.mean_metric([100 + one / 2 for one in DARWIN])
    selfed = metric_stats.mean_metric([100 - one / 2 for one in DARWIN])
    found = paired.compute_paired_difference(crossed, selfed, permutations=20_000)
    assert (found.test, found.discordant) == ("paired permutation", None)
    assert found.delta == pytest.approx(314 / 15)
    assert found.p_value == pytest.approx(2 * 863 / 32_768, abs=0.006)


def test_a_few_rows_that_differ_all_to_one_side_are_no_proof() -> None:
    # Four of 280 rows, each a little better: one in eight of all signs does as much.
    better = metric_stats.mean_metric([0.9] * 4 + [0.8] * 276)
    found = paired.compute_paired_difference(better, metric_stats.mean_metric([0.6, 0.7, 0.75, 0.8] + [0.8] * 276))
    assert found.p_value == pytest.approx(2 / 16, abs=0.02)
    assert found.low <= 0 < found.delta < found.high
    assert paired.classify_difference(found, margin=0.02) == "non-inferior"


def test_clusters_with_one_discordant_row_each_are_mcnemars() -> None:
    # A concordant row beside each of 40 discordant ones changes neither test.
    a, b = table(40, 27, 13, 0)
    clusters: list[str | None] = [str(at % 40) for at in range(80)]
    found, rows = paired.compute_paired_difference(a, b, clusters), paired.compute_paired_difference(a, b)
    assert (found.test, found.clusters, found.discordant) == ("paired permutation by cluster", 40, 40)
    assert found.p_value == pytest.approx(rows.p_value, abs=0.01)
    assert found.spread == pytest.approx(rows.spread, rel=0.1)


def test_a_difference_that_whole_clusters_share_is_less_certain() -> None:
    a, b = table(80, 15, 5, 0)
    clusters: list[str | None] = [str(at // 5) for at in range(100)]
    found, rows = paired.compute_paired_difference(a, b, clusters), paired.compute_paired_difference(a, b)
    assert found.p_value > rows.p_value and found.high - found.low > rows.high - rows.low and found.mde > rows.mde


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
    same, scores = metric_stats.mean_metric([1.0] * rows), metric_stats.mean_metric([0.5] * rows)
    clusters: list[str | None] = [str(at // 2) for at in range(2 * rows)]
    two_each = metric_stats.mean_metric([1.0] * 2 * rows)
    for found in (
        paired.compute_paired_difference(same, same),
        paired.compute_paired_difference(scores, scores),
        paired.compute_paired_difference(two_each, two_each, clusters),
    ):
        assert found.delta == 0 and found.p_value == 1 and found.low == -found.high < 0
        assert paired.classify_difference(found, 0.02) == ("undecided" if rows == 10 else "non-inferior")


def test_one_cluster_proves_nothing() -> None:
    found = paired.compute_paired_difference(*table(5, 5, 0, 0), ["a"] * 10)
    assert found.clusters == 1 and paired.classify_difference(found, 0.02) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "judged"),
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
def test_what_an_interval_says(low: float, high: float, judged: str) -> None:
    assert paired.classify_difference(replace(seen, low=low, high=high), 0.02) == judged


def test_rows_that_would_decide() -> None:
    needed = paired.estimate_required_rows(seen, 0.02)
    # (2.80 x 0.25 / 0.015)^2, and there the distance to the margin is just detectable.
    assert needed == pytest.approx(2181, abs=3)
    assert 2.8016 * seen.spread / np.sqrt(2181) == pytest.approx(0.015, rel=1e-3)
    assert paired.estimate_required_rows(replace(seen, delta=-0.035), 0.02) == needed
    assert paired.estimate_required_rows(seen, 0.02, power=0.9) > 1.3 * 2181  # type: ignore[operator]
    assert paired.estimate_required_rows(replace(seen, delta=-0.02), 0.02) is None
    assert paired.estimate_required_rows(replace(seen, delta=-0.0201), 0.02) is None


def test_tallies_of_other_rows_or_metrics_are_refused() -> None:
    ten, eleven = metric_stats.mean_metric([1.0] * 10), metric_stats.mean_metric([1.0] * 11)
    for other in (
        eleven,
        metric_stats.macro_f1_metric([0] * 10, [0] * 10, 2),
        MetricStats(ten.rows, metric_stats.micro_f1),
    ):
        with pytest.raises(ValueError, match="not one metric of the same rows"):
            paired.compute_paired_difference(ten, other)


@settings(deadline=None)
@given(answered, st.integers(1, 4))
def test_swapping_the_systems_turns_the_signs(pairs: list[tuple[int, int, int]], size: int) -> None:
    right = [metric_stats.mean_metric([float(one[0] == one[at]) for one in pairs]) for at in (1, 2)]
    for (a, b), clusters in product((labels(pairs), right), (None, [str(at // size) for at in range(len(pairs))])):
        if a.figure() == b.figure():
            continue
        one, other = (
            paired.compute_paired_difference(*both, clusters, resamples=99, permutations=99)
            for both in ((a, b), (b, a))
        )
        assert [one.delta, one.low, one.high] == [-other.delta, -other.high, -other.low]
        kept = ("n", "p_value", "test", "discordant", "spread", "mde", "clusters")
        assert [getattr(one, name) for name in kept] == [getattr(other, name) for name in kept]
        assert -1 - 1e-9 <= one.low <= one.delta <= one.high <= 1 + 1e-9 and 0 < one.p_value <= 1


@settings(deadline=None)
@given(answered, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_rows_means_nothing(pairs: list[tuple[int, int, int]], size: int, random: Random) -> None:
    clusters: list[str | None] = [str(at // size) for at in range(len(pairs))]
    order = list(range(len(pairs)))
    random.shuffle(order)
    for before, after in ((None, None), (clusters, [clusters[at] for at in order])):
        one = paired.compute_paired_difference(*labels(pairs), before, resamples=99, permutations=99)
        other = paired.compute_paired_difference(
            *labels([pairs[at] for at in order]), after, resamples=99, permutations=99
        )
        assert [one.delta, one.low, one.high] == pytest.approx([other.delta, other.low, other.high], abs=1e-12)
        assert one.p_value == other.p_value


def test_the_same_seed_gives_the_same_and_another_nearly() -> None:
    drawn = np.random.default_rng(3)
    wanted = drawn.integers(0, 4, 400)
    a, b = (np.where(drawn.random(400) < share, wanted, drawn.integers(0, 4, 400)) for share in (0.9, 0.8))
    both = labels(list(zip(wanted.tolist(), a.tolist(), b.tolist(), strict=True)))
    first, again, another = (
        paired.compute_paired_difference(*both),
        paired.compute_paired_difference(*both),
        paired.compute_paired_difference(*both, seed=18),
    )
    assert first == again != another
    assert [first.low, first.high] == pytest.approx([another.low, another.high], abs=0.1 * (first.high - first.low))
