"""Time data preparation at scale: `python -m bench.data_prep`.

It prepares 10,000, 100,000 and 1,000,000 rows, and a million rows of which 30% are near-duplicates. It writes
bench/results/data_prep.json and prints the table.

The rows are SYNTHETIC: messages of the demo's generator, each with its own details (order, product, place, day), so
that they differ like real ones. A near-duplicate is an earlier row with one to three typos.

    T0000017,"My thermostat wont stop beeping. Order 48213-77, the Velmora 310, from Brenloft on 3 May.",device_fault
"""

import argparse
import csv
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import machine
from demo_data.support_tickets import generate_tickets
from insource.system.console_log import log_line

RESULTS = Path(__file__).parent / "results" / "data_prep.json"
SIZES = ((10_000, 0.0), (100_000, 0.0), (1_000_000, 0.0), (1_000_000, 0.3))
SYLLABLES = (
    "bren", "vel", "mor", "ta", "lun", "kes", "ri", "dal", "fen", "os", "wick", "ham", "por", "zel", "ani", "gru",
)  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
DETAILS = (
    "Order {order}, the {product} {number}, bought in {place} on {day} {month}.",
    "It is the {product} from {place}, reference {order}, paid {number} on {day} {month}.",
    "Reference {order}. {place}, {day} {month}, {product} {number}.",
    "This is about {product} {number} and my order {order} of {day} {month}, sent to {place}.",
    "I live in {place}; the {product} came on {day} {month} under {order} with {number} inside.",
)
RECIPE = """\
task: {kind: classification, instruction: Choose the queue for the customer's message.}
data:
  source: {path: rows.csv}
  columns: {text: message, label: queue, id: ticket_id}
model: {base: pocket}
"""


def generate_rows(count: int, near_fraction: float, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield (id, message, queue); a fraction `near_fraction` of the rows are earlier rows with typos."""
    rng = random.Random(seed)
    recent: list[tuple[str, str]] = []
    for index, ticket in enumerate(generate_tickets(count, seed)):
        if recent and rng.random() < near_fraction:
            text, queue = rng.choice(recent)
            text = add_typos(text, rng)
        else:
            text, queue = f"{ticket.message} {make_detail(rng)}", ticket.queue
            if len(recent) < 10_000:
                recent.append((text, queue))
            else:
                recent[rng.randrange(10_000)] = text, queue
        yield f"T{index:07d}", text, queue


def make_detail(rng: random.Random) -> str:
    """Return a sentence that is almost unique."""

    def word() -> str:
        return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))).capitalize()

    return rng.choice(DETAILS).format(
        order=f"{rng.randrange(100_000):05d}-{rng.randrange(100):02d}",
        product=word(),
        number=rng.randrange(100, 1000),
        place=word(),
        day=rng.randint(1, 28),
        month=rng.choice(MONTHS),
    )


def add_typos(text: str, rng: random.Random) -> str:
    """Return the text with one to three letters changed."""
    letters = list(text)
    for _ in range(rng.randint(1, 3)):
        letters[rng.randrange(len(letters))] = rng.choice("abcdefghijklmnopqrstuvwxyz")
    return "".join(letters)


def measure(count: int, near_fraction: float) -> dict[str, Any]:
    """Return the figures of one preparation by the command of a user, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("ticket_id", "message", "queue"))
            writer.writerows(generate_rows(count, near_fraction, seed=11))
        (folder / "rows.yaml").write_text(RECIPE, encoding="utf-8")
        argv = [sys.executable, "-m", "data_prep", str(folder / "rows.yaml"), "--hardware", "cpu", "--runs", name]
        started_at = time.perf_counter()
        process = subprocess.Popen(argv, cwd=machine.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        peak = machine.PeakMemory(process.pid)
        output, errors = process.communicate()
        elapsed_seconds = time.perf_counter() - started_at
        if process.returncode:
            raise SystemExit(f"data_prep ended with {process.returncode}:\n{errors}")
        report = json.loads((Path(output.strip()) / "data.json").read_text(encoding="utf-8"))
        seconds = report["seconds"]
        return {
            "shape": f"{count:,} rows" + (f", {near_fraction:.0%} near-duplicates" if near_fraction else ""),
            "system": "insource",
            "command": "python -m bench.data_prep",
            "rows": count,
            "source_bytes": (folder / "rows.csv").stat().st_size,
            "processes": report["processes"],
            "rows_per_second": round(count / elapsed_seconds),
            "seconds": round(elapsed_seconds, 1),
            "step_seconds": seconds,
            "step_rows_per_second": {
                step: round(count / max(step_seconds, 1e-3)) for step, step_seconds in seconds.items()
            },
            "peak_memory_bytes": peak.bytes,
            "near_duplicates_dropped": sum(
                n for reason, n in report["rows"]["dropped"].items() if reason.startswith("near")
            ),
            "dropped": report["rows"]["dropped"],
            "hardware": machine.describe_hardware(on_gpu=False),
            "python": platform.python_version(),
            "date": machine.utc_date(),
        }


def results_table(results: list[dict[str, Any]]) -> list[str]:
    """Return the results as lines of a Markdown table."""
    steps = list(results[0]["step_seconds"])
    lines = [
        "| rows | seconds | rows/s | peak memory | " + " | ".join(f"{step}, rows/s" for step in steps) + " |",
        "|---" * (4 + len(steps)) + "|",
    ]
    for result in results:
        rates = " | ".join(f"{result['step_rows_per_second'][step]:,}" for step in steps)
        memory = f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
        lines.append(
            f"| {result['shape']} | {result['seconds']:,} | {result['rows_per_second']:,} | {memory} | {rates} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.data_prep", description="Time data preparation at scale.")
    parser.add_argument("--most", type=int, default=1_000_000, help="leave out what has more rows")
    max_rows = parser.parse_args().most
    results = []
    for count, near_fraction in SIZES:
        if count <= max_rows:
            results.append(measure(count, near_fraction))
            log_line(f"{results[-1]['shape']}: {results[-1]['seconds']} s")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(results_table(results)))


if __name__ == "__main__":
    main()
