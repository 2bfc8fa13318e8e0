"""Requests to a backend: at most so many at once, asked again where that is fair, each reply as soon as it is there.

    async for reply in replies(backend, requests):    closing the loop early cancels what is on its way
        ...
    ask(backend, requests)                            the same for callers that are not asynchronous, in order
    await Line(backend).reply(request)                the same for requests that come one by one

Asked again, up to `backend.retries` times: no connection, no answer in time, 408, 409, 429, 5xx, and an answer cut
short. What a server says of when to come back (Retry-After) is heeded, by all requests to it (pace.py). Anything else
is final: to ask a second time would not help, or would be a second throw of the dice. An empty answer and a refusal
are answers. A request that is refused for how it was asked (refusals.py) is neither: its reply says `refused`.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from insource.backends import api_errors
from insource.backends.api_errors import Refusal
from insource.backends.rate_limit import BUSY, Pace, retry_after_seconds
from insource.backends.types import Backend, Purse, Received, Reply, Request, Wire
from insource.backends.wire import anthropic_messages, openai_chat, openai_decisions, systemone
from insource.system import atomic_files

T = TypeVar("T")
WIRES: Mapping[Wire, ModuleType] = {
    "openai": openai_chat,
    "anthropic": anthropic_messages,
    "decisions": openai_decisions,
    "systemone": systemone,
}
AGAIN = (408, 409, 429)
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.5, 8.0
# Of timeout_seconds, for all of an attempt; a single wait for the wire has one.
LIMITS_AN_ATTEMPT = 3
_SHOWN_CHARACTERS = 300
# By name: which httpx the SDKs use is their own affair.
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")


@dataclass(frozen=True)
class Failed:
    """An attempt that brought no answer."""

    error: str
    again: bool
    """Whether it is fair to ask again at once."""
    another_day: bool
    """Whether it is fair to ask again later."""
    unsure: bool = False
    """Whether it may have been paid for all the same."""
    wait_seconds: float | None = None
    """What the server asks to wait before it is asked again."""
    busy: bool = False
    """Whether it was refused because too much is asked."""
    refused: bool = False
    """Whether it was refused for how it was asked: by key, account, model or parameters, and not by what it says."""


NOT_SENT = Failed("not sent", again=False, another_day=True)


@dataclass(frozen=True)
class _Asking:
    """What all requests to a backend share."""

    wire: ModuleType
    client: Any
    backend: Backend
    pace: Pace
    purse: Purse | None


class Line:
    """A backend that is asked one request at a time, as they come. What it says of its pace holds for all of them."""

    def __init__(self, backend: Backend, purse: Purse | None = None) -> None:
        """Raises RecipeError where the environment lacks what its SDK needs."""
        wire, pace = WIRES[backend.wire], Pace(backend.concurrency, backend.longest_wait_seconds)
        self.backend = backend
        self._client = wire.client(backend, pace.heard)
        self._asking = _Asking(wire, self._client, backend, pace, purse)

    async def reply(self, request: Request) -> Reply:
        """Returns the reply to a request. Raises what the purse raises."""
        return await _reply(self._asking, request)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()


async def replies(
    backend: Backend, requests: Iterable[Request], purse: Purse | None = None
) -> AsyncGenerator[Reply, None]:
    """Yields the reply to each request as it comes, in any order. Raises nothing for a request that fails: its reply
    says so. Requests are taken one by one, as there is room. `purse` is asked before every attempt."""
    wire = WIRES[backend.wire]
    waiting = iter(requests)
    pace = Pace(backend.concurrency, backend.longest_wait_seconds)
    async with wire.client(backend, pace.heard) as client:
        asking = _Asking(wire, client, backend, pace, purse)

        def more(room: int) -> set[asyncio.Task[Reply]]:
            chosen = [request for _, request in zip(range(room), waiting, strict=False)]
            return {asyncio.create_task(_reply(asking, request)) for request in chosen}

        running = more(backend.concurrency)
        try:
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running |= more(backend.concurrency - len(running))
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def ask(
    backend: Backend, requests: Sequence[Request], on_reply: Callable[[Reply], None] = lambda reply: None
) -> list[Reply]:
    """Returns the reply to each request, in their order; `on_reply` gets each as soon as it is there."""

    async def every() -> dict[str, Reply]:
        found = {}
        async for reply in replies(backend, requests):
            on_reply(reply)
            found[reply.id] = reply
        return found

    found = asyncio.run(every())
    return [found[request.id] for request in requests]


def shutdown_date(backend: Backend) -> str | None:
    """Returns the day (ISO 8601) when the provider will shut the model down, None where it announces none, does not
    say, or does not answer. A cloud, which has dates of its own, is not asked."""
    if backend.cloud:
        return None
    wire = WIRES[backend.wire]

    async def asked() -> str | Failed | None:
        async with wire.client(backend) as client:
            return await attempted(backend, wire.shutdown_date(client, backend), backend.timeout_seconds)

    found = asyncio.run(asked())
    return found if isinstance(found, str) else None


def request_sha256(backend: Backend, request: Request) -> str:
    """Returns the digest of what is sent and to where: equal for requests that are equal to the byte."""
    where = [backend.wire, backend.cloud or backend.base_url]
    return atomic_files.digest([*where, WIRES[backend.wire].body(backend, request)])


async def _reply(asking: _Asking, request: Request) -> Reply:
    backend, pace, purse = asking.backend, asking.pace, asking.purse
    found: Received | Failed = NOT_SENT
    latencies: list[float] = []
    began = time.monotonic()
    while True:
        if held := await pace.enter():
            found = _too_long(backend, found, held)
            break
        try:
            if purse and not await purse.reserve(request):
                break
            started = time.monotonic()
            found = await _attempt(asking, request)
        finally:
            pace.leave()
        # Until its first attempt a request waited for others, and not for its answer.
        began = began if latencies else started
        latencies.append(time.monotonic() - started)
        if isinstance(found, Received) or not found.again or len(latencies) > backend.retries:
            break
        wait = found.wait_seconds
        if wait is None:
            wait = min(wait_seconds(len(latencies)), backend.longest_wait_seconds)
        if wait > backend.longest_wait_seconds:
            found = _too_long(backend, found, wait)
            break
        await asyncio.sleep(wait)
    sha256, spent = request_sha256(backend, request), time.monotonic() - began if latencies else 0.0
    if isinstance(found, Received):
        return Reply(request.id, sha256, found, None, spent, tuple(latencies))
    return Reply(request.id, sha256, None, found.error, spent, tuple(latencies), found.another_day, found.refused)


def _too_long(backend: Backend, found: Received | Failed, wait: float) -> Failed:
    told = found.error if isinstance(found, Failed) else ""
    told += f" (asks to wait {wait:.0f} s, at most {backend.longest_wait_seconds:.0f} s are given)"
    return Failed(told, again=False, another_day=True)


async def _attempt(asking: _Asking, request: Request) -> Received | Failed:
    """Returns what one attempt brought, and tells pace and purse of it."""
    started, backend, purse = time.monotonic(), asking.backend, asking.purse
    try:
        call = asking.wire.send(asking.client, backend, request)
        found: Received | Failed = await attempted(backend, call, LIMITS_AN_ATTEMPT * backend.timeout_seconds)
    except BaseException:
        if purse:
            purse.settle(request, None, unsure=True)
        raise
    if isinstance(found, Received):
        asking.pace.faster()
    elif found.busy:
        asking.pace.slower(started)
    if purse:
        received = found if isinstance(found, Received) else None
        purse.settle(request, received, unsure=isinstance(found, Failed) and found.unsure)
    return found


async def attempted(backend: Backend, call: Awaitable[T], within_seconds: float | None) -> T | Failed:
    """Returns what a call of an SDK brought, or why it brought nothing. `within_seconds`: for all of it; the SDK's own
    limit is on each wait for the wire, and a body that drips has none.

    Both SDKs were generated alike: their errors have the same names.
    """
    import anthropic
    import openai

    try:
        async with asyncio.timeout(within_seconds):
            return await call
    except (TimeoutError, openai.APITimeoutError, anthropic.APITimeoutError) as error:
        told = f"no answer within {backend.timeout_seconds:g} s"
        return Failed(told, again=True, another_day=True, unsure=_was_sent(error))
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        cause = error.__cause__ or error
        told = f"no connection: {cause!s:.{_SHOWN_CHARACTERS}}" if str(cause) else f"no connection: {cause!r}"
        return Failed(told, again=True, another_day=True, unsure=_was_sent(error))
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return refused(error.status_code, api_errors.read(error.body, error.message), error.response.headers)
    except (openai.OpenAIError, anthropic.AnthropicError, ValueError, LookupError, AttributeError, TypeError) as error:
        return unreadable(error)


def unreadable(error: Exception) -> Failed:
    """Returns what it means that an answer is none. The SDKs build answers without checking: it shows when it is
    read."""
    told = f"the answer cannot be read: {error}"[:_SHOWN_CHARACTERS]
    return Failed(told, again=True, another_day=True, unsure=True)


def _was_sent(error: Exception) -> bool:
    """Returns whether the request may have reached the provider, who may then have worked for it."""
    return type(error.__cause__).__name__ not in _NEVER_SENT


def refused(status: int, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Failed:
    """Returns what an HTTP error means for the request."""
    again, how_asked = status in AGAIN or status >= 500, api_errors.how_asked(status, refusal)
    named = f" ({refusal.param})" if refusal.param and refusal.param not in refusal.message else ""
    return Failed(
        error=f"HTTP {status}: {refusal.message}"[:_SHOWN_CHARACTERS] + named,
        again=again,
        another_day=again or how_asked,
        wait_seconds=retry_after_seconds(headers or {}),
        busy=status in BUSY,
        refused=how_asked,
    )


def wait_seconds(failures: int) -> float:
    """Returns how long to wait after so many failures in succession: doubles with each, and differs from caller to
    caller, so that they do not all come back at once."""
    longest: float = min(LAST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)
