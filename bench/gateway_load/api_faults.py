"""The API model behind the gateway is stopped, slowed to 30 s and brought back while 32 clients query.

The deployed model is a stand-in whose confidence never reaches the threshold, so every input goes to the API model.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientError

from bench import machine
from bench.gateway_load.load import CONCURRENCY, Server
from bench.gateway_load.stand_in import run_stand_in
from demo_data.support_tickets import generate_tickets
from insource.config.errors import StageError
from serve.vllm.server_process import free_port
from tests.helpers.gateway.gateway_process import NAME

SLOW_SECONDS = 30.0
ALWAYS_UNSURE = 2.0
"""A threshold that no confidence reaches."""
CLIENT_PAUSE_SECONDS = 0.1
"""Between an answer and the next request of a client: the stand-in would answer thousands while the API is away."""


@dataclass(frozen=True)
class Phase:
    """A state of the API model for a time."""

    name: str
    answer_seconds: float | None
    """Time until the API model answers, None while its process is killed."""
    seconds: float


PHASES = (
    Phase("answers", 0.05, 15.0),
    Phase("killed", None, 20.0),
    Phase(f"slowed to {SLOW_SECONDS:.0f} s", SLOW_SECONDS, 50.0),
    Phase("back", 0.05, 30.0),
)


class ApiServer:
    """The process of the API model."""

    def __init__(self, label: str) -> None:
        self.label, self.port = label, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def restart(self, answer_seconds: float | None) -> None:
        """Kill the process, and start it again unless `answer_seconds` is None."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        if answer_seconds is not None:
            argv = [sys.executable, "-m", "bench.gateway_load.api_server"]
            argv += [str(self.port), str(answer_seconds), self.label]
            self._process = subprocess.Popen(argv, cwd=machine.ROOT)
            self._wait_ready(time.monotonic() + 120)

    def _wait_ready(self, deadline: float) -> None:
        opener, url = urllib.request.build_opener(urllib.request.ProxyHandler({})), f"http://127.0.0.1:{self.port}"
        while time.monotonic() < deadline:
            with suppress(OSError):
                opener.open(f"{url}/v1/models/any", timeout=5).close()
                return
            time.sleep(0.1)
        raise StageError("the stand-in for the API model does not start", code="INS-X010")


def measure(folder: Path, scale: float) -> dict[str, Any]:
    """Return the answers in each phase, and the promises that were broken."""
    api = ApiServer("refund_status")
    baseline = f'[{{provider: openai, model: gpt-6-luna, base_url: "http://127.0.0.1:{api.port}/v1", name: api, '
    baseline += "api_key_env: API_KEY}]"
    settings = (f"compare.baselines={baseline}", "compare.primary=null")
    try:
        with run_stand_in(folder, *settings, threshold=ALWAYS_UNSURE, api_key="secret") as (gateway, _, _):
            phases = asyncio.run(run_phases(Server(f"http://127.0.0.1:{gateway.port}"), api, scale))
    finally:
        api.restart(None)
    missed = [
        f"{phase['name']}: {count:,} requests ended with {outcome}"
        for phase in phases
        for outcome, count in phase["outcomes"].items()
        if not outcome.startswith(("api", "local", "429 with", "503 with"))
    ]
    if not phases[-1]["outcomes"].get("api/below_threshold"):
        missed.append("the API model is back and gets no requests")
    for phase in phases:
        outcomes = ", ".join(f"{name} {count:,}" for name, count in sorted(phase["outcomes"].items()))
        print(
            f"{phase['name']:15} p50 {phase['p50_seconds']} s, longest {phase['max_seconds']} s: {outcomes or 'none'}"
        )
    return {"clients": CONCURRENCY, "phases": phases, "missed": missed}


async def run_phases(server: Server, api: ApiServer, scale: float) -> list[dict[str, Any]]:
    """Return the answers in each phase. A request counts in the phase in which its answer arrives."""
    current: list[tuple[str, float]] = []
    stopped = asyncio.Event()
    await asyncio.to_thread(api.restart, PHASES[0].answer_seconds)
    texts = [ticket.message for ticket in generate_tickets(2000, seed=12)]

    async def send_requests(client: int) -> None:
        number = client
        while not stopped.is_set():
            body, started_at = {"input": texts[number % len(texts)]}, time.monotonic()
            try:
                async with session.post(f"/v1/tasks/{NAME}", data=json.dumps(body)) as response:
                    payload = await response.json()
                    outcome = describe_outcome(response.status, "Retry-After" in response.headers, payload)
            except (ClientError, TimeoutError, ValueError) as error:
                outcome = f"no answer: {type(error).__name__}"
            current.append((outcome, time.monotonic() - started_at))
            number += CONCURRENCY
            await asyncio.sleep(CLIENT_PAUSE_SECONDS)

    results = []
    async with server.open_session({"Content-Type": "application/json"}) as session:
        clients = [asyncio.create_task(send_requests(number)) for number in range(CONCURRENCY)]
        for phase in PHASES:
            await asyncio.to_thread(api.restart, phase.answer_seconds)
            await asyncio.sleep(phase.seconds * scale)
            if phase is PHASES[-1]:
                stopped.set()
                await asyncio.gather(*clients)
            results.append(summarize(phase, current))
            current.clear()
    return results


def describe_outcome(status: int, has_retry_after: bool, payload: dict[str, Any]) -> str:
    """Return who answered and why, or the status of an error."""
    if status == 200:
        return f"{payload['answered_by']}/{payload['reason']}"
    return f"{status} with Retry-After" if has_retry_after else f"{status}: {payload['error']['message'][:60]}"


def summarize(phase: Phase, answers: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Return the figures of a phase."""
    ordered = sorted(seconds for _, seconds in answers)
    return {
        "name": phase.name,
        "seconds": phase.seconds,
        "outcomes": dict(Counter(outcome for outcome, _ in answers)),
        "p50_seconds": round(ordered[len(ordered) // 2], 3) if ordered else None,
        "max_seconds": round(ordered[-1], 2) if ordered else None,
    }
