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

from insource.backends.client import AttemptFailure, backoff_seconds, call_sdk
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
    client: Any, backend: Backend, name: str, began: datetime, requests: Sequence[Request]
) -> str | AttemptFailure:
    """Returns the id of a new batch. `began`: before this was called. Where a failure leaves open whether there is a
    batch now, the one that is found is returned, and none made a second time. A failure with `again` leaves that open
    to the end."""
    wire, ids = BATCH_MODULES[backend.wire], [request.id for request in requests]
    for failures in range(backend.retries + 1):
        made: str | AttemptFailure = await call_sdk(backend, wire.create(client, backend, name, requests), None)
        if not isinstance(made, AttemptFailure) or not made.again:
            break
        await asyncio.sleep(made.wait_seconds or backoff_seconds(failures + 1))
        there = await find_batch(client, backend, name, began, ids)
        if isinstance(there, AttemptFailure):
            return made
        if there is not None:
            return there
    return made


async def find_batch(
    client: Any, backend: Backend, name: str, began: datetime, ids: Sequence[str], strangers: Collection[str] = ()
) -> str | AttemptFailure | None:
    """Returns the id of the batch of that name, None where the provider has none. `ids`: of its requests. `strangers`:
    batches that are known to be others."""
    wire = BATCH_MODULES[backend.wire]
    return await _retry_idempotent(backend, lambda: wire.find(client, name, began, ids, strangers))


async def wait_for_batch(
    client: Any, backend: Backend, batch_id: str, poll_seconds: float, say: Callable[[str], None]
) -> BatchState | AttemptFailure:
    """Returns how a batch ended, once it has; looks at it in waits that grow. `say` gets how far it is."""
    wire, wait, lost = BATCH_MODULES[backend.wire], poll_seconds, 0
    while True:
        seen: Any = await _retry_idempotent(backend, lambda: wire.poll(client, batch_id))
        if isinstance(seen, AttemptFailure):
            lost += 1
            if not seen.again or lost == MAX_FAILED_POLLS:
                return seen
        elif seen[0] != "running":
            return BatchState(*seen)
        else:
            lost = 0
            say(f"batch {batch_id}: {seen[1]}, looked at again in {wait:.0f} s")
        await asyncio.sleep(wait)
        wait = min(wait * POLL_BACKOFF, poll_seconds * MAX_POLL_FACTOR)


async def fetch_results(
    client: Any, backend: Backend, batch_id: str, asked: Request
) -> dict[str, Completion | AttemptFailure] | AttemptFailure:
    """Returns what became of each request of a batch that ended, by custom id. `asked`: a request with the constraint
    that all of them have."""
    wire = BATCH_MODULES[backend.wire]
    return await _retry_idempotent(backend, lambda: wire.fetch_results(client, backend, batch_id, asked))


async def _retry_idempotent(backend: Backend, call: Callable[[], Awaitable[T]]) -> T | AttemptFailure:
    """Returns what a call brought that may be repeated as often as one likes."""
    for failures in range(backend.retries + 1):
        brought = await call_sdk(backend, call(), None)
        if not isinstance(brought, AttemptFailure) or not brought.again or failures == backend.retries:
            break
        await asyncio.sleep(brought.wait_seconds or backoff_seconds(failures + 1))
    return brought
