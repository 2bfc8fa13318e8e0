"""The gateway in front of a stand-in for vLLM that answers after a fixed time: its own latency and memory.

The stand-in (tests/helpers/gateway/stand_in_vllm.py) computes nothing, and its prompts and answers are short.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.gateway_load.engine import CHAT_PATH, DIRECT, MAX_ADDED_MILLISECONDS, print_mode, summarize
from bench.gateway_load.load import (
    CONCURRENCY,
    OK_STATUS,
    LoadRequest,
    Round,
    Server,
    find_engine,
    read_memory_mib,
    run_round,
)
from compare.decision.routing_policy import RoutingPolicy
from deploy import registry
from insource.config.load import load
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking.run import Run
from tests.helpers.gateway.gateway_process import LOOPBACK_SETTING, NAME, GatewayProcess, GatewaySetup
from tests.helpers.provider.provider_answers import stable_number

SPREAD = "completions 200 to 400 ms"
DELAYS_SECONDS: dict[str, Callable[[int], float]] = {
    "completions 0 ms": lambda number: 0.0,
    "completions 300 ms": lambda number: 0.3,
    SPREAD: lambda number: 0.2 + 0.2 * stable_number(str(number)) / 2**32,
}
"""{case: seconds until the stand-in answers a request}. 0 ms: as many requests as the gateway can forward. 300 ms: all
requests end and begin at the same time. 200 to 400 ms: they are spread, as those of independent clients are."""
REPEATS, ROUND_SECONDS, WARM_UP_SECONDS = 3, 4.0, 2.0
N_REQUESTS, N_READERS, READER_SECONDS = 20_000, 200, 40.0
SAMPLE_SECONDS = 0.5
N_WAVES, ANSWER_KIB = 2, 768
MAX_GROWTH_MIB = 16.0
LABEL = "delivery_delay"


@contextmanager
def run_stand_in(
    folder: Path, *settings: str, threshold: float | None = None, api_key: str = ""
) -> Iterator[tuple[GatewayProcess, Server, str]]:
    """Run a gateway with a stand-in as its vLLM. Yield the gateway, the stand-in and the deployed version.

    Inputs with a confidence below `threshold` go to the API model; None: none does.
    """
    setup = GatewaySetup(folder)
    module = TASKS["classification"]
    spec = module.make_spec(load(NAME, [], "cpu").recipe.task, {LABEL: "", "refund_status": ""})
    prompt = {"task": {"kind": "classification", **spec.__dict__}, "grammar": module.grammar(spec)}
    version = setup.deploy(LABEL, prompt_fields=prompt | {"output_schema": module.output_schema(spec)})
    if threshold is not None:
        deploy_threshold(setup, threshold)
    with setup.gateway(LOOPBACK_SETTING, *settings, API_KEY=api_key) as gateway:
        gateway.wait_for_log("ready     ")
        engine = find_engine(gateway.engine_pid())
        assert engine is not None
        yield gateway, engine, version


def deploy_threshold(setup: GatewaySetup, threshold: float) -> None:
    """Deploy the run again with a threshold."""
    policy = RoutingPolicy(threshold=threshold, target_accuracy=0.95, confidence=0.95, calibration_rows=500)
    folder = setup.registry / "routing"
    folder.mkdir(exist_ok=True)
    atomic_files.write_json(folder / "new", policy.json())
    name = f"{atomic_files.sha256(folder / 'new')[:16]}.json"
    (folder / "new").rename(folder / name)
    scale = {"of": "answer", "slope": 1.0, "intercept": 0.0}
    run = Run(setup.folder / "runs" / NAME / f"run-{LABEL}")
    registry.promote(setup.registry, run, ["bench"], {"file": name, "scale": scale, "why_none": None})


def measure_overhead(folder: Path, scale: float) -> dict[str, Any]:
    """Return what the gateway adds to the latency of a stand-in, and the targets that were missed."""
    with run_stand_in(folder) as (gateway, engine, version):
        figures, failed = asyncio.run(run_cases(gateway, engine, version, scale))
    missed = [f"{failed:,} requests had no answer"] if failed else []
    for name, mode in figures.items():
        print_mode(name, mode)
    added = figures[SPREAD]["added_p50_milliseconds"]
    if added > MAX_ADDED_MILLISECONDS:
        missed.append(f"{added:.1f} ms more at the median; target {MAX_ADDED_MILLISECONDS}")
    return {"concurrency": CONCURRENCY, "modes": figures, "missed": missed}


async def run_cases(
    gateway: GatewayProcess, engine: Server, version: str, scale: float
) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the figures of each case, and the number of requests without an answer."""
    server, figures, failed = Server(f"http://127.0.0.1:{gateway.port}"), {}, 0
    internal = f"{NAME}@{version}"
    cases = {
        name: (completion(internal, find_delay), completion(NAME, find_delay))
        for name, find_delay in DELAYS_SECONDS.items()
    }
    chat = make_request(CHAT_PATH, model=NAME, messages=[{"role": "user", "content": "where is my money"}])
    at_once = completion(internal, lambda number: 0.0)
    cases["chat 0 ms"] = (at_once, chat)
    cases["task 0 ms"] = (at_once, make_request(f"/v1/tasks/{NAME}", input="where is my money"))
    for name, (direct_request, request) in cases.items():
        rounds: dict[str, list[Round]] = {DIRECT: [], name: []}
        await run_round(engine, direct_request, WARM_UP_SECONDS * scale)
        await run_round(server, request, WARM_UP_SECONDS * scale)
        for _ in range(REPEATS):
            rounds[DIRECT].append(await run_round(engine, direct_request, ROUND_SECONDS * scale))
            rounds[name].append(await run_round(server, request, ROUND_SECONDS * scale, pid=gateway.process.pid))
        failed += sum(
            round_result.outcomes.total() - round_result.outcomes[OK_STATUS]
            for mode_rounds in rounds.values()
            for round_result in mode_rounds
        )
        figures[f"{DIRECT} of {name}"] = summarize(rounds[DIRECT], rounds[DIRECT])
        figures[name] = summarize(rounds[name], rounds[DIRECT])
    return figures, failed


