"""Requests that are answered some time within a day, at half the price: the batch APIs of OpenAI and Anthropic.

created(client, backend, name, began, requests)   "batch_68f..."      the id, to be kept on disk
ended(client, backend, id, poll_seconds)          State("ended", "3,080 of 3,080 done")
results(client, backend, id, asked)               {custom id: Received(...) or Failed(...)}

A batch is created once, also where it is not known whether an attempt to create it came through: before a second
attempt the provider is asked for what it has (`openai_batch.find`, `anthropic_batch.find`, which say how sure that
is). The requests' own ids are the batch's custom ids: at most 64 characters, letters, digits, - and _.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any, Literal, TypeVar

from insource.backends.client import call_sdk
from insource.backends.failures import AttemptFailure, backoff_seconds
from insource.backends.types import ApiFormat, Backend, Completion, Request
from insource.backends.wire import anthropic_batch, openai_batch

T = TypeVar("T")
BATCH_MODULES: Mapping[ApiFormat, ModuleType] = {"openai": openai_batch, "anthropic": anthropic_batch}
MAX_BATCH_REQUESTS = 50_000
MAX_BATCH_BYTES = 100 * 2**20
# Each look at a batch waits half as long again as the one before, up to so many times the first wait.
POLL_BACKOFF, MAX_POLL_FACTOR = 1.5, 30
# Looks in succession that brought nothing, after which nobody waits on.
MAX_FAILED_POLLS = 10


@dataclass(frozen=True)
class BatchState:
    """How far a batch is."""

    state: Literal["running", "ended", "cancelled", "failed"]
    """failed: the provider did not take it, nothing in it was asked. cancelled: part of it may have been answered."""
    told: str


async def create_batch(
    client: Any, backend: Backend, name: str, started_at: datetime, requests: Sequence[Request]
) -> str | AttemptFailure:
    """Returns the id of a new batch. `started_at`: before this was called. Where a failure leaves open whether there is
    a batch now, the one that is found is returned, and none made a second time. A failure with `again` leaves that open
    to the end."""
    api, ids = BATCH_MODULES[backend.wire], [request.id for request in requests]
    for failures in range(backend.retries + 1):
        result: str | AttemptFailure = await call_sdk(backend, api.create(client, backend, name, requests), None)
        if not isinstance(result, AttemptFailure) or not result.again:
            break
        await asyncio.sleep(result.wait_seconds or backoff_seconds(failures + 1))
        existing = await find_batch(client, backend, name, started_at, ids)
        if isinstance(existing, AttemptFailure):
            return result
        if existing is not None:
            return existing
    return result


async def find_batch(
    client: Any,
    backend: Backend,
    name: str,
    started_at: datetime,
    ids: Sequence[str],
    foreign_batch_ids: Collection[str] = (),
) -> str | AttemptFailure | None:
    """Returns the id of the batch of that name, None where the provider has none. `ids`: of its requests.
    `foreign_batch_ids`: batches that are known to be others."""
    api = BATCH_MODULES[backend.wire]
    return await _retry_idempotent(backend, lambda: api.find(client, name, started_at, ids, foreign_batch_ids))


async def wait_for_batch(
    client: Any, backend: Backend, batch_id: str, poll_seconds: float, log: Callable[[str], None]
) -> BatchState | AttemptFailure:
    """Returns how a batch ended, once it has; looks at it in waits that grow. `log` gets how far it is."""
    api, wait, n_failed = BATCH_MODULES[backend.wire], poll_seconds, 0
    while True:
        polled: Any = await _retry_idempotent(backend, lambda: api.poll(client, batch_id))
        if isinstance(polled, AttemptFailure):
            n_failed += 1
            if not polled.again or n_failed == MAX_FAILED_POLLS:
                return polled
        elif polled[0] != "running":
            return BatchState(*polled)
        else:
            n_failed = 0
            log(f"batch {batch_id}: {polled[1]}, looked at again in {wait:.0f} s")
        await asyncio.sleep(wait)
        wait = min(wait * POLL_BACKOFF, poll_seconds * MAX_POLL_FACTOR)


async def fetch_results(
    client: Any, backend: Backend, batch_id: str, request: Request
) -> dict[str, Completion | AttemptFailure] | AttemptFailure:
    """Returns what became of each request of a batch that ended, by custom id. `request`: a request with the constraint
    that all of them have."""
    api = BATCH_MODULES[backend.wire]
    return await _retry_idempotent(backend, lambda: api.fetch_results(client, backend, batch_id, request))


async def _retry_idempotent(backend: Backend, call: Callable[[], Awaitable[T]]) -> T | AttemptFailure:
    """Returns what a call brought that may be repeated as often as one likes."""
    for failures in range(backend.retries + 1):
        result = await call_sdk(backend, call(), None)
        if not isinstance(result, AttemptFailure) or not result.again or failures == backend.retries:
            break
        await asyncio.sleep(result.wait_seconds or backoff_seconds(failures + 1))
    return result
