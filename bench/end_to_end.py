"""Time `make run` against an earlier build: `python -m bench.end_to_end --before CHECKOUT --runs 3`.

It runs train, export and compare of a recipe in both checkouts in turns. Each time the folder of runs is fresh and the
Python is the same. It prints the timeline of both and writes bench/results/end_to_end.json. Set-up is not included.
Nothing else may run on the machine.

    | build | train | export | compare | all |
    | before | 332 s | 24 s | 530 s | 886 s |
    | now    | 285 s | 15 s | 190 s | 490 s |      medians; now / before 0.55
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from insource.system import environment

RESULTS = Path(__file__).parent / "results" / "end_to_end.json"
STAGES = ("train", "train.export", "compare")
# Lines of the console that begin or end a step.
EVENT_LINES = re.compile(
    r"^(data|base|untuned|training|tuned|adapter|export|test|fitting|vllm|parity|asked|scoring|verdict)\b"
)


def run_stages(checkout: Path, recipe: str, runs: Path, extra_env: Mapping[str, str]) -> dict[str, object]:
    """Return the seconds of each stage and the timeline of one run from train to verdict.

    `extra_env`: further environment variables. Raise RuntimeError if a stage fails.
    """
    env = {**os.environ, "RUNS": str(runs), "HF_HUB_OFFLINE": "1", **extra_env}
    started_at = time.monotonic()
    stages: dict[str, float] = {}
    timeline: list[Any] = []
    for stage in STAGES:
        stage_started_at = time.monotonic()
        argv = [sys.executable, "-m", stage, recipe, "--hardware", "cpu"]
        process = subprocess.Popen(
            argv, cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        recent_lines: list[str] = []
        for line in process.stdout:
            recent_lines = [*recent_lines[-20:], line]
            if EVENT_LINES.match(line) and not _continues_line(timeline, line):
                timeline.append([round(time.monotonic() - started_at, 1), line.rstrip()[:110]])
        if process.wait():
            raise RuntimeError(f"{stage} in {checkout} ended with {process.returncode}:\n{''.join(recent_lines)}")
        stages[stage] = round(time.monotonic() - stage_started_at, 1)
    return {"seconds": round(time.monotonic() - started_at, 1), "stages": stages, "timeline": timeline}


def _continues_line(timeline: Sequence[Any], line: str) -> bool:
    """Return whether a line only reports the progress of the previous line's step."""
    word = line.split()[0]
    progress = re.match(r"\w+ +[\d,]+/", line)
    return bool(progress and timeline and timeline[-1][1].split()[0] == word and not line.rstrip().endswith(" s"))


def medians_table(builds: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the medians of each build as lines of a Markdown table."""
    lines = ["| build | " + " | ".join(STAGES) + " | all |", "|" + "---|" * (len(STAGES) + 2)]
    for name, measured in builds.items():
        stages = [f"{statistics.median(run['stages'][stage] for run in measured):.0f} s" for stage in STAGES]
        lines.append(
            f"| {name} | {' | '.join(stages)} | {statistics.median(run['seconds'] for run in measured):.0f} s |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.end_to_end", description="How long `make run` takes in two builds.")
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier build")
    parser.add_argument(
        "--before-with",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="variables of the earlier build alone, such as ATEN_CPU_CAPABILITY=avx2, without which the build of "
        "2026-11-22 ends without a report on processors with bfloat16",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--recipe", default="classifier")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "now": machine.ROOT}
    extra_env = {"before": dict(assignment.split("=", 1) for assignment in arguments.before_with), "now": {}}
    builds: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for number in range(arguments.runs):
        for name, checkout in checkouts.items():
            machine.log(f"{name}, run {number + 1} of {arguments.runs}")
            with tempfile.TemporaryDirectory(prefix="insource-end-to-end-") as folder:
                builds[name].append(run_stages(checkout, arguments.recipe, Path(folder), extra_env[name]))
            _write_results(builds, checkouts, arguments)
    print(*medians_table(builds), sep="\n")
    for name, measured in builds.items():
        print(f"\n{name}:", *(f"{seconds:7.1f} s  {line}" for seconds, line in measured[-1]["timeline"]), sep="\n")
    return 0


def _write_results(builds: Mapping[str, Any], checkouts: Mapping[str, Path], arguments: argparse.Namespace) -> None:
    medians = {
        name: statistics.median(run["seconds"] for run in measured) for name, measured in builds.items() if measured
    }
    result = {
        "command": f"python -m bench.end_to_end --before CHECKOUT --runs {arguments.runs} --recipe {arguments.recipe}"
        + (f" --before-with {' '.join(arguments.before_with)}" if arguments.before_with else ""),
        "commits": {name: machine.git_commit(path) for name, path in checkouts.items()},
        "machine": environment.cpu_name(),
        "date": machine.utc_date(),
        "versions": environment.read_package_versions(),
        "median_seconds": medians,
        "now_over_before": round(medians["now"] / medians["before"], 3) if len(medians) == 2 else None,
        "runs": builds,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
