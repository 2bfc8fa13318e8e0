"""Load of a fixed concurrency on an HTTP server, and what its answers were."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import BaseConnector, ClientError, ClientSession, ClientTimeout, TCPConnector, UnixConnector

CONCURRENCY = 32
"""Requests in flight."""
MAX_UNANSWERED_SECONDS = 120.0
OK_STATUS = "200"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A server under load: an address on loopback, or the Unix socket of a vLLM behind the gateway."""

    url: str
    socket: Path | None = None

    def open_session(self, headers: dict[str, str] | None = None) -> ClientSession:
        """Return a session with room for all requests."""
        connector: BaseConnector = UnixConnector(str(self.socket), limit=0) if self.socket else TCPConnector(limit=0)
        timeout = ClientTimeout(total=MAX_UNANSWERED_SECONDS)
        return ClientSession(self.url, connector=connector, headers=headers, timeout=timeout)


def find_engine(pid: int) -> Server | None:
    """Return the vLLM that a process runs on a Unix socket, None if it runs none."""
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return Server("http://vllm", Path(argv[argv.index("--uds") + 1])) if "--uds" in argv else None


@dataclass(frozen=True)
class LoadRequest:
    """A request without its text: the path, headers, and the body for a number."""

    path: str
    make_body: Callable[[int], bytes]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """The answers of one round."""

    seconds: float
    latencies_seconds: Sequence[float]
    """Of answers with status 200."""
    outcomes: Counter[str]
    """Requests by status, or by the error of the connection."""
    cpu_seconds: float = 0.0
    """Processor time of the gateway."""

    @property
    def requests_per_second(self) -> float:
        """Answers per second."""
        return len(self.latencies_seconds) / self.seconds

    @property
    def cpu_milliseconds_per_request(self) -> float:
        """Processor time of the gateway for an answer."""
        return 1000 * self.cpu_seconds / max(1, len(self.latencies_seconds))

    def percentile_milliseconds(self, share: float) -> float:
        """Return the latency that a share of the answers does not exceed."""
        ordered = sorted(self.latencies_seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def run_round(
    server: Server, request: LoadRequest, seconds: float, pid: int | None = None, max_requests: int | None = None
) -> Round:
    """Send requests for `seconds`, or `max_requests` of them, and return their answers.

    CONCURRENCY clients send one request after the other. `pid` is the process of the gateway.
    """
    latencies, outcomes, number = [], Counter[str](), 0
    cpu_seconds = read_cpu_seconds(pid) if pid else 0.0
    started_at = time.perf_counter()
    deadline = started_at + seconds

    async def send_requests(session: ClientSession) -> None:
        nonlocal number
        while time.perf_counter() < deadline and (max_requests is None or number < max_requests):
            number += 1
            body, sent_at = request.make_body(number), time.perf_counter()
            try:
                async with session.post(request.path, data=body) as response:
                    await response.read()
                outcome = str(response.status)
            except (ClientError, TimeoutError) as error:
                outcome = type(error).__name__
            outcomes[outcome] += 1
            if outcome == OK_STATUS:
                latencies.append(time.perf_counter() - sent_at)

    async with server.open_session({"Content-Type": "application/json", **request.headers}) as session:
        await asyncio.gather(*(send_requests(session) for _ in range(CONCURRENCY)))
    elapsed = time.perf_counter() - started_at
    return Round(elapsed, latencies, outcomes, read_cpu_seconds(pid) - cpu_seconds if pid else 0.0)


def read_cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def read_memory_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20
