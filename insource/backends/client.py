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
from insource.backends.api_errors import ApiError
from insource.backends.rate_limit import RATE_LIMIT_STATUS, RateLimiter, retry_after_seconds
from insource.backends.types import ApiFormat, Backend, Completion, Request, RequestResult, SpendLimiter
from insource.backends.wire import anthropic_messages, openai_chat, openai_decisions, systemone
from insource.system import atomic_files

T = TypeVar("T")
API_MODULES: Mapping[ApiFormat, ModuleType] = {
    "openai": openai_chat,
    "anthropic": anthropic_messages,
    "decisions": openai_decisions,
    "systemone": systemone,
}
RETRY_STATUS = (408, 409, 429)
BACKOFF_BASE_SECONDS, BACKOFF_MAX_SECONDS = 0.5, 8.0
# Of timeout_seconds, for all of an attempt; a single wait for the wire has one.
ATTEMPT_TIMEOUT_FACTOR = 3
_MAX_MESSAGE_CHARACTERS = 300
# By name: which httpx the SDKs use is their own affair.
_NOT_SENT_ERRORS = ("ConnectError", "ConnectTimeout", "PoolTimeout")


@dataclass(frozen=True)
class AttemptFailure:
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


NOT_SENT = AttemptFailure("not sent", again=False, another_day=True)


@dataclass(frozen=True)
class _ClientState:
    """What all requests to a backend share."""

    wire: ModuleType
    client: Any
    backend: Backend
    pace: RateLimiter
    purse: SpendLimiter | None


class BackendClient:
    """A backend that is asked one request at a time, as they come. What it says of its pace holds for all of them."""

    def __init__(self, backend: Backend, purse: SpendLimiter | None = None) -> None:
        """Raises RecipeError where the environment lacks what its SDK needs."""
        wire, pace = API_MODULES[backend.wire], RateLimiter(backend.concurrency, backend.longest_wait_seconds)
        self.backend = backend
        self._client = wire.make_client(backend, pace.heard)
        self._asking = _ClientState(wire, self._client, backend, pace, purse)

    async def reply(self, request: Request) -> RequestResult:
        """Returns the reply to a request. Raises what the purse raises."""
        return await _complete_with_retries(self._asking, request)

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.close()


async def stream_results(
    backend: Backend, requests: Iterable[Request], purse: SpendLimiter | None = None
) -> AsyncGenerator[RequestResult, None]:
    """Yields the reply to each request as it comes, in any order. Raises nothing for a request that fails: its reply
    says so. Requests are taken one by one, as there is room. `purse` is asked before every attempt."""
    wire = API_MODULES[backend.wire]
    waiting = iter(requests)
    pace = RateLimiter(backend.concurrency, backend.longest_wait_seconds)
    async with wire.make_client(backend, pace.heard) as client:
        asking = _ClientState(wire, client, backend, pace, purse)

        def more(room: int) -> set[asyncio.Task[RequestResult]]:
            chosen = [request for _, request in zip(range(room), waiting, strict=False)]
            return {asyncio.create_task(_complete_with_retries(asking, request)) for request in chosen}

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


def complete_all(
    backend: Backend, requests: Sequence[Request], on_reply: Callable[[RequestResult], None] = lambda reply: None
) -> list[RequestResult]:
    """Returns the reply to each request, in their order; `on_reply` gets each as soon as it is there."""

    async def every() -> dict[str, RequestResult]:
        found = {}
        async for reply in stream_results(backend, requests):
            on_reply(reply)
            found[reply.id] = reply
        return found

    found = asyncio.run(every())
    return [found[request.id] for request in requests]


def fetch_shutdown_date(backend: Backend) -> str | None:
    """Returns the day (ISO 8601) when the provider will shut the model down, None where it announces none, does not
    say, or does not answer. A cloud, which has dates of its own, is not asked."""
    if backend.cloud:
        return None
    wire = API_MODULES[backend.wire]

    async def asked() -> str | AttemptFailure | None:
        async with wire.make_client(backend) as client:
            return await call_sdk(backend, wire.fetch_shutdown_date(client, backend), backend.timeout_seconds)

    found = asyncio.run(asked())
    return found if isinstance(found, str) else None


def hash_request(backend: Backend, request: Request) -> str:
    """Returns the digest of what is sent and to where: equal for requests that are equal to the byte."""
    where = [backend.wire, backend.cloud or backend.base_url]
    return atomic_files.digest([*where, API_MODULES[backend.wire].build_body(backend, request)])


