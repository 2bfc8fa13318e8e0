"""Launching: what is started, what becomes of signals, and how several machines agree on a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from insource.config import hardware
from insource.config.errors import RecipeError, StageError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.tracking.run import Run
from tests.conftest import ROOT, Command
from train import launch
from train.distributed import rendezvous

# Stands in for the worker: tells its id, counts the signals that reach it, and takes a second to end.
STAND_IN = """\
import os, pathlib, signal, sys, time
from train.distributed.launcher import die_with_parent
die_with_parent()
folder, rank, got = pathlib.Path(sys.argv[1]), int(os.environ.get("RANK", 0)), []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: got.append(signal.Signals(number).name))
(folder / f"aside{rank}").write_text(str(os.getpid()))
(folder / f"aside{rank}").rename(folder / f"pid{rank}")
while not got:
    time.sleep(0.05)
time.sleep(1.0)
(folder / f"got{rank}").write_text(" ".join(got))
# Workers end together, after their last checkpoint; torch's launcher would send SIGTERM to one that is left alone.
while rank == 0 and len(list(folder.glob("got*"))) < int(os.environ.get("WORLD_SIZE", 1)):
    time.sleep(0.05)
sys.exit(int(sys.argv[2]) if rank == 0 else 0)
"""
WATCH = """\
import os, sys
from train import launch
from train.distributed.launcher import PARENT_PID_ENV
settings = {**os.environ, PARENT_PID_ENV: str(os.getpid())}
print(*launch.run_program(sys.argv[1:], settings))
sys.stdout.flush()
"""


@contextmanager
def watched_launcher(folder: Path, *argv: str, ranks: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A launcher at work, in a process of its own, with the ids of what it started in `folder`."""
    (folder / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, sys.executable, *argv],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(list(folder.glob("pid*"))) == ranks)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def recorded_pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("pid*"))]


def running_pids(folder: Path) -> list[int]:
    return [pid for pid in recorded_pids(folder) if Path(f"/proc/{pid}").exists()]


def recipe(*settings: str, hardware_name: str = "cpu") -> Recipe:
    return load("classifier", settings, hardware_name).recipe


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_worker_once_and_is_waited_for(tmp_path: Path, sent: signal.Signals) -> None:
    with watched_launcher(tmp_path, str(tmp_path / "stand_in.py"), str(tmp_path), "130") as process:
        process.send_signal(sent)
        output, _ = process.communicate(timeout=60)
    assert output.split() == ["130", "True"]
    assert (tmp_path / "got0").read_text() == ("SIGTERM" if sent == signal.SIGHUP else sent.name)


def test_a_worker_that_outlives_a_second_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_script = "import signal, time, sys, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    worker_script += "pathlib.Path(sys.argv[1], 'pid0').write_text('0'); time.sleep(120)"
    monkeypatch.setitem(os.environ, "PYTHONUNBUFFERED", "1")
    short_waits = "launch.KILL_AFTER_SECONDS = launch.DUPLICATE_SIGNAL_SECONDS = 0.1\n"
    launcher_script = WATCH.replace("settings =", f"{short_waits}settings =")
    monkeypatch.setattr(sys.modules[__name__], "WATCH", launcher_script)
    with watched_launcher(tmp_path, "-c", worker_script, str(tmp_path)) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert output.split() == ["-9", "True"]


def test_a_worker_ends_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with watched_launcher(tmp_path, str(tmp_path / "stand_in.py"), str(tmp_path), "0") as process:
        process.kill()
        wait_for(lambda: not running_pids(tmp_path), 20)


def torchrun_argv(folder: Path, code: int) -> list[str]:
    args = ["-m", "train.distributed.launcher", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*args, str(folder / "stand_in.py"), str(folder), str(code)]


