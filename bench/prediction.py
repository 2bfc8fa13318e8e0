"""Bulk prediction at scale, killed, and against other ways: `python -m bench.prediction --recipe PATH --runs FOLDER`.

scale    10,000 to 1,000,000 rows through a linear stand-in of the engine: peak memory of the process, order, answers
kills    five predictions with the stand-in, each killed (-9) once at another moment and called again
speed    the same rows through one vLLM: `make predict`, the comparison's own requests, `vllm run-batch`, in turns

It writes bench/results/prediction.json after each part. The stand-in runs in the process of the prediction and needs no
time, so that a million rows take minutes. Its answers are those of a linear model on synthetic texts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench import docs_tables, machine
from bench.prediction_child import output_path, write_rows, write_run
from insource.config import cli
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.system.number_format import format_count
from tests.helpers.prediction_rows import linear_predictions

RESULTS = Path(__file__).parent / "results" / "prediction.json"
DOCS = machine.ROOT / "docs" / "predict.md"
SCALE_ROWS = (10_000, 100_000, 1_000_000)
KILL_ROWS = 12_000
KILL_FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.95)
PARTS = ("scale", "kills", "speed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.prediction", description="Bulk prediction, measured.")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--scale-rows", type=int, nargs="+", default=SCALE_ROWS)
    parser.add_argument("--recipe", help="part speed: a recipe with a trained run")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--input", nargs="+", default=[], help="part speed: CSV files with the column text")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write-docs", action="store_true", help="put the last results into docs/predict.md and end")
    arguments = parser.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "prediction", RESULTS, results_table)
        return cli.OK
    measured_parts = [part for part in PARTS if arguments.only in (None, part)]
    if "scale" in measured_parts:
        for rows in arguments.scale_rows:
            _store("scale", measure_scale(rows))
    if "kills" in measured_parts:
        for fraction in KILL_FRACTIONS:
            _store("kills", measure_kill(KILL_ROWS, fraction))
    if "speed" in measured_parts and arguments.recipe:
        from bench import prediction_speed

        for result in prediction_speed.measure(arguments):
            _store("speed", result)
    print(results_table(atomic_files.read_json(RESULTS)))
    return cli.OK


def _store(part: str, result: Mapping[str, Any]) -> None:
    """Add a result to the file, in the place of an earlier one of the same case."""
    results = atomic_files.read_json(RESULTS) if RESULTS.exists() else {}
    others = [other for other in results.get(part, []) if other["case"] != result["case"]]
    facts = {"hardware": machine.describe_hardware(on_gpu=False), "date": machine.utc_date()}
    atomic_files.write_json(RESULTS, {**results, part: [*others, {**result, **facts}]})
    log_line(json.dumps(result))


def measure_scale(rows: int) -> dict[str, Any]:
    """Return peak memory and duration of a prediction with the stand-in, after checking every row of its output."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, linear_predictions())
        path, calls_path = write_rows(folder, rows), _write_calls(folder, rows)
        started_at = time.monotonic()
        process = _start_child(folder, rows, calls_path)
        printed, _ = process.communicate()
        seconds = time.monotonic() - started_at
        if process.returncode:
            raise RuntimeError(f"the prediction of {rows:,} rows ended with {process.returncode}")
        return {
            "case": rows,
            "input_bytes": path.stat().st_size,
            "peak_memory_bytes": int(printed.split()[-1]),
            "seconds": round(seconds, 1),
            "rows_in_order_with_their_answer": count_right_rows(folder, rows),
            "rows_asked_once": calls_path.read_bytes().count(1),
        }


def count_right_rows(folder: Path, rows: int) -> int:
    """Return how many rows of the output are in their place and have the answer of the stand-in."""
    predictions, texts, n_correct = linear_predictions(), [*linear_predictions()], 0
    with output_path(folder, rows).open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row, expected = json.loads(line), predictions[texts[number % len(texts)]]
            n_correct += row["number"] == str(number) and (row["answer"], row["confidence"]) == tuple(expected)
    return n_correct


