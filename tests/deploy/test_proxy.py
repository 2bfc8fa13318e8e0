"""The door: who comes in, what passes, under which name. Behind it stands an engine that tells what it was asked."""

import asyncio
import gzip
import io
import json
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from deploy.answers.outcome import VERSION_HEADER
from deploy.gateway import proxy
from deploy.gateway.paths import forwarding
from insource.config.schema.serving_and_cost import Limits
from tests.helpers.gateway.proxy import REQUEST_BODY, listen, run, run_proxy


@pytest.mark.parametrize("path", proxy.FORWARDED_PATHS)
def test_a_name_goes_in_as_its_version_and_comes_out_as_it_was(path: str) -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, _, requests):
            response = await client.post(path, json=REQUEST_BODY | {"temperature": 0})
            assert response.status == 200
            assert await response.json() == {"model": "classifier", "text": "late"}
            assert response.headers[VERSION_HEADER] == "v1"
            ((received_path, body, _),) = requests
            assert received_path == path and body["model"] == "classifier@v1" and body["temperature"] == 0
            # What the person wrote is not touched.
            assert body["messages"] == REQUEST_BODY["messages"]

    run(scenario)


def test_a_stream_passes_event_by_event_with_the_name_put_back() -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, _, _requests):
            response = await client.post("/v1/chat/completions", json=REQUEST_BODY | {"stream": True})
            lines = (await response.text()).split("\n\n")
            assert lines == [
                'data: {"model":"classifier","text":"la"}', 'data: {"model":"classifier","text":"te"}',
                "data: [DONE]", "",
            ]  # fmt: skip

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "secret"}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": "sécret"}, 401),
        ({"Authorization": "Bearer \udcff\udcfe"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer secret"}, 200),
        ({"x-api-key": "secret"}, 200),
    ],
)
def test_only_who_has_the_key_comes_in_and_the_engine_never_sees_it(headers: dict[str, str], status: int) -> None:
    async def scenario() -> None:
        async with run_proxy("secret") as (client, _, requests):
            response = await client.post("/v1/chat/completions", json=REQUEST_BODY, headers=headers)
            assert response.status == status
            assert (await client.get("/v1/models", headers=headers)).status == status
            assert len(requests) == (status == 200)
            assert all("secret" not in str(received) for received in requests)
            assert (await client.get("/health")).status == 200

    run(scenario)


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/generative_scoring", "/invocations",
     "/v1/chat/completions/../../tokenize", "/v1/chat/completions/", "/docs", "/"],
)  # fmt: skip
def test_nothing_else_passes(path: str) -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, _, requests):
            for method in ("GET", "POST", "PUT", "DELETE"):
                response = await client.request(method, path, json=REQUEST_BODY)
                assert response.status in (404, 405), (method, path)
            assert requests == []

    run(scenario)


def test_what_cannot_be_asked_is_told_as_the_sdks_read_it() -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, state, requests):
            for body, status in (
                (b"{", 400),
                (b"[]", 400),
                (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
                (b'{"model": "none", "x": [' + b"[]," * 300_000 + b"1]}", 404),
                (b'{"model": 3}', 400),
                (b"{}", 400),
                (b'{"model": "classifier@v1"}', 404),
                (b'{"model": "pocket/model"}', 404),
                (b" " * (Limits().body_kib * 2**10 + 1), 413),
            ):
                response = await client.post("/v1/messages", data=io.BytesIO(body))
                assert response.status == status, body[:20]
                assert (await response.json())["error"]["message"]
            assert requests == []
            listed = await (await client.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == ["classifier", "extractor"]
            state.engine = None
            response = await client.post("/v1/messages", json=REQUEST_BODY)
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            assert (await client.get("/health")).status == 503

    run(scenario)


def test_the_engines_own_refusal_passes_and_its_death_is_told() -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, state, _requests):
            response = await client.post("/v1/messages", json=REQUEST_BODY | {"status": 422})
            assert response.status == 422
            response = await client.post("/v1/messages", json=REQUEST_BODY | {"break": True})
            assert response.status == 503 and "broke off" in (await response.json())["error"]["message"]
            assert state.in_flight["classifier@v1"] == 0

    run(scenario)


def test_requests_on_their_way_end_where_they_began() -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, state, requests):
            earlier = asyncio.create_task(client.post("/v1/messages", json=REQUEST_BODY | {"wait": 0.3}))
            async with asyncio.timeout(60):
                while not requests:
                    await asyncio.sleep(0.01)
            assert state.in_flight["classifier@v1"] == 1
            state.versions = state.versions | {"classifier": "v2"}
            later = await client.post("/v1/messages", json=REQUEST_BODY)
            assert later.headers[VERSION_HEADER] == "v2"
            assert (await earlier).headers[VERSION_HEADER] == "v1"
            assert state.in_flight["classifier@v1"] == 0

    run(scenario)


