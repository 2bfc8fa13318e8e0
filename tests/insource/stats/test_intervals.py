"""Intervals of metrics: published examples, what must not matter, and that memory does not grow with resamples."""

import tracemalloc
from math import sqrt
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array

from bench import coverage, docs_tables, parity_check, routing
from bench.statistics import coverage_simulation
from insource.config.errors import StageError
from insource.stats import intervals, metric_stats
from insource.stats.metric_stats import Array, MetricStats
from insource.stats.resampling import ResamplingUnits, bootstrap, group_units, index_clusters, jackknife, permute
from tests.helpers.errors import raises_error

# Efron and Tibshirani 1993, An Introduction to the Bootstrap, table 14.1: the spatial test data, A.
SPATIAL = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]

# Eighths add up without rounding.
scores = st.lists(st.integers(0, 8).map(lambda numerator: numerator / 8), min_size=2, max_size=40)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def variance(sums: Array) -> Array:
    """The plug-in variance, of columns x, x squared and 1."""
    mean = sums[:, 0] / sums[:, 2]
    return np.asarray(sums[:, 1] / sums[:, 2] - mean**2)


def answers(n: int, labels: int = 7, seed: int = 1) -> tuple[list[int], list[int]]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, labels, n)
    predictions = np.where(generator.random(n) < 0.8, targets, generator.integers(-1, labels, n))
    return targets.tolist(), predictions.tolist()


