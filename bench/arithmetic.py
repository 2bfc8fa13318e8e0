"""Run one recipe under several kinds of arithmetic: `python -m bench.arithmetic`.

It runs the recipe from train to verdict like `make run`, once for each setting below. It prints a table and writes
bench/results/arithmetic.json.

    | setting | exit | validation accuracy | served = trained | tuned | verdict |
    | as the machine computes | 0 | 85.6% | 100.0% of 500 | 87.3% | inconclusive |
    | torch without AVX (ATEN_CPU_CAPABILITY=default) | 0 | ...

Processors sum in different orders, and training amplifies the difference: each setting ends in another adapter. Under
all settings the pipeline must exit with 0, and vLLM must answer as the trained weights do.

    --recipe extractor     another recipe          --only "one thread"     settings whose name begins so
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from insource.config import hardware
from insource.config.metric_names import METRICS
from insource.system import atomic_files, environment, number_format
from insource.tracking.scores.comparison import read_scores

RESULTS = Path(__file__).parent / "results" / "arithmetic.json"
STAGES = ("train", "train.export", "compare")
METRIC_NAMES = {name for metrics in METRICS.values() for name in metrics}


@dataclass(frozen=True)
class Setting:
    """A way to compute the same recipe."""

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()


SETTINGS = (
    Setting("as the machine computes"),
    Setting("multiplied in float32", changes=("accelerate.mixed_precision=no",)),
    Setting("another seed, 18", changes=("train.seed=18",)),
    Setting("another seed, 19", changes=("train.seed=19",)),
    Setting("one thread", {"OMP_NUM_THREADS": "1"}),
    Setting("oneDNN up to SSE4.1", {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Setting("torch without AVX", {"ATEN_CPU_CAPABILITY": "default"}),
    Setting("torch and oneDNN up to AVX2", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
)


def differs_from_default(setting: Setting) -> bool:
    """Return whether a setting differs from the default arithmetic of this processor."""
    if setting.changes == ("accelerate.mixed_precision=no",):
        return hardware.cpu_has_bfloat16()
    return "AVX2" not in setting.variables.get("ONEDNN_MAX_CPU_ISA", "") or environment.cpu_has_avx512()


def measure(recipe: str, setting: Setting, runs: Path) -> dict[str, Any]:
    """Return the figures of a recipe under a setting; `runs` is an empty folder for its runs."""
    env = {**os.environ, "RUNS": str(runs), "HF_HUB_OFFLINE": "1", **setting.variables}
    started_at, codes = time.monotonic(), {}
    for stage in STAGES:
        machine.log(f"{setting.name}: {stage}")
        argv = [sys.executable, "-m", stage, recipe, "--hardware", "cpu", *setting.changes]
        codes[stage] = subprocess.run(argv, cwd=machine.ROOT, env=env, check=False).returncode
        if codes[stage]:
            break
    result: dict[str, Any] = {
        "setting": setting.name,
        "machine": environment.cpu_name(),
        "date": machine.utc_date(),
        "variables": dict(setting.variables),
        "changes": list(setting.changes),
        "exit_codes": codes,
        "seconds": round(time.monotonic() - started_at, 1),
    }
    latest = runs / Path(recipe).stem / "latest"
    if (latest / "manifest.json").exists():
        metrics = atomic_files.read_json(latest / "manifest.json")["stages"]["train"]["metrics"]
        result["validation"] = {
            name: value for name, value in metrics["validation"]["tuned"].items() if _is_number(value)
        }
        result["adapter_sha256"] = atomic_files.sha256(latest / "adapter" / "adapter_model.safetensors")[:16]
    if (latest / "scores.json").exists():
        scores = read_scores(latest / "scores.json")
        parity = scores.systems["tuned"].parity
        result["served"] = parity.to_json() if parity else None
        result["verdict"] = scores.verdict.choice
        result["test"] = {
            system.title: {"n": system.n} | {name: metric.value for name, metric in system.metrics.items()}
            for system in scores.systems.values()
        }
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def table_row(result: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    # The counts of rows come before the metrics.
    name = next((name for name in result.get("validation", {}) if name in METRIC_NAMES), "")
    validation = number_format.format_percent(result["validation"][name]) if name else "-"
    served = result.get("served")
    equal = f"{served['agreement']:.1%} of {served['n']}" if served and served["agreement"] is not None else "-"
    tuned = next((f"{metrics[name]:.1%}" for metrics in result.get("test", {}).values() if name in metrics), "-")
    code = max(result["exit_codes"].values())
    cells = [
        result["setting"],
        str(code),
        validation,
        equal,
        tuned,
        result.get("verdict", "-"),
        f"{result['seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.arithmetic", description="One recipe under several kinds of arithmetic."
    )
    parser.add_argument("--recipe", default="classifier")
    parser.add_argument("--only", default="", help="settings whose name begins so")
    arguments = parser.parse_args()
    settings = [
        candidate
        for candidate in SETTINGS
        if candidate.name.startswith(arguments.only) and differs_from_default(candidate)
    ]
    previous = atomic_files.read_json(RESULTS) if RESULTS.exists() else {"runs": []}
    measured = []
    for setting in settings:
        with tempfile.TemporaryDirectory(prefix="insource-arithmetic-") as folder:
            measured.append(measure(arguments.recipe, setting, Path(folder)) | {"recipe": arguments.recipe})
        kept_runs = [run for run in previous["runs"] if (run["recipe"], run["setting"]) not in _measured_keys(measured)]
        result = {
            "command": "python -m bench.arithmetic",
            "versions": environment.read_package_versions(),
            "runs": [*kept_runs, *measured],
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("| setting | exit | validation | served = trained | tuned, test | verdict | time |")
    print("|---|---|---|---|---|---|---|")
    print(*map(table_row, measured), sep="\n")
    return int(any(max(run["exit_codes"].values()) for run in measured))


def _measured_keys(measured: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(run["recipe"], run["setting"]) for run in measured}


if __name__ == "__main__":
    sys.exit(main())
