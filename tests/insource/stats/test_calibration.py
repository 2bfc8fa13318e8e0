"""Confidence: the scale that is fitted, and how it is held to what happened."""

from math import exp, log
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insource.stats import calibration
from insource.stats.calibration import Platt


def test_the_scale_that_made_the_answers_is_found_again() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(2, 2, 20_000)
    correct = rng.random(20_000) < 1 / (1 + np.exp(0.7 - 0.6 * logits))
    platt = calibration.fit_platt((-np.log1p(np.exp(-logits))).tolist(), correct.tolist())
    assert platt is not None
    assert platt.slope == pytest.approx(0.6, abs=0.05) and platt.intercept == pytest.approx(-0.7, abs=0.1)


def test_a_scale_of_one_is_the_models_own_probability() -> None:
    for probability in (0.001, 0.3, 0.5, 0.97):
        assert Platt(1.0, 0.0).confidence(log(probability)) == pytest.approx(probability)
    assert Platt(1.4, -0.3).confidence(log(0.5)) == pytest.approx(1 / (1 + exp(0.3)))


def test_no_scale_where_all_are_right_or_all_are_wrong() -> None:
    assert calibration.fit_platt([-0.1, -0.2], [True, True]) is None
    assert calibration.fit_platt([-0.1, -0.2], [False, False]) is None
    assert calibration.fit_platt([], []) is None


def test_answers_that_lie_apart_give_a_scale_and_no_step() -> None:
    platt = calibration.fit_platt([-0.01] * 50 + [-3.0] * 5, [True] * 50 + [False] * 5)
    assert platt is not None and 0 < platt.slope < 10
    assert 0.8 < platt.confidence(-0.01) < 1


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 log-probabilities are given for 1"):
        calibration.fit_platt([-0.1, -0.2], [True])
    with pytest.raises(ValueError, match="1 confidences are given for 2"):
        calibration.reliability([0.5], [True, False])
    with pytest.raises(ValueError, match="0 confidences"):
        calibration.reliability([], [])


@given(st.floats(-1e6, 0), st.floats(-50, 50), st.floats(-50, 50))
def test_a_confidence_is_a_probability(log_probability: float, slope: float, intercept: float) -> None:
    assert 0 <= Platt(slope, intercept).confidence(log_probability) <= 1


def test_calibration_error_is_the_distance_weighted_by_rows() -> None:
    reliability = calibration.reliability(
        [0.6, 0.9, 0.6, 0.9, 0.9, 0.9, 0.6, 0.6], [True, True, False, True] * 2, bins=2
    )
    low, high = reliability["bins"]
    assert (low["n"], low["low"], low["high"]) == (4, 0.6, 0.6) and (high["n"], high["confidence"]) == (4, 0.9)
    assert low["accuracy"] == 0.5 and high["accuracy"] == 1.0
    assert reliability["ece"] == pytest.approx((4 * 0.1 + 4 * 0.1) / 8)
    assert low["ci_low"] < 0.5 < low["ci_high"] and high["ci_high"] == 1.0


def test_equal_confidences_share_a_bin() -> None:
    reliability = calibration.reliability([0.99] * 90 + [0.4] * 10, [True] * 100)
    assert [(bucket["confidence"], bucket["n"]) for bucket in reliability["bins"]] == [
        (pytest.approx(0.4), 10),
        (pytest.approx(0.99), 90),
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12), st.randoms())
def test_bins_hold_every_row_once_whatever_their_order(
    rows: list[tuple[float, bool]], bins: int, random: Random
) -> None:
    reliability = calibration.reliability([value for value, _ in rows], [value for _, value in rows], bins)
    random.shuffle(rows)
    shuffled = calibration.reliability([value for value, _ in rows], [value for _, value in rows], bins)
    assert (
        sum(bucket["n"] for bucket in reliability["bins"]) == reliability["n"] == len(rows)
        and len(reliability["bins"]) <= bins
    )
    assert [bucket["n"] for bucket in reliability["bins"]] == [bucket["n"] for bucket in shuffled["bins"]]
    assert reliability["ece"] == pytest.approx(shuffled["ece"]) and 0 <= reliability["ece"] <= 1
    bounds = [bound for bucket in reliability["bins"] for bound in (bucket["low"], bucket["high"])]
    assert bounds == sorted(bounds)
    assert all(bucket["ci_low"] <= bucket["accuracy"] <= bucket["ci_high"] for bucket in reliability["bins"])
