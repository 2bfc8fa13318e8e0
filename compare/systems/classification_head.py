"""The classification head of a run: trained if it is missing, and its answers in transformers.

compare imports no training, so both are processes: `python -m train.head` before the run is locked, and
`python -m train.head.predict` after the local servers have stopped, so that it has their memory and its latency is
measured on a machine without other load from the comparison. No test row leaves this machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from compare import eval_dataset
from compare.records import System, SystemAnswer, SystemResponses
from compare.scoring import confidence
from compare.systems.responses import ComparisonContext, load_or_store
from insource.config import cli
from insource.config.errors import StageError
from insource.system import atomic_files, child_processes, environment
from insource.system.timestamps import utc_timestamp
from insource.tasks.data_row import Rows, TimedInput
from insource.tracking.run import Run

FOLDER = "head"
# Test rows that are answered once more by themselves, for the latency.
LATENCY_ROWS = 200
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def train_if_missing(arguments: argparse.Namespace, trained_run: Run) -> None:
    """Train the head of a run unless the run has it. Exit with the exit code of the training if that fails."""
    argv = cli.stage_argv("train.head", arguments, "--run", trained_run.id)
    # FRESH=1 repeats the comparison. It does not train the head again.
    env = {name: value for name, value in os.environ.items() if name != "FRESH"}
    if code := subprocess.run(argv, env=env, stdout=sys.stderr, check=False).returncode:
        sys.exit(code)


def collect(context: ComparisonContext, system: System) -> SystemResponses:
    """Return the answers of the head to all test, validation and calibration rows, from the cache if it has them.

    Confidences are calibrated on the validation rows. Raise StageError if the process that answers fails.
    """
    validation = eval_dataset.load_validation_dataset(context.run).test
    splits = {"test": context.dataset.test, "validation": validation, "calibration": context.dataset.calibration}
    lines = request_lines(splits)
    identity = build_identity(context, lines)
    path = context.cache_path(system).with_suffix(".json")
    payload, reused = load_or_store(path, identity, None), True
    if payload is None:
        print(f"head      answers {len(lines):,} rows in transformers", file=sys.stderr, flush=True)
        fresh = {
            **predict(context, lines),
            "hardware": environment.describe_machine(context.recipe),
            "measured": utc_timestamp(),
        }
        payload, reused = load_or_store(path, identity, fresh), False
        assert payload is not None
    answers = {
        split: [read_answer(payload, split, row["id"], reused) for row in rows] for split, rows in splits.items()
    }
    return SystemResponses(
        system,
        test_answers=answers["test"],
        calibration_answers=answers["calibration"],
        reused=len(answers["test"]) if reused else 0,
        concurrency=1,
        throughput=read_throughput(payload),
        scale=confidence.fit_scale(context.dataset, validation, answers["validation"]),
        notes=[
            f"{system.title}: answered by transformers, not by a server; its latency is of one row at a time "
            f"({LATENCY_ROWS} test rows at most), its throughput of batches"
        ],
    )


def request_lines(splits: Mapping[str, Rows]) -> list[TimedInput]:
    """Return the rows as `train.head.predict` reads them. Test rows chosen by their ids are timed."""
    timed_ids = {row["id"] for row in eval_dataset.sample_rows(splits["test"], LATENCY_ROWS)}
    return [
        {
            "key": f"{split}/{row['id']}",
            "input": row["input"],
            "timed": split == "test" and row["id"] in timed_ids,
        }
        for split, rows in splits.items()
        for row in rows
    ]


def build_identity(context: ComparisonContext, lines: Sequence[TimedInput]) -> list[object]:
    """Return the identity of the cached answers: head, rows, libraries, batch size and machine."""
    versions = environment.read_package_versions()
    return [
        atomic_files.sha256(context.run.folder / FOLDER / atomic_files.CHECKSUMS),
        atomic_files.digest(list(lines)),
        [versions.get(name) for name in PACKAGES],
        context.recipe.compare.concurrency,
        environment.describe_machine(context.recipe),
    ]


def predict(context: ComparisonContext, lines: Sequence[TimedInput]) -> dict[str, Any]:
    """Return the answers of `train.head.predict`. Raise StageError if it fails."""
    # Inside of the cache folder, which only this user reads: the rows contain texts of the data.
    with tempfile.TemporaryDirectory(dir=context.cache_dir, prefix=".head-") as folder:
        rows_path, answers_path = Path(folder) / "rows.jsonl", Path(folder) / "answers.json"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic_files.write_text(rows_path, text)
        argv = [sys.executable, "-m", "train.head.predict", str(context.run.folder), str(rows_path), str(answers_path)]
        argv += ["--batch-size", str(context.recipe.compare.concurrency)]
        completed = subprocess.run(
            argv, stdout=sys.stderr, check=False, preexec_fn=child_processes.make_parent_death_preexec()
        )
        if completed.returncode:
            raise StageError(
                f"compare.head: the process that answers with the head ended with exit code {completed.returncode}; "
                "see the message above. `python -m train.head RECIPE --fresh` trains the head again; "
                "SET=compare.head=false compares without it",
                code="INS-C014",
            )
        payload: dict[str, Any] = atomic_files.read_json(answers_path)
        return payload


def read_answer(payload: Mapping[str, Any], split: str, row_id: str, reused: bool) -> SystemAnswer:
    """Return the answer to a row: the most probable label, of equal ones the first, and all probabilities."""
    labels: Sequence[str] = payload["labels"]
    entry = payload["answers"][f"{split}/{row_id}"]
    log_probabilities: Sequence[float] = entry["log_probabilities"]
    best = max(range(len(labels)), key=lambda index: log_probabilities[index])
    seconds: float | None = entry["seconds"]
    return SystemAnswer(
        row_id,
        labels[best],
        model_id=FOLDER,
        log_probability=min(0.0, log_probabilities[best]),
        input_tokens=entry["tokens"],
        latency_seconds=seconds,
        attempt_latencies_seconds=() if seconds is None else (seconds,),
        reused=reused,
        probabilities={label: exp(value) for label, value in zip(labels, log_probabilities, strict=True)},
    )


def read_throughput(payload: Mapping[str, Any]) -> dict[str, object]:
    """Return the throughput of the batches."""
    batch = payload["batch"]
    return {
        "requests_per_second": batch["rows"] / batch["seconds"],
        "tokens_per_second": batch["tokens"] / batch["seconds"],
        "concurrency": batch["size"],
        "n": batch["rows"],
        "hardware": payload["hardware"],
        "measured": payload["measured"],
    }
