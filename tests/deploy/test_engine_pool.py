"""Routing over several engines: least-loaded, a second engine after a failure, none after the first byte."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.test_utils import TestServer, unused_port

from deploy.answers import engine_pool
from deploy.answers.engine_pool import MAX_ATTEMPTS, Engine, EnginePool
from deploy.answers.request_errors import RequestError
from tests.helpers.gateway.served_gateway import make_router
from tests.helpers.gateway.task_gateway import TASK_NAME, TASK_VERSION, gateway_client

MODEL = f"{TASK_NAME}@{TASK_VERSION}"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


async def answer(request: web.Request) -> web.StreamResponse:
    return web.json_response({"sent": (await request.read()).decode(), "path": request.path})


async def fail(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": "EngineDeadError"}, status=500)


async def break_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def break_off_in_the_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"half": ')
    return await break_off(request)


async def break_off_in_the_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"text": "la"}\n\n')
    await asyncio.sleep(0.1)
    return await break_off(request)


@asynccontextmanager
async def make_pool(*handlers: Handler) -> AsyncIterator[tuple[EnginePool, Counter[tuple[int, str]]]]:
    """Yield a pool with one engine for each handler, and the results: {(number of the engine, result): count}."""
    results: Counter[tuple[int, str]] = Counter()
    async with AsyncExitStack() as stack:
        engines = []
        for handler in handlers:
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", handler)
            server = await stack.enter_async_context(TestServer(app))
            session = await stack.enter_async_context(ClientSession(str(server.make_url("/"))))
            engines.append(Engine(str(server.make_url("/")), session, {MODEL}))
        numbers = {engine.url: number for number, engine in enumerate(engines)}

        def count(url: str, result: str) -> None:
            results[numbers[url], result] += 1

        yield EnginePool(engines, count), results


async def post(pool: EnginePool, body: Any = "x") -> Any:
    async with pool.route(MODEL).post("/v1/completions", json=body) as response:
        return await response.json()


def test_a_request_goes_to_the_engine_with_the_fewest_in_flight() -> None:
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return await answer(request)

    async def scenario() -> None:
        async with make_pool(wait, wait, wait) as (pool, results):
            tasks = []
            for expected in ([1, 1, 1], [2, 2, 2], [3, 2, 2]):
                while sum(engine.in_flight for engine in pool.engines) < sum(expected):
                    tasks.append(asyncio.create_task(post(pool)))
                    await asyncio.sleep(0.05)
                assert sorted((engine.in_flight for engine in pool.engines), reverse=True) == expected
            release.set()
            await asyncio.gather(*tasks)
            assert sum(results.values()) == 7 and all(engine.in_flight == 0 for engine in pool.engines)

    run(scenario)


@pytest.mark.parametrize("handler", [fail, break_off, break_off_in_the_body])
def test_after_a_failure_another_engine_gets_the_same_request(handler: Handler) -> None:
    async def scenario() -> None:
        async with make_pool(handler, answer) as (pool, results):
            body = b'{"a": 1}' * 1000
            async with pool.route(MODEL).post("/v1/messages", data=BytesIO(body), headers={"X": "y"}) as response:
                assert response.status == 200
                assert await response.json() == {"sent": body.decode(), "path": "/v1/messages"}
            assert results[1, "answered"] == 1 and pool.engines[0].suspect.is_set()
            # The suspect engine gets a request only if no other is left.
            for _ in range(3):
                await post(pool)
            assert results[1, "answered"] == 4 and pool.engines[0].n_requests == 1

    run(scenario)


@pytest.mark.parametrize("handler", [fail, break_off, break_off_in_the_body])
def test_if_every_engine_fails_the_client_is_asked_to_send_again(handler: Handler) -> None:
    async def scenario() -> None:
        async with make_pool(*[handler] * 5) as (pool, results):
            with pytest.raises(RequestError) as caught:
                await post(pool)
            assert (caught.value.status, caught.value.retry_seconds) == (503, 5)
            assert sum(results.values()) == MAX_ATTEMPTS, "a request that crashes engines reaches only some of them"
            assert all(engine.in_flight == 0 for engine in pool.engines)

    run(scenario)


def test_a_version_goes_only_to_engines_that_serve_it() -> None:
    async def scenario() -> None:
        async with make_pool(answer, answer, answer) as (pool, results):
            pool.engines[0].models = {"other@v1"}
            pool.engines[1].session = None
            for _ in range(4):
                await post(pool)
            assert results == {(2, "answered"): 4}
            assert pool.can_answer(MODEL) and pool.can_answer("other@v1") and not pool.can_answer("none@v1")
            pool.engines[2].models.clear()
            with pytest.raises(RequestError, match="no engine"):
                await post(pool)

    run(scenario)


def test_a_stream_that_breaks_off_after_its_first_chunk_is_not_sent_again() -> None:
    async def scenario() -> None:
        async with make_pool(break_off_in_the_stream, break_off_in_the_stream) as (pool, results):
            received = b""
            with pytest.raises(ClientError):
                async with pool.route(MODEL).post("/v1/completions", json={"stream": True}) as response:
                    async for chunk in response.content.iter_any():
                        received += chunk
            assert received == b'data: {"text": "la"}\n\n'
            assert sum(results.values()) == 1 and sum(engine.suspect.is_set() for engine in pool.engines) == 1

    run(scenario)


def test_an_answer_longer_than_what_is_read_ahead_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_pool, "MAX_READ_AHEAD_BYTES", 100_000)

    async def scenario() -> None:
        async with make_pool(answer) as (pool, _):
            text = b"x" * 2_000_000
            async with pool.route(MODEL).post("/v1/completions", data=BytesIO(text)) as response:
                assert (await response.json())["sent"] == text.decode()

    run(scenario)


def test_an_error_of_the_caller_is_no_failure_of_the_engine() -> None:
    async def scenario() -> None:
        async with make_pool(answer, answer) as (pool, results):
            with suppress(ConnectionResetError):
                async with pool.route(MODEL).post("/v1/completions", json="x"):
                    raise ConnectionResetError("the client disconnected")
            assert sum(results.values()) == 1 and not any(engine.suspect.is_set() for engine in pool.engines)

    run(scenario)


def test_tasks_decisions_and_chats_are_answered_by_the_engine_that_is_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            gateway_client(make_router(tmp_path)) as (client, engine, state),
            ClientSession(f"http://127.0.0.1:{unused_port()}") as lost,
        ):
            engines = [Engine("http://lost", lost, {MODEL}), Engine("http://left", state.engine, {MODEL})]
            state.pool = EnginePool(engines, state.monitor.metrics.count_engine_request)
            state.engine = None
            chat = {"model": TASK_NAME, "messages": [{"role": "user", "content": "says lost"}]}
            question = {"type": "predicate", "instructions": "late"}
            requests = [
                (f"/v1/tasks/{TASK_NAME}", {"inputs": ["says lost"] * 4}),
                ("/v1/decisions", {"model": TASK_NAME, "input": "a", "questions": [question]}),
                ("/v1/chat/completions", chat),
                ("/v1/chat/completions", chat | {"stream": True}),
                ("/v1/completions", {"model": TASK_NAME, "prompt": "x"}),
            ]
            for path, body in requests:
                response = await client.post(path, json=body)
                text = await response.text()
                assert response.status == 200 and "error" not in text, text
            assert engine.requests and engines[0].n_requests > 0
            metrics = await (await client.get("/metrics")).text()
            assert 'insource_engine_requests_total{engine="http://lost",result="broken_off"}' in metrics
            assert 'insource_engine_up{engine="http://left"} 1.0' in metrics
            engines[1].session = None
            response = await client.post("/v1/completions", json=requests[-1][1])
            assert response.status == 503 and response.headers["Retry-After"] == "5"
            state.pool = None

    run(scenario)
