"""The client for every backend: the official SDKs against a server on loopback that behaves as badly as real ones."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from insource.backends import client as asking
from insource.backends import collection, failures
from insource.backends.client import complete_all, hash_request, stream_results
from insource.backends.rate_limit import retry_after_seconds
from insource.backends.types import ApiFormat, Backend, Constraint, Request, RequestResult
from insource.backends.wire import json_schema
from tests.helpers.provider.provider_rules import find_refusal

ENUM = {"type": "string", "enum": ["late", "lost"]}
QUESTION = Request("T1", [{"role": "user", "content": "where is it?"}], 16, Constraint('root ::= "late"', ENUM))
Answer = Callable[[web.Request, int], Any]


@contextmanager
def provider(handler: Answer, is_vllm: bool = False) -> Iterator[str]:
    """A server on loopback; `handler` gets the request and how many came before it. Yields its address. A request that
    its API would refuse is refused (provider_rules.py). `is_vllm`: it is a vLLM, which takes more."""
    loop, started, count = asyncio.new_event_loop(), threading.Event(), iter(range(10**6))
    state: dict[str, Any] = {}

    async def handle(request: web.Request) -> web.StreamResponse:
        api = "messages" if request.path.endswith("/messages") else "chat"
        if not is_vllm and (violation := find_refusal(api, request.headers, await request.json())):
            return web.json_response(violation.body(api), status=violation.status)
        response = handler(request, next(count))
        return await response if asyncio.iscoroutine(response) else response

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        state["port"] = runner.addresses[0][1]
        state["stop"] = asyncio.Event()
        started.set()
        await state["stop"].wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{state['port']}"
    finally:
        loop.call_soon_threadsafe(state["stop"].set)
        thread.join()
        loop.close()


def completion(text: str = "late") -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "classifier-2026-11-01",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": [{"token": "la", "logprob": -0.25, "top_logprobs": []}] * 2},
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 12,
            "total_tokens": 42,
            "prompt_tokens_details": {"cached_tokens": 16},
            "completion_tokens_details": {"reasoning_tokens": 9},
        },
    }


def message(text: str = "late") -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 3, "cache_read_input_tokens": 16, "cache_creation_input_tokens": 4}
    content = [{"type": "text", "text": text}]
    return {"id": "m1", "type": "message", "role": "assistant", "model": "haiku-1", "content": content,
            "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}  # fmt: skip


def openai(address: str, **kwargs: Any) -> Backend:
    return replace(Backend("openai", "classifier", f"{address}/v1", api_key="secret", timeout_seconds=5), **kwargs)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are real, and short."""
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


def one(backend: Backend, request: Request = QUESTION) -> RequestResult:
    (reply,) = complete_all(backend, [request])
    return reply


def test_openai_wire_brings_answer_usage_and_log_probability() -> None:
    with provider(lambda request, n: web.json_response(completion())) as address:
        reply = one(openai(address, log_probabilities=True))
    received = reply.completion
    assert received is not None and reply.error is None
    assert (received.output, received.model_id, received.finish_reason) == ("late", "classifier-2026-11-01", "stop")
    assert received.log_probability == pytest.approx(-0.5)
    usage = received.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens) == (30, 16, 12, 9)
    assert len(reply.attempt_latencies_seconds) == 1
    assert reply.latency_seconds >= reply.attempt_latencies_seconds[0]


def test_anthropic_wire_counts_cached_tokens_as_read() -> None:
    with provider(lambda request, n: web.json_response(message())) as address:
        reply = one(Backend("anthropic", "claude-haiku-5-5", address, api_key="secret", temperature=None))
    assert reply.completion is not None
    assert (reply.completion.output, reply.completion.finish_reason) == ("late", "stop")
    assert (reply.completion.usage.input_tokens, reply.completion.usage.cached_tokens) == (30, 16)


