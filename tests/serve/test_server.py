"""`make serve` watches over vLLM: what it does when that dies, and when it does not come up again at once."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from insource.config.base_models import POCKET
from insource.config.errors import GateError, StageError
from insource.config.load import load
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files
from insource.tracking.run import Run
from serve import server
from serve.vllm import lifecycle, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess
from tests.helpers.errors import raises_error
from tests.helpers.gateway import stand_in_vllm


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VllmProcess:
    """A stand-in for vLLM, not yet started."""
    monkeypatch.setattr(server_process, "VLLM_MODULE", "tests.helpers.gateway.stand_in_vllm")
    monkeypatch.setattr(server, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv(stand_in_vllm.FOLDER_VARIABLE, str(tmp_path))
    plan = LaunchPlan("model", "model", Serve(), use_cpu=True)
    return VllmProcess(plan, Address("127.0.0.1", server_process.free_port()), tmp_path / "log")


def test_a_failed_start_is_tried_again_and_counts_as_a_death(
    tmp_path: Path, vllm: VllmProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    with lifecycle.stop_on_exit(vllm):
        lifecycle.start_and_wait(vllm)
        (tmp_path / "no_start").touch()
        killed_pids = [vllm.pid]
        os.kill(vllm.pid, signal.SIGKILL)

        def kill_again() -> None:
            """Twice more, each time that it is up: with the failed start that is too often."""
            while len(killed_pids) < 3:
                if vllm.is_alive() and vllm.pid not in killed_pids and server_process.is_healthy(vllm.address):
                    killed_pids.append(vllm.pid)
                    os.kill(vllm.pid, signal.SIGKILL)
                threading.Event().wait(0.05)

        threading.Thread(target=kill_again, daemon=True).start()
        with raises_error(StageError, "INS-E006", match="has failed 4 times"):
            server.restart_loop(vllm, [], None)
    stderr = capfd.readouterr().err
    assert "did not start again" in stderr and "not enough memory" in stderr


def test_a_restarted_engine_that_reads_other_prompts_is_not_served(tmp_path: Path, vllm: VllmProcess) -> None:
    run = Run(tmp_path / "run")
    adapter = run.folder / "adapter"
    adapter.mkdir(parents=True)
    for path in POCKET.glob("tokenizer*.json"):
        shutil.copyfile(path, adapter / path.name)
    messages = [{"role": "user", "content": "{input}"}]
    prompt = {"prompt_ids": [1, 2, 3], "messages": messages, "max_answer_tokens": 5}
    atomic_files.write_json(adapter / "prompt.json", prompt)
    served = ServedModel("small", run, load("classifier", [], "cpu").recipe, "adapter")
    with lifecycle.stop_on_exit(vllm):
        lifecycle.start_and_wait(vllm)
        (tmp_path / "other_prompts").touch()
        os.kill(vllm.pid, signal.SIGKILL)
        with raises_error(
            GateError, "INS-E008", match="small than training, from token 1 of 3 on: trained on"
        ) as error:
            server.restart_loop(vllm, [served], None)
    assert "the server reads ...'tokens [9]'" in str(error.value)
