"""Coverage of the 95% intervals: `python -m bench.coverage`.

It draws 1,000 test sets with known true figures. It counts how often the interval contains the truth, and how often a
verdict is false. It writes bench/results/coverage.json and prints the tables.

    figure                  n   clusters   holds the truth   truth below   truth above   width
    accuracy              400          -             95.2%          2.3%          2.5%   0.057
    accuracy difference   400         80             94.4%          2.9%          2.7%   0.081
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import docs_tables, machine
from bench.statistics.coverage_simulation import (
    CLUSTER_ROWS,
    LABEL_ACCURACIES,
    METRICS,
    SimulatedMetric,
    accuracy_loss_for,
    draw_test_set,
)
from insource.config import cli
from insource.stats import intervals, paired
from insource.stats.intervals import ATOL, Interval
from insource.stats.paired import PairedDifference
from insource.system import atomic_files
from insource.system.console_log import log_line

RESULTS = Path(__file__).parent / "results" / "coverage.json"
DOCS = machine.ROOT / "docs" / "statistics.md"

ROWS = (100, 400, 2000)
ALPHA, MARGIN = 0.05, 0.02
# The promised coverage, and the number of rows from which it is promised.
MIN_COVERAGE, MAX_COVERAGE, MIN_PROMISED_ROWS = 0.93, 0.97, 400
PERMUTATIONS = 999
EXACT_MCNEMAR = "exact McNemar"
FALSE_VERDICT_LABELS = {
    "false_superiority": "superior, where there is no difference",
    "false_rejection": f"p < {ALPHA}, where there is none",
    "false_non_inferiority": f"non-inferior, where it is the margin of {MARGIN:.0%}",
}

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description="Simulate the coverage of intervals.")
    parser.add_argument("--sets", type=int, default=1000, help="test sets for each n, with and without clusters")
    parser.add_argument("--quick", action="store_true", help="100 sets and 500 resamples, and nothing written")
    parser.add_argument(
        "--only", choices=[metric.name for metric in METRICS], help="this metric; the file keeps the other"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="put the last results into docs/statistics.md and end"
    )
    arguments = parser.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "coverage", RESULTS, results_tables)
        return cli.OK
    sets, resamples = (100, 500) if arguments.quick else (arguments.sets, intervals.RESAMPLES)
    metadata = {
        "command": f"python -m bench.coverage {'--quick' if arguments.quick else f'--sets {sets}'}"
        + (f" --only {arguments.only}" if arguments.only else ""),
        "resamples": resamples,
        "hardware": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
    }
    metrics = [metric for metric in METRICS if arguments.only in (None, metric.name)]
    results: list[Row] = []
    for clustered in (False, True):
        for n in ROWS:
            started_at = time.monotonic()
            results += [{**row, **metadata} for row in simulate(n, clustered, sets, resamples, metrics=metrics)]
            message = f"{n} rows{' in clusters' if clustered else ''}: {time.monotonic() - started_at:.0f} s"
            log_line(message)
    if arguments.only and not arguments.quick:
        results = merge_results(atomic_files.read_json(RESULTS), results)
    print(results_tables(results))
    broken = [row for row in results if not meets_promise(row)]
    for row in broken:
        print(f"not as promised: {row['figure']}, {row['n']} rows, {row['clusters'] or 'no'} clusters", file=sys.stderr)
    if not arguments.quick:
        atomic_files.write_json(RESULTS, results)
    return cli.FAILED if broken and not arguments.quick else cli.OK


def merge_results(previous: Sequence[Row], current: Sequence[Row]) -> list[Row]:
    """Return the rows of an earlier file in their order, each replaced if it was measured again."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["figure"], row["truth"] < 0, row["n"], row["clusters"]

    current_by_key = {key(row): row for row in current}
    return [current_by_key.get(key(row), row) for row in previous]


