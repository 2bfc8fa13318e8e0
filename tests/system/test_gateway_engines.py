"""The gateway in front of two engines that were started elsewhere: one fails under load, both fail, versions change."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from serve.vllm.server_process import free_port
from tests.conftest import ROOT
from tests.helpers.gateway import stand_in_vllm
from tests.helpers.gateway.gateway_process import (
    LOOPBACK_SETTING,
    NAME,
    NO_PROXY_OPENER,
    GatewayProcess,
    GatewaySetup,
    wait_for_value,
)

BODY: dict[str, Any] = {"model": NAME, "prompt": "x"}
PROMPT = {"prompt_ids": [1, 2, 3], "messages": [{"role": "user", "content": "{input}"}]}


class EngineProcess:
    """A stand-in for vLLM on a port, in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self.arguments = folder, free_port(), arguments
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", stand_in_vllm.__name__, "--port", str(self.port), *self.arguments],
            cwd=ROOT,
            env={**os.environ, stand_in_vllm.FOLDER_VARIABLE: str(self.folder)},
        )

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def gateway_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GatewaySetup:
    monkeypatch.delenv("INSOURCE_API_KEY", raising=False)
    return GatewaySetup(tmp_path)


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[EngineProcess]]:
    """Two engines that run."""
    processes = [EngineProcess(tmp_path / f"engine-{number}") for number in range(2)]
    for engine in processes:
        engine.start()
    yield processes
    for engine in processes:
        engine.kill()


@contextmanager
def serve_engines(setup: GatewaySetup, engines: list[EngineProcess], *settings: str) -> Iterator[GatewayProcess]:
    urls = ", ".join(engine.url for engine in engines)
    with setup.gateway(LOOPBACK_SETTING, f"serve.engines=[{urls}]", *settings) as gateway:
        yield gateway


def wait_until_ready(gateway: GatewayProcess) -> None:
    """Wait until both engines serve a version and it is active."""
    gateway.wait_for_log(f"serves {NAME}@", count=2)
    gateway.wait_for_log("ready     ")


def read_metrics(gateway: GatewayProcess) -> dict[tuple[str, ...], float]:
    """Return {(name, label value, ...): value}, labels in the order of their names."""
    with NO_PROXY_OPENER.open(f"http://127.0.0.1:{gateway.port}/metrics") as response:
        text = response.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_metrics(text)
        for sample in family.samples
    }


