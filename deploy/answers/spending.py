"""Monthly budget of the gateway's API calls, recorded on disk before each call, for all processes and restarts.

registry/<name>/spend/2026-11.jsonl
{"attempt": "9f2c41a0b7e6d835", "usd": 0.00021}          reserved: the maximum cost; the call may be sent from now on
{"attempt": "9f2c41a0b7e6d835", "spent_usd": 0.000013}   settled: the actual cost

An attempt without its second line may have been charged and counts in full. Its process was killed, or is still
waiting. The month is that of the attempt, in UTC.
"""

import asyncio
import json
import os
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from insource.backends.budgets import Pricing, TokenEstimator
from insource.backends.types import Completion, Request
from insource.config.errors import StageError
from insource.system import shared_jsonl
from insource.system.daemon_thread import run_in_thread

_DESCRIPTION = "what is spent"


@dataclass(frozen=True)
class Reservation:
    """An attempt whose maximum cost is recorded."""

    path: Path
    """File of the attempt's month."""
    attempt: str
    max_usd: float


class Ledger:
    """The attempts of a month, in a file that several processes append to."""

    def __init__(self, folder: Path, limit_usd: float) -> None:
        self.limit_usd = limit_usd
        self._folder = folder
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._read_bytes = 0
        self._costs: dict[str, float] = {}
        self._total_usd = 0.0

    def reserve(self, max_usd: float) -> Reservation | None:
        """Reserve the maximum cost of an attempt. Return None if the limit could be exceeded.

        Raise StageError if the file cannot be written.
        """
        attempt = secrets.token_hex(8)
        path = self._folder / f"{datetime.now(UTC):%Y-%m}.jsonl"
        with self._lock, shared_jsonl.open_locked(path, _DESCRIPTION) as file:
            if self._read_spent(path, file) + max_usd > self.limit_usd:
                return None
            shared_jsonl.append_line(file, {"attempt": attempt, "usd": max_usd}, _DESCRIPTION)
        return Reservation(path, attempt, max_usd)

    def settle(self, reservation: Reservation, spent_usd: float) -> None:
        """Record the actual cost of an attempt. Raise StageError if that fails; the attempt then counts in full."""
        line = {"attempt": reservation.attempt, "spent_usd": spent_usd}
        with self._lock, shared_jsonl.open_locked(reservation.path, _DESCRIPTION) as file:
            shared_jsonl.append_line(file, line, _DESCRIPTION, flush=False)

    def spent_usd(self) -> float:
        """Return the cost of this month's attempts in USD, unsettled ones in full."""
        path = self._folder / f"{datetime.now(UTC):%Y-%m}.jsonl"
        with self._lock, shared_jsonl.open_locked(path, _DESCRIPTION) as file:
            return self._read_spent(path, file)

    def _read_spent(self, path: Path, file: BinaryIO) -> float:
        """Return the sum after reading the lines appended since the last call."""
        size = os.fstat(file.fileno()).st_size
        if path != self._path or size < self._read_bytes:
            self._path, self._read_bytes, self._costs, self._total_usd = path, 0, {}, 0.0
        file.seek(self._read_bytes)
        *lines, _ = file.read().split(b"\n")
        self._read_bytes += sum(len(line) + 1 for line in lines)
        for line in lines:
            try:
                record = json.loads(line)
                attempt, usd = record["attempt"], float(record["spent_usd"] if "spent_usd" in record else record["usd"])
            except (ValueError, TypeError, KeyError):
                continue  # truncated: the call was not sent
            self._total_usd += usd - self._costs.get(attempt, 0.0)
            self._costs[attempt] = usd
        return self._total_usd


class MonthlyBudget:
    """Monthly limit on API calls (a `SpendLimiter` of `insource/backends/types.py`).

    One token is reserved for every byte of a text: token counts of earlier texts do not bound those of the next
    client's.
    """

    def __init__(self, ledger: Ledger, price: Pricing) -> None:
        self._ledger, self._price = ledger, price
        self._estimator = TokenEstimator()
        self._reserved: dict[str, Reservation] = {}
        self._write_tasks: set[asyncio.Task[None]] = set()

    async def reserve(self, request: Request) -> bool:
        """Return whether an attempt may be sent; its reservation is then on disk.

        Raise StageError if it cannot be written.
        """
        max_usd = self._price.max_usd(self._estimator.max_input_tokens(request), request.max_tokens)
        if (reservation := await run_in_thread(self._ledger.reserve, max_usd)) is None:
            return False
        self._reserved[request.id] = reservation
        return True

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Record the cost of an attempt in the background."""
        reservation = self._reserved.pop(request.id)
        spent_usd = reservation.max_usd if possibly_charged else 0.0
        if completion is not None:
            usage = completion.usage
            is_known = usage.input_tokens is not None and usage.output_tokens is not None
            spent_usd = self._price.usd(usage) if is_known else reservation.max_usd
        task = asyncio.get_running_loop().create_task(self._write_settlement(reservation, spent_usd))
        self._write_tasks.add(task)
        task.add_done_callback(self._write_tasks.discard)

    async def _write_settlement(self, reservation: Reservation, spent_usd: float) -> None:
        try:
            await run_in_thread(self._ledger.settle, reservation, spent_usd)
        except StageError:
            return  # it counts in full