@pytest.mark.slow
def test_a_signal_reaches_each_of_several_processes_once_and_the_first_ones_exit_code_comes_back(
    tmp_path: Path,
) -> None:
    with watched_launcher(tmp_path, *torchrun_argv(tmp_path, 130), ranks=2) as process:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert output.split() == ["130", "True"]
    assert [(tmp_path / f"got{rank}").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_several_processes_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with watched_launcher(tmp_path, *torchrun_argv(tmp_path, 0), ranks=2) as process:
        process.kill()
        wait_for(lambda: not running_pids(tmp_path), 20)


def test_what_is_started_follows_the_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "list_gpus", lambda: ["a GPU"] * 4)
    single = launch._worker_command(tmp_path, recipe(), 2)
    assert single == [sys.executable, "-m", "train.worker", str(tmp_path)]
    cpu_command = launch._worker_command(tmp_path, recipe(hardware_name="multi-cpu"), 1)
    assert {"train.distributed.launcher", "torch.distributed.run", "--nproc-per-node=2", "--standalone"} <= set(
        cpu_command
    )
    node_settings = ["accelerate.machine_rank=1", "accelerate.main_process_ip=10.0.0.1"]
    gpu_command = launch._worker_command(tmp_path, recipe(*node_settings, hardware_name="multi-node"), 1)
    assert "accelerate.commands.launch" in gpu_command
    config = YAML(typ="safe").load((tmp_path / "accelerate-1.yaml").read_text(encoding="utf-8"))
    assert (config["num_processes"], config["machine_rank"], config["main_process_ip"]) == (8, 1, "10.0.0.1")
    cluster_settings = [
        "accelerate.distributed_type=MULTI_CPU",
        "accelerate.use_cpu=true",
        "train.optim=adamw_torch",
        *node_settings,
    ]
    cluster_command = launch._worker_command(tmp_path, recipe(*cluster_settings, hardware_name="multi-node"), 1)
    assert {"--nnodes=2", "--node-rank=1", "--rdzv-endpoint=10.0.0.1:29500"} <= set(cluster_command)


@pytest.mark.parametrize("hardware_name", ["multi-gpu", "fsdp"])
def test_accelerate_reads_the_config_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware_name: str
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    monkeypatch.setattr(hardware, "list_gpus", lambda: ["a GPU"] * 4)
    command = launch._worker_command(tmp_path, recipe(hardware_name=hardware_name), 2)
    args = command[command.index("accelerate.commands.launch") + 1 :]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(args))
    settings = prepare_multi_gpu_env(parsed)
    assert (parsed.use_fsdp, parsed.multi_gpu) == (hardware_name == "fsdp", hardware_name == "multi-gpu")
    assert (parsed.num_processes, parsed.nproc_per_node) == (4, "4")
    assert settings["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if hardware_name == "fsdp":
        assert (settings["FSDP_VERSION"], settings["FSDP_STATE_DICT_TYPE"]) == ("2", "FULL_STATE_DICT")


def test_gpus_that_are_not_there_are_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "list_gpus", list)
    with pytest.raises(RecipeError, match="this machine has none; set HARDWARE=cpu"):
        launch._check_gpus(recipe(hardware_name="multi-gpu"))
    monkeypatch.setattr(hardware, "list_gpus", lambda: ["a GPU"] * 2)
    with pytest.raises(RecipeError, match="4 processes on this machine, which has 2 GPUs"):
        launch._check_gpus(recipe("accelerate.num_processes=4", hardware_name="multi-gpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert recipe(hardware_name="multi-gpu").accelerate.num_processes == 1


def test_a_recipe_that_asks_for_gpus_leaves_nothing_where_there_are_none(python: Command, tmp_path: Path) -> None:
    if hardware.list_gpus():
        pytest.skip("this machine has GPUs")
    completed = python("train", "classifier", "--hardware", "multi-gpu")
    assert (completed.returncode, completed.stdout) == (2, "")
    assert "set HARDWARE=cpu" in completed.stderr
    assert not (tmp_path / "runs").exists()


def machine_recipe(rank: int, *settings: str) -> Recipe:
    overrides = ["accelerate.distributed_type=MULTI_CPU", "accelerate.use_cpu=true", "train.optim=adamw_torch"]
    overrides += ["accelerate.num_processes=2", f"accelerate.machine_rank={rank}", *settings]
    return recipe(*overrides, hardware_name="multi-node")


def test_the_other_machines_join_the_run_that_machine_0_launches_now_and_not_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "HEARTBEAT_SECONDS", 0.05)
    with rendezvous.publish_launch(tmp_path, machine_recipe(0)) as announcement:
        announcement.set_running(Run(tmp_path / "old"))
        time.sleep(0.1)
    joined: list[Run | None] = []
    joiner = threading.Thread(target=lambda: joined.append(rendezvous.wait_for_run(tmp_path, machine_recipe(1), 20)))
    joiner.start()
    time.sleep(0.3)
    assert not joined
    with rendezvous.publish_launch(tmp_path, machine_recipe(0)) as announcement:
        time.sleep(0.3)  # it prepares data
        assert not joined
        announcement.set_running(Run(tmp_path / "new"))
        joiner.join(20)
    assert joined == [Run(tmp_path / "new")]


def test_machines_that_do_not_agree_or_do_not_come_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "HEARTBEAT_SECONDS", 0.05)
    with rendezvous.publish_launch(tmp_path, machine_recipe(0)) as announcement:
        with pytest.raises(StageError, match=r"train.seed: 17 there, 18 here"):
            rendezvous.wait_for_run(tmp_path, machine_recipe(1, "train.seed=18"), 20)
        announcement.set_running(Run(tmp_path / "new"))
    with pytest.raises(StageError, match="of run new, has ended"):
        rendezvous.wait_for_run(tmp_path, machine_recipe(1), 0.2)