def seen(wire: ApiFormat, structured: Any, response_body: Any) -> tuple[dict[str, Any], dict[str, str], RequestResult]:
    """What a provider was sent, and what became of its answer."""
    bodies: list[Any] = []

    async def record_request(request: web.Request) -> web.Response:
        bodies.append((await request.json(), dict(request.headers)))
        return web.json_response(response_body)

    with provider(lambda request, n: record_request(request), is_vllm=structured == "grammar") as address:
        base, model = (f"{address}/v1", "classifier") if wire == "openai" else (address, "claude-haiku-5-5")
        temperature = 0.0 if wire == "openai" else None
        reply = one(Backend(wire, model, base, api_key="secret", structured=structured, temperature=temperature))
    return *bodies[0], reply


def test_the_constraint_goes_as_the_backend_takes_it() -> None:
    body, headers, reply = seen("openai", "grammar", completion())
    assert body["structured_outputs"] == {"grammar": 'root ::= "late"'}
    assert headers["Authorization"] == "Bearer secret"
    assert (body["temperature"], body["max_completion_tokens"]) == (0.0, 16)
    body, _, reply = seen("openai", "json_schema", completion('{"answer": "lost"}'))
    assert body["response_format"]["json_schema"]["schema"]["properties"]["answer"] == ENUM
    assert reply.completion is not None and reply.completion.output == "lost"
    body, headers, reply = seen("anthropic", "json_schema", message('{"answer": "lost"}'))
    assert body["output_config"]["format"]["schema"]["required"] == ["answer"]
    assert reply.completion is not None and reply.completion.output == "lost"
    body, _, _ = seen("openai", "none", completion())
    assert "structured_outputs" not in body and "response_format" not in body


def test_an_object_schema_and_what_does_not_fit_stay_as_they_are() -> None:
    record = {"type": "object", "properties": {"total": {"type": "string"}}}
    assert json_schema.wrap_in_object(record) == record
    assert json_schema.unwrap_answer(record, '{"answer": "x"}') == '{"answer": "x"}'
    for text in ("late", '{"label": "late"}', '{"answer": 3}', "[" * 10_000):
        assert json_schema.unwrap_answer(ENUM, text) == text


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_asked_again_and_every_attempt_is_timed(status: int) -> None:
    def twice_bad(request: web.Request, n: int) -> web.Response:
        return web.json_response(
            completion() if n == 2 else {"error": {"message": "busy"}}, status=200 if n == 2 else status
        )

    with provider(twice_bad) as address:
        reply = one(openai(address))
    assert reply.completion is not None and reply.error is None
    assert len(reply.attempt_latencies_seconds) == 3


def test_the_documentation_names_the_statuses_that_are_asked_again() -> None:
    for status in failures.RETRY_STATUS:
        assert str(status) in (asking.__doc__ or "") and str(status) in (collection.__doc__ or "")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_will_not_pass_is_asked_once(status: int) -> None:
    def refuse(request: web.Request, n: int) -> web.Response:
        return web.json_response({"error": {"message": "no such model"}}, status=status)

    with provider(refuse) as address:
        reply = one(openai(address))
    assert reply.completion is None and len(reply.attempt_latencies_seconds) == 1
    assert reply.error is not None and f"HTTP {status}" in reply.error and "no such model" in reply.error


def test_attempts_are_bounded() -> None:
    with provider(lambda request, n: web.json_response({}, status=500)) as address:
        reply = one(openai(address, retries=2))
    assert reply.completion is None and len(reply.attempt_latencies_seconds) == 3


