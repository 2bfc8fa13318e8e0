"""The test behind the router's threshold: its p-values, its sequence, and how often it is wrong."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from bench import routing
from bench.statistics import router_simulation
from bench.statistics.router_simulation import POPULATIONS, CalibrationDraw, Population
from insource.stats import learn_then_test
from insource.stats.learn_then_test import MeanAbove, NonInferior, difference_p_value, hoeffding_bentkus
from tests.helpers.property_tests import examples

DRAWS = 200


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
def test_right_and_wrong_are_tested_by_the_exact_binomial_test(counts: tuple[int, int], target: float) -> None:
    n_correct, n = counts
    scores = np.repeat([1.0, 0.0], [n_correct, n - n_correct])
    exact = float(binomtest(n_correct, n, target, alternative="greater").pvalue)
    assert MeanAbove(target).p_value(scores) == pytest.approx(exact, abs=1e-12)
    assert hoeffding_bentkus(n_correct / n, n, target) >= exact - 1e-12, "that of any bounded scores is larger"


def test_other_scores_are_tested_by_hoeffding_and_bentkus() -> None:
    scores = np.full(400, 0.9)
    assert MeanAbove(0.85).p_value(scores) == hoeffding_bentkus(0.9, 400, 0.85) < 0.05
    assert MeanAbove(0.9).p_value(scores) == 1.0
    assert MeanAbove(0.9).p_value(np.array([])) == NonInferior(0.02).p_value(np.array([])) == 1.0


@pytest.mark.parametrize(("n", "margin"), [(25, 0.1), (40, 0.05), (40, 0.2)])
def test_a_difference_of_just_the_margin_is_found_no_oftener_than_alpha_whatever_the_discordant_share(
    n: int, margin: float
) -> None:
    """Computed over all counts, not drawn."""
    counts = [(wins, losses) for wins in range(n + 1) for losses in range(n + 1 - wins)]
    p_values = np.array([difference_p_value(wins, losses, n, margin) for wins, losses in counts])
    tables = [(wins, losses, n - wins - losses) for wins, losses in counts]
    for alpha in (0.01, 0.05, 0.2):
        for discordant in np.linspace(margin, 1, 12):
            probabilities = [(discordant - margin) / 2, (discordant + margin) / 2, 1 - discordant]
            rejection_rate = multinomial.pmf(tables, n, probabilities)[p_values <= alpha].sum()
            assert rejection_rate <= alpha, (alpha, discordant)
    # And it is no formality: where the two are equally good and seldom differ, it is found.
    power = multinomial.pmf(tables, n, [0.005, 0.005, 0.99])[p_values <= 0.2].sum()
    assert power > 0.5 or n * margin < 3


def test_a_difference_needs_differences() -> None:
    with pytest.raises(ValueError, match="1, 0 and -1"):
        NonInferior(0.02).p_value(np.array([0.5, 0.0]))


@given(st.lists(st.floats(0, 1), max_size=300))
def test_thresholds_are_values_of_the_rows_from_strict_to_loose_and_end_with_everything(values: list[float]) -> None:
    grid = learn_then_test.build_thresholds(values)
    assert grid == sorted(set(grid), reverse=True) and grid[-1] == 0.0
    assert set(grid) <= {*values, 0.0} and len(grid) <= learn_then_test.MAX_THRESHOLDS
    counts = learn_then_test.count_kept(np.array(values), grid)
    assert counts.tolist() == [sum(value >= threshold for value in values) for threshold in grid]
    assert counts[-1] == len(values)


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.8, 0.9, 1.0]), st.booleans()), min_size=1, max_size=200))
def test_a_sequence_ends_at_its_first_failure(rows: list[tuple[float, bool]]) -> None:
    confidences, scores = (
        np.array([confidence for confidence, _ in rows]),
        np.array([float(is_correct) for _, is_correct in rows]),
    )
    claim, thresholds = MeanAbove(0.7), [0.95, 0.85, 0.6, 0.3, 0.0]
    tested = learn_then_test.run_fixed_sequence(claim, thresholds, confidences, scores, 0.1)
    p_values = [claim.p_value(scores[confidences >= threshold]) for threshold in thresholds]
    failed = [index for index, p_value in enumerate(p_values) if p_value > 0.1]
    assert tested.selected_index == ((failed[0] - 1 if failed[0] else None) if failed else 4)
    assert tested.p_values == pytest.approx(p_values[: len(tested.p_values)])


def test_it_begins_where_enough_rows_are_left_to_show_anything() -> None:
    rng = np.random.default_rng(2)
    confidences, correct, _ = POPULATIONS[0].draw(500, rng)
    thresholds = learn_then_test.build_thresholds(confidences.tolist())
    claim = MeanAbove(0.95)
    assert claim.min_rows(0.05) == 59 and NonInferior(0.02).min_rows(0.05) == 149
    expected_rows = []
    for rows in (100, 200, 900, 3000):
        start = learn_then_test.find_start(claim, thresholds, confidences, correct, rows, 0.05)
        expected_rows.append(rows * (confidences >= thresholds[start]).mean())
        assert expected_rows[-1] >= 59 and thresholds[start] > 0.9
    assert expected_rows == sorted(expected_rows)
    # Of too few rows it begins with all of them.
    start = learn_then_test.find_start(claim, thresholds, confidences, correct, 20, 0.05)
    assert (confidences >= thresholds[start]).all()


@pytest.mark.parametrize("claim", [MeanAbove(0.9), NonInferior(0.1)], ids=["mean", "difference"])
def test_the_chance_to_pass_that_is_planned_with_is_about_the_chance_to_pass(claim: MeanAbove | NonInferior) -> None:
    rng = np.random.default_rng(4)
    for accuracy in (0.9, 0.95, 0.98):
        correct = rng.random((400, 150)) < accuracy
        scores = (
            correct.astype(float)
            if isinstance(claim, MeanAbove)
            else correct - (rng.random(correct.shape) < accuracy) * 1.0
        )
        passed = np.mean([claim.p_value(row) <= 0.05 for row in scores])
        planned_power = claim.power(*claim.expected_moments(np.array([accuracy])), np.array([150.0]), 0.05)
        # The exact test of a difference has to hold for any share of discordant rows; its plan is a normal one.
        assert planned_power[0] == pytest.approx(passed, abs=0.1 if isinstance(claim, MeanAbove) else 0.25)


@pytest.mark.parametrize("name", ["continuous, as sure as right", "discrete, as sure as right"])
def test_as_many_rows_as_it_asks_for_are_mostly_enough(name: str) -> None:
    population = next(candidate for candidate in POPULATIONS if candidate.name == name)
    rng, claim = np.random.default_rng(7), MeanAbove(0.95)
    confidences, correct, _ = population.draw(1400, rng)
    thresholds = learn_then_test.build_thresholds(confidences[:500].tolist())
    required_rows = learn_then_test.estimate_required_rows(claim, thresholds, confidences, correct, 0.05)
    assert required_rows is not None and required_rows > 59
    n_passed = 0
    for _ in range(100):
        drawn_confidences, hits, _ = population.draw(required_rows, rng)
        start = learn_then_test.find_start(claim, thresholds, confidences[:500], correct[:500], required_rows, 0.05)
        n_passed += (
            learn_then_test.run_fixed_sequence(claim, thresholds[start:], drawn_confidences, hits, 0.05).selected_index
            is not None
        )
    assert n_passed >= 60


def test_where_no_threshold_keeps_the_target_no_number_of_rows_would_do() -> None:
    confidences, correct, _ = POPULATIONS[3].draw(3000, np.random.default_rng(1))
    thresholds = learn_then_test.build_thresholds(confidences.tolist())
    assert learn_then_test.estimate_required_rows(MeanAbove(0.99), thresholds, confidences, correct, 0.05) is None


@pytest.mark.parametrize("population", POPULATIONS[:6], ids=lambda population: population.name)
@pytest.mark.parametrize("n", [200, 900])
def test_the_target_is_missed_in_at_most_5_percent_of_the_draws(population: Population, n: int) -> None:
    """A smaller bench.routing, with its seeds; there are 1,000 draws of 200, 900 and 3,000 rows."""
    rates = routing.measure_rates(population, n, DRAWS)["insource"]
    assert rates["missed"] <= routing.allowed_miss_rate(DRAWS)
    if "target" in population.name:
        assert rates["threshold"] == rates["missed"], "whatever is kept there misses the target"
    elif n == 900:
        assert rates["kept"] > 0.1 or "worse" in population.name


def test_a_difference_of_the_margin_is_missed_in_at_most_5_percent_of_the_draws() -> None:
    assert routing.measure_rates(POPULATIONS[7], 900, 60)["insource"]["missed"] <= routing.allowed_miss_rate(60)


def test_what_the_simulation_calls_the_truth_is_what_many_rows_show() -> None:
    rng = np.random.default_rng(5)
    for population in POPULATIONS:
        confidences, _, scores = population.draw(200_000, rng)
        claim = population.claim
        null = claim.target if isinstance(claim, MeanAbove) else -claim.margin
        for threshold in (0.0, 0.75, 0.96):
            coverage, missed = population.true_coverage_and_miss(threshold)
            is_kept = confidences >= threshold
            assert is_kept.mean() == pytest.approx(coverage, abs=0.005)
            mean = scores[is_kept].mean()
            assert missed == (mean <= null) or mean == pytest.approx(null, abs=0.006)


def test_thresholds_do_not_depend_on_the_calibration_rows() -> None:
    """Neither the grid nor its beginning: what is chosen is a confidence of the validation rows."""
    population = POPULATIONS[0]
    for seed in range(20):
        draw = router_simulation.draw_calibration(population, 900, np.random.default_rng(seed))
        threshold = router_simulation.insource_threshold(draw)
        assert threshold is None or threshold in {*draw.validation_confidences, 0.0}
        shifted = CalibrationDraw(
            draw.claim, draw.validation_confidences, draw.validation_correct, draw.confidences + 1e-7, draw.scores
        )
        shifted_threshold = router_simulation.insource_threshold(shifted)
        assert shifted_threshold is None or shifted_threshold in {*draw.validation_confidences, 0.0}


@examples(50)
@given(st.floats(0.6, 0.99), st.floats(0.01, 0.2))
def test_so_many_right_rows_show_the_target_and_one_fewer_do_not(target: float, alpha: float) -> None:
    claim = MeanAbove(target)
    min_rows = claim.min_rows(alpha)
    assert claim.p_value(np.ones(min_rows)) <= alpha * (1 + 1e-6)
    assert min_rows == 1 or claim.p_value(np.ones(min_rows - 1)) > alpha * (1 - 1e-6)
    assert min_rows == ceil(np.log(alpha) / np.log(target) - 1e-9)
