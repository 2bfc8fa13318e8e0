"""The proxy of the gateway before a stand-in engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from deploy.gateway import http_server, proxy
from deploy.gateway.proxy_state import ProxyState
from insource.config.schema.serving_and_cost import Limits
from serve.vllm.server_process import Address

REQUEST_BODY = {"model": "classifier", "messages": [{"role": "user", "content": "classifier@v1"}]}


@asynccontextmanager
async def run_proxy(
    api_key: str | None = None, limits: Limits | None = None, name: str = "classifier"
) -> AsyncIterator[tuple[TestClient[Any, Any], ProxyState, list[Any]]]:
    """A door with an engine behind it; yields a client, the door, and what the engine was asked."""
    requests: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        requests.append((request.path, body, dict(request.headers)))
        if body.get("wait"):
            await asyncio.sleep(body["wait"])
        if body.get("break"):
            assert request.transport is not None
            request.transport.abort()
        if "raw" in body:
            return web.Response(body=body["raw"].encode(), content_type=body.get("type", "application/json"))
        if not body.get("stream"):
            return web.json_response({"model": body["model"], "text": "late"}, status=body.get("status", 200))
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for word in ("la", "te"):
            event = json.dumps({"model": body["model"], "text": word}, separators=(",", ":"))
            await stream.write(f"data: {event}\n\n".encode())
        await stream.write(b"data: [DONE]\n\n")
        return stream

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handle)
    state = ProxyState(api_key, limits)
    state.versions = {name: "v1", "extractor": "v7"}
    async with TestServer(app) as engine, ClientSession(str(engine.make_url("/"))) as session:
        state.engine = session
        async with TestClient(TestServer(proxy.build_application(state))) as client:
            yield client, state, requests


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@asynccontextmanager
async def listen() -> AsyncIterator[tuple[int, ProxyState, list[Any]]]:
    """A door as it listens in the gateway."""
    async with run_proxy() as (_, state, requests):
        runner = http_server.build_runner(state, None)
        await runner.setup()
        assert runner.server is not None
        listener = await http_server.listen(runner.server, Address("127.0.0.1", 0))
        try:
            yield listener.sockets[0].getsockname()[1], state, requests
        finally:
            listener.close()
            await runner.cleanup()
