"""A small trained and exported run, and commands in child processes, for tests of serving."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, made_once

TRAIN_SETTINGS = ("train.max_steps=2", "train.save_steps=2")
# A server starts in 30 s, and takes longer while other tests run.
TIMEOUT_SECONDS = 400


def copy_exported_runs(factory: pytest.TempPathFactory, recipe: Path, name: str) -> Path:
    """Return a new runs folder with a trained, merged and quantized run: a copy of one that all tests share."""

    def make(folder: Path) -> None:
        # With W&B, for comparisons: they take this setting from the run.
        for args in (("train", *TRAIN_SETTINGS, "tracking.wandb.mode=offline"), ("train.export",)):
            completed = run_command(folder, args[0], recipe, *args[1:])
            assert completed.returncode == 0, completed.stderr

    runs_folder = made_once(factory, "exported", make)
    return shutil.copytree(runs_folder, factory.mktemp(name) / "runs", symlinks=True)


def run_command(runs: Path, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <args>` on the CPU and wait for its end."""
    argv = [sys.executable, "-m", *map(str, args), "--hardware", "cpu"]
    return subprocess.run(
        argv,
        cwd=ROOT,
        env=command_env(runs) | environment,
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT_SECONDS,
        check=False,
    )


@contextmanager
def run_in_background(runs: Path, log: Path, *args: object, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m <args>` on the CPU until the block ends, with its output in `log`."""
    argv = [sys.executable, "-m", *map(str, args), "--hardware", "cpu"]
    with log.open("wb") as stdout:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=command_env(runs) | environment, stdout=stdout, stderr=stdout, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(log: Path, expected: str, process: subprocess.Popen[bytes], count: int = 1) -> str:
    """Wait until the log of a process contains a text `count` times. Return the complete log."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        text = log.read_text(encoding="utf-8", errors="replace")
        if text.count(expected) >= count:
            return text
        assert process.poll() is None, f"ended with {process.returncode}:\n{text}"
        assert time.monotonic() < deadline, f"{expected!r} was not said:\n{text}"
        time.sleep(0.2)


def command_env(runs: Path) -> dict[str, str]:
    """Return the environment of a command."""
    variables = {"RUNS": str(runs), "HF_HUB_OFFLINE": "1", "REGISTRY": str(runs.parent / "registry")}
    # Tests run side by side, and every vLLM would bind its threads to the first core.
    return {**os.environ, **variables, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def child_pids(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids = [pid]
    for ancestor in pids:
        pids += [child for child, parent in parents.items() if parent == ancestor]
    return pids[1:]


def running_pids(pids: list[int]) -> list[int]:
    """Return the processes that still run, without zombies."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        running += [pid] if state != "Z" else []
    return running
