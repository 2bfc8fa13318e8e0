"""The gateway in a process of its own, with stand_in_vllm.py instead of vLLM, and versions to deploy."""

import hashlib
import json
import os
import shutil
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
from typing import Any, TypeVar

from deploy import registry
from insource.config.base_models import POCKET
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking.run import Run, to_yaml
from serve.vllm.server_process import free_port
from tests.conftest import ROOT
from tests.helpers.gateway import stand_in_vllm
from tests.helpers.run_manifest import write_manifest

GATEWAY_SCRIPT = """
from serve.vllm import server_process
server_process.VLLM_MODULE = "tests.helpers.gateway.stand_in_vllm"
from deploy.gateway import __main__ as gateway
from insource.config import cli
cli.run_cli(gateway.main)
"""
NAME = "classifier"
NO_PROXY_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Value = TypeVar("Value")
LOOPBACK_SETTING = "serve.loopback_without_key=true"


@dataclass
class GatewayProcess:
    """A running gateway."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path

    def request(
        self, body: Any = None, path: str = "/v1/completions", timeout: float = 60, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, body and headers of a response; (0, reason, {}) without one."""
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
        """Wait until the log contains a text `count` times. Return the complete log."""
        return wait_for_value(
            lambda: (text := self.read_log()) if self.read_log().count(expected) >= count else None, self, expected
        )

    def read_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for_answer(self) -> tuple[int, Any, dict[str, str]]:
        """Repeat a request until the status is 200. Return the response."""
        return wait_for_value(
            lambda: response if (response := self.request({"model": NAME, "prompt": "x"}))[0] == 200 else None, self
        )

    def engine_pid(self) -> int:
        """Return the process id of the stand-in for vLLM."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


def wait_for_value(
    probe: Callable[[], Value | None], gateway: GatewayProcess, event: str = "it", seconds: float = 120
) -> Value:
    """Call `probe` until it returns a value other than None. Return that value."""
    deadline = time.monotonic() + seconds
    while (value := probe()) is None:
        assert gateway.process.poll() is None, f"ended with {gateway.process.returncode}:\n{gateway.read_log()}"
        assert time.monotonic() < deadline, f"{event!r} did not happen:\n{gateway.read_log()}"
        time.sleep(0.05)
    return value


@dataclass
class GatewaySetup:
    """A registry, and the flags that control the stand-in."""

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
        """Set a flag that changes the behaviour of the stand-in once (see stand_in_vllm.FOLDER_VARIABLE)."""
        (self.behaviour / behaviour).touch()

    def deploy(
        self,
        answer: str,
        served_answer: str | None = None,
        edit_recipe: Callable[[str], str] = str,
        prompt_fields: dict[str, Any] | None = None,
        with_tokenizer: bool = False,
    ) -> str:
        """Deploy a version whose model and reference answer are `answer`. Return the version.

        `served_answer` is the server's output instead of the reference answer. `edit_recipe` changes the text of
        recipe.yaml. `prompt_fields` are further fields of prompt.json. `with_tokenizer` adds the pocket model's.
        """
        folder = self.folder / "runs" / NAME / f"run-{answer}"
        adapter = folder / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(empty_safetensors(answer))
        atomic_files.write_json(adapter / "adapter_config.json", {"r": 8})
        (adapter / "chat_template.jinja").write_text("x", encoding="utf-8")
        base: dict[str, Any] = {"name": str(self.folder / "base"), "sha256": {}, "commit": None}
        prompt = {"chat_template_sha256": hashlib.sha256(b"x").hexdigest(), "grammar": None, "max_answer_tokens": 5}
        atomic_files.write_json(adapter / "prompt.json", prompt | {"base": base} | (prompt_fields or {}))
        for path in POCKET.glob("tokenizer*.json") if with_tokenizer else ():
            shutil.copyfile(path, adapter / path.name)
        line = {"id": "T000001", "prompt_ids": [1, 2], "answer": answer} | (
            {"answered": served_answer} if served_answer else {}
        )
        (folder / "reference.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        atomic_files.write_checksums(adapter)
        settings = ["model.quantization=none", f"model.base={self.folder / 'base'}"]
        (folder / "recipe.yaml").write_text(edit_recipe(to_yaml(load(NAME, settings, "cpu").recipe)), encoding="utf-8")
        write_manifest(folder, {})
        return registry.promote(self.registry, Run(folder), [])

    @contextmanager
    def gateway(
        self, *settings: str, preexec: Callable[[], None] | None = None, **env: str
    ) -> Iterator[GatewayProcess]:
        """Run the gateway until the block ends."""
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
    """Return a safetensors file without tensors, with a mark in its metadata."""
    header = json.dumps({"__metadata__": {"mark": mark}}).encode()
    return struct.pack("<Q", len(header)) + header
