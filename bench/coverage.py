"""Do the intervals hold what they promise: `python -m bench.coverage` draws 1,000 test sets whose true figures are
known, and counts how often the 95% interval holds them and how often a verdict is false; it writes
bench/results/coverage.json and prints the tables.

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

RESULTS = Path(__file__).parent / "results" / "coverage.json"
DOCS = machine.ROOT / "docs" / "statistics.md"

ROWS = (100, 400, 2000)
ALPHA, MARGIN = 0.05, 0.02
# What is promised, and from how many rows.
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
    made = argparse.ArgumentParser(prog="python -m bench.coverage", description="Simulate the coverage of intervals.")
    made.add_argument("--sets", type=int, default=1000, help="test sets for each n, with and without clusters")
    made.add_argument("--quick", action="store_true", help="100 sets and 500 resamples, and nothing written")
    made.add_argument(
        "--only", choices=[metric.name for metric in METRICS], help="this metric; the file keeps the other"
    )
    made.add_argument("--write-docs", action="store_true", help="put the last results into docs/statistics.md and end")
    asked = made.parse_args()
    if asked.write_docs:
        docs_tables.write_tables(DOCS, "coverage", RESULTS, results_tables)
        return cli.OK
    sets, resamples = (100, 500) if asked.quick else (asked.sets, intervals.RESAMPLES)
    about = {
        "command": f"python -m bench.coverage {'--quick' if asked.quick else f'--sets {sets}'}"
        + (f" --only {asked.only}" if asked.only else ""),
        "resamples": resamples,
        "hardware": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
    }
    metrics = [metric for metric in METRICS if asked.only in (None, metric.name)]
    results: list[Row] = []
    for clustered in (False, True):
        for n in ROWS:
            began = time.monotonic()
            results += [{**row, **about} for row in simulate(n, clustered, sets, resamples, metrics=metrics)]
            told = f"{n} rows{' in clusters' if clustered else ''}: {time.monotonic() - began:.0f} s"
            print(told, file=sys.stderr, flush=True)
    if asked.only and not asked.quick:
        results = merge_results(atomic_files.read_json(RESULTS), results)
    print(results_tables(results))
    broken = [row for row in results if not meets_promise(row)]
    for row in broken:
        print(f"not as promised: {row['figure']}, {row['n']} rows, {row['clusters'] or 'no'} clusters", file=sys.stderr)
    if not asked.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        atomic_files.write_json(RESULTS, results)
    return cli.FAILED if broken and not asked.quick else cli.OK


def merge_results(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Returns the rows of an earlier file, in their order, each replaced where it was measured again."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["figure"], row["truth"] < 0, row["n"], row["clusters"]

    again = {key(row): row for row in now}
    return [again.get(key(row), row) for row in before]


def simulate(
    n: int,
    clustered: bool,
    sets: int,
    resamples: int = intervals.RESAMPLES,
    seed: int = 1,
    metrics: Sequence[SimulatedMetric] = METRICS,
) -> list[Row]:
    """Returns a row for each figure of so many test sets: the metrics, and their differences where there is none and
    where it is just the margin."""
    loss = {metric.name: accuracy_loss_for(metric, MARGIN) for metric in METRICS}
    single: dict[str, list[Interval]] = {}
    double: dict[tuple[str, float], list[PairedDifference]] = {}
    for number in range(sets):
        rng = np.random.default_rng([seed, n, clustered, number])
        found = draw_test_set(n, clustered, [0.0, *loss.values()], rng)
        for metric in metrics:
            how: dict[str, Any] = {"alpha": ALPHA, "resamples": resamples, "seed": number}
            one = metric.tally(found.wanted, found.system)
            single.setdefault(metric.name, []).append(intervals.compute_interval(one, found.clusters, **how))
            for truth, lost in ((0.0, 0.0), (-MARGIN, loss[metric.name])):
                other = metric.tally(found.wanted, found.others[lost])
                seen = paired.compute_paired_difference(other, one, found.clusters, permutations=PERMUTATIONS, **how)
                double.setdefault((metric.name, truth), []).append(seen)
    same: Row = {"n": n, "clusters": n // CLUSTER_ROWS if clustered else None, "sets": sets}
    rows: list[Row] = []
    for metric in metrics:
        truth = metric.truth(LABEL_ACCURACIES)
        rows.append({"figure": metric.name, "method": single[metric.name][0].method, **same})
        rows[-1].update(measure_coverage(truth, single[metric.name]))
        for truth in (0.0, -MARGIN):
            of = double[metric.name, truth]
            rows.append({"figure": f"{metric.name} difference", "method": of[0].test, **same})
            rows[-1].update(measure_coverage(truth, of), **measure_false_verdicts(truth, of))
    return rows


def measure_coverage(truth: float, found: Sequence[Interval | PairedDifference]) -> Row:
    """Returns how often intervals hold the truth, and on which side it lies where they do not."""
    low, high = np.array([(one.low, one.high) for one in found]).T
    below, above = float(np.mean(truth < low - ATOL)), float(np.mean(truth > high + ATOL))
    return {
        "truth": truth,
        "coverage": 1 - below - above,
        "truth_below": below,
        "truth_above": above,
        "mean_width": float(np.mean(high - low)),
    }


def measure_false_verdicts(truth: float, found: Sequence[PairedDifference]) -> Row:
    """Returns how often something is said that is false where the true difference is none, or just the margin."""
    said = [paired.classify_difference(one, MARGIN) for one in found]
    if truth < 0:
        return {"false_non_inferiority": (said.count("superior") + said.count("non-inferior")) / len(said)}
    rejected = sum(one.p_value < ALPHA for one in found)
    return {"false_superiority": said.count("superior") / len(said), "false_rejection": rejected / len(said)}


def meets_promise(row: Mapping[str, Any]) -> bool:
    """Returns whether 93% to 97% of intervals hold the truth, of accuracy and of differences from 400 rows on (93% or
    more where the test is exact), and no more verdicts are false than alpha and the simulation's own error allow."""
    promised = row["n"] >= MIN_PROMISED_ROWS and row["figure"] != "macro-F1"
    # The interval that agrees with an exact test is too wide by as much as the test is discrete.
    most = 1.0 if row["method"] == EXACT_MCNEMAR else MAX_COVERAGE
    allowed = ALPHA + simulation_error(row["sets"])
    return (MIN_COVERAGE <= row["coverage"] <= most or not promised) and all(
        row.get(name, 0) <= allowed for name in FALSE_VERDICT_LABELS
    )