@pytest.mark.parametrize("name", ["classifier", "étiquettes", "分类", 'a"b'])
def test_a_name_is_put_back_where_a_name_stands_and_the_text_of_an_answer_is_left(name: str) -> None:
    engine_name = f"{name}@v1"
    payload = {
        "model": engine_name,
        "choices": [{"message": {"content": engine_name}}],
        "parsed": {"model": engine_name, "tag": engine_name},
    }
    start_event = {"type": "message_start", "message": {"id": "1", "model": engine_name, "content": [engine_name]}}
    delta_event = {"type": "content_block_delta", "model": engine_name, "delta": {"text": f'"model": "{engine_name}"'}}

    async def scenario() -> None:
        async with run_proxy(name=name) as (client, _, _requests):
            for escaped in (True, False):
                raw = json.dumps(payload, ensure_ascii=escaped)
                response = await client.post("/v1/chat/completions", json={"model": name, "raw": raw})
                assert await response.json() == payload | {"model": name}
                events = [
                    f"data: {json.dumps(event, ensure_ascii=escaped)}\n\n" for event in (start_event, delta_event)
                ]
                body = {"model": name, "raw": "".join(events), "type": "text/event-stream"}
                response = await client.post("/v1/messages", json=body)
                first, second, _ = (await response.text()).split("\n\n")
                message = start_event["message"]
                assert isinstance(message, dict)
                assert json.loads(first[len("data: ") :]) == start_event | {"message": message | {"model": name}}
                assert json.loads(second[len("data: ") :]) == delta_event | {"model": name}

    run(scenario)


def test_numbers_texts_and_what_is_no_json_pass_as_they_came() -> None:
    sent = b'{"seed": 12345678901234567890123, "t": 1.10, "s": "\\ud83d\\ude00 \\u00e9", "model": "classifier"}'

    async def scenario() -> None:
        async with run_proxy() as (client, _, requests):
            await client.post("/v1/completions", data=sent)
            ((_, body, _),) = requests
            assert body == json.loads(sent) | {"model": "classifier@v1"}
            response = await client.post("/v1/completions", json=REQUEST_BODY | {"raw": "no json: classifier@v1"})
            assert await response.text() == "no json: classifier@v1"

    run(scenario)


def test_a_line_of_a_stream_may_be_long_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "MAX_LINE_BYTES", 2 * 2**20)

    async def scenario() -> None:
        async with run_proxy(limits=Limits(body_kib=8192)) as (client, state, _requests):
            for mib, fits in ((1, True), (3, False)):
                line = 'data: {"model": "classifier@v1", "text": "' + "x" * (mib * 2**20) + '"}\n\n'
                body = REQUEST_BODY | {"raw": line, "type": "text/event-stream"}
                try:
                    response = await client.post("/v1/completions", data=io.BytesIO(json.dumps(body).encode()))
                    text = await response.text()
                    assert fits and json.loads(text[len("data: ") :])["model"] == "classifier"
                except ClientError:
                    assert not fits
            assert state.in_flight_by_client.total() == 0

    run(scenario)


