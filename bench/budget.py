"""Spending of a comparison that is killed repeatedly: `python -m bench.budget`.

A process queries a provider on loopback (tests/helpers/provider/faulty_provider.py). It is killed (SIGKILL, SIGINT) at
a random moment, 50 times, and resumes from the answers and attempts on disk. In the first round the provider answers
all requests and charges all that it receives. In the second it refuses, resets, delays or cuts off one in ten. The
bench prints a table and writes bench/results/budget.json.

    | provider | kills | requests | sent | known | cap | over the cap |

After each kill, the requests sent so far must cost no more than the cap, and no more than the files on disk account
for.
"""

import argparse
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench import machine
from insource.backends import collection
from insource.backends.budgets import Budget
from insource.config import cli
from insource.system import atomic_files
from tests.helpers.api_requests import IDENTITY, Price, collect, make_backend, make_requests
from tests.helpers.provider.faulty_provider import Provider, run_provider
from tests.helpers.provider.provider_answers import count_tokens

RESULTS = Path(__file__).parent / "results" / "budget.json"
N_KILLS, N_ROWS, CAP_USD = 50, 1500, 1.0
FAULT_RATES = (0.0, 0.1)
# Settled attempts sum the same figures in another order.
ROUNDING_TOLERANCE_USD = 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.budget", description="What a comparison spends when killed.")
    parser.add_argument("--kills", type=int, default=N_KILLS)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # errors of killed clients
    rows = []
    for fault_rate in FAULT_RATES:
        with tempfile.TemporaryDirectory() as name:
            result = run_with_kills(
                arguments.kills, fault_rate, N_ROWS, CAP_USD, Path(name) / "provider.jsonl", arguments.seed
            )
        rows.append(result)
        cells = " | ".join(f"{result[key]:,}" for key in ("kills", "requests", "sent_usd", "known_usd", "cap_usd"))
        print(f"| one in ten fails: {fault_rate > 0} | {cells} | {result['over_cap']} |", flush=True)
    metadata = machine.describe_call("make bench BENCH=budget")
    atomic_files.write_json(arguments.results, [row | metadata for row in rows])
    return cli.FAILED if any(row["over_cap"] or row["over_known"] for row in rows) else cli.OK


def run_with_kills(
    kills: int, fault_rate: float, rows: int, cap_usd: float, path: Path, seed: int
) -> dict[str, object]:
    """Return the figures of a process that is killed `kills` times.

    They contain the cost of all requests, the cost known on disk, and how often the cap or the known cost was exceeded.
    """
    provider = Provider(fault_rate=fault_rate, delay_seconds=0.0 if fault_rate else 0.05)
    rng, signal_counts, violations, n_killed_while_querying = random.Random(seed), Counter[str](), Counter[str](), 0
    with run_provider(provider) as address:

        def sent_usd() -> float:
            """Return what the provider charges: all requests received, or with faults those that it processed."""
            return Price().sum_usd(
                provider.charged_tokens if fault_rate else [count_tokens(body) for _, _, body in provider.requests]
            )

        def known_usd() -> float:
            return collection.sum_cached_cost_usd(make_backend(address), IDENTITY, make_requests(rows), path)

        argv = [sys.executable, "-m", "bench.budget_child", address, str(path), str(rows), str(cap_usd)]
        for _ in range(kills):
            n_seen, n_more = len(provider.requests), rng.randint(1, 40)
            process = subprocess.Popen(argv, cwd=machine.ROOT, stderr=subprocess.DEVNULL)
            while len(provider.requests) < n_seen + n_more and process.poll() is None:
                time.sleep(0.002)
            n_killed_while_querying += process.poll() is None
            signal_number = rng.choice((signal.SIGKILL, signal.SIGINT))
            process.send_signal(signal_number)
            process.wait()
            signal_counts[signal_number.name] += 1
            violations["cap"] += sent_usd() > cap_usd
            violations["known"] += sent_usd() > known_usd() + ROUNDING_TOLERANCE_USD
        collected = collect(address, path, make_requests(rows), budget=Budget(cap_usd, known_usd()))
        return {
            "faults": fault_rate,
            "kills": kills,
            "signals": dict(signal_counts),
            "killed_while_asking": n_killed_while_querying,
            "requests": len(provider.requests),
            "met": dict(provider.fault_counts),
            "complete": collected.complete,
            "sent_usd": round(sent_usd(), 6),
            "known_usd": round(known_usd(), 6),
            "cap_usd": cap_usd,
            "over_cap": violations["cap"] + (sent_usd() > cap_usd),
            "over_known": violations["known"],
        }


if __name__ == "__main__":
    cli.run_cli(main)
