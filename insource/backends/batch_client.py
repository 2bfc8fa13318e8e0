"""Requests that are answered some time within a day, at half the price: the batch APIs of OpenAI and Anthropic.

created(client, backend, name, began, requests)   "batch_68f..."      the id, to be kept on disk
ended(client, backend, id, poll_seconds)          State("ended", "3,080 of 3,080 done")
results(client, backend, id, asked)               {custom id: Received(...) or Failed(...)}

A batch is created once, also where it is not known whether an attempt to create it came through: before a second
attempt the provider is asked for what it has (`openai_batch.found`, `anthropic_batch.found`, which say how sure that
is). The requests' own ids are the batch's custom ids: at most 64 characters, letters, digits, - and _.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any, Literal, TypeVar

from insource.backends.client import Failed, attempted, wait_seconds
from insource.backends.types import Backend, Received, Request, Wire
from insource.backends.wire import anthropic_batch, openai_batch

T = TypeVar("T")
WIRES: Mapping[Wire, ModuleType] = {"openai": openai_batch, "anthropic": anthropic_batch}
MOST_REQUESTS = 50_000
MOST_BYTES = 100 * 2**20
# Each look at a batch waits half as long again as the one before, up to so many times the first wait.
WAIT_GROWS, WAIT_GROWS_TO = 1.5, 30
# Looks in succession that brought nothing, after which nobody waits on.
LOST_LOOKS = 10


@dataclass(frozen=True)
class State:
    """How far a batch is."""

    state: Literal["running", "ended", "cancelled", "failed"]
    """failed: the provider did not take it, nothing in it was asked. cancelled: part of it may have been answered."""
    told: str


async def created(
    client: Any, backend: Backend, name: str, began: datetime, requests: Sequence[Request]
) -> str | Failed:
    """Returns the id of a new batch. `began`: before this was called. Where a failure leaves open whether there is a
    batch now, the one that is found is returned, and none made a second time. A failure with `again` leaves that open
    to the end."""
    wire, ids = WIRES[backend.wire], [request.id for request in requests]
    for failures in range(backend.retries + 1):
        made: str | Failed = await attempted(backend, wire.create(client, backend, name, requests), None)
        if not isinstance(made, Failed) or not made.again:
            break
        await asyncio.sleep(made.wait_seconds or wait_seconds(failures + 1))
        there = await found(client, backend, name, began, ids)
        if isinstance(there, Failed):
            return made
        if there is not None:
            return there
    return made


async def found(
    client: Any, backend: Backend, name: str, began: datetime, ids: Sequence[str], strangers: Collection[str] = ()
) -> str | Failed | None:
    """Returns the id of the batch of that name, None where the provider has none. `ids`: of its requests. `strangers`:
    batches that are known to be others."""
    wire = WIRES[backend.wire]
    return await _patiently(backend, lambda: wire.found(client, name, began, ids, strangers))


async def ended(
    client: Any, backend: Backend, batch_id: str, poll_seconds: float, say: Callable[[str], None]
) -> State | Failed:
    """Returns how a batch ended, once it has; looks at it in waits that grow. `say` gets how far it is."""
    wire, wait, lost = WIRES[backend.wire], poll_seconds, 0
    while True:
        seen: Any = await _patiently(backend, lambda: wire.look(client, batch_id))
        if isinstance(seen, Failed):
            lost += 1
            if not seen.again or lost == LOST_LOOKS:
                return seen
        elif seen[0] != "running":
            return State(*seen)
        else:
            lost = 0
            say(f"batch {batch_id}: {seen[1]}, looked at again in {wait:.0f} s")
        await asyncio.sleep(wait)
        wait = min(wait * WAIT_GROWS, poll_seconds * WAIT_GROWS_TO)


async def results(
    client: Any, backend: Backend, batch_id: str, asked: Request
) -> dict[str, Received | Failed] | Failed:
    """Returns what became of each request of a batch that ended, by custom id. `asked`: a request with the constraint
    that all of them have."""
    wire = WIRES[backend.wire]
    return await _patiently(backend, lambda: wire.results(client, backend, batch_id, asked))


async def _patiently(backend: Backend, call: Callable[[], Awaitable[T]]) -> T | Failed:
    """Returns what a call brought that may be repeated as often as one likes."""
    for failures in range(backend.retries + 1):
        brought = await attempted(backend, call(), None)
        if not isinstance(brought, Failed) or not brought.again or failures == backend.retries:
            break
        await asyncio.sleep(brought.wait_seconds or wait_seconds(failures + 1))
    return brought