async def _complete_with_retries(asking: _ClientState, request: Request) -> RequestResult:
    backend, pace, purse = asking.backend, asking.pace, asking.purse
    found: Completion | AttemptFailure = NOT_SENT
    latencies: list[float] = []
    began = time.monotonic()
    while True:
        if held := await pace.enter():
            found = _make_long_wait_failure(backend, found, held)
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
        if isinstance(found, Completion) or not found.again or len(latencies) > backend.retries:
            break
        wait = found.wait_seconds
        if wait is None:
            wait = min(backoff_seconds(len(latencies)), backend.longest_wait_seconds)
        if wait > backend.longest_wait_seconds:
            found = _make_long_wait_failure(backend, found, wait)
            break
        await asyncio.sleep(wait)
    sha256, spent = hash_request(backend, request), time.monotonic() - began if latencies else 0.0
    if isinstance(found, Completion):
        return RequestResult(request.id, sha256, found, None, spent, tuple(latencies))
    return RequestResult(
        request.id, sha256, None, found.error, spent, tuple(latencies), found.another_day, found.refused
    )


def _make_long_wait_failure(backend: Backend, found: Completion | AttemptFailure, wait: float) -> AttemptFailure:
    told = found.error if isinstance(found, AttemptFailure) else ""
    told += f" (asks to wait {wait:.0f} s, at most {backend.longest_wait_seconds:.0f} s are given)"
    return AttemptFailure(told, again=False, another_day=True)


async def _attempt(asking: _ClientState, request: Request) -> Completion | AttemptFailure:
    """Returns what one attempt brought, and tells pace and purse of it."""
    started, backend, purse = time.monotonic(), asking.backend, asking.purse
    try:
        call = asking.wire.send(asking.client, backend, request)
        found: Completion | AttemptFailure = await call_sdk(
            backend, call, ATTEMPT_TIMEOUT_FACTOR * backend.timeout_seconds
        )
    except BaseException:
        if purse:
            purse.settle(request, None, unsure=True)
        raise
    if isinstance(found, Completion):
        asking.pace.faster()
    elif found.busy:
        asking.pace.slower(started)
    if purse:
        received = found if isinstance(found, Completion) else None
        purse.settle(request, received, unsure=isinstance(found, AttemptFailure) and found.unsure)
    return found


async def call_sdk(backend: Backend, call: Awaitable[T], within_seconds: float | None) -> T | AttemptFailure:
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
        return AttemptFailure(told, again=True, another_day=True, unsure=_may_have_been_sent(error))
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        cause = error.__cause__ or error
        told = f"no connection: {cause!s:.{_MAX_MESSAGE_CHARACTERS}}" if str(cause) else f"no connection: {cause!r}"
        return AttemptFailure(told, again=True, another_day=True, unsure=_may_have_been_sent(error))
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return failure_from_status(
            error.status_code, api_errors.parse_api_error(error.body, error.message), error.response.headers
        )
    except (openai.OpenAIError, anthropic.AnthropicError, ValueError, LookupError, AttributeError, TypeError) as error:
        return failure_from_malformed_response(error)


def failure_from_malformed_response(error: Exception) -> AttemptFailure:
    """Returns what it means that an answer is none. The SDKs build answers without checking: it shows when it is
    read."""
    told = f"the answer cannot be read: {error}"[:_MAX_MESSAGE_CHARACTERS]
    return AttemptFailure(told, again=True, another_day=True, unsure=True)


def _may_have_been_sent(error: Exception) -> bool:
    """Returns whether the request may have reached the provider, who may then have worked for it."""
    return type(error.__cause__).__name__ not in _NOT_SENT_ERRORS


def failure_from_status(status: int, refusal: ApiError, headers: Mapping[str, str] | None = None) -> AttemptFailure:
    """Returns what an HTTP error means for the request."""
    again, how_asked = status in RETRY_STATUS or status >= 500, api_errors.is_configuration_error(status, refusal)
    named = f" ({refusal.param})" if refusal.param and refusal.param not in refusal.message else ""
    return AttemptFailure(
        error=f"HTTP {status}: {refusal.message}"[:_MAX_MESSAGE_CHARACTERS] + named,
        again=again,
        another_day=again or how_asked,
        wait_seconds=retry_after_seconds(headers or {}),
        busy=status in RATE_LIMIT_STATUS,
        refused=how_asked,
    )


def backoff_seconds(failures: int) -> float:
    """Returns how long to wait after so many failures in succession: doubles with each, and differs from caller to
    caller, so that they do not all come back at once."""
    longest: float = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)
