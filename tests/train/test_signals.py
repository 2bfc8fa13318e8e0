"""Signals, sent for real, and trainings that were asked to stop: they go on as if they had not been."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback

from insource.system import atomic_files
from tests.conftest import ROOT
from tests.helpers.tiny_trainer import (
    SELECT_BEST,
    CallAfterUpdate,
    TinyTrainer,
    logged_losses,
    make_trainer,
    resume_training,
)
from train.loop import checkpoints
from train.loop.callbacks import GracefulStop, RestoreTrainerState
from train.loop.signals import DUPLICATE_SIGNAL_SECONDS, SIGNALS, StopRequest, handle_signals


def fail_if_ended(name: str) -> None:
    raise AssertionError(f"{name} ended it")


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_is_trained_a_signal_ends_at_once(number: signal.Signals) -> None:
    handlers = [signal.getsignal(signal_number) for signal_number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), handle_signals(fail_if_ended):
        os.kill(os.getpid(), number)
    assert [signal.getsignal(signal_number) for signal_number in SIGNALS] == handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_while_training_a_signal_and_its_echoes_are_put_off(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with handle_signals(fail_if_ended) as stop_request:
        stop_request.training = True
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_request.signal_name == number.name
        assert capfd.readouterr().err.count("finishing the running update, then saving") == 1
        with pytest.raises(KeyboardInterrupt, match=number.name):
            stop_request.raise_if_requested()


def test_without_a_signal_training_goes_on_to_what_follows() -> None:
    with handle_signals(fail_if_ended) as stop_request:
        stop_request.training = True
        stop_request.raise_if_requested()
        assert not stop_request.training


def test_a_second_signal_records_the_end_and_leaves_on_the_spot(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        try:
            with handle_signals(
                lambda name: (tmp_path / "ended").write_text(name, encoding="utf-8") and None
            ) as stop_request:
                stop_request.training = True
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(DUPLICATE_SIGNAL_SECONDS + 0.1)
                os.kill(os.getpid(), signal.SIGTERM)
                (tmp_path / "went on").touch()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["ended"]
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "SIGTERM"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> TinyTrainer:
    """A training that nothing has interrupted."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("update", [1, 4, 6, 11])
def test_a_training_that_was_asked_to_stop_ends_in_the_same_weights_and_the_same_log(
    update: int, finished_run: TinyTrainer, tmp_path: Path
) -> None:
    stop_request = StopRequest()
    request_stop = CallAfterUpdate(update, lambda: setattr(stop_request, "signal_name", "SIGTERM"))
    make_trainer(tmp_path, callbacks=[request_stop, GracefulStop(stop_request)]).train()
    with pytest.raises(KeyboardInterrupt):
        stop_request.raise_if_requested()
    assert checkpoints.find_latest_valid(tmp_path).latest == tmp_path / f"checkpoint-{update}"
    resumed = resume_training(tmp_path)
    assert torch.equal(resumed.model.line.weight, finished_run.model.line.weight)
    # Updates of a logged mean lie on both sides of the interruption.
    assert logged_losses(resumed) == logged_losses(finished_run)
    train_losses = [trainer.state.log_history[-1]["train_loss"] for trainer in (resumed, finished_run)]
    assert train_losses[0] == train_losses[1]


def test_early_stopping_counts_on_after_an_interruption(tmp_path: Path) -> None:
    stop_request = StopRequest()
    arguments = {**SELECT_BEST, "eval_steps": 1, "save_steps": 1, "restore_callback_states_from_checkpoint": True}
    request_stop = CallAfterUpdate(3, lambda: setattr(stop_request, "signal_name", "SIGTERM"))
    stopped = make_trainer(
        tmp_path, callbacks=[EarlyStoppingCallback(4), request_stop, GracefulStop(stop_request)], **arguments
    )
    stopped.metric_values = iter([0.9, 0.1, 0.1])
    stopped.train()
    resumed = resume_training(tmp_path, [0.1] * 9, callbacks=[EarlyStoppingCallback(4)], **arguments)
    assert resumed.state.global_step == 5
    assert resumed.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")


@pytest.mark.slow
def test_two_processes_stop_after_the_same_update_and_go_on_as_if_they_had_not(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    settings = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    argv = [
        sys.executable,
        "-c",
        "from tests.train import test_signals as here; here.stop_in_second_process()",
        str(tmp_path),
    ]
    processes = [
        subprocess.Popen(argv, cwd=ROOT, env={**settings, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE)
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=300)[0].decode().split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    finished, stopped_at, resumed = zip(*outputs, strict=True)
    assert stopped_at == ("4", "4")
    assert len({*finished, *resumed}) == 1
    seal = atomic_files.read_json(tmp_path / "stopped" / "checkpoint-6" / "checkpoint.json")
    assert seal["processes"] == 2
    assert {
        f"{name}_{rank}.{suffix}" for rank in "01" for name, suffix in (("rng_state", "pth"), ("carried", "json"))
    } < set(seal["files"])


def stop_in_second_process() -> None:
    """Trains, and trains again with a stop that only the second process is asked for; prints weights, stop, weights."""
    folder, is_second = Path(sys.argv[1]), os.environ["RANK"] == "1"
    finished = make_trainer(folder / "whole")
    finished.train()
    stop_request = StopRequest()
    request_stop = CallAfterUpdate(4, lambda: setattr(stop_request, "signal_name", "SIGTERM" if is_second else None))
    stopped = make_trainer(folder / "stopped", callbacks=[request_stop, GracefulStop(stop_request)])
    stopped.train()
    assert stop_request.signal_name == "SIGTERM"
    resumed = make_trainer(folder / "stopped")
    resumed.add_callback(RestoreTrainerState(resumed, folder / "stopped" / "checkpoint-4", lambda carried: None, print))
    resumed.train(resume_from_checkpoint=str(folder / "stopped" / "checkpoint-4"))
    print(hash_weights(finished), stopped.state.global_step, hash_weights(resumed))


def hash_weights(trainer: TinyTrainer) -> str:
    return hashlib.sha256(trainer.model.line.weight.detach().numpy().tobytes()).hexdigest()
