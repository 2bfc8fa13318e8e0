"""Requests to a backend: bounded concurrency, retries, and each result as soon as it is complete.

async for result in stream_results(backend, requests):    closing the loop early cancels the requests in flight
    ...
complete_all(backend, requests)                           the same for synchronous callers, in request order
await BackendClient(backend).complete(request)            the same for requests that arrive one by one

Retried, up to `backend.retries` times: no connection, timeout, 408, 409, 429, 5xx, and a truncated response. The wait
that a server requests (Retry-After) applies to all requests to it (rate_limit.py). Any other error is final: a retry
would not help, or would resample the answer. An empty answer and a refusal by the model are answers. A request that is
refused because of its configuration (api_errors.py) is neither: its result has `refused` set.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from insource.backends import api_errors
from insource.backends.failures import (
    MAX_MESSAGE_CHARACTERS,
    NOT_SENT,
    AttemptFailure,
    backoff_seconds,
    failure_from_malformed_response,
    failure_from_status,
)
from insource.backends.rate_limit import RateLimiter
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
# Time limit of a complete attempt, in units of timeout_seconds, which limits each single wait for the network.
ATTEMPT_TIMEOUT_FACTOR = 3
# By name, because the SDKs choose their own httpx.
_NOT_SENT_ERRORS = ("ConnectError", "ConnectTimeout", "PoolTimeout")


@dataclass(frozen=True)
class _ClientState:
    """The state that all requests to a backend share."""

    api: ModuleType
    client: Any
    backend: Backend
    rate_limiter: RateLimiter
    limiter: SpendLimiter | None


class BackendClient:
    """A client for requests that arrive one by one. They share one rate limiter."""

    def __init__(self, backend: Backend, limiter: SpendLimiter | None = None) -> None:
        """Raise RecipeError if the environment lacks a variable or library that the SDK needs."""
        api = API_MODULES[backend.api_format]
        rate_limiter = RateLimiter(backend.concurrency, backend.max_retry_wait_seconds)
        self.backend = backend
        client = api.make_client(backend, rate_limiter.on_response)
        self._state = _ClientState(api, client, backend, rate_limiter, limiter)

    async def complete(self, request: Request) -> RequestResult:
        """Return the result of a request. Raise what the spend limiter raises."""
        return await _complete_with_retries(self._state, request)

    async def close(self) -> None:
        """Close the connections."""
        await self._state.client.close()


async def stream_results(
    backend: Backend, requests: Iterable[Request], limiter: SpendLimiter | None = None
) -> AsyncGenerator[RequestResult, None]:
    """Yield the result of each request as it completes, in any order.

    A failed request raises nothing: its result has the error. Requests are consumed lazily, as slots become free.
    `limiter` reserves the cost before every attempt.
    """
    api = API_MODULES[backend.api_format]
    pending = iter(requests)
    rate_limiter = RateLimiter(backend.concurrency, backend.max_retry_wait_seconds)
    async with api.make_client(backend, rate_limiter.on_response) as client:
        state = _ClientState(api, client, backend, rate_limiter, limiter)

        def start_tasks(n_free: int) -> set[asyncio.Task[RequestResult]]:
            batch = [request for _, request in zip(range(n_free), pending, strict=False)]
            return {asyncio.create_task(_complete_with_retries(state, request)) for request in batch}

        running = start_tasks(backend.concurrency)
        try:
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running |= start_tasks(backend.concurrency - len(running))
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def complete_all(backend: Backend, requests: Sequence[Request]) -> list[RequestResult]:
    """Return the result of each request, in request order."""

    async def gather_results() -> dict[str, RequestResult]:
        return {result.id: result async for result in stream_results(backend, requests)}

    results = asyncio.run(gather_results())
    return [results[request.id] for request in requests]


def fetch_shutdown_date(backend: Backend) -> str | None:
    """Return the day (ISO 8601) on which the provider will shut the model down, None if none is known.

    A cloud is not queried, because it has dates of its own.
    """
    if backend.cloud:
        return None
    api = API_MODULES[backend.api_format]

    async def fetch() -> str | AttemptFailure | None:
        async with api.make_client(backend) as client:
            return await call_sdk(backend, api.fetch_shutdown_date(client, backend), backend.timeout_seconds)

    date = asyncio.run(fetch())
    return date if isinstance(date, str) else None


def hash_request(backend: Backend, request: Request) -> str:
    """Return the digest of endpoint and request body: equal only for byte-identical requests."""
    endpoint = [backend.api_format, backend.cloud or backend.base_url]
    return atomic_files.digest([*endpoint, API_MODULES[backend.api_format].build_body(backend, request)])


async def _complete_with_retries(state: _ClientState, request: Request) -> RequestResult:
    backend, rate_limiter, limiter = state.backend, state.rate_limiter, state.limiter
    outcome: Completion | AttemptFailure = NOT_SENT
    latencies: list[float] = []
    started_at = time.monotonic()
    while True:
        if blocked_seconds := await rate_limiter.acquire():
            outcome = _make_long_wait_failure(backend, outcome, blocked_seconds)
            break
        try:
            if limiter and not await limiter.reserve(request):
                break
            attempt_started_at = time.monotonic()
            outcome = await _attempt(state, request)
        finally:
            rate_limiter.release()
        # The wait before the first attempt is a wait for other requests, not part of the latency.
        started_at = started_at if latencies else attempt_started_at
        latencies.append(time.monotonic() - attempt_started_at)
        if isinstance(outcome, Completion) or not outcome.retry_now or len(latencies) > backend.retries:
            break
        wait_seconds = outcome.wait_seconds
        if wait_seconds is None:
            wait_seconds = min(backoff_seconds(len(latencies)), backend.max_retry_wait_seconds)
        if wait_seconds > backend.max_retry_wait_seconds:
            outcome = _make_long_wait_failure(backend, outcome, wait_seconds)
            break
        await asyncio.sleep(wait_seconds)
    sha256, elapsed_seconds = hash_request(backend, request), time.monotonic() - started_at if latencies else 0.0
    if isinstance(outcome, Completion):
        return RequestResult(request.id, sha256, outcome, None, elapsed_seconds, tuple(latencies))
    return RequestResult(
        request.id, sha256, None, outcome.error, elapsed_seconds, tuple(latencies), outcome.retry_later, outcome.refused
    )


def _make_long_wait_failure(
    backend: Backend, outcome: Completion | AttemptFailure, wait_seconds: float
) -> AttemptFailure:
    message = outcome.error if isinstance(outcome, AttemptFailure) else ""
    message += f" (asks to wait {wait_seconds:.0f} s, at most {backend.max_retry_wait_seconds:.0f} s are given)"
    return AttemptFailure(message, retry_now=False, retry_later=True)


async def _attempt(state: _ClientState, request: Request) -> Completion | AttemptFailure:
    """Return the outcome of one attempt, and report it to the rate limiter and the spend limiter."""
    started_at, backend, limiter = time.monotonic(), state.backend, state.limiter
    try:
        call = state.api.send(state.client, backend, request)
        outcome: Completion | AttemptFailure = await call_sdk(
            backend, call, ATTEMPT_TIMEOUT_FACTOR * backend.timeout_seconds
        )
    except BaseException:
        if limiter:
            limiter.settle(request, None, possibly_charged=True)
        raise
    if isinstance(outcome, Completion):
        state.rate_limiter.on_success()
    elif outcome.rate_limited:
        state.rate_limiter.on_rate_limited(started_at)
    if limiter:
        completion = outcome if isinstance(outcome, Completion) else None
        limiter.settle(
            request, completion, possibly_charged=isinstance(outcome, AttemptFailure) and outcome.possibly_charged
        )
    return outcome


async def call_sdk(backend: Backend, call: Awaitable[T], within_seconds: float | None) -> T | AttemptFailure:
    """Return the result of an SDK call, or its failure.

    `within_seconds` limits the complete call. The SDK's own timeout limits each wait for the network only, so a body
    that arrives slowly has no limit. Both SDKs are generated by the same tool: their exceptions have the same names.
    """
    import anthropic
    import openai

    try:
        async with asyncio.timeout(within_seconds):
            return await call
    except (TimeoutError, openai.APITimeoutError, anthropic.APITimeoutError) as error:
        message = f"no answer within {backend.timeout_seconds:g} s"
        return AttemptFailure(message, retry_now=True, retry_later=True, possibly_charged=_may_have_been_sent(error))
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        cause = error.__cause__ or error
        message = f"no connection: {cause!s:.{MAX_MESSAGE_CHARACTERS}}" if str(cause) else f"no connection: {cause!r}"
        return AttemptFailure(message, retry_now=True, retry_later=True, possibly_charged=_may_have_been_sent(error))
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return failure_from_status(
            error.status_code, api_errors.parse_api_error(error.body, error.message), error.response.headers
        )
    except (openai.OpenAIError, anthropic.AnthropicError, ValueError, LookupError, AttributeError, TypeError) as error:
        return failure_from_malformed_response(error)


def _may_have_been_sent(error: Exception) -> bool:
    """Return whether the request may have reached the provider, and may be charged."""
    return type(error.__cause__).__name__ not in _NOT_SENT_ERRORS
