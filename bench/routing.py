"""Does the router keep its target: `python -m bench.routing` draws 1,000 sets of calibration rows whose truth is known,
chooses a threshold by each, and counts how often it misses the target in truth; it writes bench/results/routing.json.

    rows                          n     insource: missed   threshold   kept    the build before: missed ...
    continuous, as sure as right  900   0.3%               100%        62.9%   0.0%

Beside that, on data: what is promised, and what the rows that were left aside show (bench/statistics/router_data.py).
"""

import argparse
import os
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
from insource.config import cli
from insource.system import atomic_files

RESULTS = Path(__file__).parent / "results" / "routing.json"
DOCS = machine.ROOT / "docs" / "routing.md"
ROWS = (200, 900, 3000)
CURRENT_METHOD = "insource"

Row = dict[str, Any]


def main() -> int:
    made = argparse.ArgumentParser(
        prog="python -m bench.routing", description="How often the router misses its target."
    )
    made.add_argument("--draws", type=int, default=1000, help="sets of calibration rows for each n and population")
    made.add_argument("--only", choices=("simulation", "data"), help="this part; the file keeps the other")
    found = Path(os.environ.get("BANKING77") or machine.ROOT / "recipes" / "data" / "banking77")
    made.add_argument("--banking77", type=Path, default=found, help="the folder of its train.csv (or $BANKING77)")
    made.add_argument("--run", type=Path, action="append", default=[], help="a run folder with a routing.json")
    made.add_argument("--write-docs", action="store_true", help="put the last results into docs/routing.md and end")
    asked = made.parse_args()
    if asked.write_docs:
        docs_tables.write_tables(DOCS, "routing", RESULTS, results_tables)
        return cli.OK
    results: dict[str, list[Row]] = atomic_files.read_json(RESULTS) if RESULTS.exists() else {}
    if asked.only != "data":
        results["simulation"] = simulate(asked.draws)
    if asked.only != "simulation":
        about = {"hardware": machine.describe_hardware(on_gpu=False), "date": machine.utc_date()}
        results["data"] = [{**row, **about} for row in router_data.measure_all(asked.banking77, asked.run)]
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_files.write_json(RESULTS, results)
    print(results_tables(results))
    broken = [row for row in results.get("simulation", []) if not meets_promise(row)]
    for row in broken:
        print(f"above the allowed rate: {row}", file=sys.stderr)
    return cli.FAILED if broken else cli.OK


def simulate(draws: int) -> list[Row]:
    """Returns a row for each population and number of calibration rows."""
    about = {
        "command": f"python -m bench.routing --only simulation --draws {draws}",
        "hardware": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
    }
    found = []
    for population in POPULATIONS:
        for n in ROWS:
            began = time.monotonic()
            # The exact test of differences takes longer.
            times = draws if population.other is None else draws // 5
            found.append(
                {"rows": population.name, "n": n, "draws": times, "methods": measure_rates(population, n, times)}
            )
            found[-1] |= about
            print(f"{population.name}, {n} rows: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def measure_rates(population: Population, n: int, draws: int, seed: int = 1) -> dict[str, Row]:
    """Returns for each method how often it misses the target, how often it has a threshold at all, and which share of
    the rows it keeps in truth, nothing where it has none."""
    names = list(METHODS) if population.other is None else PAIRED_METHODS
    found = {name: np.zeros(3) for name in names}
    for number in range(draws):
        rng = np.random.default_rng([seed, n, POPULATIONS.index(population), number])
        draw = draw_calibration(population, n, rng)
        for name in names:
            threshold = METHODS[name](draw)
            if threshold is not None:
                share, missed = population.truth(threshold)
                found[name] += (missed, 1, share)
    keys = ("missed", "threshold", "kept")
    return {name: dict(zip(keys, (counts / draws).tolist(), strict=True)) for name, counts in found.items()}


def meets_promise(row: Mapping[str, Any]) -> bool:
    """Returns whether the target is missed in at most 5% of the draws, but for the simulation's own error."""
    return bool(row["methods"][CURRENT_METHOD]["missed"] <= allowed_miss_rate(row["draws"]))


def allowed_miss_rate(draws: int) -> float:
    """Returns 5% and two standard errors of such a share among so many draws."""
    return ALPHA + 2 * sqrt(ALPHA * (1 - ALPHA) / draws)


def results_tables(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the results as Markdown."""
    lines: list[str] = []
    if rows := results.get("simulation"):
        lines.append(f"{rows[0]['hardware']}, {rows[0]['date']}, `{rows[0]['command']}`.")
        for draws in dict.fromkeys(row["draws"] for row in rows):
            mine = [row for row in rows if row["draws"] == draws]
            lines += [
                "",
                f"{draws:,} draws each. In bold: missed in more than {allowed_miss_rate(draws):.1%} of the draws "
                "(5% and two",
            ]
            lines += ["standard errors of the simulation).", ""]
            heads = ["rows", "n", *(f"{name}: {what}" for name in mine[0]["methods"] for what in ("missed", "kept"))]
            lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            lines += [_table_row(row, allowed_miss_rate(draws)) for row in mine]
    if rows := results.get("data"):
        command_line = "python -m bench.routing --only data --banking77 FOLDER --run RUN"
        lines += ["", f"{rows[0]['hardware']}, {rows[0]['date']}, `{command_line}`.", ""]
        lines += router_data.results_table(rows)
    return "\n".join(lines)


def _table_row(row: Mapping[str, Any], most: float) -> str:
    told = [row["rows"], f"{row['n']:,}"]
    for one in row["methods"].values():
        missed = f"{one['missed']:.1%}"
        told += [f"**{missed}**" if one["missed"] > most else missed, f"{one['kept']:.1%}"]
    return f"| {' | '.join(told)} |"


if __name__ == "__main__":
    cli.run_cli(main)
