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
from insource.tracking import run
from insource.tracking.run import Run
from tests.conftest import ROOT

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
def here(tmp_path: Path) -> Run:
    data = tmp_path / "data"
    data.mkdir()
    return run.create(tmp_path / "runs" / "classifier", load("classifier", (), "cpu").recipe, "digest", {}, data)


def on_disk(here: Run, stage: str) -> Any:
    return here.manifest["stages"][stage]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_whose_process_was_killed_was_interrupted_and_the_next_one_writes_it_down(
    here: Run, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(here.folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "runs\n"
    assert here.stage("compare")["state"] == "running" and here.worked_on
    with pytest.raises(StageError, match="worked on by another process"), run.lock_run(here):
        pass
    run.start_stage(here, "deploy", {})
    assert on_disk(here, "compare")["state"] == "running"
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    assert (
        here.stage("compare")["state"] == "interrupted" and here.stage("compare")["exit_reason"] == run.UNRECORDED_EXIT
    )
    with run.lock_run(here):
        run.start_stage(here, "parity", {})
        assert here.stage("parity")["state"] == "running"
        assert on_disk(here, "compare")["state"] == "interrupted"
        run.end_stage(here, "parity", "done", "done")
    assert here.stage("parity")["state"] == "done"


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
        raise StageError("the provider is gone")

cli.run_cli(stage)
"""


def test_a_stage_that_fails_on_a_full_disk_tells_both_and_does_not_stay_running(here: Run) -> None:
    asked = [sys.executable, "-c", FAILING, str(here.folder)]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == cli.FAILED
    assert "does not record that compare failed: File too large" in answer.stderr
    assert answer.stderr.endswith("failed: the provider is gone\n")
    assert on_disk(here, "compare")["state"] == "running" and here.stage("compare")["state"] == "interrupted"
    assert not list(here.folder.glob(".manifest.json.*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs mount")
def test_a_disk_that_may_only_be_read_is_told_and_the_run_is_read_from_it(here: Run, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=False).returncode:
        pytest.skip("this machine may not mount")
    try:
        subprocess.run(["cp", "-a", here.folder, place / "run"], check=True)
        there = Run(place / "run")
        run.start_stage(there, "compare", {})
        (there.folder / ".lock").touch()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert there.stage("compare")["state"] == "interrupted"
        with pytest.raises(OSError, match="Read-only") as error, run.lock_run(there):
            pass
        assert cli.RUNS_HINT in cli.describe_os_error(error.value)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_file_system_without_locks_is_told_and_nothing_is_left(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for attempt in (
        lambda: run.lock_run(here),
        lambda: registry.lock_model(tmp_path / "registry" / "classifier"),
        lambda: atomic_files.atomic_folder(tmp_path / "made"),
    ):
        with pytest.raises(OSError, match="No locks") as error, attempt():  # type: ignore[attr-defined]
            pass
        assert "keeps no locks" in cli.describe_os_error(error.value)
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))
    run.start_stage(here, "compare", {})
    assert here.stage("compare")["state"] == "running"  # nothing can tell


def test_a_reader_does_not_keep_a_stage_from_beginning(here: Run) -> None:
    (here.folder / ".lock").touch()
    reader = subprocess.Popen(["flock", "--shared", here.folder / ".lock", "sleep", "0.2"], stdout=subprocess.DEVNULL)
    time.sleep(0.1)
    with run.lock_run(here):
        assert reader.wait() == 0
