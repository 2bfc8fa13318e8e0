"""The door: who comes in, what passes, under which name. Behind it stands an engine that tells what it was asked."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from deploy import proxy

ASKED = {"model": "classifier", "messages": [{"role": "user", "content": "classifier@v1"}]}


@asynccontextmanager
async def door(api_key: str | None = None) -> AsyncIterator[tuple[TestClient[Any, Any], proxy.Door, list[Any]]]:
    """A door with an engine behind it; yields a client, the door, and what the engine was asked."""
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append((request.path, body, dict(request.headers)))
        if body.get("wait"):
            await asyncio.sleep(body["wait"])
        if body.get("break"):
            assert request.transport is not None
            request.transport.abort()
        if not body.get("stream"):
            return web.json_response({"model": body["model"], "text": "late"}, status=body.get("status", 200))
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for word in ("la", "te"):
            event = json.dumps({"model": body["model"], "text": word}, separators=(",", ":"))
            await stream.write(f"data: {event}\n\n".encode())
        await stream.write(b"data: [DONE]\n\n")
        return stream

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    made = proxy.Door(api_key)
    made.versions = {"classifier": "v1", "extractor": "v7"}
    async with TestServer(app) as engine, ClientSession(str(engine.make_url("/"))) as session:
        made.engine = session
        async with TestClient(TestServer(proxy.application(made))) as client:
            yield client, made, asked


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", proxy.ASKING)
def test_a_name_goes_in_as_its_version_and_comes_out_as_it_was(path: str) -> None:
    async def ask() -> None:
        async with door() as (client, _, asked):
            answer = await client.post(path, json=ASKED | {"temperature": 0})
            assert answer.status == 200
            assert await answer.json() == {"model": "classifier", "text": "late"}
            assert answer.headers[proxy.VERSION_HEADER] == "v1"
            ((there, body, _),) = asked
            assert there == path and body["model"] == "classifier@v1" and body["temperature"] == 0
            # What the person wrote is not touched.
            assert body["messages"] == ASKED["messages"]

    run(ask)


def test_a_stream_passes_event_by_event_with_the_name_put_back() -> None:
    async def ask() -> None:
        async with door() as (client, _, _asked):
            answer = await client.post("/v1/chat/completions", json=ASKED | {"stream": True})
            lines = (await answer.text()).split("\n\n")
            assert lines == [
                'data: {"model":"classifier","text":"la"}', 'data: {"model":"classifier","text":"te"}',
                "data: [DONE]", "",
            ]  # fmt: skip

    run(ask)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "secret"}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": "sécret"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer secret"}, 200),
        ({"x-api-key": "secret"}, 200),
    ],
)
def test_only_who_has_the_key_comes_in_and_the_engine_never_sees_it(headers: dict[str, str], status: int) -> None:
    async def ask() -> None:
        async with door("secret") as (client, _, asked):
            answer = await client.post("/v1/chat/completions", json=ASKED, headers=headers)
            assert answer.status == status
            assert (await client.get("/v1/models", headers=headers)).status == status
            assert len(asked) == (status == 200)
            assert all("secret" not in str(one) for one in asked)
            assert (await client.get("/health")).status == 200

    run(ask)


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/metrics", "/generative_scoring", "/invocations",
     "/v1/chat/completions/../../tokenize", "/v1/chat/completions/", "/docs", "/"],
)  # fmt: skip
def test_nothing_else_passes(path: str) -> None:
    async def ask() -> None:
        async with door() as (client, _, asked):
            for method in ("GET", "POST", "PUT", "DELETE"):
                answer = await client.request(method, path, json=ASKED)
                assert answer.status in (404, 405), (method, path)
            assert asked == []

    run(ask)


def test_what_cannot_be_asked_is_told_as_the_sdks_read_it() -> None:
    async def ask() -> None:
        async with door() as (client, made, asked):
            for body, status in (
                (b"{", 400),
                (b"[]", 404),
                (b'{"model": 3}', 404),
                (b'{"model": "classifier@v1"}', 404),
                (b'{"model": "pocket/model"}', 404),
                (b" " * (proxy.LARGEST_BODY_BYTES + 1), 413),
            ):
                answer = await client.post("/v1/messages", data=io.BytesIO(body))
                assert answer.status == status, body[:20]
                assert (await answer.json())["error"]["message"]
            assert asked == []
            listed = await (await client.get("/v1/models")).json()
            assert [one["id"] for one in listed["data"]] == ["classifier", "extractor"]
            made.engine = None
            answer = await client.post("/v1/messages", json=ASKED)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert (await client.get("/health")).status == 503

    run(ask)


def test_the_engines_own_refusal_passes_and_its_death_is_told() -> None:
    async def ask() -> None:
        async with door() as (client, made, _asked):
            answer = await client.post("/v1/messages", json=ASKED | {"status": 422})
            assert answer.status == 422
            answer = await client.post("/v1/messages", json=ASKED | {"break": True})
            assert answer.status == 503 and "broke off" in (await answer.json())["error"]["message"]
            assert made.on_their_way["classifier@v1"] == 0

    run(ask)


def test_requests_on_their_way_end_where_they_began() -> None:
    async def ask() -> None:
        async with door() as (client, made, asked):
            before = asyncio.create_task(client.post("/v1/messages", json=ASKED | {"wait": 0.3}))
            while not asked:
                await asyncio.sleep(0.01)
            assert made.on_their_way["classifier@v1"] == 1
            made.versions = made.versions | {"classifier": "v2"}
            after = await client.post("/v1/messages", json=ASKED)
            assert after.headers[proxy.VERSION_HEADER] == "v2"
            assert (await before).headers[proxy.VERSION_HEADER] == "v1"
            assert made.on_their_way["classifier@v1"] == 0

    run(ask)
