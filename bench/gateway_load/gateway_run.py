"""A gateway process with a trained run behind a real vLLM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.gateway_load.load import Server, find_engine
from bench.kills import write_recipe
from bench.soak import API_KEY, command_env, train_and_deploy
from deploy import registry
from insource.config.errors import StageError
from insource.system import atomic_files
from serve.vllm.server_process import free_port

HEADERS = {"Authorization": f"Bearer {API_KEY}"}


@dataclass(frozen=True)
class GatewayRun:
    """A running gateway with the deployed run behind it."""

    server: Server
    pid: int
    model: str
    version: str
    prompt: Mapping[str, Any]
    """prompt.json of the deployed run."""
    log: Path

    @property
    def engine(self) -> Server:
        """The vLLM of the gateway, over the socket that the gateway uses."""
        for pid in machine.process_tree(self.pid)[1:]:
            if (engine := find_engine(pid)) is not None:
                return engine
        raise StageError("the gateway has no vLLM", code="INS-X010")


@contextmanager
def run_gateway(folder: Path) -> Iterator[GatewayRun]:
    """Train the pocket model on synthetic tickets, deploy it, and run the gateway until the block ends.

    Raise StageError if a command fails.
    """
    recipe = write_recipe(folder)
    run = train_and_deploy(folder, recipe, 1)
    port, log = free_port(), folder / "gateway.log"
    argv = [sys.executable, "-m", "deploy.gateway", str(recipe), f"serve.port={port}", "--hardware", "cpu"]
    with log.open("wb") as log_file:
        process = subprocess.Popen(argv, cwd=machine.ROOT, env=command_env(folder), stdout=log_file, stderr=log_file)
    try:
        wait_for_line(log, "ready     ", process)
        prompt = atomic_files.read_json(run.folder / "adapter" / "prompt.json")
        version = registry.compute_version(run.folder / "adapter")
        server = Server(f"http://127.0.0.1:{port}")
        yield GatewayRun(server, process.pid, recipe.stem, version, prompt, log)
    finally:
        stop(process)


def wait_for_line(log: Path, expected: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a log contains a text. Raise StageError if its process ends before."""
    while expected not in log.read_text(encoding="utf-8", errors="replace"):
        if process.poll() is not None:
            raise StageError(f"the gateway ended:\n{log.read_text(encoding='utf-8')[-3000:]}", code="INS-X010")
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a gateway, and kill what it leaves."""
    pids = machine.process_tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for pid in pids if process.poll() is None else pids[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
