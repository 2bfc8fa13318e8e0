"""Error rates of the parity check: `python -m bench.parity_check` writes bench/results/parity_check.json.

    scores   n    discordant   true drop   insource   BCa bootstrap, as before
    0 or 1   500  1%           1%          0.2%       1.3%
    0 or 1   500  3%           2%          16.8%      26.4%

For scores 0 and 1 the rates are computed: from the counts of lost and won rows that a method calls "worse", and their
probabilities. For other scores they are simulated, with seeds. "Worse" means that the complete 95% interval of served
minus trained is below minus `score_drop`.
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
    bca_upper_bound,
    bonett_price,
    fay_lumbard,
    sign_flip_p_value,
    tango,
)
from bench.statistics.score_differences import CHANGE_KINDS, draw_differences
from insource.config import cli
from insource.stats.bounded_mean import mean_interval, proportion_interval
from insource.system import atomic_files
from insource.system.console_log import log_line

RESULTS = Path(__file__).parent / "results" / "parity_check.json"
DOCS = machine.ROOT / "docs" / "statistics.md"

SCORE_DROP = 0.01
ROWS, DISCORDANT_RATES, DROPS = (64, 128, 500), (0.01, 0.03, 0.10), (0.0, 0.01, 0.02)
# Allowed rates by true drop: half of ALPHA at score_drop itself.
ALLOWED_RATES = {0.0: 0.005, 0.01: 0.025}
SIMULATED_SETS = 1_000
CURRENT_METHOD, PREVIOUS_METHOD = "insource", "BCa bootstrap, as before"

Row = dict[str, Any]
UpperBound = Callable[[int, int, int], float]
"""(lost, won, all rows) -> the upper end of the interval of served minus trained."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.parity_check", description="Error rates of the parity check."
    )
    parser.add_argument(
        "--sets", type=int, default=1000, help="simulated sets of rows for each n, kind of change and drop"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="put the last results into docs/statistics.md and end"
    )
    arguments = parser.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "parity_check", RESULTS, results_tables)
        return cli.OK
    metadata = machine.describe_call(f"python -m bench.parity_check --sets {arguments.sets}")
    results: list[Row] = []
    for n in ROWS:
        started_at = time.monotonic()
        results += [{**row, **metadata} for row in [*compute_rates(n), *simulate(n, arguments.sets)]]
        log_line(f"{n} rows: {time.monotonic() - started_at:.0f} s")
    atomic_files.write_json(RESULTS, results)
    print(results_tables(results))
    broken = [row for row in results if not meets_promise(row)]
    for row in broken:
        print(f"above the allowed rate: {row}", file=sys.stderr)
    return cli.FAILED if broken else cli.OK


def compute_rates(n: int) -> Iterator[Row]:
    """Yield the rates of "worse" for scores 0 and 1: one row for each discordant rate and true drop."""
    max_won = _max_won_rows(n)
    min_lost = {name: min_lost_rows(upper, n, max_won) for name, upper in METHODS.items()}
    for discordant in DISCORDANT_RATES:
        for drop in DROPS:
            if drop <= discordant:
                rates = {name: rejection_rate(counts, n, discordant, drop) for name, counts in min_lost.items()}
                yield {"scores": "0 or 1", "n": n, "discordant": discordant, "drop": drop, "sets": None, "worse": rates}


def min_lost_rows(upper: UpperBound, n: int, max_won: int, score_drop: float = SCORE_DROP) -> list[int]:
    """Return the smallest number of lost rows that the check calls "worse", for 0, 1, ... `max_won` won rows."""
    minimums: list[int] = []
    for won in range(max_won + 1):
        low, high = minimums[-1] - 1 if minimums else 0, n - won + 1
        while high - low > 1:
            lost = min((low + high) // 2, low + 16)
            if upper(lost, won, n) < -score_drop:
                high = lost
            else:
                low = lost
        minimums.append(high)
    return minimums


def rejection_rate(min_lost: Sequence[int], n: int, discordant: float, drop: float) -> float:
    """Return the probability of at least `min_lost[won]` lost rows, with won and lost multinomial."""
    from scipy.stats import binom

    lost, won = (discordant + drop) / 2, (discordant - drop) / 2
    counts = np.arange(len(min_lost))
    tail_probability = binom.sf(np.asarray(min_lost) - 1, n - counts, lost / (1 - won))
    return float(binom.pmf(counts, n, won) @ tail_probability)


def simulate(n: int, sets: int, seed: int = 1) -> Iterator[Row]:
    """Yield the rates of "worse" for other scores: one row for each kind of change and true drop."""
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
    PREVIOUS_METHOD: bca_upper_bound,
    "Bonett and Price": lambda lost, won, n: -bonett_price(lost, won, n)[0],
    "Tango": lambda lost, won, n: -tango(lost, won, n)[0],
    "Tango, continuity corrected": lambda lost, won, n: -tango(lost, won, n, 1.0)[0],
    "Fay and Lumbard": lambda lost, won, n: -fay_lumbard(lost, won, n),
}


def meets_promise(row: Mapping[str, Any]) -> bool:
    """Return whether "worse" is no more frequent than allowed, plus three standard errors of a simulation."""
    allowed = ALLOWED_RATES.get(row["drop"], 1.0)
    error = 3 * sqrt(allowed * (1 - allowed) / row["sets"]) if row["sets"] else 0.0
    return bool(row["worse"][CURRENT_METHOD] <= allowed + error)


def results_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as two Markdown tables, with rates above the allowed one in bold."""
    first_row = results[0]
    lines = [
        f"{first_row['hardware']}, {first_row['date']}, `{first_row['command']}`. In bold: above the allowed rate."
    ]
    for exact in (True, False):
        rows = [row for row in results if (row["sets"] is None) == exact]
        headers = ["n", "discordant" if exact else "scores", "true drop", "allowed", *rows[0]["worse"]]
        lines += ["", f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
        for row in rows:
            allowed = ALLOWED_RATES.get(row["drop"])
            group = f"{row['discordant']:.0%}" if exact else row["scores"]
            cells = [f"{row['n']}", group, f"{row['drop']:.0%}", "-" if allowed is None else f"{allowed:.1%}"]
            cells += [_table_cell(rate, allowed, row["sets"]) for rate in row["worse"].values()]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_cell(rate: float, allowed: float | None, sets: int | None) -> str:
    error = 3 * sqrt(allowed * (1 - allowed) / sets) if allowed and sets else 0.0
    text = f"{rate:.1%}" if rate >= 0.0005 or rate == 0 else f"{rate:.2%}"
    return f"**{text}**" if allowed is not None and rate > allowed + error else text


def _max_won_rows(n: int) -> int:
    """Return a number of won rows that practically never occurs at the largest discordant rate."""
    from scipy.stats import binom

    return int(binom.isf(1e-9, n, max(DISCORDANT_RATES) / 2))


if __name__ == "__main__":
    cli.run_cli(main)
