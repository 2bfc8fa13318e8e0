"""Error rate of the router: `python -m bench.routing`.

It draws 1,000 sets of calibration rows with a known truth and chooses a threshold from each. It counts how often the
threshold truly misses the target, and writes bench/results/routing.json.

    rows                          n     insource: missed   threshold   kept    the build before: missed ...
    continuous, as sure as right  900   0.3%               100%        62.9%   0.0%

A second part uses data: the promised figures, and those of held-out rows (bench/statistics/router_data.py).
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from bench import docs_tables, machine
from bench.statistics import router_data
from bench.statistics.router_simulation import ALPHA, METHODS, PAIRED_METHODS, POPULATIONS, Population, draw_calibration
from bench.training.workloads import add_banking77_option
from insource.config import cli
from insource.system import atomic_files
from insource.system.console_log import log_line

RESULTS = Path(__file__).parent / "results" / "routing.json"
DOCS = machine.ROOT / "docs" / "routing.md"
ROWS = (200, 900, 3000)
CURRENT_METHOD = "insource"

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.routing", description="How often the router misses its target."
    )
    parser.add_argument("--draws", type=int, default=1000, help="sets of calibration rows for each n and population")
    parser.add_argument("--only", choices=("simulation", "data"), help="this part; the file keeps the other")
    add_banking77_option(parser)
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run folder with a routing.json")
    parser.add_argument("--write-docs", action="store_true", help="put the last results into docs/routing.md and end")
    arguments = parser.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "routing", RESULTS, results_tables)
        return cli.OK
    results: dict[str, list[Row]] = atomic_files.read_json(RESULTS) if RESULTS.exists() else {}
    if arguments.only != "data":
        results["simulation"] = simulate(arguments.draws)
    if arguments.only != "simulation":
        metadata = {"hardware": machine.describe_hardware(on_gpu=False), "date": machine.utc_date()}
        results["data"] = [{**row, **metadata} for row in router_data.measure_all(arguments.banking77, arguments.run)]
    atomic_files.write_json(RESULTS, results)
    print(results_tables(results))
    broken = [row for row in results.get("simulation", []) if not meets_promise(row)]
    for row in broken:
        print(f"above the allowed rate: {row}", file=sys.stderr)
    return cli.FAILED if broken else cli.OK


def simulate(draws: int) -> list[Row]:
    """Return a row for each population and number of calibration rows."""
    metadata = machine.describe_call(f"python -m bench.routing --only simulation --draws {draws}")
    results = []
    for population in POPULATIONS:
        for n in ROWS:
            started_at = time.monotonic()
            # The exact test of differences takes longer.
            n_draws = draws if population.baseline_accuracy is None else draws // 5
            results.append(
                {"rows": population.name, "n": n, "draws": n_draws, "methods": measure_rates(population, n, n_draws)}
            )
            results[-1] |= metadata
            log_line(f"{population.name}, {n} rows: {time.monotonic() - started_at:.0f} s")
    return results


def measure_rates(population: Population, n: int, draws: int) -> dict[str, Row]:
    """Return the true figures of each method.

    They are the rate of missing the target, the rate of finding a threshold, and the mean fraction of rows kept, 0
    without a threshold.
    """
    names = list(METHODS) if population.baseline_accuracy is None else PAIRED_METHODS
    totals = {name: np.zeros(3) for name in names}
    for number in range(draws):
        rng = np.random.default_rng([1, n, POPULATIONS.index(population), number])
        draw = draw_calibration(population, n, rng)
        for name in names:
            threshold = METHODS[name](draw)
            if threshold is not None:
                kept_fraction, missed = population.true_coverage_and_miss(threshold)
                totals[name] += (missed, 1, kept_fraction)
    keys = ("missed", "threshold", "kept")
    return {name: dict(zip(keys, (counts / draws).tolist(), strict=True)) for name, counts in totals.items()}


def meets_promise(row: Mapping[str, Any]) -> bool:
    """Return whether the target is missed in at most 5% of the draws, plus the simulation's own error."""
    return bool(row["methods"][CURRENT_METHOD]["missed"] <= allowed_miss_rate(row["draws"]))


def allowed_miss_rate(draws: int) -> float:
    """Return 5% plus two standard errors of such a rate over `draws` draws."""
    return ALPHA + 2 * sqrt(ALPHA * (1 - ALPHA) / draws)


def results_tables(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the results as Markdown."""
    lines: list[str] = []
    if rows := results.get("simulation"):
        lines.append(f"{rows[0]['hardware']}, {rows[0]['date']}, `{rows[0]['command']}`.")
        for draws in dict.fromkeys(row["draws"] for row in rows):
            draw_rows = [row for row in rows if row["draws"] == draws]
            rate = f"{allowed_miss_rate(draws):.1%}"
            lines += ["", f"{draws:,} draws each. In bold: missed in more than {rate} of the draws (5% and two"]
            lines += ["standard errors of the simulation).", ""]
            methods = draw_rows[0]["methods"]
            headers = ["rows", "n", *(f"{name}: {figure}" for name in methods for figure in ("missed", "kept"))]
            lines += [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
            lines += [_table_row(row, allowed_miss_rate(draws)) for row in draw_rows]
    if rows := results.get("data"):
        command_line = "python -m bench.routing --only data --banking77 FOLDER --run RUN"
        lines += ["", f"{rows[0]['hardware']}, {rows[0]['date']}, `{command_line}`.", ""]
        lines += router_data.results_table(rows)
    return "\n".join(lines)


def _table_row(row: Mapping[str, Any], max_rate: float) -> str:
    cells = [row["rows"], f"{row['n']:,}"]
    for rates in row["methods"].values():
        missed = f"{rates['missed']:.1%}"
        cells += [f"**{missed}**" if rates["missed"] > max_rate else missed, f"{rates['kept']:.1%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run_cli(main)