def test_an_engine_killed_under_load_loses_no_request_and_without_engines_503_is_returned(
    gateway_setup: GatewaySetup, engines: list[EngineProcess]
) -> None:
    gateway_setup.deploy("one")
    first, second = engines
    with serve_engines(gateway_setup, engines) as gateway:
        wait_until_ready(gateway)
        responses: list[tuple[int, Any, dict[str, str]]] = []

        def send_requests() -> None:
            for number in range(20):
                stand = {"wait": 0.05} if number % 2 else {"slow_body": 0.05}
                responses.append(gateway.request(BODY | {"stand": stand, "stream": False}))

        threads = [threading.Thread(target=send_requests) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_for_value(lambda: True if len(responses) > 50 else None, gateway)
        assert read_metrics(gateway)["insource_engine_requests_in_flight", first.url] > 0
        first.kill()
        for thread in threads:
            thread.join()
        assert Counter(status for status, _, _ in responses) == {200: 400}
        assert {payload["choices"][0]["text"] for _, payload, _ in responses} == {"one"}
        assert {payload["model"] for _, payload, _ in responses} == {NAME}
        gateway.wait_for_log(f"engine    {first.url} is down")
        metrics = read_metrics(gateway)
        assert (metrics["insource_engine_up", first.url], metrics["insource_engine_up", second.url]) == (0, 1)
        assert metrics["insource_engine_requests_total", first.url, "broken_off"] > 0
        answered = [metrics["insource_engine_requests_total", engine.url, "answered"] for engine in engines]
        assert sum(answered) == 400 and min(answered) > 10
        assert gateway.request(path="/readyz")[0] == 200

        second.kill()
        status, payload, headers = gateway.request(BODY)
        assert status == 503 and int(headers["Retry-After"]) > 0 and payload["error"]["message"]
        wait_for_value(lambda: True if gateway.request(path="/readyz")[0] == 503 else None, gateway)
        assert gateway.request(BODY)[0] == 503

        first.start()
        assert gateway.wait_for_answer()[1]["choices"][0]["text"] == "one"
        assert gateway.request(path="/readyz")[0] == 200
        assert "Traceback" not in gateway.read_log()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_engine_is_killed_after_its_header_is_answered_by_the_other(
    gateway_setup: GatewaySetup, engines: list[EngineProcess], stream: bool
) -> None:
    gateway_setup.deploy("one")
    with serve_engines(gateway_setup, engines) as gateway:
        wait_until_ready(gateway)
        answers: list[bytes] = []

        def send_request() -> None:
            body = BODY | {"stand": {"slow_body": 1.5}, "stream": stream}
            if not stream:
                answers.append(repr(gateway.request(body)).encode())
                return
            request = urllib.request.Request(
                f"http://127.0.0.1:{gateway.port}/v1/completions", json.dumps(body).encode()
            )
            with NO_PROXY_OPENER.open(request, timeout=60) as response:
                answers.append(response.read())

        thread = threading.Thread(target=send_request)
        thread.start()

        def find_busy_engine() -> EngineProcess | None:
            metrics = read_metrics(gateway)
            busy = [engine for engine in engines if metrics["insource_engine_requests_in_flight", engine.url]]
            return busy[0] if busy else None

        engine = wait_for_value(find_busy_engine, gateway)
        threading.Event().wait(0.5)  # the header was sent
        engine.kill()
        thread.join()
        assert b"one" in answers[0] and NAME.encode() in answers[0]
        assert read_metrics(gateway)["insource_engine_requests_total", engine.url, "broken_off"] == 1


def test_a_version_is_checked_on_every_engine_and_the_old_one_is_unloaded(
    gateway_setup: GatewaySetup, engines: list[EngineProcess]
) -> None:
    first = gateway_setup.deploy("one")
    with serve_engines(gateway_setup, engines) as gateway:
        wait_until_ready(gateway)
        second = gateway_setup.deploy("two")
        gateway.wait_for_log(f"current   {NAME}@{second} on 2 of 2 engines")
        gateway.wait_for_log(f"drained   {NAME}@{first}", count=2)
        texts = {gateway.request(BODY)[1]["choices"][0]["text"] for _ in range(6)}
        assert texts == {"two"}
        failing = gateway_setup.deploy("three", served_answer="something else")
        log = gateway.wait_for_log(f"refused   {NAME}@{failing}: no engine serves it; {second} goes on")
        for engine in engines:
            assert f"refused   {NAME}@{failing} on {engine.url}: the engine gives 0.0% of its reference answers" in log
        assert gateway.request(BODY)[2]["X-Insource-Version"] == second
        gateway.wait_for_log(f"drained   {NAME}@{failing}", count=2)


def test_an_engine_that_lost_its_adapters_is_checked_again(
    gateway_setup: GatewaySetup, engines: list[EngineProcess]
) -> None:
    version = gateway_setup.deploy("one")
    with serve_engines(gateway_setup, engines) as gateway:
        wait_until_ready(gateway)
        # As after a restart that no health check noticed.
        body = json.dumps({"lora_name": f"{NAME}@{version}"}).encode()
        NO_PROXY_OPENER.open(f"{engines[0].url}/v1/unload_lora_adapter", body).close()
        gateway.wait_for_log(f"engine    {engines[0].url} is down: it no longer lists {NAME}@{version}")
        gateway.wait_for_log(f"engine    {engines[0].url} serves {NAME}@{version}", count=2)
        assert {gateway.request(BODY)[0] for _ in range(6)} == {200}


def test_an_engine_that_reads_other_prompts_gets_no_requests(
    gateway_setup: GatewaySetup, engines: list[EngineProcess]
) -> None:
    gateway_setup.deploy("one", prompt_fields=PROMPT, with_tokenizer=True)
    (engines[1].folder / "other_prompts").touch()
    with serve_engines(gateway_setup, engines) as gateway:
        log_text = gateway.wait_for_log(f"on {engines[1].url}: ")
        assert "other token ids for its prompt than were trained on, from token 1 of 3 on: trained on ..." in log_text
        assert "and the server reads ...'tokens [9]'" in log_text
        gateway.wait_for_answer()
        assert {gateway.request(BODY)[0] for _ in range(6)} == {200}
        metrics = read_metrics(gateway)
        assert [metrics["insource_engine_up", engine.url] for engine in engines] == [1, 0]
        assert metrics.get(("insource_engine_requests_total", engines[1].url, "answered"), 0) == 0


def test_engines_that_cannot_load_adapters_serve_those_that_they_list(
    gateway_setup: GatewaySetup, tmp_path: Path
) -> None:
    version = gateway_setup.deploy("one")
    adapter = gateway_setup.registry / "versions" / version / "adapter"
    listing = EngineProcess(tmp_path / "listing", "--lora-modules", f"{NAME}@{version}={adapter}")
    other = EngineProcess(tmp_path / "other")
    with ExitStack() as stack:
        for engine in (listing, other):
            (engine.folder / "no_load").touch()
            engine.start()
            stack.callback(engine.kill)
        gateway = stack.enter_context(serve_engines(gateway_setup, [listing, other]))
        assert "--lora-modules" in gateway.wait_for_log(f"refused   {NAME}@{version} on {other.url}")
        assert gateway.wait_for_answer()[1]["choices"][0]["text"] == "one"


def test_an_engine_that_hangs_is_left_and_its_requests_are_answered_by_the_other(
    gateway_setup: GatewaySetup, engines: list[EngineProcess]
) -> None:
    gateway_setup.deploy("one")
    with serve_engines(gateway_setup, engines, "serve.hang_seconds=10") as gateway:
        wait_until_ready(gateway)
        engines[0].send_signal(signal.SIGSTOP)
        responses: list[Any] = []
        threads = [threading.Thread(target=lambda: responses.append(gateway.request(BODY))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in responses] == [200] * 6
        assert "it has sent nothing for 10 s" in gateway.wait_for_log(f"engine    {engines[0].url} is down")
        engines[0].send_signal(signal.SIGCONT)
        gateway.wait_for_log(f"serves {NAME}@", count=3)


def test_without_a_deployed_version_the_gateway_does_not_start(gateway_setup: GatewaySetup) -> None:
    with gateway_setup.gateway(LOOPBACK_SETTING, "serve.engines=[http://127.0.0.1:1]") as gateway:
        assert gateway.process.wait(60) == 2
        assert "make deploy" in gateway.read_log()
