"""Log of API attempts, written before each attempt is sent: attempts in flight at a kill may have been charged.

{"key": "5d41...", "process": "9f2c41a0", "usd": 0.00021}     may be sent from now on, and costs at most this much
{"key": "5d41...", "process": "9f2c41a0", "usd": null}        its response is in the cache, with its cost

The file is beside the response cache. Only the process that holds the cache's lock writes it. It is removed when every
attempt has a response.
"""

import asyncio
import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from insource.backends.budgets import SystemBudget
from insource.backends.types import Completion, Request
from insource.config.errors import StageError
from insource.system import append_only


def attempt_log_path(cache_path: Path) -> Path:
    """Return the attempt log of a response cache."""
    return cache_path.with_suffix(".attempts.jsonl")


def read_unsettled_usd(cache_path: Path) -> dict[str, float]:
    """Return {key: upper bound in USD of the attempts without a known response}."""
    path = attempt_log_path(cache_path)
    usd_by_attempt: dict[tuple[str, str], float] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            record = json.loads(line)
            attempt, usd = (record["key"], record["process"]), record["usd"]
        except (ValueError, TypeError, KeyError):
            continue  # torn: the attempt was not sent
        if usd is None:
            usd_by_attempt.pop(attempt, None)
        else:
            usd_by_attempt[attempt] = usd_by_attempt.get(attempt, 0.0) + usd
    usd_by_key: dict[str, float] = {}
    for (key, _), usd in usd_by_attempt.items():
        usd_by_key[key] = usd_by_key.get(key, 0.0) + usd
    return usd_by_key


class AttemptLog:
    """A spend limiter that logs every attempt before it is sent."""

    def __init__(self, limiter: SystemBudget, cache_path: Path) -> None:
        self._limiter, self._cache_path = limiter, cache_path
        self._process = secrets.token_hex(4)
        self._lock = asyncio.Lock()
        self._lines: list[str] = []
        self._n_queued = self._n_written = 0

    async def reserve(self, request: Request) -> bool:
        """Reserve the cost of an attempt and log it. Return whether it may be sent.

        Raise StageError if the log is not writable.
        """
        if not await self._limiter.reserve(request):
            return False
        try:
            await self._write(self._line(request.id, self._limiter.max_usd(request)))
        except BaseException:
            self._limiter.settle(request, None, possibly_charged=False)
            raise
        return True

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Pass the outcome of an attempt to the limiter.

        The log entry stays open until `record_answered` reports that the response is cached.
        """
        self._limiter.settle(request, completion, possibly_charged)

    def record_answered(self, keys: Iterable[str]) -> None:
        """Log that responses are in the cache. A lost entry counts the cost twice; no request is sent twice."""
        self._append([self._line(key, None) for key in keys], flush=False)

    def close(self) -> None:
        """Remove the file if every attempt has a response."""
        if not read_unsettled_usd(self._cache_path):
            attempt_log_path(self._cache_path).unlink(missing_ok=True)

    async def _write(self, line: str) -> None:
        """Write a line durably, together with the queued lines of other tasks: one fsync serves all of them."""
        self._lines.append(line)
        self._n_queued += 1
        number = self._n_queued
        async with self._lock:
            if self._n_written < number:
                lines, self._lines, n_queued = self._lines, [], self._n_queued
                await asyncio.to_thread(self._append, lines, flush=True)
                self._n_written = n_queued

    def _line(self, key: str, usd: float | None) -> str:
        return json.dumps({"key": key, "process": self._process, "usd": usd}) + "\n"

    def _append(self, lines: Sequence[str], flush: bool) -> None:
        path = attempt_log_path(self._cache_path)
        try:
            with path.open("ab", buffering=0) as file:
                # The newline first: it ends a line that a killed process left torn.
                append_only.append_bytes(file, b"\n" + "".join(lines).encode(), flush)
        except OSError as error:
            raise StageError(
                f"{path}: attempts cannot be written: {error.strerror or error}", code="INS-X002"
            ) from None
