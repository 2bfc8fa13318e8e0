"""`make serve` watches over vLLM: what it does when that dies, and when it does not come up again at once."""

import os
import signal
import threading
from pathlib import Path

import pytest

from insource.config.errors import StageError
from insource.config.schema.serving_and_cost import Serve
from serve import server
from serve.vllm import lifecycle, server_process
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess
from tests.helpers.errors import raises_error
from tests.helpers.gateway import stand_in_vllm


def test_a_failed_start_is_tried_again_and_counts_as_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_process, "VLLM_MODULE", "tests.helpers.gateway.stand_in_vllm")
    monkeypatch.setattr(server, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv(stand_in_vllm.FOLDER_VARIABLE, str(tmp_path))
    vllm = VllmProcess(
        LaunchPlan("model", "model", Serve(), use_cpu=True), Address(socket=tmp_path / "s.sock"), tmp_path / "log"
    )
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
