"""The gateway in front of two real vLLM engines, started by the commands that --dry-run prints; one is killed."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from insource.system import atomic_files
from insource.tracking.run import Run
from serve.vllm.server_process import free_port
from tests.conftest import ROOT
from tests.helpers import commands
from tests.helpers.gateway.gateway_process import GatewayProcess

ENGINE_KEY, KEY = "engine-0123456789abcdef", "client-0123456789abcdef"


@contextmanager
def run_engine(command: str, log: Path, runs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command line of --dry-run on loopback until the block ends."""
    assert "--host 0.0.0.0" in command
    environment = commands.command_env(runs) | {"INSOURCE_ENGINE_KEY": ENGINE_KEY}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command.replace("--host 0.0.0.0", "--host 127.0.0.1")],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill an engine with its child processes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.nightly
def test_two_engines_answer_and_one_that_is_killed_loses_no_request(
    small_recipe: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = commands.copy_exported_runs(tmp_path_factory, small_recipe, "engines")
    (manifest,) = (runs / "small").glob("2*/manifest.json")
    deployed = commands.run_command(runs, "deploy", small_recipe, "--run", Run(manifest.parent).id, FORCE="1")
    assert deployed.returncode == 0, deployed.stderr
    port, urls = free_port(), [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    settings = [f"serve.port={port}", f"serve.engines=[{', '.join(urls)}]", "serve.cpu_cache_gib=0.25"]
    planned = commands.run_command(runs, "deploy.gateway", small_recipe, *settings, "--dry-run")
    first_command, second_command = planned.stdout.splitlines()
    log = tmp_path / "gateway.log"
    keys = {"INSOURCE_API_KEY": KEY, "INSOURCE_ENGINE_KEY": ENGINE_KEY}
    with (
        run_engine(first_command, tmp_path / "first.log", runs) as first,
        run_engine(second_command, tmp_path / "second.log", runs),
        commands.run_in_background(runs, log, "deploy.gateway", small_recipe, *settings, **keys) as process,
    ):
        text = commands.wait_for(log, "serves small@", process, count=2)
        assert "100.0% of its reference answers" in text
        commands.wait_for(log, "ready     ", process)
        gateway = GatewayProcess(port, process, log, tmp_path)
        statuses: list[int] = []

        def send_requests(number: int) -> None:
            for index in range(5):
                body = {"input": f"where is parcel {number} of {index}"}
                statuses.append(gateway.request(body, "/v1/tasks/small", 300, Authorization=f"Bearer {KEY}")[0])

        threads = [threading.Thread(target=send_requests, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        while len(statuses) < 10:
            threading.Event().wait(0.05)
        kill(first)
        for thread in threads:
            thread.join()
        assert statuses == [200] * 80
        commands.wait_for(log, f"engine    {urls[0]} is down", process)
        label = next(iter(atomic_files.read_json(manifest.parent / "adapter" / "prompt.json")["task"]["labels"]))
        question = {"type": "predicate", "instructions": label}
        body = {"model": "small", "input": "a", "questions": [question]}
        status, decision, _ = gateway.request(body, "/v1/decisions", 300, x_api_key=KEY)
        assert status == 200 and 0 <= decision["answers"][0]["probability"] <= 1
