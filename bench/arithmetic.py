"""The same recipe under other arithmetic: `python -m bench.arithmetic` runs it from train to verdict like `make run`,
once for each setting below, prints a table and writes bench/results/arithmetic.json.

    | setting | exit | validation accuracy | served = trained | tuned | verdict |
    | as the machine computes | 0 | 85.6% | 100.0% of 500 | 87.3% | inconclusive |
    | torch without AVX (ATEN_CPU_CAPABILITY=default) | 0 | ...

Processors sum in different orders, and training amplifies the difference: each setting ends in another adapter. What
must hold under all of them is that the pipeline ends with 0 and that vLLM answers as the trained weights do.

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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.data_prep import cpu_name
from compare.report import wording
from insource.config import hardware
from insource.system import atomic_files, environment

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "arithmetic.json"
STAGES = ("train", "train.export", "compare")


@dataclass(frozen=True)
class Setting:
    """One way to compute the same thing."""

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
    """Returns whether a setting computes otherwise than this processor does by itself."""
    if setting.changes == ("accelerate.mixed_precision=no",):
        return hardware.cpu_has_bfloat16()
    return "AVX2" not in setting.variables.get("ONEDNN_MAX_CPU_ISA", "") or environment.cpu_has_avx512()


def measure(recipe: str, setting: Setting, runs: Path) -> dict[str, Any]:
    """Returns what a recipe ends with under a setting, run in a folder of its own."""
    variables = {**os.environ, "RUNS": str(runs), "HF_HUB_OFFLINE": "1", **setting.variables}
    began, codes = time.monotonic(), {}
    for stage in STAGES:
        print(f"bench     {setting.name}: {stage}", file=sys.stderr, flush=True)
        asked = [sys.executable, "-m", stage, recipe, "--hardware", "cpu", *setting.changes]
        codes[stage] = subprocess.run(asked, cwd=ROOT, env=variables, check=False).returncode
        if codes[stage]:
            break
    found: dict[str, Any] = {
        "setting": setting.name,
        "variables": dict(setting.variables),
        "changes": list(setting.changes),
        "exit_codes": codes,
        "seconds": round(time.monotonic() - began, 1),
    }
    latest = runs / Path(recipe).stem / "latest"
    if (latest / "manifest.json").exists():
        metrics = atomic_files.read_json(latest / "manifest.json")["stages"]["train"]["metrics"]
        found["validation"] = {
            name: value for name, value in metrics["validation"]["tuned"].items() if _is_number(value)
        }
        found["adapter_sha256"] = atomic_files.sha256(latest / "adapter" / "adapter_model.safetensors")[:16]
    if (latest / "scores.json").exists():
        scores = atomic_files.read_json(latest / "scores.json")
        found["served"] = scores["systems"]["tuned"]["parity"]
        found["verdict"] = scores["verdict"]["choice"]
        found["test"] = {
            one["title"]: {"n": one["n"]} | {name: metric["value"] for name, metric in one["metrics"].items()}
            for one in scores["systems"].values()
        }
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def table_row(one: Mapping[str, Any]) -> str:
    """Returns a line of the table."""
    name = next(iter(one.get("validation", {})), None)
    validation = wording.format_percent(one["validation"][name]) if name else "-"
    served = one.get("served")
    equal = f"{served['agreement']:.1%} of {served['n']}" if served and served["agreement"] is not None else "-"
    tuned = next((f"{told[name]:.1%}" for told in one.get("test", {}).values() if name in told), "-")
    code = max(one["exit_codes"].values())
    shown = [one["setting"], str(code), validation, equal, tuned, one.get("verdict", "-"), f"{one['seconds']:.0f} s"]
    return f"| {' | '.join(shown)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.arithmetic", description="One recipe under several kinds of arithmetic."
    )
    parser.add_argument("--recipe", default="classifier")
    parser.add_argument("--only", default="", help="settings whose name begins so")
    arguments = parser.parse_args()
    chosen = [one for one in SETTINGS if one.name.startswith(arguments.only) and differs_from_default(one)]
    before = atomic_files.read_json(RESULTS) if RESULTS.exists() else {"runs": []}
    measured = []
    for setting in chosen:
        with tempfile.TemporaryDirectory(prefix="insource-arithmetic-") as folder:
            measured.append(measure(arguments.recipe, setting, Path(folder)) | {"recipe": arguments.recipe})
        kept = [one for one in before["runs"] if (one["recipe"], one["setting"]) not in _measured_keys(measured)]
        result = {
            "command": "python -m bench.arithmetic",
            "machine": cpu_name(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "versions": environment.read_package_versions(),
            "runs": [*kept, *measured],
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("| setting | exit | validation | served = trained | tuned, test | verdict | time |")
    print("|---|---|---|---|---|---|---|")
    print(*map(table_row, measured), sep="\n")
    return int(any(max(one["exit_codes"].values()) for one in measured))


def _measured_keys(measured: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(one["recipe"], one["setting"]) for one in measured}


if __name__ == "__main__":
    sys.exit(main())
