"""Several vLLM engines that were started elsewhere: each request goes to the one with the fewest requests in flight.

    pool = EnginePool([Engine("http://10.0.0.5:8001"), Engine("http://10.0.0.6:8001")], metrics.count_engine_request)
    async with pool.route("classifier@3f2a90c17b5e44d0").post("/v1/completions", json=body) as response:
        ...

If an engine breaks off, or answers 5xx, before the client got a byte of the answer, another engine gets the request.
Therefore a response is read before it is returned: completely, or of a stream the first chunk.
"""

import asyncio
import json as json_module
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession

from deploy.answers.request_errors import RequestError

MAX_ATTEMPTS = 3
"""Maximum number of engines that get the same request, so that a request that crashes its engine spares the others."""
MAX_READ_AHEAD_BYTES = 32 * 2**20
ANSWERED, BROKEN_OFF, FAILED = "answered", "broken_off", "failed"
"""Results of a request to an engine: an answer, a lost connection, a status of 500 or more."""
CONNECTION_ERRORS = (ClientError, TimeoutError, OSError, RuntimeError)
"""Errors of a lost connection. RuntimeError: the session was closed."""


@dataclass(eq=False)
class Engine:
    """One vLLM engine and its state."""

    url: str
    session: ClientSession | None = None
    """None while the engine is down."""
    models: set[str] = field(default_factory=set)
    """Names in vLLM of the versions that passed their check on this engine."""
    refused: dict[str, str] = field(default_factory=dict)
    """{name in vLLM: reason} of the versions that did not."""
    loaded: set[str] = field(default_factory=set)
    """Names of the adapters that the gateway loaded, and therefore unloads."""
    in_flight: int = 0
    n_requests: int = 0
    last_data_at: float = 0.0
    """Time of the last data from the engine (time.monotonic)."""
    suspect: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after a lost connection or a status of 500 or more, until the engine passes a health check."""

    def record_data(self) -> None:
        """Record that the engine sent data."""
        self.last_data_at = time.monotonic()

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Count a request while it is in flight."""
        self.in_flight += 1
        self.n_requests += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class EngineResponse:
    """The response of an engine whose first chunks have been read."""

    def __init__(self, response: ClientResponse, chunks: Sequence[bytes], engine: Engine) -> None:
        self.status, self.headers = response.status, response.headers
        self._response, self._chunks, self._engine = response, chunks, engine

    @property
    def content(self) -> "EngineResponse":
        """Return the body, as aiohttp's responses name it."""
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield the chunks of the body as they arrive. Raise ClientError if the engine breaks off."""
        for chunk in self._chunks:
            yield chunk
        try:
            async for chunk in self._response.content.iter_any():
                self._engine.record_data()
                yield chunk
        except CONNECTION_ERRORS:
            self._engine.suspect.set()
            raise

    async def json(self, content_type: str | None = None) -> Any:
        """Return the body as JSON. Raise ValueError if it is not JSON."""
        return json_module.loads(b"".join([chunk async for chunk in self.iter_any()]))


class EnginePool:
    """The engines behind a gateway."""

    def __init__(self, engines: Sequence[Engine], count_request: Callable[[str, str], None]) -> None:
        """`count_request` gets the URL of an engine and the result of each request to it."""
        self.engines, self._count_result = engines, count_request

    def can_answer(self, model: str) -> bool:
        """Return whether an engine serves a version. `model` is its name in vLLM."""
        return any(engine.session is not None and model in engine.models for engine in self.engines)

    def route(self, model: str) -> "ModelRoute":
        """Return the sender of requests to a version."""
        return ModelRoute(self, model)

    @asynccontextmanager
    async def post(
        self, model: str, path: str, data: BytesIO | None, json: object, headers: Mapping[str, str] | None
    ) -> AsyncIterator[EngineResponse]:
        """Yield the response to a request. Raise RequestError (503) if no engine gives one."""
        payload = data.getvalue() if data is not None else None
        attempted_engines: list[Engine] = []
        while (
            len(attempted_engines) < MAX_ATTEMPTS
            and (engine := self._choose_engine(model, attempted_engines)) is not None
        ):
            attempted_engines.append(engine)
            body: dict[str, Any] = {"json": json} if payload is None else {"data": BytesIO(payload)}
            with engine.count_request():
                async with AsyncExitStack() as stack:
                    try:
                        assert engine.session is not None
                        response = await stack.enter_async_context(engine.session.post(path, headers=headers, **body))
                        chunks = await _read_ahead(response)
                    except CONNECTION_ERRORS:
                        self._record_failure(engine, BROKEN_OFF)
                        continue
                    if response.status >= 500:  # vLLM's HTTP server may outlive its engine
                        self._record_failure(engine, FAILED)
                        continue
                    self._count_result(engine.url, ANSWERED)
                    engine.record_data()
                    yield EngineResponse(response, chunks, engine)
                    return
        problem = f"{len(attempted_engines)} engines failed" if attempted_engines else "no engine can answer now"
        raise RequestError(503, "overloaded_error", f"{problem}; send the request again", retry_seconds=5)

    def _choose_engine(self, model: str, attempted_engines: Sequence[Engine]) -> Engine | None:
        """Return the engine with the fewest requests in flight; a suspect one only if there is no other."""
        available = [
            engine
            for engine in self.engines
            if engine.session is not None and model in engine.models and engine not in attempted_engines
        ]
        # Of engines with equal load, the one with fewer requests so far: they take turns.
        return min(
            available, key=lambda engine: (engine.suspect.is_set(), engine.in_flight, engine.n_requests), default=None
        )

    def _record_failure(self, engine: Engine, result: str) -> None:
        self._count_result(engine.url, result)
        engine.suspect.set()


@dataclass(frozen=True)
class ModelRoute:
    """Requests to one version, on any engine. It has the method of aiohttp's session that the gateway uses."""

    pool: EnginePool
    model: str

    def post(
        self, path: str, *, data: BytesIO | None = None, json: object = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[EngineResponse]:
        """Return the response to a request as a context manager; see `EnginePool.post`."""
        return self.pool.post(self.model, path, data, json, headers)


EngineSession = ClientSession | ModelRoute
"""The session with the gateway's own vLLM, or the route to one of several engines."""


async def _read_ahead(response: ClientResponse) -> list[bytes]:
    """Return the body as chunks: all of it up to MAX_READ_AHEAD_BYTES, or of a stream the first chunk."""
    if response.headers.get("Content-Type", "").startswith("text/event-stream"):
        return [await response.content.readany()]
    chunks, n_bytes = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        n_bytes += len(chunk)
        if n_bytes > MAX_READ_AHEAD_BYTES:
            break
    return chunks
