"""Deploying under load, behind one door, with a real vLLM: no request fails, and each is answered by one version."""

import asyncio
import json
import os
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from deploy import registry
from insource.system import atomic_files
from insource.tracking.run import Run
from serve.vllm import server_process
from tests.helpers import commands

IN_FLIGHT, SOME = 200, 20


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with two trained, from different seeds."""
    folder = commands.copy_exported_runs(tmp_path_factory, small_recipe, "gateway")
    completed = commands.run_command(folder, "train", small_recipe, *commands.TRAIN_SETTINGS, "train.seed=2")
    assert completed.returncode == 0, completed.stderr
    return folder


def trained(runs: Path) -> list[Run]:
    trained_runs = [Run(path.parent) for path in (runs / "small").glob("2*/manifest.json")]
    return sorted(trained_runs, key=lambda trained_run: trained_run.recipe().train.seed)


def deploy(runs: Path, recipe: Path, run: Run) -> str:
    completed = commands.run_command(runs, "deploy", recipe, "--run", run.id, FORCE="1")
    assert completed.returncode == 0, completed.stderr
    return registry.compute_version(run.folder / "adapter")


@pytest.mark.nightly
def test_a_version_is_deployed_and_rolled_back_under_load(runs: Path, small_recipe: Path, tmp_path: Path) -> None:
    first, second = trained(runs)
    first_version = deploy(runs, small_recipe, first)
    port, log = server_process.free_port(), tmp_path / "gateway.log"
    registry_dir = runs.parent / "registry" / "small"
    key_environment = {"INSOURCE_API_KEY": "secret"}
    with commands.run_in_background(
        runs, log, "deploy.gateway", small_recipe, f"serve.port={port}", **key_environment
    ) as process:
        commands.wait_for(log, "ready     ", process)
        prompt = atomic_files.read_json(first.folder / "adapter" / "prompt.json")
        answers = asyncio.run(under_load(port, prompt, lambda: deploy(runs, small_recipe, second), log))
        second_version = registry.current_version(registry_dir)
        assert second_version is not None and second_version != first_version
        assert {status for status, _, _ in answers} == {200}
        versions = Counter(version for _, version, _ in answers)
        assert set(versions) == {first_version, second_version} and min(versions.values()) > SOME
        assert all(label in prompt["task"]["labels"] for _, _, label in answers)
        commands.wait_for(log, f"drained   small@{first_version}", process)

        damaged = shutil.copytree(second.folder, tmp_path / second.id, symlinks=True)
        broken(damaged / "adapter")
        registry.promote(registry_dir, Run(damaged), ["by hand"])
        commands.wait_for(log, "refused   small@", process)
        assert f"{second_version} goes on" in log.read_text(encoding="utf-8")

        misread = shutil.copytree(second.folder, tmp_path / "misread", symlinks=True)
        asked_otherwise(misread / "adapter")
        registry.promote(registry_dir, Run(misread), ["by hand"])
        log_text = commands.wait_for(log, "refused   small@", process, count=2)
        assert "vLLM builds other prompt token ids than training, from token 4 of" in log_text

        result = commands.run_command(runs, "deploy", small_recipe, "--rollback", "--to", first_version)
        assert result.returncode == 0, result.stderr
        commands.wait_for(log, f"current   small@{first_version}", process, count=2)
        answers = asyncio.run(asked(port, prompt, 8))
        assert {(status, version) for status, version, _ in answers} == {(200, first_version)}

        for child in commands.child_pids(process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        commands.wait_for(log, "vllm      died, ", process)
        refusals, result = asyncio.run(patiently(port, prompt))
        assert set(refusals) == {(503, True)}
        assert (result[0], result[1]) == (200, first_version)

        children = commands.child_pids(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert commands.running_pids(children) == []


def broken(adapter: Path) -> None:
    """Makes the references of an adapter answers that it does not give."""
    path = adapter.parent / "reference.jsonl"
    lines = list(atomic_files.read_jsonl(path))
    for line in lines:
        line["answer"] = "no label at all"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    prompt = atomic_files.read_json(adapter / "prompt.json")
    prompt["references"]["sha256"] = atomic_files.sha256(path)
    atomic_files.write_json(adapter / "prompt.json", prompt)
    (adapter / atomic_files.CHECKSUMS).unlink()
    atomic_files.write_checksums(adapter)


def asked_otherwise(adapter: Path) -> None:
    """Makes the prompt of an adapter one that the server does not read."""
    prompt = atomic_files.read_json(adapter / "prompt.json")
    prompt["prompt_ids"][3] += 1
    atomic_files.write_json(adapter / "prompt.json", prompt)
    (adapter / atomic_files.CHECKSUMS).unlink()
    atomic_files.write_checksums(adapter)


async def under_load(port: int, prompt: dict[str, Any], change: Any, log: Path) -> list[tuple[int, str, str]]:
    """Keeps 200 requests in flight while a version is deployed. Returns (status, version, answer) of all of them."""
    answers: list[tuple[int, str, str]] = []
    done = asyncio.Event()
    async with session(port) as http_session:

        async def send_requests(number: int) -> None:
            while not done.is_set():
                answers.append(await ask(http_session, prompt, f"message {number}"))

        tasks = [asyncio.create_task(send_requests(number)) for number in range(IN_FLIGHT)]
        await asyncio.sleep(2)
        version = await asyncio.to_thread(change)
        while f"current   small@{version}" not in log.read_text(encoding="utf-8"):
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in tasks)
        while Counter(answering_version for _, answering_version, _ in answers)[version] <= SOME:
            await asyncio.sleep(0.1)
        done.set()
        await asyncio.gather(*tasks)
    return answers


async def asked(port: int, prompt: dict[str, Any], count: int) -> list[tuple[int, str, str]]:
    async with session(port) as http_session:
        return await asyncio.gather(*(ask(http_session, prompt, f"message {number}") for number in range(count)))


async def patiently(port: int, prompt: dict[str, Any]) -> tuple[list[tuple[int, bool]], tuple[int, str, str]]:
    """Asks until there is an answer. Returns the refusals, as (status, whether it says when to ask again), and it."""
    refusals = []
    async with session(port) as http_session:
        for _ in range(commands.TIMEOUT_SECONDS):
            async with http_session.get("/health") as health:
                ready = health.status == 200
            async with http_session.post("/v1/chat/completions", json=body(prompt, "message")) as response:
                if response.status != 200:
                    refusals.append((response.status, int(response.headers.get("Retry-After", 0)) > 0))
            if ready:
                break
            await asyncio.sleep(1)
        return refusals, await ask(http_session, prompt, "message")


def session(port: int) -> ClientSession:
    return ClientSession(f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer secret"})


async def ask(http_session: ClientSession, prompt: dict[str, Any], text: str) -> tuple[int, str, str]:
    async with http_session.post("/v1/chat/completions", json=body(prompt, text)) as response:
        payload = await response.json()
        assert response.status != 200 or payload["model"] == "small"
        label = payload["choices"][0]["message"]["content"] if response.status == 200 else str(payload)
        return response.status, response.headers.get("X-Insource-Version", ""), label


def body(prompt: dict[str, Any], text: str) -> dict[str, Any]:
    content = prompt["messages"][0]["content"].replace("{input}", text)
    request_body = {"model": "small", "messages": [{"role": "user", "content": content}]}
    return request_body | {"structured_outputs": {"grammar": prompt["grammar"]}}
