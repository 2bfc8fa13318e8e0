"""The gateway as a process, with tests/helpers/gateway/stand_in_vllm.py in the place of vLLM, and versions to deploy
behind it."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy import registry
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking.run import Run, to_yaml
from serve.vllm.server_process import free_port
from tests.conftest import ROOT
from tests.helpers.gateway import stand_in_vllm

GATEWAY_SCRIPT = """
from serve.vllm import server_process
server_process.VLLM_MODULE = "tests.helpers.gateway.stand_in_vllm"
from deploy.gateway import __main__ as gateway
from insource.config import cli
cli.run_cli(gateway.main)
"""
NAME = "classifier"
NO_PROXY_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LOOPBACK_SETTING = "serve.loopback_without_key=true"


@dataclass
class GatewayProcess:
    """A gateway that runs."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path

    def request(
        self, body: Any = None, path: str = "/v1/completions", timeout: float = 60, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Returns status, body and headers of an answer; (0, reason, {}) where there is none."""
        data = None if body is None else json.dumps(body).encode()
        header_lines = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, headers=header_lines)
        try:
            with NO_PROXY_OPENER.open(request, timeout=timeout) as response:
                return response.status, json.loads(response.read()), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null"), dict(error.headers)
        except OSError as error:
            return 0, str(error), {}

    def wait_for_log(self, expected: str, count: int = 1) -> str:
        """Waits until the gateway has said something so often. Returns all that it said."""
        return wait_for_value(
            lambda: (text := self.read_log()) if self.read_log().count(expected) >= count else None, self, expected
        )

    def read_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for_answer(self) -> tuple[int, Any, dict[str, str]]:
        """Asks until a request is answered. Returns the answer."""
        return wait_for_value(
            lambda: response if (response := self.request({"model": NAME, "prompt": "x"}))[0] == 200 else None, self
        )

    def engine_pid(self) -> int:
        """Returns the process in the place of vLLM."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


def wait_for_value(probe: Callable[[], Any], gateway: GatewayProcess, event: str = "it", seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while (value := probe()) is None:
        assert gateway.process.poll() is None, f"ended with {gateway.process.returncode}:\n{gateway.read_log()}"
        assert time.monotonic() < deadline, f"{event!r} did not happen:\n{gateway.read_log()}"
        time.sleep(0.05)
    return value


@dataclass
class GatewaySetup:
    """A registry, and how the stand-in behaves."""

    folder: Path
    behaviour: Path = field(init=False)

    def __post_init__(self) -> None:
        self.behaviour = self.folder / "behaviour"
        self.behaviour.mkdir(parents=True)
        base = self.folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}", encoding="utf-8")
        (base / "model.safetensors").write_bytes(empty_safetensors("base"))

    @property
    def registry(self) -> Path:
        return self.folder / "registry" / NAME

    def trigger(self, behaviour: str) -> None:
        """Has the stand-in behave in a way once."""
        (self.behaviour / behaviour).touch()

    def deploy(
        self,
        mark: str,
        output: str | None = None,
        recipe: Callable[[str], str] = str,
        task: dict[str, Any] | None = None,
    ) -> str:
        """Deploys a version that answers its mark. Returns the version. `output`: what it answers in the place of
        its reference answers; `recipe`: what becomes of its recipe; `task`: what else is in its prompt.json."""
        folder = self.folder / "runs" / NAME / f"run-{mark}"
        adapter = folder / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(empty_safetensors(mark))
        atomic_files.write_json(adapter / "adapter_config.json", {"r": 8})
        (adapter / "chat_template.jinja").write_text("x", encoding="utf-8")
        base = {"name": str(self.folder / "base"), "sha256": {}, "commit": None}
        prompt = {"chat_template_sha256": hashlib.sha256(b"x").hexdigest(), "grammar": None, "max_answer_tokens": 5}
        atomic_files.write_json(adapter / "prompt.json", prompt | {"base": base} | (task or {}))
        line = {"prompt_ids": [1, 2], "answer": mark} | ({"answered": output} if output else {})
        (folder / "reference.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        atomic_files.write_checksums(adapter)
        settings = ["model.quantization=none", f"model.base={self.folder / 'base'}"]
        (folder / "recipe.yaml").write_text(recipe(to_yaml(load(NAME, settings, "cpu").recipe)), encoding="utf-8")
        atomic_files.write_json(folder / "manifest.json", {"stages": {}})
        return registry.promote(self.registry, Run(folder), [])

    @contextmanager
    def gateway(
        self, *settings: str, preexec: Callable[[], None] | None = None, **env: str
    ) -> Iterator[GatewayProcess]:
        """Runs the gateway until the block ends."""
        port, log = free_port(), self.folder / "gateway.log"
        argv = [NAME, f"serve.port={port}", *settings, "--hardware", "cpu", "--registry", str(self.registry.parent)]
        with log.open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-c", GATEWAY_SCRIPT, *argv],
                cwd=ROOT,
                env={**os.environ, stand_in_vllm.FOLDER_VARIABLE: str(self.behaviour), **env},
                stdout=stdout,
                stderr=stdout,
                preexec_fn=preexec,
            )
        try:
            yield GatewayProcess(port, process, log, self.folder)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def empty_safetensors(mark: str) -> bytes:
    """A file without tensors."""
    header = json.dumps({"__metadata__": {"mark": mark}}).encode()
    return struct.pack("<Q", len(header)) + header
