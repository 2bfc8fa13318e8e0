"""manifest.json tells how each stage ended, also where its process could not: killed, or on a disk that is full."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deploy import registry
from insource.config import cli
from insource.config.errors import StageError
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking import manifest, run
from insource.tracking.run import Run
from tests.conftest import ROOT
from tests.helpers.errors import raises_error

STAGE = """
import sys, time
from pathlib import Path
from insource.tracking import run
here = run.Run(Path(sys.argv[1]))
with run.lock_run(here), run.record_stage(here, "compare"):
    run.start_stage(here, "compare", {})
    print("runs", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def example_run(tmp_path: Path) -> Run:
    data = tmp_path / "data"
    data.mkdir()
    return run.create(tmp_path / "runs" / "classifier", load("classifier", (), "cpu").recipe, "digest", {}, data)


def on_disk(example_run: Run, stage: str) -> Any:
    return example_run.manifest.to_json()["stages"][stage]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_whose_process_was_killed_was_interrupted_and_the_next_one_writes_it_down(
    example_run: Run, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(example_run.folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "runs\n"
    assert example_run.stage("compare").state == "running" and example_run.is_locked
    with raises_error(StageError, "INS-X003", match="in use by another process"), run.lock_run(example_run):
        pass
    run.start_stage(example_run, "deploy", {})
    assert on_disk(example_run, "compare")["state"] == "running"
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    assert (
        example_run.stage("compare").state == "interrupted"
        and example_run.stage("compare").exit_reason == manifest.UNRECORDED_EXIT
    )
    with run.lock_run(example_run):
        run.start_stage(example_run, "parity", {})
        assert example_run.stage("parity").state == "running"
        assert on_disk(example_run, "compare")["state"] == "interrupted"
        run.end_stage(example_run, "parity", "done", "done")
    assert example_run.stage("parity").state == "done"


FAILING = """
import resource, signal, sys
from pathlib import Path
from insource.config import cli
from insource.config.errors import StageError
from insource.tracking import run

def stage():
    here = run.Run(Path(sys.argv[1]))
    with run.lock_run(here), run.record_stage(here, "compare"):
        run.start_stage(here, "compare", {})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        raise StageError("the provider is gone", code="INS-A009")

cli.run_cli(stage)
"""


def test_a_stage_that_fails_on_a_full_disk_tells_both_and_does_not_stay_running(example_run: Run) -> None:
    argv = [sys.executable, "-c", FAILING, str(example_run.folder)]
    completed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == cli.FAILED
    assert "does not record that compare failed: File too large" in completed.stderr
    assert completed.stderr.endswith("failed[INS-A009]: the provider is gone\n")
    assert on_disk(example_run, "compare")["state"] == "running" and example_run.stage("compare").state == "interrupted"
    assert not list(example_run.folder.glob(".manifest.json.*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs mount")
def test_a_disk_that_may_only_be_read_is_told_and_the_run_is_read_from_it(example_run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine may not mount")
    try:
        subprocess.run(["cp", "-a", example_run.folder, disk / "run"], check=True)
        disk_run = Run(disk / "run")
        run.start_stage(disk_run, "compare", {})
        (disk_run.folder / ".lock").touch()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert disk_run.stage("compare").state == "interrupted"
        with pytest.raises(OSError, match="Read-only") as error, run.lock_run(disk_run):
            pass
        assert cli.RUNS_HINT in cli.describe_os_error(error.value)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_system_without_locks_is_told_and_nothing_is_left(
    example_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for lock in (
        lambda: run.lock_run(example_run),
        lambda: registry.lock_model(tmp_path / "registry" / "classifier"),
        lambda: atomic_files.atomic_folder(tmp_path / "made"),
    ):
        with pytest.raises(OSError, match="No locks") as error, lock():  # type: ignore[attr-defined]
            pass
        assert "keeps no locks" in cli.describe_os_error(error.value)
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))
    run.start_stage(example_run, "compare", {})
    assert example_run.stage("compare").state == "running"  # nothing can tell


def test_a_reader_does_not_keep_a_stage_from_beginning(example_run: Run) -> None:
    (example_run.folder / ".lock").touch()
    reader = subprocess.Popen(
        ["flock", "--shared", example_run.folder / ".lock", "sleep", "0.2"], stdout=subprocess.DEVNULL
    )
    time.sleep(0.1)
    with run.lock_run(example_run):
        assert reader.wait() == 0