def measure_kill(rows: int, fraction: float) -> dict[str, Any]:
    """Return what a kill -9 cost that came when this fraction of the rows was on disk."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other_name:
        undisturbed, folder = Path(other_name), Path(name)
        for each in (undisturbed, folder):
            write_run(each, linear_predictions())
            write_rows(each, rows)
        _run_child(undisturbed, rows, _write_calls(undisturbed, rows))
        calls_path = _write_calls(folder, rows)
        process = _start_child(folder, rows, calls_path)
        while count_rows_on_disk(folder) < fraction * rows:
            if process.poll() is not None:
                raise RuntimeError("the prediction ended before it was killed")
            time.sleep(0.001)
        process.kill()
        process.communicate()
        n_on_disk, n_asked = count_rows_on_disk(folder), sum(calls_path.read_bytes())
        _run_child(folder, rows, calls_path)
        is_same = output_path(folder, rows).read_bytes() == output_path(undisturbed, rows).read_bytes()
        n_asked_again = sum(calls_path.read_bytes()) - rows
        return {
            "case": fraction,
            "rows": rows,
            "rows_on_disk_at_the_kill": n_on_disk,
            "rows_asked_at_the_kill": n_asked,
            "rows_asked_twice": n_asked_again,
            "rows_on_disk_asked_twice": n_asked_again - (n_asked - n_on_disk),
            "same_bytes_as_undisturbed": is_same,
        }


def count_rows_on_disk(folder: Path) -> int:
    """Return the number of rows with an answer on disk: in journals and in finished segments."""
    n_rows = 0
    for path in folder.glob("runs/*/.predict/*/[0-9]*.json*"):
        try:
            if path.suffix == ".json":
                n_rows += atomic_files.read_json(path)["rows"]
            elif not path.with_suffix(".json").exists():
                n_rows += path.read_bytes().count(b"\n")
        except FileNotFoundError:  # finished between the two calls
            return 0
    return n_rows


def _write_calls(folder: Path, rows: int) -> Path:
    path = folder / "calls"
    path.write_bytes(bytes(rows))
    return path


def _start_child(folder: Path, rows: int, calls_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.prediction_child", str(folder), str(rows), str(calls_path)],
        cwd=machine.ROOT,
        env={**os.environ, **machine.OFFLINE_ENV},
        stdout=subprocess.PIPE,
        text=True,
    )


def _run_child(folder: Path, rows: int, calls_path: Path) -> None:
    process = _start_child(folder, rows, calls_path)
    process.communicate()
    if process.returncode:
        raise RuntimeError(f"the prediction of {rows:,} rows ended with {process.returncode}")


def results_table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    lines: list[str] = []
    if scale := results.get("scale"):
        lines += [
            _source(scale),
            "",
            "| rows | peak memory | rows/s, start included | in order, with their answer |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {each['case']:,} | {each['peak_memory_bytes'] / 2**20:.0f} MiB | {each['case'] / each['seconds']:,.0f} "
            f"| {each['rows_in_order_with_their_answer']:,} |"
            for each in sorted(scale, key=lambda each: each["case"])
        ]
    if kills := results.get("kills"):
        heads = ("killed with", "asked twice: in flight", "asked twice: on disk", "same bytes")
        lines += ["", _source(kills), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [
            f"| {format_count(each['rows_on_disk_at_the_kill'], 'row')} of {each['rows']:,} on disk "
            f"| {each['rows_asked_at_the_kill'] - each['rows_on_disk_at_the_kill']} "
            f"| {each['rows_on_disk_asked_twice']} | {'yes' if each['same_bytes_as_undisturbed'] else 'no'} |"
            for each in kills
        ]
    if speed := results.get("speed"):
        lines += ["", _source(speed), "", *_speed_table(speed)]
    return "\n".join(lines).strip()


def _source(results: list[Mapping[str, Any]]) -> str:
    return f"{results[-1]['hardware']}, {results[-1]['date']}:"


def _speed_table(speed: list[Mapping[str, Any]]) -> list[str]:
    rates: dict[str, list[float]] = {}
    for each in speed:
        rates.setdefault(each["system"], []).append(each["rows"] / each["seconds"])
    reference = median(rates["predict"])
    lines = ["| system | rows | requests/s (median) | each run | predict is |", "|---|---|---|---|---|"]
    for system, values in rates.items():
        each_run = ", ".join(f"{value:.1f}" for value in values)
        ratio = f"{reference / median(values):.2f} times as fast" if system != "predict" else ""
        lines.append(f"| {system} | {speed[0]['rows']:,} | {median(values):.1f} | {each_run} | {ratio} |")
    return lines


if __name__ == "__main__":
    cli.run_cli(main)
