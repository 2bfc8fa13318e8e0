"""The interval of bounded differences: published values, its test, and how often it is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from bench import parity_check
from bench.statistics.paired_intervals import bonett_price, fay_lumbard, tango
from insource.stats.bounded_mean import mean_interval, proportion_interval

counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400)).filter(
    lambda row_counts: sum(row_counts) > 0
)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_the_interval_is_gaffkes_as_published() -> None:
    # The gaffke package (PyPI): 3, 5 and 2 answers of 1, 2 and 3 have the interval 1.4276 to 2.4186.
    assert np.add(proportion_interval(2, 3, 10, 0.05), 2) == pytest.approx([1.4276, 2.4186], abs=5e-5)
    interval = mean_interval(np.repeat([-1.0, 0.0, 1.0], [3, 5, 2]), 0.05, rng(), draws=200_000)
    assert interval == pytest.approx(proportion_interval(2, 3, 10, 0.05), abs=3e-3)


def test_other_intervals_are_as_published() -> None:
    # Cavo et al. 2012 in Fagerland, Lydersen and Laake 2017: R package contingencytables.
    assert tango(16, 6, 161) == pytest.approx((0.0054, 0.1240), abs=5e-5)
    assert bonett_price(16, 6, 161) == pytest.approx((0.0032, 0.1195), abs=5e-5)


@settings(deadline=None)
@given(counts, st.sampled_from([0.01, 0.05, 0.2]))
def test_the_interval_excludes_0_exactly_where_mcnemar_rejects(rows: tuple[int, int, int], alpha: float) -> None:
    only_a, only_b, _ = rows
    low, high = proportion_interval(only_a, only_b, sum(rows), alpha)
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    assert abs(p_value - alpha) < 1e-6 or (low > 0 or high < 0) == (p_value < alpha)
    assert -1 <= low <= (only_a - only_b) / sum(rows) <= high <= 1
    assert proportion_interval(only_b, only_a, sum(rows), alpha) == (-high, -low)


@settings(deadline=None)
@given(counts)
def test_it_lies_within_the_interval_of_fay_and_lumbard(rows: tuple[int, int, int]) -> None:
    losses, wins, _ = rows
    assert fay_lumbard(losses, wins, sum(rows)) <= -proportion_interval(wins, losses, sum(rows), 0.05)[1] + 1e-4


@settings(deadline=None)
@given(counts)
def test_more_lost_rows_are_a_lower_interval(rows: tuple[int, int, int]) -> None:
    only_a, only_b, _ = rows
    interval = proportion_interval(only_a, only_b, sum(rows) + 1, 0.05)
    lower_interval = proportion_interval(only_a, only_b + 1, sum(rows) + 1, 0.05)
    assert lower_interval[0] <= interval[0] and lower_interval[1] <= interval[1]


@pytest.mark.parametrize(("scores", "n"), [(0, 20), (3, 60), (20, 20)])
def test_scores_of_0_and_1_have_the_interval_of_clopper_and_pearson_on_the_side_of_1(scores: int, n: int) -> None:
    # A difference can be -1 too, so only the high end is theirs.
    interval = mean_interval(np.repeat([1.0, 0.0], [scores, n - scores]), 0.05, rng(), draws=100_000)
    assert interval[1] == pytest.approx(beta.ppf(0.975, scores + 1, n - scores) if scores < n else 1.0, abs=3e-3)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_an_interval_of_scores_contains_their_mean(values: list[float]) -> None:
    differences = np.array(values)
    low, high = mean_interval(differences, 0.05, rng(), draws=500)
    assert -1 <= low <= differences.mean() + 1e-9 and differences.mean() - 1e-9 <= high <= 1
    assert (low, high) == mean_interval(differences, 0.05, rng(), draws=500)


def test_counts_and_differences_out_of_range_are_refused() -> None:
    for rows in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="are not counts of"):
            proportion_interval(*rows, 0.05)
    for values in ([], [0.5, 1.5]):
        with pytest.raises(ValueError, match="at least one, all from -1 to 1"):
            mean_interval(np.array(values), 0.05, rng())


@pytest.mark.parametrize("n", [64, 128, 500])
def test_the_check_says_worse_as_rarely_as_allowed(n: int) -> None:
    rows = list(parity_check.compute_rates(n))
    assert len(rows) == 8 and all(parity_check.meets_promise(row) for row in rows)
    # The bootstrap that was used before is above what is allowed where few rows differ.
    published = [
        row["worse"][parity_check.PREVIOUS_METHOD] > parity_check.ALLOWED_RATES.get(row["drop"], 1) for row in rows
    ]
    assert any(published) == (n < 500)


@pytest.mark.parametrize(("n", "score_drop"), [(30, 0.05), (128, 0.01), (200, 0.02)])
def test_other_shares_and_drops_are_not_called_worse_more_often_than_alpha_allows(n: int, score_drop: float) -> None:
    min_lost = parity_check.min_lost_rows(parity_check.METHODS[parity_check.CURRENT_METHOD], n, n // 2, score_drop)
    for discordant in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6):
        rate_at_zero = parity_check.rejection_rate(min_lost, n, discordant, 0.0)
        if discordant >= score_drop:
            assert rate_at_zero <= parity_check.rejection_rate(min_lost, n, discordant, score_drop) <= 0.025
        assert (n, discordant) != (128, 0.2) or rate_at_zero == pytest.approx(0.0077, abs=1e-4)


@pytest.mark.parametrize("kind", ["lost entirely", "many small losses, rare gains"])
def test_lost_rows_of_other_scores_are_not_called_worse_too_often(kind: str) -> None:
    simulated = [row for row in parity_check.simulate(64, 200, seed=2) if row["scores"] == kind and row["drop"] == 0.01]
    assert parity_check.meets_promise(simulated[0]) and len(simulated) == 1
    # 4.5 standard errors above 2.5%, of the bootstrap, where a few rows gain all of their score.
    assert kind == "lost entirely" or simulated[0]["worse"][parity_check.PREVIOUS_METHOD] > 0.075
