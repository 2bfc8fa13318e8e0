"""Forward a request to vLLM and its answer to the client: complete, or line by line for a stream.

A client that reads nothing for WRITE_SECONDS is disconnected. At most a chunk of a stream or an answer of
MAX_ANSWER_BYTES waits for it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiohttp import ClientError, ClientResponse, web

from deploy.answers.engine_pool import EngineResponse, EngineSession
from deploy.answers.outcome import VERSION_HEADER
from deploy.gateway.paths import model_names

MAX_ANSWER_BYTES = 32 * 2**20
MAX_LINE_BYTES = 8 * 2**20
WRITE_SECONDS, MIN_BYTES_PER_SECOND = 30.0, 64 * 2**10
_CHUNK_BYTES = 64 * 2**10
# Other headers are not forwarded: keys, cookies, compression, and those of one connection.
_REQUEST_HEADERS = ("accept", "anthropic-version", "anthropic-beta", "x-request-id", "traceparent", "tracestate")
_RESPONSE_HEADERS = ("content-type", "cache-control", "retry-after", "x-request-id")

USED_TOKENS = web.ResponseKey("used_tokens", tuple)
"""Input and output tokens of an answer of vLLM that is not a stream."""


class ConnectionLostError(Exception):
    """vLLM did not answer."""


class AnswerTooLargeError(Exception):
    """The answer exceeds MAX_ANSWER_BYTES."""


@dataclass(frozen=True)
class ModelNames:
    """The names of a model in vLLM and for the client, and its version."""

    internal_name: str
    public_name: str
    version: str

    @property
    def model(self) -> str:
        """Name without the version."""
        return self.internal_name.removesuffix(f"@{self.version}")


async def forward(
    engine: EngineSession, request: web.Request, body: bytes, names: ModelNames, on_data: Callable[[], None]
) -> web.StreamResponse:
    """Send a request to vLLM and its answer to the client. `on_data` is called whenever vLLM sends data.

    Raise ConnectionLostError if vLLM ends before data was sent to the client, RequestError if no engine of several
    answers, and AnswerTooLargeError for a too large answer. Raise ConnectionError if the answer is incomplete or the
    client disconnected.
    """
    answer: web.StreamResponse | None = None
    try:
        async with engine.post(request.path, data=BytesIO(body), headers=_build_headers(request.headers)) as response:
            # vLLM's HTTP server may answer 5xx after its engine died.
            notify = on_data if response.status < 500 else _ignore
            notify()
            if _is_stream(response):
                answer = _build_response(response, names)
                await _send_by_line(request, answer, _iter_chunks(response, notify), names)
            else:
                content = await _read_answer(response, notify)
                content = model_names.restore_name(content, names.internal_name, names.public_name)
                answer = _build_response(response, names)
                answer[USED_TOKENS] = model_names.read_usage(content)
                await _send_whole(request, answer, content)
            return answer
    except (ClientError, RuntimeError) as error:  # RuntimeError: the session was closed with its vLLM
        if answer is not None:
            # Part of the answer was sent: close the connection, so that the client detects it.
            raise ConnectionResetError(f"vLLM broke off: {type(error).__name__}") from None
        raise ConnectionLostError(f"the model broke off: {type(error).__name__}") from None
    except model_names.LineTooLongError as error:
        raise ConnectionResetError(f"a line of vLLM's stream has {error}") from None


async def send_json(request: web.Request, payload: Any, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send a JSON answer of the gateway itself, with the same timeout as vLLM's answers.

    Raise ConnectionResetError if the client does not read it.
    """
    answer = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8", **headers})
    await _send_whole(request, answer, json.dumps(payload).encode())
    return answer


async def send_events(request: web.Request, payload: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send a complete list of events, with the same timeout.

    Raise ConnectionResetError if the client does not read it.
    """
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **headers})
    await answer.prepare(request)
    async with _write_timeout(request, WRITE_SECONDS + len(payload) / MIN_BYTES_PER_SECOND):
        await answer.write(payload)
        await answer.write_eof()
    return answer


def _build_headers(headers: Mapping[str, str]) -> dict[str, str]:
    forwarded = {name: headers[name] for name in _REQUEST_HEADERS if name in headers}
    return forwarded | {"Content-Type": "application/json", "Accept-Encoding": "identity"}


def _is_stream(response: ClientResponse | EngineResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def _build_response(response: ClientResponse | EngineResponse, names: ModelNames) -> web.StreamResponse:
    headers = {name: response.headers[name] for name in _RESPONSE_HEADERS if name in response.headers}
    return web.StreamResponse(status=response.status, headers=headers | {VERSION_HEADER: names.version})


async def _iter_chunks(response: ClientResponse | EngineResponse, on_data: Callable[[], None]) -> AsyncIterator[bytes]:
    async for chunk in response.content.iter_any():
        on_data()
        yield chunk


async def _read_answer(response: ClientResponse | EngineResponse, on_data: Callable[[], None]) -> bytes:
    content = bytearray()
    async for chunk in _iter_chunks(response, on_data):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise AnswerTooLargeError(
                f"the answer has more than {MAX_ANSWER_BYTES // 2**20} MiB; ask for less, or for a stream"
            )
    return bytes(content)


async def _send_by_line(
    request: web.Request, answer: web.StreamResponse, chunks: AsyncIterator[bytes], names: ModelNames
) -> None:
    await answer.prepare(request)
    restored = model_names.restore_name_in_stream(chunks, names.internal_name, names.public_name, MAX_LINE_BYTES)
    async for part in restored:
        async with _write_timeout(request, WRITE_SECONDS):
            await answer.write(part)
    async with _write_timeout(request, WRITE_SECONDS):
        await answer.write_eof()


async def _send_whole(request: web.Request, answer: web.StreamResponse, content: bytes) -> None:
    answer.content_length = len(content)
    await answer.prepare(request)
    async with _write_timeout(request, WRITE_SECONDS + len(content) / MIN_BYTES_PER_SECOND):
        for start in range(0, len(content), _CHUNK_BYTES):
            await answer.write(content[start : start + _CHUNK_BYTES])
        await answer.write_eof()


@asynccontextmanager
async def _write_timeout(request: web.Request, seconds: float) -> AsyncIterator[None]:
    """Limit the time of the block that writes to the client. Raise ConnectionResetError if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        if request.transport:
            request.transport.abort()
        raise ConnectionResetError("the client takes nothing") from None


def _ignore() -> None:
    pass