def simulate(
    n: int,
    clustered: bool,
    sets: int,
    resamples: int = intervals.RESAMPLES,
    seed: int = 1,
    metrics: Sequence[SimulatedMetric] = METRICS,
) -> list[Row]:
    """Return a row for each figure over `sets` test sets of n rows.

    The figures are the metrics, and their differences at a true difference of zero and of the margin.
    """
    losses = {metric.name: accuracy_loss_for(metric, MARGIN) for metric in METRICS}
    single_intervals: dict[str, list[Interval]] = {}
    differences: dict[tuple[str, float], list[PairedDifference]] = {}
    for number in range(sets):
        rng = np.random.default_rng([seed, n, clustered, number])
        test_set = draw_test_set(n, clustered, [0.0, *losses.values()], rng)
        for metric in metrics:
            options: dict[str, Any] = {"alpha": ALPHA, "resamples": resamples, "seed": number}
            tuned_stats = metric.stats(test_set.targets, test_set.tuned)
            single_intervals.setdefault(metric.name, []).append(
                intervals.compute_interval(tuned_stats, test_set.clusters, **options)
            )
            for truth, accuracy_loss in ((0.0, 0.0), (-MARGIN, losses[metric.name])):
                baseline_stats = metric.stats(test_set.targets, test_set.baselines[accuracy_loss])
                difference = paired.compute_paired_difference(
                    baseline_stats, tuned_stats, test_set.clusters, permutations=PERMUTATIONS, **options
                )
                differences.setdefault((metric.name, truth), []).append(difference)
    common: Row = {"n": n, "clusters": n // CLUSTER_ROWS if clustered else None, "sets": sets}
    rows: list[Row] = []
    for metric in metrics:
        truth = metric.truth(LABEL_ACCURACIES)
        rows.append({"figure": metric.name, "method": single_intervals[metric.name][0].method, **common})
        rows[-1].update(measure_coverage(truth, single_intervals[metric.name]))
        for truth in (0.0, -MARGIN):
            metric_differences = differences[metric.name, truth]
            rows.append({"figure": f"{metric.name} difference", "method": metric_differences[0].test, **common})
            rows[-1].update(
                measure_coverage(truth, metric_differences), **measure_false_verdicts(truth, metric_differences)
            )
    return rows


def measure_coverage(truth: float, estimates: Sequence[Interval | PairedDifference]) -> Row:
    """Return how often intervals contain the truth, and on which side it is otherwise."""
    low, high = np.array([(estimate.low, estimate.high) for estimate in estimates]).T
    below, above = float(np.mean(truth < low - ATOL)), float(np.mean(truth > high + ATOL))
    return {
        "truth": truth,
        "coverage": 1 - below - above,
        "truth_below": below,
        "truth_above": above,
        "mean_width": float(np.mean(high - low)),
    }


def measure_false_verdicts(truth: float, differences: Sequence[PairedDifference]) -> Row:
    """Return the rates of false verdicts at a true difference of zero, or of the margin."""
    verdicts = [paired.classify_difference(difference, MARGIN) for difference in differences]
    if truth < 0:
        return {"false_non_inferiority": (verdicts.count("superior") + verdicts.count("non-inferior")) / len(verdicts)}
    rejected = sum(difference.p_value < ALPHA for difference in differences)
    return {
        "false_superiority": verdicts.count("superior") / len(verdicts),
        "false_rejection": rejected / len(verdicts),
    }


def meets_promise(row: Mapping[str, Any]) -> bool:
    """Return whether a row meets the promise.

    Of accuracy and of differences, from 400 rows on, 93% to 97% of the intervals must contain the truth, or 93% and
    more if the test is exact. False verdicts must not exceed alpha plus the simulation's own error.
    """
    promised = row["n"] >= MIN_PROMISED_ROWS and row["figure"] != "macro-F1"
    # The interval that agrees with an exact test is too wide, because the test is discrete.
    max_coverage = 1.0 if row["method"] == EXACT_MCNEMAR else MAX_COVERAGE
    allowed = ALPHA + simulation_error(row["sets"])
    covers = MIN_COVERAGE <= row["coverage"] <= max_coverage or not promised
    return covers and all(row.get(name, 0) <= allowed for name in FALSE_VERDICT_LABELS)


def simulation_error(sets: int) -> float:
    """Return two standard errors of a rate of 5% over `sets` sets."""
    return float(2 * np.sqrt(ALPHA * (1 - ALPHA) / sets))


def results_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as two Markdown tables."""
    first_row = results[0]
    lines = [
        f"{first_row['sets']:,} sets each, {first_row['resamples']:,} resamples.",
        *[f"Measured {date} by `{command}`." for date, command in dict.fromkeys(_measured_by(row) for row in results)],
        f"In bold: outside {MIN_COVERAGE:.0%} to {MAX_COVERAGE:.0%}. The simulation's own error is "
        f"{simulation_error(first_row['sets']):.1%} (two",
        "standard errors).",
        "",
        "| figure | truth | rows | clusters | holds the truth | truth below | truth above | mean width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        coverage = f"{row['coverage']:.1%}"
        if not MIN_COVERAGE <= row["coverage"] <= MAX_COVERAGE:
            coverage = f"**{coverage}**"
        lines.append(
            f"| {row['figure']} | {row['truth']:.3f} | {row['n']:,} | {row['clusters'] or '-'} | {coverage} | "
            f"{row['truth_below']:.1%} | {row['truth_above']:.1%} | {row['mean_width']:.3f} |"
        )
    lines += [
        "",
        f"False verdicts, of which {ALPHA:.0%} are allowed:",
        "",
        f"| figure | rows | clusters | {' | '.join(FALSE_VERDICT_LABELS.values())} |",
        "|---|---|---|---|---|---|",
    ]
    rates: dict[tuple[object, ...], Row] = {}
    for row in results:
        key = (row["figure"], row["n"], row["clusters"])
        rates.setdefault(key, {}).update({name: row[name] for name in FALSE_VERDICT_LABELS if name in row})
    for (figure, n, clusters), row_rates in rates.items():
        if row_rates:
            cells = " | ".join(f"{row_rates[name]:.1%}" for name in FALSE_VERDICT_LABELS)
            lines.append(f"| {figure} | {n:,} | {clusters or '-'} | {cells} |")
    return "\n".join(lines)


def _measured_by(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["date"], row["command"]


if __name__ == "__main__":
    cli.run_cli(main)
