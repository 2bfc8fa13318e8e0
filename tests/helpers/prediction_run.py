"""A run without weights, and `python -m predict` on it with a server on loopback."""

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

# KILL_AFTER is "module.function": the process is killed when that returns for the first time; with "+" at its end, the
# third time.
KILLED_PREDICT_SCRIPT = """
import importlib, os, signal
from insource.backends import failures
from predict import __main__
from predict.rows import inputs
from insource.config import cli

failures.BACKOFF_BASE_SECONDS = 0.01
inputs.SEGMENT_ROWS = int(os.environ["SEGMENT_ROWS"])
if kill_after := os.environ["KILL_AFTER"]:
    remaining_calls = 3 if kill_after.endswith("+") else 1
    module_name, _, function_name = kill_after.rstrip("+").rpartition(".")
    module = importlib.import_module(module_name)
    original = getattr(module, function_name)

    def call_and_kill(*args, **kwargs):
        global remaining_calls
        result, remaining_calls = original(*args, **kwargs), remaining_calls - 1
        if not remaining_calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, function_name, call_and_kill)
cli.run_cli(__main__.main)
"""


@dataclass(frozen=True)
class PredictionRun:
    """A recipe and its run, and the folder of predictions."""

    folder: Path
    recipe_path: Path
    run: Run

    def argv(self, rows: object, output: str, address: str, *args: str) -> list[str]:
        """Return the arguments of a prediction with a vLLM server at an address."""
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
        """Predict in this process. Return the path of the output."""
        assert __main__.main(self.argv(rows, output, address, *args)) == 0
        return self.output_path(output)

    def start(self, segment_rows: int, kill_at: str, args: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Predict in a process of its own, in small segments. `kill_at` is KILL_AFTER of KILLED_PREDICT_SCRIPT."""
        variables = {"HF_HUB_OFFLINE": "1", "SEGMENT_ROWS": str(segment_rows), "KILL_AFTER": kill_at}
        return subprocess.Popen(
            [sys.executable, "-c", KILLED_PREDICT_SCRIPT, *args],
            cwd=ROOT,
            env={**os.environ, **variables, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def rows_on_disk(self) -> int:
        """Return the number of rows with an answer on disk: in journals and in finished segments."""
        folders = list(self.run.folder.parent.glob(".predict/*"))
        done = [path for folder in folders for path in folder.glob("[0-9]*.json")]
        open_segments = [path for folder in folders for path in folder.glob("[0-9]*.jsonl")]
        open_segments = [path for path in open_segments if path.with_suffix(".json") not in done]
        try:
            lines = sum(path.read_bytes().count(b"\n") for path in open_segments)
        except FileNotFoundError:  # finished between the two calls
            return 0
        return lines + sum(int(atomic_files.read_json(path)["rows"]) for path in done)

    def add_comparison(self, threshold: float | None, variant: str = "merged") -> None:
        """Write the files of a comparison; the scale in routing.json leaves probabilities unchanged."""
        policy = RoutingPolicy(
            threshold=threshold,
            target_accuracy=0.95,
            confidence=0.95,
            calibration_rows=500,
            score={"of": "answer", "slope": 1.0, "intercept": 0.0},
            no_threshold_reason=None if threshold else "no threshold passed",
        )
        atomic_files.write_json(self.run.folder / "routing.json", policy.json())
        tuned = {"tuned": {"form": variant}}
        atomic_files.write_json(self.run.folder / "scores.json", {"base": {"served_as": "trained"}, "systems": tuned})
        checksum = atomic_files.sha256(self.run.folder / "adapter" / atomic_files.CHECKSUMS)
        run.start_stage(self.run, "compare", {f"adapter/{atomic_files.CHECKSUMS}": checksum})
        run.end_stage(self.run, "compare", "done", "compared")


def make_run(folder: Path, tokenizer: Any = None, **kwargs: str) -> PredictionRun:
    """Return a run of task_gateway's recipe with these values. With `tokenizer`, the adapter folder has it."""
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
    """Write rows with the columns of the first one. Return the path."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return path


def read_output(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an output in any format; in CSV all values are texts."""
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