def test_retry_after_is_waited_for_and_too_long_a_wait_is_not() -> None:
    def busy(request: web.Request, n: int) -> web.Response:
        if n == 0:
            return web.json_response({}, status=429, headers={"Retry-After": "0.6"})
        return web.json_response(completion())

    with provider(busy) as address:
        reply = one(openai(address))
        assert reply.completion is not None and reply.latency_seconds >= 0.6
    with provider(lambda request, n: web.json_response({}, status=429, headers={"Retry-After": "3600"})) as address:
        started_at = time.monotonic()
        reply = one(openai(address))
    assert time.monotonic() - started_at < 5
    assert reply.completion is None and reply.error is not None and "asks to wait 3600 s" in reply.error


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after_seconds({"retry-after-ms": "250"}) == 0.25
    assert retry_after_seconds({"retry-after": "7"}) == 7
    delay_seconds = retry_after_seconds({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert delay_seconds is not None and 55 < delay_seconds <= 61
    assert retry_after_seconds({"retry-after": "soon"}) is None
    assert retry_after_seconds({}) is None


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "body", [b"{not json", b"", b'"text"', b"[]", b"{}", b'{"choices": []}', b'{"choices": null, "content": null}']
)
def test_an_answer_that_cannot_be_read_is_a_failure_and_no_crash(wire: ApiFormat, body: bytes) -> None:
    with provider(lambda request, n: web.Response(body=body, content_type="application/json")) as address:
        base = f"{address}/v1" if wire == "openai" else address
        reply = one(Backend(wire, "classifier", base, temperature=None, retries=1, timeout_seconds=5))
    assert reply.completion is None and reply.error and "HTTP" not in reply.error
    assert len(reply.attempt_latencies_seconds) == 2


def test_a_reset_and_a_body_cut_short_are_asked_again() -> None:
    async def truncate(request: web.Request, n: int) -> web.StreamResponse:
        assert request.transport is not None
        if n == 0:
            request.transport.abort()
            return web.Response()
        if n == 1:
            answer = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
            await answer.prepare(request)
            await answer.write(json.dumps(completion()).encode()[:40])
            request.transport.close()
            return answer
        return web.json_response(completion())

    with provider(truncate) as address:
        reply = one(openai(address))
    assert reply.completion is not None and len(reply.attempt_latencies_seconds) == 3


def test_no_answer_in_time_and_nobody_there() -> None:
    async def late(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    with provider(lambda request, n: late(request)) as address:
        reply = one(openai(address, timeout_seconds=0.2, retries=1))
    assert reply.completion is None and reply.error == "no answer within 0.2 s"
    reply = one(openai("http://127.0.0.1:9", retries=0))
    assert reply.completion is None and reply.error is not None and reply.error.startswith("no connection")


def test_only_so_many_at_once_and_all_in_order() -> None:
    in_flight, max_in_flight = 0, 0

    async def slow(request: web.Request) -> web.Response:
        nonlocal in_flight, max_in_flight
        in_flight += 1
        max_in_flight = max(max_in_flight, in_flight)
        content = (await request.json())["messages"][0]["content"]
        await asyncio.sleep(0.01)
        in_flight -= 1
        return web.json_response(completion(content))

    requests = [replace(QUESTION, id=f"T{n}", messages=[{"role": "user", "content": f"row {n}"}]) for n in range(40)]
    with provider(lambda request, n: slow(request)) as address:
        replies = complete_all(openai(address, concurrency=7), requests)
    assert [reply.completion.output for reply in replies if reply.completion] == [f"row {n}" for n in range(40)]
    assert 1 < max_in_flight <= 7


def test_leaving_early_cancels_what_is_on_its_way() -> None:
    arrivals: list[int] = []

    async def answer(request: web.Request, n: int) -> web.Response:
        arrivals.append(n)
        await asyncio.sleep(0.01 if n == 0 else 30)
        return web.json_response(completion())

    async def first(backend: Backend) -> RequestResult:
        stream = stream_results(backend, [replace(QUESTION, id=f"T{n}") for n in range(50)])
        async for reply in stream:
            await stream.aclose()  # type: ignore[attr-defined]
            return reply
        raise AssertionError("no reply")

    with provider(answer) as address:
        started_at = time.monotonic()
        assert asyncio.run(first(openai(address, concurrency=4))).completion is not None
    assert time.monotonic() - started_at < 10
    assert len(arrivals) <= 8


def test_requests_equal_to_the_byte_have_one_digest() -> None:
    backend = openai("http://127.0.0.1:1")
    assert hash_request(backend, QUESTION) == hash_request(backend, replace(QUESTION, id="other"))
    assert hash_request(backend, QUESTION) != hash_request(backend, replace(QUESTION, max_tokens=17))
    assert hash_request(backend, QUESTION) != hash_request(replace(backend, model="other"), QUESTION)
    assert "secret" not in repr(backend)