@pytest.mark.parametrize(
    ("n_correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_newcombe_published_it(n_correct: int, n: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    interval = intervals.compute_interval(metric_stats.mean_metric([1.0] * n_correct + [0.0] * (n - n_correct)))
    assert interval.method == "Wilson" and interval.value == n_correct / n
    assert interval.low == pytest.approx(low, abs=5e-5) and interval.high == pytest.approx(high, abs=5e-5)


def test_bca_is_as_efron_and_tibshirani_published_it() -> None:
    units = group_units(np.array([[x, x * x, 1.0] for x in SPATIAL]))
    value = float(variance(units.total[None, :])[0])
    jackknifed = jackknife(units, variance)
    assert value == pytest.approx(171.5, abs=0.05)
    assert intervals.acceleration(jackknifed, units.counts) == pytest.approx(0.061, abs=0.0005)
    resampled = bootstrap(units, variance, 20_000, np.random.default_rng(1))
    # Their 90% interval, of 2,000 resamples, is 115.8 to 259.6; without the corrections it is 100.8 to 233.9.
    low, high = intervals.bca(value, resampled, jackknifed, units.counts, float(stats.norm.isf(0.05)))
    assert low == pytest.approx(115.8, abs=4) and high == pytest.approx(259.6, abs=5)
    assert np.quantile(resampled, [0.05, 0.95]) == pytest.approx([100.8, 233.9], abs=4)


def test_bca_is_scipys() -> None:
    values = rng().gamma(1.5, size=300)
    interval = intervals.compute_interval(metric_stats.mean_metric(values.tolist()), resamples=10_000)
    scipy_interval = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=rng()).confidence_interval
    assert interval.method == "BCa bootstrap"
    assert [interval.low, interval.high] == pytest.approx(
        [scipy_interval.low, scipy_interval.high], abs=0.06 * (scipy_interval.high - scipy_interval.low)
    )


@pytest.mark.parametrize("units", [2, 5, 20, 80, 1_000_000])
def test_few_units_get_the_quantile_of_students_t(units: int) -> None:
    factor = float(stats.t.isf(0.025, units - 1)) * sqrt(units / (units - 1))
    assert intervals.expanded_quantile(0.05, units) == pytest.approx(factor, rel=1e-9)
    assert intervals.expanded_quantile(0.05, units) > 1.9599


def test_a_row_that_stands_five_times_in_its_cluster_counts_once() -> None:
    row_scores = rng().beta(4, 1, size=120)
    clusters: list[str | None] = [str(number) for number in range(120) for _ in range(5)]
    unrepeated = intervals.compute_interval(metric_stats.mean_metric(row_scores.tolist()))
    repeated_scores = metric_stats.mean_metric(np.repeat(row_scores, 5).tolist())
    clustered, unclustered = (
        intervals.compute_interval(repeated_scores, clusters),
        intervals.compute_interval(repeated_scores),
    )
    assert clustered.method == "BCa bootstrap by cluster" and clustered.value == pytest.approx(unrepeated.value)
    width, unrepeated_width, unclustered_width = (
        interval.high - interval.low for interval in (clustered, unrepeated, unclustered)
    )
    assert width == pytest.approx(unrepeated_width, rel=0.1)
    assert unclustered_width == pytest.approx(unrepeated_width / sqrt(5), rel=0.1)


def test_rows_without_a_group_are_clusters_of_their_own() -> None:
    row_scores = metric_stats.mean_metric([1.0] * 30 + [0.0] * 6)
    assert intervals.compute_interval(row_scores, [None] * 36) == intervals.compute_interval(row_scores)
    assert intervals.compute_interval(row_scores, [str(index) for index in range(36)]) == intervals.compute_interval(
        row_scores
    )
    assert index_clusters(["a", None, "a", None], 4).tolist() == [0, 1, 0, 2]  # type: ignore[union-attr]


def test_where_every_cluster_is_right_the_interval_is_that_of_as_many_rows() -> None:
    clusters: list[str | None] = [str(index // 5) for index in range(100)]
    interval = intervals.compute_interval(metric_stats.mean_metric([1.0] * 100), clusters)
    assert interval.method == "Wilson by cluster"
    assert (interval.low, interval.high) == intervals.wilson(1.0, 20, 0.05)


def test_equal_scores_are_both_ends() -> None:
    interval = intervals.compute_interval(metric_stats.mean_metric([0.25] * 12))
    assert (interval.value, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_one_cluster_alone_tells_nothing_and_does_not_fail() -> None:
    interval = intervals.compute_interval(metric_stats.mean_metric([0.25, 0.5]), ["a", "a"])
    assert (interval.low, interval.high) == (0.375, 0.375)


def test_no_rows_and_too_few_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        intervals.compute_interval(metric_stats.mean_metric([]))
    with pytest.raises(ValueError, match="1 clusters are given for 2 rows"):
        intervals.compute_interval(metric_stats.mean_metric([0.5, 1.0]), ["a"])


@settings(deadline=None)
@given(scores, st.integers(1, 6), st.sampled_from([0.01, 0.05, 0.32]))
def test_an_interval_holds_its_value(values: list[float], size: int, alpha: float) -> None:
    clusters: list[str | None] = [str(index // size) for index in range(len(values))]
    for interval in (
        intervals.compute_interval(metric_stats.mean_metric(values), groups, alpha=alpha, resamples=99)
        for groups in (None, clusters)
    ):
        assert (
            min(values) - 1e-9 <= interval.low <= interval.value <= interval.high <= max(values) + 1e-9
            or "Wilson" in interval.method
        )
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


@settings(deadline=None)
@given(scores, st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_rows_means_nothing(values: list[float], size: int, random: Random) -> None:
    clusters: list[str | None] = [str(index // size) for index in range(len(values))]
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = metric_stats.mean_metric([values[index] for index in order])
    for groups, shuffled_groups in ((None, None), (clusters, [clusters[index] for index in order])):
        interval, shuffled_interval = (
            intervals.compute_interval(metric_stats.mean_metric(values), groups),
            intervals.compute_interval(shuffled, shuffled_groups),
        )
        assert [interval.low, interval.high] == pytest.approx(
            [shuffled_interval.low, shuffled_interval.high], abs=1e-12
        )


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=2, max_size=60), st.integers(1, 5))
def test_cells_stand_for_their_rows(pairs: list[tuple[int, int]], size: int) -> None:
    metric = metric_stats.macro_f1_metric([target for target, _ in pairs], [prediction for _, prediction in pairs], 4)
    numbers = index_clusters([str(index // size) for index in range(len(pairs))], len(pairs))
    dense = metric.row_stats.toarray()
    for rows in (metric.row_stats, dense):
        units = group_units(rows, numbers)
        unit_of_row = np.arange(len(pairs)) if numbers is None else numbers
        expected = [dense[unit_of_row == unit].sum(axis=0).tolist() for unit in range(unit_of_row.max() + 1)]
        sums = units.sums.toarray() if rows is metric.row_stats else units.sums
        assert sorted(np.repeat(sums, units.counts, axis=0).tolist()) == sorted(expected)
        assert len({tuple(row) for row in sums.tolist()}) == len(units.counts)
        assert units.n == len(expected) and units.total == pytest.approx(dense.sum(axis=0))
        if units.n > 1:
            left_out = [metric.from_sums(dense.sum(axis=0)[None, :] - row)[0] for row in np.array(expected)]
            assert sorted(np.repeat(jackknife(units, metric.from_sums), units.counts)) == pytest.approx(
                sorted(left_out)
            )


def test_cells_are_drawn_as_units_are() -> None:
    targets, predictions = answers(3000, labels=3)
    metric = metric_stats.macro_f1_metric(targets, predictions, 3)
    cells = group_units(metric.row_stats)
    row_units = ResamplingUnits(metric.row_stats, np.ones(metric.n, dtype=np.int64))
    assert cells.use_multinomial and not row_units.use_multinomial
    by_cell, by_row = (bootstrap(units, metric.from_sums, 4000, rng()) for units in (cells, row_units))
    assert by_cell.mean() == pytest.approx(by_row.mean(), abs=5e-4) and by_cell.std() == pytest.approx(
        by_row.std(), rel=0.06
    )
    by_cell, by_row = (permute(units, lambda sums: sums[:, 0], 4000, rng()) for units in (cells, row_units))
    assert by_cell.mean() == pytest.approx(by_row.mean(), rel=0.01) and by_cell.std() == pytest.approx(
        by_row.std(), rel=0.06
    )


def test_cells_that_repeat_a_little_are_drawn_as_units_are() -> None:
    repeated_units = ResamplingUnits(np.array([[1.0], [5.0], [9.0]]), np.array([2, 1, 4]))
    assert not repeated_units.use_multinomial
    permuted = permute(repeated_units, lambda sums: sums[:, 0], 20_000, rng())
    assert permuted.mean() == pytest.approx(43 / 2, rel=0.01) and permuted.max() == 43 and permuted.min() == 0
    assert permuted.var() == pytest.approx((2 * 1 + 25 + 4 * 81) / 4, rel=0.05)
    assert bootstrap(repeated_units, lambda sums: sums[:, 0], 20_000, rng()).mean() == pytest.approx(43, rel=0.01)


def test_sparse_rows_are_equal_whatever_the_order_and_the_zeros_they_are_stored_with() -> None:
    sparse = csr_array(
        (np.array([1.0, 2.0, 2.0, 1.0, 0.0]), np.array([0, 3, 3, 0, 1]), np.array([0, 2, 5])), shape=(2, 4)
    )
    assert group_units(sparse).counts.tolist() == [2]


def test_memory_does_not_grow_with_rows_times_resamples() -> None:
    metric = metric_stats.mean_metric(rng().random(60_000).tolist())
    tracemalloc.start()
    intervals.compute_interval(metric, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Rows times resamples would be 144 MB; counts and draws of a chunk are 16 MiB each.
    assert peak < 110 * 2**20


def test_true_figures_are_those_of_very_many_rows() -> None:
    for clustered in (False, True):
        test_set = coverage_simulation.draw_test_set(200_000, clustered, [0.05], rng())
        for metric in coverage_simulation.METRICS:
            for predictions, loss in ((test_set.tuned, 0.0), (test_set.baselines[0.05], 0.05)):
                tallied: MetricStats = metric.stats(test_set.targets, predictions)
                assert tallied.compute_value() == pytest.approx(
                    metric.truth(coverage_simulation.LABEL_ACCURACIES - loss), abs=0.006
                )


def test_coverage_is_told_for_every_figure_and_what_fails_is_bold() -> None:
    results = [
        {**row, "resamples": 50, "date": "2026-11-21", "command": "python -m bench.coverage"}
        for clustered in (False, True)
        for row in coverage.simulate(100, clustered, 3, 50)
    ]
    assert len(results) == 12
    results[0] |= {"coverage": 0.91, "n": 400}
    assert not coverage.meets_promise(results[0])
    assert coverage.meets_promise(results[0] | {"coverage": 0.94})
    assert not coverage.meets_promise(results[1] | {"false_superiority": 0.5})
    tables = coverage.results_tables(results)
    assert "| accuracy | 0.917 | 400 | - | **91.0%** |" in tables
    assert tables.count("| accuracy difference | ") == 4 + 2 and tables.count("| 20 |") == 6 + 2


def test_tables_go_between_the_marks_of_the_docs_and_nowhere_else(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "rows.json"
    results.write_text('["new"]', encoding="utf-8")
    page.write_text("before <!-- rows:begin -->old<!-- rows:end --> after", encoding="utf-8")
    docs_tables.write_tables(page, "rows", results, lambda rows: str(rows[0]))
    assert page.read_text(encoding="utf-8") == "before <!-- rows:begin -->\nnew\n<!-- rows:end --> after"
    with raises_error(StageError, "INS-X010", match="no marks"):
        docs_tables.write_tables(page, "others", results, str)


@pytest.mark.parametrize("bench", [coverage, parity_check, routing])
def test_docs_have_a_place_for_the_tables_of_each_bench(bench: ModuleType) -> None:
    name = bench.__name__.removeprefix("bench.")
    docs = bench.DOCS.read_text(encoding="utf-8")
    assert docs.index(f"<!-- {name}:begin -->") < docs.index(f"<!-- {name}:end -->")


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_hold_the_truth_about_as_often_as_they_say(clustered: bool) -> None:
    for row in coverage.simulate(400, clustered, 300, 600, seed=11):
        # 300 sets: three standard errors of 1.3% around 95%.
        assert 0.91 <= row["coverage"] <= 0.99, row
        assert all(row.get(name, 0) <= 0.09 for name in coverage.FALSE_VERDICT_LABELS), row
