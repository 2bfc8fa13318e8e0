"""How often the parity check says "worse": `python -m bench.parity_check` writes bench/results/parity_check.json.

    scores   n    discordant   true drop   insource   BCa bootstrap, as before
    0 or 1   500  1%           1%          0.2%       1.3%
    0 or 1   500  3%           2%          16.8%      26.4%

Of scores 0 and 1 the rates are computed, not simulated: which counts of lost and won rows a method calls "worse", and
how probable these counts are. Of other scores they are simulated, with seeds. "Worse" means that the whole 95% interval
of served minus trained is below minus `score_drop`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from bench import docs_tables, machine
from bench.statistics.paired_intervals import (
    ALPHA,
    bca_mean,
    bca_rates,
    bonett_price,
    fay_lumbard,
    sign_flip_p_value,
    tango,
)
from bench.statistics.score_differences import CHANGE_KINDS, draw_differences
from insource.config import cli
from insource.stats.bounded_mean import mean_interval, proportion_interval
from insource.system import atomic_files

RESULTS = Path(__file__).parent / "results" / "parity_check.json"
DOCS = machine.ROOT / "docs" / "statistics.md"

SCORE_DROP = 0.01
ROWS, DISCORDANT_RATES, DROPS = (64, 128, 500), (0.01, 0.03, 0.10), (0.0, 0.01, 0.02)
# What is allowed, by true drop: half of ALPHA at score_drop itself.
ALLOWED_RATES = {0.0: 0.005, 0.01: 0.025}
SIMULATED_SETS = 1_000
CURRENT_METHOD, PREVIOUS_METHOD = "insource", "BCa bootstrap, as before"

Row = dict[str, Any]
UpperBound = Callable[[int, int, int], float]
"""Lost, won and all rows -> the high end of the interval of served minus trained."""


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m bench.parity_check", description="Error rates of the parity check.")
    made.add_argument(
        "--sets", type=int, default=1000, help="simulated sets of rows for each n, kind of change and drop"
    )
    made.add_argument("--write-docs", action="store_true", help="put the last results into docs/statistics.md and end")
    arguments = made.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "parity_check", RESULTS, results_tables)
        return cli.OK
    about = {
        "command": f"python -m bench.parity_check --sets {arguments.sets}",
        "hardware": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
    }
    results: list[Row] = []
    for n in ROWS:
        began = time.monotonic()
        results += [{**row, **about} for row in [*compute_rates(n), *simulate(n, arguments.sets)]]
        print(f"{n} rows: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_files.write_json(RESULTS, results)
    print(results_tables(results))
    broken = [row for row in results if not meets_promise(row)]
    for row in broken:
        print(f"above the allowed rate: {row}", file=sys.stderr)
    return cli.FAILED if broken else cli.OK


def compute_rates(n: int) -> Iterator[Row]:
    """Yields the rates of "worse" of scores 0 and 1: one row for each discordant share and true drop."""
    most_won = _max_won_rows(n)
    least = {name: min_lost_rows(upper, n, most_won) for name, upper in METHODS.items()}
    for discordant in DISCORDANT_RATES:
        for drop in DROPS:
            if drop <= discordant:
                rates = {name: rejection_rate(counts, n, discordant, drop) for name, counts in least.items()}
                yield {"scores": "0 or 1", "n": n, "discordant": discordant, "drop": drop, "sets": None, "worse": rates}


def min_lost_rows(upper: UpperBound, n: int, most_won: int, score_drop: float = SCORE_DROP) -> list[int]:
    """Returns for 0, 1, ... `most_won` won rows how many rows must be lost until the check says "worse"."""
    found: list[int] = []
    for won in range(most_won + 1):
        below, least = found[-1] - 1 if found else 0, n - won + 1
        while least - below > 1:
            lost = min((below + least) // 2, below + 16)
            if upper(lost, won, n) < -score_drop:
                least = lost
            else:
                below = lost
        found.append(least)
    return found


def rejection_rate(least: Sequence[int], n: int, discordant: float, drop: float) -> float:
    """Returns how probable it is that rows are lost as often as least[won] says, won and lost being multinomial."""
    from scipy.stats import binom

    lost, won = (discordant + drop) / 2, (discordant - drop) / 2
    counts = np.arange(len(least))
    enough = binom.sf(np.asarray(least) - 1, n - counts, lost / (1 - won))
    return float(binom.pmf(counts, n, won) @ enough)


def simulate(n: int, sets: int, seed: int = 1) -> Iterator[Row]:
    """Yields the rates of "worse" of other scores: one row for each kind of change and true drop."""
    for kind in CHANGE_KINDS:
        for drop in DROPS:
            counts = dict.fromkeys((CURRENT_METHOD, PREVIOUS_METHOD, "sign flips"), 0)
            for number in range(sets):
                rng = np.random.default_rng([seed, n, CHANGE_KINDS.index(kind), round(1000 * drop), number])
                differences = draw_differences(kind, n, drop, rng)
                counts[CURRENT_METHOD] += mean_interval(differences, ALPHA, rng, SIMULATED_SETS)[1] < -SCORE_DROP
                counts[PREVIOUS_METHOD] += bca_mean(differences, rng, SIMULATED_SETS)[1] < -SCORE_DROP
                counts["sign flips"] += sign_flip_p_value(differences, SCORE_DROP, SIMULATED_SETS, rng) <= ALPHA / 2
            rates = {name: count / sets for name, count in counts.items()}
            yield {"scores": kind, "n": n, "discordant": None, "drop": drop, "sets": sets, "worse": rates}


METHODS: Mapping[str, UpperBound] = {
    CURRENT_METHOD: lambda lost, won, n: proportion_interval(won, lost, n, ALPHA)[1],
    PREVIOUS_METHOD: bca_rates,
    "Bonett and Price": lambda lost, won, n: -bonett_price(lost, won, n)[0],
    "Tango": lambda lost, won, n: -tango(lost, won, n)[0],
    "Tango, continuity corrected": lambda lost, won, n: -tango(lost, won, n, 1.0)[0],
    "Fay and Lumbard": lambda lost, won, n: -fay_lumbard(lost, won, n),
}


def meets_promise(row: Mapping[str, Any]) -> bool:
    """Returns whether the check says "worse" no oftener than allowed, but for three standard errors of a simulation."""
    allowed = ALLOWED_RATES.get(row["drop"], 1.0)
    error = 3 * sqrt(allowed * (1 - allowed) / row["sets"]) if row["sets"] else 0.0
    return bool(row["worse"][CURRENT_METHOD] <= allowed + error)


def results_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the results as two Markdown tables, what is above the allowed rate in bold."""
    first = results[0]
    lines = [f"{first['hardware']}, {first['date']}, `{first['command']}`. In bold: above the allowed rate."]
    for exact in (True, False):
        rows = [row for row in results if (row["sets"] is None) == exact]
        heads = ["n", "discordant" if exact else "scores", "true drop", "allowed", *rows[0]["worse"]]
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in rows:
            allowed = ALLOWED_RATES.get(row["drop"])
            which = f"{row['discordant']:.0%}" if exact else row["scores"]
            told = [f"{row['n']}", which, f"{row['drop']:.0%}", "-" if allowed is None else f"{allowed:.1%}"]
            told += [_table_cell(share, allowed, row["sets"]) for share in row["worse"].values()]
            lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def _table_cell(share: float, allowed: float | None, sets: int | None) -> str:
    error = 3 * sqrt(allowed * (1 - allowed) / sets) if allowed and sets else 0.0
    told = f"{share:.1%}" if share >= 0.0005 or share == 0 else f"{share:.2%}"
    return f"**{told}**" if allowed is not None and share > allowed + error else told


def _max_won_rows(n: int) -> int:
    """Returns how many won rows practically never occur at the largest discordant share."""
    from scipy.stats import binom

    return int(binom.isf(1e-9, n, max(DISCORDANT_RATES) / 2))


if __name__ == "__main__":
    cli.run_cli(main)