@pytest.mark.parametrize(
    ("ending", "message"),
    [("unchanged", None), ("data", "ended with exit code 2"), ("refused", "the disk is full"), ("stopped", "Keyboard")],
)
def test_the_other_machines_leave_where_machine_0_launches_nothing(
    ending: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "HEARTBEAT_SECONDS", 0.05)
    # An earlier launch left its file, as of the same recipe.
    monkeypatch.setattr(rendezvous, "LINGER_SECONDS", 0.0)
    with rendezvous.publish_launch(tmp_path, machine_recipe(0)) as announcement:
        announcement.set_unchanged("run 1 did this")
    monkeypatch.setattr(rendezvous, "LINGER_SECONDS", 3.0)
    outcomes: list[Run | str | None] = []

    def wait() -> None:
        try:
            outcomes.append(rendezvous.wait_for_run(tmp_path, machine_recipe(1), 20))
        except StageError as error:
            outcomes.append(str(error))

    # It comes before machine 0 has said anything, and another one when that has ended already.
    joiners = [threading.Thread(target=wait) for _ in range(2)]
    joiners[0].start()
    time.sleep(0.2)
    errors = {
        "data": SystemExit(2),
        "refused": StageError("the disk is full", code="INS-X001"),
        "stopped": KeyboardInterrupt(),
    }

    def lead() -> None:
        with suppress(BaseException), rendezvous.publish_launch(tmp_path, machine_recipe(0)) as announcement:
            time.sleep(0.2)
            if ending != "unchanged":
                raise errors[ending]
            announcement.set_unchanged("run 1 did this")

    leader = threading.Thread(target=lead)
    leader.start()
    time.sleep(1.0)
    # Who is interrupted does not stay to tell.
    late_joiners = joiners[1:] if ending != "stopped" else []
    for thread in late_joiners:
        thread.start()
    for thread in (joiners[0], *late_joiners, leader):
        thread.join(20)
    assert len(outcomes) == 1 + len(late_joiners)
    for outcome in outcomes:
        assert (
            outcome is None
            if message is None
            else message in str(outcome) and "machine 0 launched no run" in str(outcome)
        )


def test_the_scripts_for_clusters_are_whole() -> None:
    completed = subprocess.run(
        ["bash", "-n", hardware.HARDWARE_DIR / "slurm.sh"], capture_output=True, text=True, check=False
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    task = YAML(typ="safe").load((hardware.HARDWARE_DIR / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task["num_nodes"] == 2
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode == 0
    scripts = (hardware.HARDWARE_DIR / "slurm.sh").read_text(encoding="utf-8") + task["run"]
    for key in ("num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        assert scripts.count(f"accelerate.{key}=") == 2
