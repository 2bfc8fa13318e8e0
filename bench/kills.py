"""Kill training at random moments: `python -m bench.kills`.

It trains a small recipe without interruption. Then it trains it twenty times, each with a kill -9 of all its processes
at a random moment and a second call that resumes. It prints a table and writes bench/results/kills.json. All twenty
must end in the same bytes.

    | killed | when it had | went on from | adapter | metrics.jsonl |
    | 1.62 s after training began | logged update 9, checkpoint-10 being written | checkpoint-8 | same | same |

Three of four kills fall between the beginning of training and the end, where progress can be lost; the others fall
before.
"""

import argparse
import csv
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench import machine
from demo_data.support_tickets import generate_tickets
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.tracking import metrics

RESULTS = Path(__file__).parent / "results" / "kills.json"
RECIPE = """\
task: {kind: classification, instruction: Route the message to one queue.}
data:
  source: {path: tickets.csv}
  columns: {text: message, label: queue}
  split: {test: 0.2, validation: 0.1, calibration: 0.1, group: customer}
model: {base: pocket}
lora: {lora_dropout: 0.05}
train: {max_steps: 12, batch_size: 4, logging_steps: 3, save_steps: 2}
tracking: {wandb: {mode: "off"}}
"""
AT_START, IN_TRAINING = "the start", "training began"
# Figures of metrics.jsonl that depend on the clock or the machine.
VOLATILE_FIELDS = re.compile(r"second|memory")


def write_recipe(folder: Path, rows: int = 200) -> Path:
    """Write a recipe on synthetic tickets that trains in seconds, and return its path.

    Checkpoints and logged rows fall on different updates.
    """
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "queue", "customer"])
        writer.writerows(
            (ticket.message, ticket.queue, ticket.customer_id) for ticket in generate_tickets(rows, seed=5)
        )
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "small.yaml"


def start_training(recipe: Path, runs: Path, *settings: str, **popen_options: Any) -> subprocess.Popen[str]:
    """Start the training command of a user in a process group of its own, and return the process."""
    return subprocess.Popen(
        [sys.executable, "-m", "train", str(recipe), *settings],
        cwd=machine.ROOT,
        env={**os.environ, "RUNS": str(runs), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **popen_options,
    )


def run_training(recipe: Path, runs: Path, *settings: str) -> str:
    """Return the output of the training command. Raise RuntimeError if it fails."""
    process = start_training(recipe, runs, *settings)
    printed, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}:\n{printed}")
    return printed