def simulation_error(sets: int) -> float:
    """Returns two standard errors of a share of 5% among so many sets."""
    return float(2 * np.sqrt(ALPHA * (1 - ALPHA) / sets))


def results_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the results as two Markdown tables."""
    first = results[0]
    lines = [
        f"{first['sets']:,} sets each, {first['resamples']:,} resamples.",
        *[f"Measured {date} by `{command}`." for date, command in dict.fromkeys(_measured_by(row) for row in results)],
        f"In bold: outside {MIN_COVERAGE:.0%} to {MAX_COVERAGE:.0%}. The simulation's own error is "
        f"{simulation_error(first['sets']):.1%} (two",
        "standard errors).",
        "",
        "| figure | truth | rows | clusters | holds the truth | truth below | truth above | mean width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        held = (
            f"{row['coverage']:.1%}"
            if MIN_COVERAGE <= row["coverage"] <= MAX_COVERAGE
            else f"**{row['coverage']:.1%}**"
        )
        lines.append(
            f"| {row['figure']} | {row['truth']:.3f} | {row['n']:,} | {row['clusters'] or '-'} | {held} | "
            f"{row['truth_below']:.1%} | {row['truth_above']:.1%} | {row['mean_width']:.3f} |"
        )
    lines += [
        "",
        f"False verdicts, of which {ALPHA:.0%} are allowed:",
        "",
        f"| figure | rows | clusters | {' | '.join(FALSE_VERDICT_LABELS.values())} |",
        "|---|---|---|---|---|---|",
    ]
    rates: dict[tuple[Any, ...], Row] = {}
    for row in results:
        key = (row["figure"], row["n"], row["clusters"])
        rates.setdefault(key, {}).update({name: row[name] for name in FALSE_VERDICT_LABELS if name in row})
    for (figure, n, clusters), found in rates.items():
        if found:
            told = " | ".join(f"{found[name]:.1%}" for name in FALSE_VERDICT_LABELS)
            lines.append(f"| {figure} | {n:,} | {clusters or '-'} | {told} |")
    return "\n".join(lines)


def _measured_by(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["date"], row["command"]


if __name__ == "__main__":
    cli.run_cli(main)