def completion(model: str, find_delay: Callable[[int], float]) -> LoadRequest:
    """Return a request for a completion that the stand-in answers after a delay."""

    def make_body(number: int) -> bytes:
        stand = {"wait": find_delay(number)}
        return json.dumps({"model": model, "prompt": "x" * 600, "max_tokens": 5, "stand": stand}).encode()

    return LoadRequest("/v1/completions", make_body)


def make_request(path: str, **fields: Any) -> LoadRequest:
    """Return a request whose body is always the same."""
    body = json.dumps(fields).encode()
    return LoadRequest(path, lambda number: body)


def measure_memory(folder: Path, scale: float) -> dict[str, Any]:
    """Return the memory of the gateway over many requests, and while clients read slowly."""
    with run_stand_in(folder) as (gateway, _, _):
        server, pid = Server(f"http://127.0.0.1:{gateway.port}"), gateway.process.pid
        request = make_request(f"/v1/tasks/{NAME}", input="where is my money")
        n_requests, samples, answered = int(N_REQUESTS * scale), [], 0
        for _ in range(20):
            round_result = asyncio.run(run_round(server, request, float("inf"), max_requests=n_requests // 20))
            answered += round_result.outcomes[OK_STATUS]
            samples.append(read_memory_mib(pid))
        # Until a fifth of the requests caches and pools still fill.
        growth = samples[-1] - samples[len(samples) // 5]
        readers = [measure_readers(gateway, server, request, READER_SECONDS * scale) for _ in range(N_WAVES)]
    missed = [f"{n_requests - answered:,} of {n_requests:,} had no answer"] if answered < n_requests else []
    missed += [f"memory grew by {growth:.1f} MiB"] if growth > MAX_GROWTH_MIB else []
    # malloc keeps what the first wave needed.
    late_growth = readers[-1]["after_mib"] - readers[0]["after_mib"]
    missed += [f"memory grew by {late_growth:.1f} MiB after readers"] if late_growth > MAX_GROWTH_MIB else []
    unanswered = sum(wave["unanswered"] for wave in readers)
    missed += [f"beside readers {unanswered:,} had no answer"] if unanswered else []
    result = {"requests": n_requests, "samples_mib": [round(sample, 1) for sample in samples], "readers": readers}
    print(f"memory    {samples[len(samples) // 5]:.1f} MiB after a fifth of the requests, {samples[-1]:.1f} after all")
    print(*(f"readers   {wave}" for wave in readers), sep="\n")
    return result | {"missed": missed}


def measure_readers(gateway: GatewayProcess, server: Server, request: LoadRequest, seconds: float) -> dict[str, Any]:
    """Return the memory of the gateway while clients read large answers slowly, and afterwards."""
    pid, samples, stopped = gateway.process.pid, [read_memory_mib(gateway.process.pid)], threading.Event()
    readers = ((gateway.port, number % 2 == 0, stopped) for number in range(N_READERS))
    threads = [threading.Thread(target=read_slowly, args=reader) for reader in readers]
    for thread in threads:
        thread.start()
    deadline, outcomes = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        round_result = asyncio.run(run_round(server, request, SAMPLE_SECONDS))
        outcomes = round_result.outcomes + outcomes if outcomes else round_result.outcomes
        samples.append(read_memory_mib(pid))
    stopped.set()
    for thread in threads:
        thread.join()
    time.sleep(2.0)
    assert outcomes is not None
    return {
        "clients": N_READERS,
        "before_mib": round(samples[0], 1),
        "peak_mib": round(max(samples), 1),
        "after_mib": round(read_memory_mib(pid), 1),
        "requests_beside": outcomes.total(),
        "unanswered": outcomes.total() - outcomes[OK_STATUS],
    }


def read_slowly(port: int, is_stream: bool, stopped: threading.Event) -> None:
    """Ask for a large answer and read 16 bytes a second until the gateway disconnects, then ask again."""
    stand = {"events": ANSWER_KIB} if is_stream else {"answer_kib": ANSWER_KIB}
    body = json.dumps({"model": NAME, "prompt": "x", "stream": is_stream, "stand": stand}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    while not stopped.is_set():
        with suppress(OSError), socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(head + body)
            while not stopped.wait(1.0) and connection.recv(16):
                pass
