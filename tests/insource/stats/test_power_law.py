"""A power law of the error: found again where it is true, monotone always, and uncertain where the rows are few."""

import numpy as np
import pytest

from insource.stats import power_law
from insource.stats.metric_stats import Array, MetricStats, mean_metric
from insource.stats.power_law import PowerLawFit, bootstrap_jointly, fit_power_law

SIZES = (250, 500, 1000, 2000, 4000)


def draw_nested(errors: list[float], rows: int, seed: int) -> list[MetricStats]:
    """Draw right and wrong answers: a row that a larger size gets wrong, a smaller one gets wrong too."""
    difficulty = np.random.default_rng(seed).random(rows)
    return [mean_metric((difficulty >= error).astype(float)) for error in errors]


def law(size: float, asymptote: float = 0.05, exponent: float = 0.5) -> float:
    return asymptote + 0.15 * (size / 250) ** -exponent


def resampled_gains(fit: PowerLawFit, size: float) -> Array:
    """Return how much lower the error is at `size` than at the largest size, by each resample."""
    gains: Array = fit.scales * (1 - (size / fit.largest_size) ** -fit.exponents)
    return gains


def test_a_law_that_is_true_is_found_again() -> None:
    fit = fit_power_law(SIZES, draw_nested([law(size) for size in SIZES], 200_000, seed=3), resamples=200)
    assert fit.compute_error(250) == pytest.approx(law(250), abs=0.004)
    assert fit.compute_gain(8000) == pytest.approx(law(4000) - law(8000), abs=0.003)
    low, high = np.quantile(resampled_gains(fit, 8000), [0.025, 0.975])
    assert low <= law(4000) - law(8000) <= high


@pytest.mark.parametrize("errors", [[0.1, 0.12, 0.09, 0.13, 0.11], [0.0] * 5, [1.0] * 5, [0.9, 0.9, 0.9, 0.3, 0.05]])
def test_the_error_never_rises_with_the_rows_and_never_falls_below_zero(errors: list[float]) -> None:
    fit = fit_power_law(SIZES, draw_nested(errors, 300, seed=1), resamples=200)
    fitted = [fit.compute_error(size) for size in (*SIZES, 8000, 10**7)]
    assert fitted == sorted(fitted, reverse=True) and fitted[-1] >= 0
    assert (resampled_gains(fit, 8000) >= 0).all() and fit.asymptotes.min() >= 0
    # Each doubling gains at most as much as the one before.
    assert fit.compute_gain(8000) <= fit.compute_error(2000) - fit.compute_error(4000) + 1e-12


def test_fewer_rows_give_a_wider_interval() -> None:
    errors = [law(size) for size in SIZES]
    widths = []
    for rows in (200, 5000):
        gains = resampled_gains(fit_power_law(SIZES, draw_nested(errors, rows, seed=2), resamples=500), 8000)
        widths.append(float(np.ptp(np.quantile(gains, [0.025, 0.975]))))
    assert widths[0] > widths[1] > 0


def test_all_sizes_are_evaluated_on_the_same_draws() -> None:
    first, second = draw_nested([0.3, 0.2], 400, seed=5)
    values = bootstrap_jointly([first, second, first], resamples=300)
    assert values.shape == (300, 3)
    assert (values[:, 0] == values[:, 2]).all()
    # Nested answers: in no draw the larger size is worse.
    assert (values[:, 1] >= values[:, 0]).all()


def test_rows_of_one_cluster_are_drawn_together() -> None:
    answers = np.repeat(np.random.default_rng(4).random(40) > 0.2, 10).astype(float)
    stats = [mean_metric(answers), mean_metric(answers)]
    alone = bootstrap_jointly(stats, resamples=500)[:, 0].std()
    clusters = [f"customer {index // 10}" for index in range(400)]
    assert bootstrap_jointly(stats, clusters, resamples=500)[:, 0].std() > 2 * alone


def test_two_sizes_or_other_rows_give_no_law() -> None:
    stats = draw_nested([0.3, 0.2], 100, seed=1)
    with pytest.raises(ValueError, match="at least 3 different sizes"):
        fit_power_law([100, 200], stats)
    with pytest.raises(ValueError, match="different rows"):
        bootstrap_jointly([stats[0], stats[1].subset(range(50))])
    assert power_law.MIN_SIZES == 3
