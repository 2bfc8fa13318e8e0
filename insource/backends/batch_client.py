"""The batch APIs of OpenAI and Anthropic: responses within a day, at half the price.

create_batch(client, backend, name, started_at, requests)   "batch_68f..."      the id, to be stored on disk
wait_for_batch(client, backend, id, poll_seconds, log)      BatchState("ended", "3,080 of 3,080 done")
fetch_results(client, backend, id, request)                 {custom id: Completion(...) or AttemptFailure(...)}

A batch is created once, even if the response to the creation is lost. Before a second attempt the provider's batches
are searched (`openai_batch.find`, `anthropic_batch.find`, whose docstrings state how reliable the search is). The ids
of the requests are the batch's custom ids: at most 64 characters out of letters, digits, - and _.
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
# Each poll waits POLL_BACKOFF times as long as the last, up to MAX_POLL_FACTOR times the first wait.
POLL_BACKOFF, MAX_POLL_FACTOR = 1.5, 30
# Consecutive failed polls, after which the wait is given up.
MAX_FAILED_POLLS = 10


@dataclass(frozen=True)
class BatchState:
    """The state of a batch."""

    state: Literal["running", "ended", "cancelled", "failed"]
    """failed: the provider rejected the batch, and no request was processed. cancelled: some requests may have
    responses."""
    progress: str


async def create_batch(
    client: object, backend: Backend, name: str, started_at: datetime, requests: Sequence[Request]
) -> str | AttemptFailure:
    """Create a batch and return its id.

    `started_at` is a time before this call. If a failure leaves open whether the batch exists, an existing one is
    searched and returned; none is created twice. A failure with `retry_now` means that it is still unknown whether a
    batch exists.
    """
    api, ids = BATCH_MODULES[backend.api_format], [request.id for request in requests]
    for failures in range(backend.retries + 1):
        result: str | AttemptFailure = await call_sdk(backend, api.create(client, backend, name, requests), None)
        if not isinstance(result, AttemptFailure) or not result.retry_now:
            break
        await asyncio.sleep(result.wait_seconds or backoff_seconds(failures + 1))
        existing = await find_batch(client, backend, name, started_at, ids)
        if isinstance(existing, AttemptFailure):
            return result
        if existing is not None:
            return existing
    return result


async def find_batch(
    client: object,
    backend: Backend,
    name: str,
    started_at: datetime,
    ids: Sequence[str],
    foreign_batch_ids: Collection[str] = (),
) -> str | AttemptFailure | None:
    """Return the id of the batch with this name, None if the provider has none.

    `ids` are the ids of its requests. `foreign_batch_ids` are batches that are known to be others.
    """
    api = BATCH_MODULES[backend.api_format]
    return await _retry_idempotent(backend, lambda: api.find(client, name, started_at, ids, foreign_batch_ids))


async def wait_for_batch(
    client: object, backend: Backend, batch_id: str, poll_seconds: float, log: Callable[[str], None]
) -> BatchState | AttemptFailure:
    """Poll a batch at growing intervals and return its final state. `log` gets the progress."""
    api, wait, n_failed = BATCH_MODULES[backend.api_format], poll_seconds, 0
    while True:
        polled: Any = await _retry_idempotent(backend, lambda: api.poll(client, batch_id))
        if isinstance(polled, AttemptFailure):
            n_failed += 1
            if not polled.retry_now or n_failed == MAX_FAILED_POLLS:
                return polled
        elif polled[0] != "running":
            return BatchState(*polled)
        else:
            n_failed = 0
            log(f"batch {batch_id}: {polled[1]}, looked at again in {wait:.0f} s")
        await asyncio.sleep(wait)
        wait = min(wait * POLL_BACKOFF, poll_seconds * MAX_POLL_FACTOR)


async def fetch_results(
    client: object, backend: Backend, batch_id: str, request: Request
) -> dict[str, Completion | AttemptFailure] | AttemptFailure:
    """Return the outcome of each request of an ended batch, by custom id.

    `request` is a request with the constraint that all of them share.
    """
    api = BATCH_MODULES[backend.api_format]
    return await _retry_idempotent(backend, lambda: api.fetch_results(client, backend, batch_id, request))


async def _retry_idempotent(backend: Backend, call: Callable[[], Awaitable[T]]) -> T | AttemptFailure:
    """Return the result of a call that is safe to repeat."""
    for failures in range(backend.retries + 1):
        result = await call_sdk(backend, call(), None)
        if not isinstance(result, AttemptFailure) or not result.retry_now or failures == backend.retries:
            break
        await asyncio.sleep(result.wait_seconds or backoff_seconds(failures + 1))
    return result