def kill_when(process: subprocess.Popen[str], is_due: Callable[[], object]) -> bool:
    """Kill all processes of a command as soon as `is_due` is true; return False if it ended first.

    Raise RuntimeError if it failed.
    """
    while not is_due():
        if process.poll() is not None:
            printed, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"ended with {process.returncode}:\n{printed}")
            return False
        time.sleep(0.004)
    # Parents first: a parent must not notice the end of a child and write to disk.
    for pid in machine.process_tree(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return True


def find_run(runs: Path) -> Path | None:
    """Return the folder of the only run, None if there is none yet."""
    return next((path.parent for path in runs.glob("*/*/manifest.json") if not path.parent.is_symlink()), None)


def run_hashes(run: Path) -> dict[str, object]:
    """Return the values that two runs must have in common.

    These are the bytes of the adapter, the rows of metrics.jsonl without times, and the names of the checkpoints.
    """
    rows = [
        {name: value for name, value in row.items() if not VOLATILE_FIELDS.search(name)}
        for row in metrics.read_rows(run / "metrics.jsonl")
    ]
    return {
        "adapter_sha256": atomic_files.sha256(run / "adapter" / "adapter_model.safetensors"),
        "metrics_sha256": atomic_files.digest(rows),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }


def describe_stage(runs: Path) -> str:
    """Return a description of a run's progress on disk."""
    run = find_run(runs)
    if run is None:
        return "no run yet"
    rows = metrics.read_rows(run / "metrics.jsonl")
    parts = [f"logged update {rows[-1]['step']}"] if rows else ["logged nothing"]
    parts += [f"{path.name} being written" for path in (run / "checkpoints").glob(".writing/*")]
    if list(run.glob(".adapter.*")):
        parts.append("the adapter being written")
    return ", ".join(parts)


def newest_checkpoint(runs: Path) -> str | None:
    """Return the name of the newest checkpoint, from which a second call resumes; None if there is none."""
    names = [path.name for path in runs.glob("*/2*/checkpoints/checkpoint-*")]
    return max(names, key=lambda name: int(name.rpartition("-")[2]), default=None)


def has_training_begun(runs: Path) -> bool:
    """Return whether training has begun: Trainer creates its folder during set-up."""
    return any(runs.glob("*/2*/checkpoints"))


def measure_durations(recipe: Path, runs: Path) -> tuple[float, float]:
    """Return the seconds until a run trains, and from there to its end."""
    started_at = time.monotonic()
    process = start_training(recipe, runs)
    while not has_training_begun(runs):
        time.sleep(0.01)
    training_started_at = time.monotonic()
    process.communicate()
    return training_started_at - started_at, time.monotonic() - training_started_at


def measure_kill(recipe: Path, prepared: Path, after_seconds: float, reference_point: str) -> dict[str, object]:
    """Return the outcome of a run that is killed and called a second time.

    `after_seconds` counts from `reference_point`: AT_START or IN_TRAINING.
    """
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name) / "runs"
        shutil.copytree(prepared, runs / recipe.stem / ".data")
        started_at = time.monotonic() if reference_point == AT_START else None

        def is_due() -> bool:
            nonlocal started_at
            if started_at is None and has_training_begun(runs):
                started_at = time.monotonic()
            return started_at is not None and time.monotonic() - started_at > after_seconds

        killed = kill_when(start_training(recipe, runs), is_due)
        stage, checkpoint = describe_stage(runs) if killed else "ended", newest_checkpoint(runs)
        run_training(recipe, runs)
        run = find_run(runs)
        assert run is not None
        return {
            "killed_after_seconds": round(after_seconds, 2),
            "after": reference_point,
            "stage": stage,
            "went_on_from": checkpoint,
            **run_hashes(run),
        }


def results_table(results: list[dict[str, Any]], expected: Mapping[str, Any]) -> list[str]:
    """Return the kills as lines of a Markdown table."""
    lines = ["| killed | when it had | went on from | adapter | metrics.jsonl |", "|---" * 5 + "|"]
    for result in results:
        matches = [
            "same" if result[key] == expected[key] else "DIFFERENT" for key in ("adapter_sha256", "metrics_sha256")
        ]
        resumed_from = result["went_on_from"] or "the beginning"
        killed = f"{result['killed_after_seconds']:.2f} s after {result['after']}"
        lines.append(f"| {killed} | {result['stage']} | {resumed_from} | {matches[0]} | {matches[1]} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description="Kill training at random moments.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        recipe, runs = write_recipe(Path(name)), Path(name) / "whole"
        run_training(recipe, runs)
        run = find_run(runs)
        assert run is not None
        expected, prepared = run_hashes(run), runs / recipe.stem / ".data"
        # The duration of a run on prepared data.
        shutil.rmtree(run)
        to_training, to_end = measure_durations(recipe, runs)
        results: list[dict[str, Any]] = []
        for number in range(arguments.kills):
            reference_point, max_seconds = (AT_START, to_training) if number % 4 == 3 else (IN_TRAINING, to_end)
            results.append(measure_kill(recipe, prepared, rng.uniform(0, max_seconds), reference_point))
            log_line(results_table(results, expected)[-1])
    n_identical = sum(all(result[key] == expected[key] for key in expected) for result in results)
    row = {
        "shape": "pocket model, NF4, LoRA with dropout, 12 updates of 4 rows, a checkpoint each 2",
        "system": "insource",
        "command": f"python -m bench.kills --kills {arguments.kills} --seed {arguments.seed}",
        "kills": len(results),
        "identical": n_identical,
        "undisturbed": expected,
        "undisturbed_seconds": round(to_training + to_end, 1),
        "raw": results,
        "hardware": machine.describe_hardware(on_gpu=False),
        "python": platform.python_version(),
        "date": machine.utc_date(),
    }
    RESULTS.write_text(json.dumps([row], indent=1) + "\n", encoding="utf-8")
    print("\n".join(results_table(results, expected)))
    print(f"{n_identical} of {len(results)} ended in the same bytes")
    return 0 if n_identical == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
