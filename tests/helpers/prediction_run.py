"""A run that looks trained, without weights, and `python -m predict` on it against a server on loopback."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from compare.decision.routing_policy import RoutingPolicy
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking import run
from insource.tracking.run import Run
from predict import __main__
from tests.conftest import ROOT
from tests.helpers.gateway import task_gateway
from tests.helpers.gateway.stand_in_engine import PROMPT_IDS, REFERENCE
from tests.helpers.gateway.task_gateway import LABELS, TASK_NAME

# "module.function": killed as soon as that has returned the first time; "module.function+": the third time.
KILLED_PREDICT_SCRIPT = """
import importlib, os, signal
from insource.backends import failures
from predict import __main__
from predict.rows import inputs
from insource.config import cli

failures.BACKOFF_BASE_SECONDS = 0.01
inputs.SEGMENT_ROWS = int(os.environ["SEGMENT_ROWS"])
if where := os.environ["DIE"]:
    left = 3 if where.endswith("+") else 1
    module, _, name = where.rstrip("+").rpartition(".")
    module = importlib.import_module(module)
    whole = getattr(module, name)

    def dying(*given, **named):
        global left
        found, left = whole(*given, **named), left - 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, name, dying)
cli.run_cli(__main__.main)
"""


@dataclass(frozen=True)
class PredictionRun:
    """A recipe, its run, and where predictions go."""

    folder: Path
    recipe_path: Path
    run: Run

    def argv(self, rows: object, output: str, address: str, *args: str) -> list[str]:
        """The command line of a prediction by a vLLM server at an address."""
        argv = [
            str(self.recipe_path),
            "--input",
            str(rows),
            "--output",
            str(self.output_path(output)),
            "--engine",
            "vllm",
        ]
        argv += ["--base-url", f"{address}/v1", "--hardware", "cpu", "--runs", str(self.folder / "runs")]
        return [*argv, *args]

    def output_path(self, name: str) -> Path:
        return self.folder / "out" / name

    def predict(self, rows: object, output: str, address: str, *args: str) -> Path:
        """Predicts in this process. Returns the output."""
        assert __main__.main(self.argv(rows, output, address, *args)) == 0
        return self.output_path(output)

    def start(self, segment_rows: int, kill_at: str, args: Sequence[str]) -> subprocess.Popen[str]:
        """Predicts in a process of its own, in small segments; `kill_at`: where it kills itself, see COMMAND."""
        variables = {"HF_HUB_OFFLINE": "1", "SEGMENT_ROWS": str(segment_rows), "DIE": kill_at}
        return subprocess.Popen(
            [sys.executable, "-c", KILLED_PREDICT_SCRIPT, *args],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def rows_on_disk(self) -> int:
        """How many rows have an answer on disk: in journals, and in segments that are done."""
        folders = list(self.run.folder.parent.glob(".predict/*"))
        done = [path for folder in folders for path in folder.glob("[0-9]*.json")]
        open_segments = [path for folder in folders for path in folder.glob("[0-9]*.jsonl")]
        open_segments = [path for path in open_segments if path.with_suffix(".json") not in done]
        try:
            lines = sum(path.read_bytes().count(b"\n") for path in open_segments)
        except FileNotFoundError:  # it was done in this moment
            return 0
        return lines + sum(atomic_files.read_json(path)["rows"] for path in done)

    def add_comparison(self, threshold: float | None, variant: str = "merged") -> None:
        """Leaves what a comparison leaves: routing.json with a scale that keeps probabilities as they are."""
        policy = RoutingPolicy(
            threshold=threshold,
            target_accuracy=0.95,
            confidence=0.95,
            calibration_rows=500,
            score={"of": "answer", "slope": 1.0, "intercept": 0.0},
            why_none=None if threshold else "no threshold passed",
        )
        atomic_files.write_json(self.run.folder / "routing.json", policy.json())
        tuned = {"tuned": {"form": variant}}
        atomic_files.write_json(self.run.folder / "scores.json", {"base": {"served_as": "trained"}, "systems": tuned})
        checksum = atomic_files.sha256(self.run.folder / "adapter" / atomic_files.CHECKSUMS)
        run.start_stage(self.run, "compare", {f"adapter/{atomic_files.CHECKSUMS}": checksum})
        run.end_stage(self.run, "compare", "done", "compared")


def make_run(folder: Path, tokenizer: Any = None, **kwargs: str) -> PredictionRun:
    """A run of task_door's recipe with other values; with a tokenizer, its adapter has one."""
    recipe: Recipe = task_gateway.make_recipe(folder, **kwargs)
    path = folder / f"{TASK_NAME}.yaml"
    data = folder / "runs" / TASK_NAME / ".data" / "1"
    data.mkdir(parents=True)
    created_run = run.create(folder / "runs" / TASK_NAME, load(str(path), [], "cpu").recipe, "digest", {}, data)
    module = TASKS[recipe.task.task_name]
    spec = module.make_spec(recipe.task, dict.fromkeys(LABELS, ""))
    prompt = {
        "task": {"kind": recipe.task.task_name, **spec.__dict__},
        "messages": module.messages(spec, {"text": "{input}"}),
        "output_schema": module.output_schema(spec),
        "grammar": module.grammar(spec),
        "max_answer_tokens": 16,
        "prompt_ids": [*PROMPT_IDS],
    }
    adapter = created_run.folder / "adapter"
    adapter.mkdir()
    atomic_files.write_json(adapter / "prompt.json", prompt)
    if tokenizer is not None:
        tokenizer.save_pretrained(adapter)
    atomic_files.write_checksums(adapter)
    created_run.references_path.write_text(
        json.dumps({"id": "r1", "prompt_ids": [1, 2], "answer": REFERENCE, "margin": None}) + "\n", encoding="utf-8"
    )
    run.set_latest(created_run)
    return PredictionRun(folder, path, created_run)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows with the columns of the first."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return path


def read_output(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, whatever its format; of CSV all values are texts."""
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