@pytest.mark.parametrize(
    ("limits", "body", "status"),
    [
        (Limits(sequences=4), {"n": 4}, 200),
        (Limits(sequences=4), {"n": 5}, 413),
        (Limits(sequences=4), {"n": "5"}, 413),
        (Limits(sequences=4), {"n": 5.0}, 413),
        (Limits(sequences=4), {"prompt": ["a", "b"], "n": 3}, 413),
        (Limits(sequences=4), {"prompt": [[1, 2]] * 5}, 413),
        (Limits(sequences=4), {"prompt": [1, 2, 3, 4, 5]}, 200),
        (Limits(answer_tokens=100), {"max_tokens": 101}, 413),
        (Limits(answer_tokens=100), {"max_completion_tokens": "101"}, 413),
        (Limits(answer_tokens=100), {"max_tokens": 100}, 200),
        (Limits(body_kib=1), {"text": "x" * 1024}, 413),
    ],
)
def test_what_asks_for_too_much_is_too_large(limits: Limits, body: dict[str, Any], status: int) -> None:
    async def scenario() -> None:
        async with run_proxy(limits=limits) as (client, _, requests):
            response = await client.post("/v1/completions", json=REQUEST_BODY | body)
            assert response.status == status
            if status == 413:
                error = (await response.json())["error"]
                assert error["type"] == "request_too_large" and "serve.limits." in error["message"]
            assert len(requests) == (status == 200)

    run(scenario)


def test_who_names_no_tokens_gets_as_many_as_the_limit() -> None:
    async def scenario() -> None:
        async with run_proxy(limits=Limits(answer_tokens=7)) as (client, _, requests):
            await client.post("/v1/completions", json=REQUEST_BODY)
            assert requests[0][1]["max_tokens"] == 7

    run(scenario)


@pytest.mark.parametrize("limits", [Limits(requests=3), Limits(requests_per_key=3)])
def test_more_requests_at_once_are_told_when_to_ask_again(limits: Limits) -> None:
    async def scenario() -> None:
        async with run_proxy(limits=limits) as (client, state, requests):
            posts = [client.post("/v1/messages", json=REQUEST_BODY | {"wait": 0.5}) for _ in range(8)]
            answers = await asyncio.gather(*posts)
            assert sorted(response.status for response in answers) == [200] * 3 + [429] * 5
            for response in answers:
                if response.status == 429:
                    assert int(response.headers["Retry-After"]) > 0
                    assert (await response.json())["error"]["type"] == "rate_limit_error"
            assert len(requests) == 3 and state.in_flight_by_client.total() == 0
            assert (await client.post("/v1/messages", json=REQUEST_BODY)).status == 200

    run(scenario)


@pytest.mark.parametrize(
    ("api_key", "headers", "status"),
    [
        (None, {"Host": "localhost:8000"}, 200),
        (None, {"Host": "[::1]:8000"}, 200),
        (None, {"Host": "pages.example"}, 403),
        (None, {"Host": "[nonsense"}, 403),
        (None, {"Origin": "http://pages.example"}, 403),
        (None, {"Origin": "null"}, 403),
        (None, {"Host": "pages.example", "Origin": "http://pages.example"}, 403),
        (None, {"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ("secret", {"Host": "models.example"}, 200),
        ("secret", {"Host": "models.example", "Origin": "https://models.example"}, 200),
        ("secret", {"Host": "models.example", "Origin": "https://pages.example"}, 403),
    ],
)
def test_requests_that_a_page_of_another_origin_made_are_refused(
    api_key: str | None, headers: dict[str, str], status: int
) -> None:
    async def scenario() -> None:
        async with run_proxy(api_key) as (client, _, requests):
            sent_headers = headers | ({"x-api-key": api_key} if api_key else {}) | {"Content-Type": "text/plain"}
            response = await client.post("/v1/messages", data=json.dumps(REQUEST_BODY), headers=sent_headers)
            assert response.status == status
            assert len(requests) == (status == 200)
            assert "Access-Control-Allow-Origin" not in response.headers

    run(scenario)


def test_a_packed_body_is_not_taken_and_nothing_is_unpacked() -> None:
    async def scenario() -> None:
        async with listen() as (port, _, _requests), ClientSession() as client:
            packed = gzip.compress(json.dumps(REQUEST_BODY | {"pad": "x" * 10**6}).encode())
            headers = {"Content-Encoding": "gzip"}
            response = await client.post(f"http://127.0.0.1:{port}/v1/messages", data=packed, headers=headers)
            assert response.status == 415

    run(scenario)
