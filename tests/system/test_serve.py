"""Serving with a real vLLM: what answers is what was trained, or nothing answers."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from insource.system import atomic_files
from insource.tracking.run import Run
from serve.vllm import server_process
from tests.conftest import ROOT
from tests.helpers import commands

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one trained, merged and quantized."""
    return commands.copy_exported_runs(tmp_path_factory, small_recipe, "serve")


def run_in(runs: Path) -> Run:
    return Run((runs / "small" / "latest").resolve())


@pytest.mark.slow(minutes=3)
def test_it_serves_curl_and_both_sdks_and_comes_back_when_its_engine_dies_or_hangs(
    runs: Path, small_recipe: Path, tmp_path: Path
) -> None:
    from anthropic import Anthropic
    from openai import OpenAI

    port, log = server_process.free_port(), tmp_path / "serve.log"
    settings = ("serve.hang_seconds=15", f"serve.port={port}")
    with commands.run_in_background(runs, log, "serve", small_recipe, *settings) as process:
        log_text = commands.wait_for(log, "stop      Ctrl-C", process)
        assert "100.0% of" in log_text and "prompts read as trained" in log_text
        prompt = atomic_files.read_json(run_in(runs).folder / "adapter" / "prompt.json")
        labels = list(prompt["task"]["labels"])
        (command,) = [line.removeprefix("try       ") for line in log_text.splitlines() if line.startswith("try ")]
        curl = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S602
        assert json.loads(curl.stdout)["choices"][0]["message"]["content"] in labels
        messages: Any = [
            {"role": "user", "content": prompt["messages"][0]["content"].replace("{input}", "where is it?")}
        ]
        extra_body = {"structured_outputs": {"choice": labels}}
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as openai:
            completion = openai.chat.completions.create(model="small", messages=messages, extra_body=extra_body)
        assert completion.choices[0].message.content in labels
        with Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="none") as anthropic:
            message = anthropic.messages.create(model="small", messages=messages, max_tokens=32)
        assert message.model == "small" and message.usage.output_tokens > 0

        assert "no key    every user of this machine may send requests" in log_text
        for header in ({"Host": "pages.example"}, {"Origin": "https://pages.example"}):
            assert status_of(port, {"model": "small", "messages": messages}, **header) == 403
        # What a request names is not fetched.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(1)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
            picture = [{"type": "image_url", "image_url": {"url": url}}]
            assert status_of(port, {"model": "small", "messages": [{"role": "user", "content": picture}]}) >= 400
            with pytest.raises(TimeoutError):
                listener.accept()

        second = commands.run_command(runs, "serve", small_recipe, f"serve.port={port}")
        assert second.returncode == 2 and f"cannot use 127.0.0.1:{port}" in second.stderr
        assert "is free: SET=serve.port=" in second.stderr

        os.kill(find_engine(process), signal.SIGKILL)
        log_text = commands.wait_for(log, "ready     again", process)
        assert "vllm      died" in log_text
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as openai:
            repeated = openai.chat.completions.create(model="small", messages=messages, extra_body=extra_body)
        assert repeated.choices[0].message.content == completion.choices[0].message.content

        time.sleep(8)  # idle for longer than until it is asked: no reason to start it again
        body = {"model": "small", "prompt": "a", "max_tokens": 1}
        assert status_of(port, body, "/v1/completions") == 200
        os.kill(find_engine(process), signal.SIGSTOP)
        hang_text = commands.wait_for(log, "ready     again", process, count=2).removeprefix(log_text)
        assert "vllm      hangs: it has requests and has computed nothing for" in hang_text
        assert "vllm      died" not in hang_text
        assert status_of(port, body, "/v1/completions") == 200

        children = commands.child_pids(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert commands.running_pids(children) == []


def test_a_server_whose_starter_is_killed_ends(runs: Path, small_recipe: Path, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with commands.run_in_background(
        runs, log, "serve", small_recipe, f"serve.port={server_process.free_port()}"
    ) as process:
        commands.wait_for(log, "vllm      starting", process)
        time.sleep(8)
        children = commands.child_pids(process.pid)
        assert children
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while commands.running_pids(children) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert commands.running_pids(children) == []


def test_answers_that_are_not_the_trained_ones_close_the_gate(runs: Path, small_recipe: Path, tmp_path: Path) -> None:
    """Another adapter under the same references: vLLM then answers what these weights answer, which nobody trained."""
    import torch
    from safetensors.torch import load_file, save_file

    trained_run = run_in(runs)
    adapter = trained_run.folder / "adapter"
    originals = {path: path.read_bytes() for path in (*adapter.iterdir(), trained_run.references_path)}
    try:
        tensors = load_file(adapter / "adapter_model.safetensors")
        torch.manual_seed(3)
        changed_tensors = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items()}
        save_file(changed_tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        lines = list(atomic_files.read_jsonl(trained_run.references_path))
        # As another template or tokenizer would do it: one token of one prompt is another.
        lines[0]["prompt_ids"][5] += 1
        atomic_files.write_text(trained_run.references_path, "".join(json.dumps(line) + "\n" for line in lines))
        prompt = atomic_files.read_json(adapter / "prompt.json")
        prompt["references"]["sha256"] = atomic_files.sha256(trained_run.references_path)
        atomic_files.write_json(adapter / "prompt.json", prompt)
        (adapter / atomic_files.CHECKSUMS).unlink()
        atomic_files.write_checksums(adapter)
        completed = commands.run_command(runs, "serve", small_recipe, f"serve.port={server_process.free_port()}")
    finally:
        for path, data in originals.items():
            path.write_bytes(data)
    assert completed.returncode == 3, completed.stderr
    # The merged model is of the adapter that was, and no quantized form takes the place of answers that are other ones.
    assert "merged was made of another adapter" in completed.stderr
    assert "serve.parity.same_weights requires 99.0%" in completed.stderr
    assert "where transformers answers" in completed.stderr and "not served" in completed.stderr
    assert f"first in row {lines[0]['id']}" in completed.stderr
    assert re.search(r"from token 6 of \d+ on: trained on [.]{3}.+, and the server reads [.]{3}.+", completed.stderr)
    assert "ready" not in completed.stdout


def test_what_kills_the_server_is_told_in_its_own_words(runs: Path, small_recipe: Path) -> None:
    completed = commands.run_command(
        runs,
        "serve",
        small_recipe,
        "serve.model=adapter",
        "serve.max_model_len=999999",
        f"serve.port={server_process.free_port()}",
    )
    assert completed.returncode == 1
    assert "vLLM ended while it started" in completed.stderr and "max_model_len" in completed.stderr
    assert "Traceback" not in completed.stderr and "serve.log" in completed.stderr


def status_of(port: int, body: Any, path: str = "/v1/chat/completions", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def find_engine(process: subprocess.Popen[bytes]) -> int:
    """Return the id of the process of vLLM that computes."""
    (server,) = [pid for pid in commands.child_pids(process.pid) if "api_server" in command_of(pid)]
    return next(pid for pid in commands.child_pids(server) if "EngineCore" in name_of(pid))


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def name_of(pid: int) -> str:
    return command_of(pid) + Path(f"/proc/{pid}/comm").read_text()
