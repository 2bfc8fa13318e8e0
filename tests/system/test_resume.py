"""Training as a user calls it, killed, interrupted and hurt in every way, and called again: the same bytes come out."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import kills
from insource.system import atomic_files
from insource.tracking.run import Run
from train.loop import checkpoints
from train.loop.signals import DUPLICATE_SIGNAL_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kills.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def finished_runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a training that nothing has disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    kills.run_training(recipe, runs)
    return runs


@pytest.fixture
def runs(recipe: Path, finished_runs: Path, tmp_path: Path) -> Path:
    """A runs folder with the data prepared."""
    shutil.copytree(finished_runs / recipe.stem / ".data", tmp_path / "runs" / recipe.stem / ".data")
    return tmp_path / "runs"


def outcome(runs: Path) -> dict[str, Any]:
    return kills.run_hashes(run_in(runs))


def run_in(runs: Path) -> Path:
    run = kills.find_run(runs)
    assert run is not None
    return run


def train_stage(runs: Path) -> dict[str, Any]:
    return atomic_files.read_json(run_in(runs) / "manifest.json")["stages"]["train"]  # type: ignore[no-any-return]


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


def in_training(runs: Path) -> Callable[[], bool]:
    """Tells whether the first row has been logged."""
    return lambda: any(path.stat().st_size for path in runs.glob("*/*/metrics.jsonl"))


@pytest.mark.parametrize("updates", [(2, 8), pytest.param((2, 4, 6, 8, 10), marks=pytest.mark.nightly)])
def test_several_kills_in_one_life_change_nothing(
    updates: tuple[int, ...], recipe: Path, finished_runs: Path, runs: Path
) -> None:
    rng = random.Random(7)
    for update in updates:
        process = kills.start_training(recipe, runs)
        # Every second time in the middle of writing a checkpoint, else some time after one has been written.
        if update % 4:
            path = f"*/*/checkpoints/checkpoint-{update}"
            wait_for(process, lambda path=path: list(runs.glob(path)))  # type: ignore[misc]
            kill_at = time.monotonic() + rng.uniform(0, 0.4)
            assert kills.kill_when(process, lambda kill_at=kill_at: time.monotonic() > kill_at)  # type: ignore[misc]
        else:
            path = f"*/*/checkpoints/.writing/checkpoint-{update}"
            assert kills.kill_when(process, lambda path=path: list(runs.glob(path)))  # type: ignore[misc]
        assert not (run_in(runs) / "adapter").exists()
        assert Run(run_in(runs)).stage("train").state == "interrupted"
    output = kills.run_training(recipe, runs)
    assert "going on with the unfinished run" in output
    assert "untuned   the answers of an earlier call" in output
    assert outcome(runs) == outcome(finished_runs)
    assert train_stage(runs)["state"] == "done"


def test_interrupted_then_damaged_then_on_a_full_disk_it_ends_in_the_same_bytes(
    recipe: Path, finished_runs: Path, runs: Path
) -> None:
    process = kills.start_training(recipe, runs)
    wait_for(process, lambda: list(runs.glob("*/*/checkpoints/checkpoint-4")))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert train_stage(runs)["state"] == "interrupted"
    folder = run_in(runs) / "checkpoints"
    previous, newest = checkpoints.list_checkpoints(folder)
    assert previous.name == "checkpoint-4" and checkpoints.find_corruption(newest) is None

    os.truncate(newest / "optimizer.pt", 1000)
    # Room for everything but the largest file of a checkpoint.
    max_bytes = (previous / "optimizer.pt").stat().st_size - 1
    process = kills.start_training(
        recipe, runs, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert f"{newest.name} is damaged: optimizer.pt is cut short, 1,000 of" in output
    assert "could not be written, the disk is full" in output
    assert "Traceback" not in output
    assert train_stage(runs)["state"] == "failed"
    assert checkpoints.list_checkpoints(folder) == [previous] and checkpoints.find_corruption(previous) is None
    assert not list(folder.glob(".*"))

    kills.run_training(recipe, runs)
    assert outcome(runs) == outcome(finished_runs)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    # All rows, each alone, in one update: on a fast machine too it takes long enough to be interrupted in.
    recipe, runs = kills.write_recipe(tmp_path, rows=800), tmp_path / "runs"
    settings = ("train.batch_size=2000", "train.packing=none", "train.max_steps=50", "data.split.validation=0.02")
    process = kills.start_training(recipe, runs, *settings)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("learns"):
        assert process.poll() is None
    time.sleep(5)  # until an update runs, on a busy machine too
    os.killpg(process.pid, signal.SIGINT)
    while "finishing the running update" not in (line := process.stdout.readline()):
        assert line, "it ended without a word of the first signal"
    time.sleep(DUPLICATE_SIGNAL_SECONDS + 0.5)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert train_stage(runs)["state"] == "interrupted"
    assert checkpoints.find_latest_valid(run_in(runs) / "checkpoints") == checkpoints.CheckpointScan(None)


@pytest.mark.nightly
def test_a_loss_that_is_not_finite_stops_and_names_update_and_rows(recipe: Path, runs: Path) -> None:
    assert kills.kill_when(kills.start_training(recipe, runs), lambda: list(runs.glob("*/*/checkpoints/checkpoint-4")))
    folder = run_in(runs) / "checkpoints"
    newest = checkpoints.find_latest_valid(folder).latest
    assert newest is not None
    poison(newest)
    process = kills.start_training(recipe, runs)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert f"In update {checkpoints.step(newest) + 1} the loss is nan" in output
    ids = {row["id"] for row in atomic_files.read_jsonl(run_in(runs) / "data" / "train.jsonl")}
    rows_line = next(line for line in output.splitlines() if "Rows of the update" in line)
    assert len(rows := re.findall(r"tickets\.csv:\d+", rows_line)) == 4 and set(rows) <= ids
    assert train_stage(runs)["state"] == "failed"
    assert checkpoints.find_latest_valid(folder).latest == newest


def poison(path: Path) -> None:
    """Makes one weight of a checkpoint infinite, and seals it as if it had been saved so."""
    weights = load_file(path / "adapter_model.safetensors")
    weights[sorted(weights)[0]].view(-1)[0] = torch.inf
    save_file(weights, path / "adapter_model.safetensors")
    (path / "checkpoint.json").unlink()
    checkpoints.write_checksums(path)
