"""Requests to a backend: at most so many at once, asked again where that is fair, each reply as soon as it is there.

    async for reply in replies(backend, requests):    closing the loop early cancels what is on its way
        ...
    ask(backend, requests)                            the same for callers that are not asynchronous, in order

Asked again, up to `backend.retries` times: no connection, no answer in time, 408, 409, 429, 5xx, and an answer cut
short. What a server says of when to come back (Retry-After) is heeded. Anything else is final: to ask a second time
would not help, or would be a second throw of the dice.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

from backends import anthropic_wire, openai_wire
from backends.exchange import Backend, Received, Reply, Request, Wire
from tracking import files

WIRES: Mapping[Wire, ModuleType] = {"openai": openai_wire, "anthropic": anthropic_wire}
AGAIN = (408, 409, 429)
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.5, 8.0
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class _Failed:
    """An attempt that brought no answer."""

    error: str
    again: bool
    wait_seconds: float | None = None
    """What the server asks to wait before it is asked again."""


async def replies(backend: Backend, requests: Sequence[Request]) -> AsyncIterator[Reply]:
    """Yields the reply to each request as it comes, in any order. Raises nothing for a request that fails: its reply
    says so."""
    wire = WIRES[backend.wire]
    waiting = iter(requests)
    async with wire.client(backend) as client:

        def more(room: int) -> set[asyncio.Task[Reply]]:
            chosen = [request for _, request in zip(range(room), waiting, strict=False)]
            return {asyncio.create_task(_reply(wire, client, backend, request)) for request in chosen}

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


def request_sha256(backend: Backend, request: Request) -> str:
    """Returns the digest of what is sent and to where: equal for requests that are equal to the byte."""
    return files.digest([backend.wire, backend.base_url, WIRES[backend.wire].body(backend, request)])


async def _reply(wire: ModuleType, client: Any, backend: Backend, request: Request) -> Reply:
    began = time.monotonic()
    latencies: list[float] = []
    while True:
        attempt = time.monotonic()
        found = await _attempt(wire, client, backend, request)
        latencies.append(time.monotonic() - attempt)
        received, error = (found, None) if isinstance(found, Received) else (None, found.error)
        if isinstance(found, _Failed) and found.again and len(latencies) <= backend.retries:
            wait = _wait_seconds(len(latencies)) if found.wait_seconds is None else found.wait_seconds
            if wait <= backend.longest_wait_seconds:
                await asyncio.sleep(wait)
                continue
            error = f"{found.error} (asks to wait {wait:.0f} s, at most {backend.longest_wait_seconds:.0f} s are given)"
        sha256, spent = request_sha256(backend, request), time.monotonic() - began
        return Reply(request.id, sha256, received, error, spent, tuple(latencies))


async def _attempt(wire: ModuleType, client: Any, backend: Backend, request: Request) -> Received | _Failed:
    """Returns what one attempt brought. Both SDKs were generated alike: their errors have the same names."""
    import anthropic
    import openai

    try:
        return await wire.send(client, backend, request)  # type: ignore[no-any-return]
    except (openai.APITimeoutError, anthropic.APITimeoutError):
        return _Failed(f"no answer within {backend.timeout_seconds:g} s", again=True)
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        return _Failed(f"no connection: {error.__cause__ or error}", again=True)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        again = error.status_code in AGAIN or error.status_code >= 500
        told = f"HTTP {error.status_code}: {error.message}"[:_SHOWN_CHARACTERS]
        return _Failed(told, again, retry_after_seconds(error.response.headers))
    except (openai.OpenAIError, anthropic.AnthropicError, ValueError, AttributeError, TypeError) as error:
        # The SDKs build their answers without checking: what is no answer shows when it is read.
        return _Failed(f"the answer cannot be read: {error}"[:_SHOWN_CHARACTERS], again=True)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Returns how long a server asks to wait (retry-after-ms, or Retry-After in seconds or as a date), None if it does
    not say."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None


def _wait_seconds(failures: int) -> float:
    """Doubles with each failure, and differs from caller to caller, so that they do not all come back at once."""
    longest: float = min(LAST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)
