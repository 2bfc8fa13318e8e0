"""Attempts on disk before they are sent: what was on its way when a process ended may have been paid for.

{"key": "5d41...", "process": "9f2c41a0", "usd": 0.00021}     may be sent from now on, and cost so much at most
{"key": "5d41...", "process": "9f2c41a0", "usd": null}        its answer is in the journal, with what it cost

The file stands beside the journal and is written by the process that holds the journal's lock. Where every attempt has
its answer, the file goes.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from insource.backends.budgets import SystemBudget
from insource.backends.types import Completion, Request
from insource.config.errors import StageError


def attempt_log_path(cache_path: Path) -> Path:
    """Returns the file of the attempts whose answers go to a journal."""
    return cache_path.with_suffix(".attempts.jsonl")


def read_unsettled_usd(cache_path: Path) -> dict[str, float]:
    """Returns {key: the most that attempts can have cost of which no answer is known}."""
    path = attempt_log_path(cache_path)
    usd_by_attempt: dict[tuple[str, str], float] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            record = json.loads(line)
            attempt, usd = (record["key"], record["process"]), record["usd"]
        except (ValueError, TypeError, KeyError):
            continue  # torn, so that it was not sent
        if usd is None:
            usd_by_attempt.pop(attempt, None)
        else:
            usd_by_attempt[attempt] = usd_by_attempt.get(attempt, 0.0) + usd
    usd_by_key: dict[str, float] = {}
    for (key, _), usd in usd_by_attempt.items():
        usd_by_key[key] = usd_by_key.get(key, 0.0) + usd
    return usd_by_key


class AttemptLog:
    """A purse that writes down every attempt before it is made."""

    def __init__(self, limiter: SystemBudget, cache_path: Path) -> None:
        self._purse, self._journal = limiter, cache_path
        self._process = secrets.token_hex(4)
        self._lock = asyncio.Lock()
        self._lines: list[str] = []
        self._begun = self._written = 0

    async def reserve(self, request: Request) -> bool:
        """Returns whether an attempt may be made, which is on disk then. Raises StageError where it cannot be."""
        if not await self._purse.reserve(request):
            return False
        try:
            await self._write(self._line(request.id, self._purse.most_usd(request)))
        except BaseException:
            self._purse.settle(request, None, possibly_charged=False)
            raise
        return True

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Passes on what an attempt brought; it is known when its answer is in the journal (`answered`)."""
        self._purse.settle(request, completion, possibly_charged)

    def answered(self, keys: Iterable[str]) -> None:
        """Writes down that answers are in the journal. One that is lost counts twice, and is never sent twice."""
        self._append([self._line(key, None) for key in keys], flush=False)

    def close(self) -> None:
        """Removes the file where every attempt has its answer."""
        if not read_unsettled_usd(self._journal):
            attempt_log_path(self._journal).unlink(missing_ok=True)

    async def _write(self, line: str) -> None:
        """Has a line on disk, together with those of others that wait for it: one flush takes as long as many."""
        self._lines.append(line)
        self._begun += 1
        number = self._begun
        async with self._lock:
            if self._written < number:
                lines, self._lines, n_queued = self._lines, [], self._begun
                await asyncio.to_thread(self._append, lines, flush=True)
                self._written = n_queued

    def _line(self, key: str, usd: float | None) -> str:
        return json.dumps({"key": key, "process": self._process, "usd": usd}) + "\n"

    def _append(self, lines: Sequence[str], flush: bool) -> None:
        path = attempt_log_path(self._journal)
        try:
            with path.open("ab", buffering=0) as file:
                # First the end of a line that a process was killed at.
                remaining = memoryview(b"\n" + "".join(lines).encode())
                while remaining:
                    remaining = remaining[file.write(remaining) :]
                if flush:
                    os.fsync(file.fileno())
        except OSError as error:
            raise StageError(f"{path}: attempts cannot be written: {error.strerror or error}") from None
