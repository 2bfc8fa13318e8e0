"""Part 5 of the GPU bench: the whole pipeline on the pocket model, each stage as a user calls it.

    train, train.export, serve.parity (each variant served by vLLM, its answers compared), compare

The rows are SYNTHETIC tickets of the demo. The recipe names no API model, and nothing leaves the machine.
"""

import csv
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu.spec import CaseLog, Measurement, PartSpec
from bench.training import fixtures
from demo_data.support_tickets import generate_tickets
from insource.config.base_models import POCKET
from insource.config.errors import StageError
from insource.system import atomic_files, environment
from insource.tracking import metrics
from insource.tracking.scores.comparison import read_scores

NAME = "tickets"
RECIPE = """\
task: {kind: classification, instruction: Route the message to one queue.}
data:
  source: {path: tickets.csv}
  columns: {text: message, label: queue}
  split: {test: 0.2, validation: 0.15, calibration: 0.1, group: customer}
model: {base: pocket, quantization: nf4}
tracking: {wandb: {mode: "off"}}
"""
# Variables of a caller's shell that would select another run, variant or server.
CLEARED_VARIABLES = ("FRESH", "RUN", "FORCE", "HARDWARE", "BASE_URL", "VARIANTS", "MODELS", "COMPARE", "PYTHONPATH")


def run(spec: PartSpec, log: CaseLog) -> None:
    """Run all stages. Raise StageError with the last line of the first that fails."""
    recipe = write_recipe(Path(spec.folder), tickets=400 if spec.small else 3000)
    updates, parity_rows = (6, 24) if spec.small else (150, 200)
    log.run("train", partial(train, spec, recipe, updates))
    log.run("export", partial(run_stage, spec, "train.export", recipe))
    vllm_version = environment.read_vllm_version()
    if vllm_version is None:
        for name in ("parity", "compare"):
            log.skip(name, "vLLM is not installed here")
        return
    log.run("parity", partial(check_parity, spec, recipe, parity_rows), min_seconds=20)
    log.run("compare", partial(compare, spec, recipe), min_seconds=20)


def write_recipe(folder: Path, tickets: int) -> Path:
    """Write a recipe and its rows; return the recipe's path."""
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "queue", "customer"])
        rows = generate_tickets(tickets, fixtures.SEED)
        writer.writerows((ticket.message, ticket.queue, ticket.customer_id) for ticket in rows)
    recipe = folder / f"{NAME}.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def run_stage(spec: PartSpec, stage: str, recipe: Path, *settings: str) -> Measurement:
    """Run a stage and return its time. Raise StageError with its last line if it does not end with 0."""
    argv = [sys.executable, "-m", stage, str(recipe), "--hardware", "gpu" if spec.on_gpu else "cpu", *settings]
    variables = {name: value for name, value in os.environ.items() if name not in CLEARED_VARIABLES}
    variables |= {
        **machine.OFFLINE_ENV,
        "RUNS": str(runs_folder(spec)),
        "REGISTRY": str(Path(spec.folder) / "registry"),
    }
    variables |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    started_at = time.monotonic()
    completed = subprocess.run(argv, cwd=machine.ROOT, env=variables, capture_output=True, text=True, check=False)
    (Path(spec.folder) / f"{stage}.log").write_text(completed.stderr + completed.stdout, encoding="utf-8")
    if completed.returncode:
        raise StageError(
            f"{stage} ended with {completed.returncode}: {machine.last_line(completed.stderr)}", code="INS-X010"
        )
    return Measurement(measures_memory=False, details={"stage_seconds": round(time.monotonic() - started_at, 1)})


def runs_folder(spec: PartSpec) -> Path:
    """Return the folder of this part's runs."""
    return Path(spec.folder) / "runs"


def run_folder(spec: PartSpec) -> Path:
    """Return the folder of the trained run."""
    return (runs_folder(spec) / NAME / "latest").resolve()


def train(spec: PartSpec, recipe: Path, updates: int) -> Measurement:
    """Return the training rate of the last logged update, and the validation scores."""
    settings = [f"train.max_steps={updates}", "train.save_steps=1000", "train.logging_steps=2"]
    stage = run_stage(spec, "train", recipe, *settings)
    manifest = atomic_files.read_json(run_folder(spec) / "manifest.json")["stages"]["train"]
    rows = [row for row in metrics.read_rows(run_folder(spec) / "metrics.jsonl") if "tokens_per_second" in row]
    validation = manifest["metrics"]["validation"]
    return Measurement(
        rows[-1]["examples_per_second"],
        "examples/s",
        4 * pocket_linear_parameters() * rows[-1]["tokens_per_second"],
        peak_memory_bytes=manifest["metrics"]["peak_memory_bytes"],
        details={
            **stage.details,
            "losses": [rows[0]["loss"], rows[-1]["loss"]],
            "validation": {name: validation[name]["accuracy"] for name in ("base", "tuned")},
            "fallbacks": manifest["fallbacks"],
        },
    )


def pocket_linear_parameters() -> int:
    """Return the weights of the pocket model that every token passes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(POCKET))
    return fixtures.count_linear_parameters(model)


def check_parity(spec: PartSpec, recipe: Path, rows: int) -> Measurement:
    """Return the fraction of equal answers of each served variant, as serve.parity measures it."""
    stage = run_stage(spec, "serve.parity", recipe, f"serve.parity.rows={rows}")
    report = atomic_files.read_json(run_folder(spec) / "parity.json")
    agreement = {form["which"]: form["same"] and form["same"]["agreement"] for form in report["forms"]}
    return Measurement(
        measures_memory=False,
        details={**stage.details, "rows": rows, "served": report["served"], "equal_answers": agreement},
    )


def compare(spec: PartSpec, recipe: Path) -> Measurement:
    """Return the verdict, and each system's accuracy on the test rows."""
    stage = run_stage(spec, "compare", recipe)
    scores = read_scores(run_folder(spec) / "scores.json")
    systems: dict[str, Any] = {
        system.title: {"n": system.n, "accuracy": system.metrics["accuracy"].value}
        for system in scores.systems.values()
        if "accuracy" in system.metrics
    }
    return Measurement(
        measures_memory=False, details={**stage.details, "verdict": scores.verdict.choice, "systems": systems}
    )
