"""What is no request, or no right one, is refused by the gateway, reaches no engine and leaves nothing behind."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import ClientSession

from deploy.gateway import proxy
from tests.helpers.gateway.proxy import REQUEST_BODY, listen, run, run_proxy


def post(body: bytes = b"{}", head: bytes = b"", path: bytes = b"/v1/completions") -> bytes:
    """A request as bytes."""
    length = b"" if b"ncoding" in head or b"ength" in head else b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + head + length + b"Connection: close\r\n\r\n" + body


RIGHT = json.dumps({"model": "classifier", "prompt": "x"}).encode()
MALFORMED = {
    "no length that a number is": post(RIGHT, b"Content-Length: -1\r\n"),
    "a length twice": post(RIGHT, b"Content-Length: 3\r\nContent-Length: 4\r\n"),
    "a length and chunks": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
    "chunks that are none": post(b"zz\r\nabc\r\n", b"Transfer-Encoding: chunked\r\n"),
    "a chunk with a long extension": post(b"1;" + b"x" * 100_000, b"Transfer-Encoding: chunked\r\n"),
    "chunks that are packed": post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    "a trailer without end": post(b"0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", b"Transfer-Encoding: chunked\r\n"),
    "a long header": post(RIGHT, b"X-A: " + b"x" * 100_000 + b"\r\n"),
    "many headers": post(RIGHT, b"".join(b"X-%d: y\r\n" % index for index in range(5000))),
    "a header over two lines": post(RIGHT, b"X-A: a\r\n b\r\n"),
    "a zero in a header": post(RIGHT, b"X-A: \0\r\n"),
    "a space before the colon": post(RIGHT, b"X-A : y\r\n"),
    "a long path": post(RIGHT, path=b"/" + b"x" * 100_000),
    "a path with a zero": post(RIGHT, path=b"/v1/completions%00"),
    "two slashes": post(RIGHT, path=b"//v1/completions"),
    "an escaped slash": post(RIGHT, path=b"/v1%2fcompletions"),
    "a path of elsewhere": post(RIGHT, path=b"/v1/../tokenize"),
    "a question": post(RIGHT, path=b"/v1/load_lora_adapter?/v1/completions"),
    "an expectation": post(RIGHT, b"Expect: the-unexpected\r\n"),
    "a method in lower case": post(RIGHT).replace(b"POST", b"post"),
    "no method at all": b"\0\0\0\0\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": post(RIGHT).replace(b"HTTP/1.1", b"HTTP/9.9"),
    "a tunnel": b"CONNECT example.invalid:443 HTTP/1.1\r\nHost: example.invalid\r\nConnection: close\r\n\r\n",
    "UTF-16": post(RIGHT.decode().encode("utf-16")),
    "a mark before JSON": post(b"\xef\xbb\xbf" + RIGHT),
    "bytes that are no UTF-8": post(RIGHT.replace(b"x", b"\xff")),
    "half of a character as a name": post(b'{"model": "\\ud800"}'),
    "an infinite number": post(b'{"model": "classifier", "temperature": Infinity}'),
    "a name that is a list": post(b'{"model": ["classifier"]}'),
    "a name without end": post(b'{"model": "' + b"x" * 500_000 + b'"}'),
    "an array of objects": post(b"[" + b"{}," * 100_000 + b"{}]"),
    "objects in objects": post(b'{"a":' * 50_000),
    "a number of many digits": post(b'{"model": ' + b"9" * 100_000 + b"}"),
    "two objects": post(RIGHT + RIGHT),
    "nothing": post(b""),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused_and_leaves_nothing_behind(
    sent: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "BODY_SECONDS", 0.5)

    async def scenario() -> None:
        async with listen() as (port, state, requests), ClientSession() as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                writer.write(sent)
                await writer.drain()
            received = b""
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    received = await reader.read()
            writer.close()
            status = int(received.split(b" ", 2)[1]) if received.startswith(b"HTTP/1.1 ") else 400
            assert 400 <= status < 500, received[:200]
            assert requests == [] and state.in_flight_by_client.total() == 0 and state.in_flight.total() == 0
            async with client.post(f"http://127.0.0.1:{port}/v1/completions", json=REQUEST_BODY) as response:
                assert response.status == 200

    run(scenario)
    assert "Traceback" not in caplog.text and not [log_record for log_record in caplog.records if log_record.exc_info]


DOUBLED = {
    "the model": b'{"model": "none", "model": "classifier"}',
    "equal values": b'{"model": "classifier", "prompt": "x", "prompt": "x"}',
    "the last key": b'{"model": "classifier", "max_tokens": 5, "max_tokens": 99}',
    "a key before another": b'{"a": 1, "a": 1, "model": "classifier"}',
    "another spelling": rb'{"model": "classifier", "mod\u0065l": "classifier"}',
}


@pytest.mark.parametrize("body", DOUBLED.values(), ids=DOUBLED)
def test_a_doubled_key_is_refused(body: bytes) -> None:
    async def scenario() -> None:
        async with run_proxy() as (client, _, requests):
            response = await client.post("/v1/completions", data=body)
            assert response.status == 400 and "twice" in (await response.json())["error"]["message"]
            assert requests == []

    run(scenario)


@pytest.mark.parametrize(
    "body", [REQUEST_BODY, REQUEST_BODY | {"": 0, '"': {"a": [1, {"a": 2}]}, "é\\": '"a": 1, ', "a": 1.50}]
)
def test_a_body_without_a_doubled_key_passes_in_any_notation(body: dict[str, Any]) -> None:
    notations = (
        json.dumps(body),
        json.dumps(body, indent=3, ensure_ascii=False),
        json.dumps(body, separators=(",", ":")),
    )

    async def scenario() -> None:
        async with run_proxy() as (client, _, requests):
            for text in notations:
                assert (await client.post("/v1/completions", data=f" \n{text}\t".encode())).status == 200
            assert len(requests) == 3

    run(scenario)


def test_requests_one_after_the_other_on_one_connection_hold_little_and_are_answered_in_turn() -> None:
    async def scenario() -> None:
        async with listen() as (port, state, requests):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            request_bytes = post(json.dumps(REQUEST_BODY | {"wait": 0.5}).encode()).replace(
                b"Connection: close\r\n", b""
            )
            writer.write(request_bytes + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
            received = b""
            async with asyncio.timeout(30):
                while received.count(b"HTTP/1.1 200") < 2001:
                    received += await reader.read(65536)
            assert received.find(b"classifier") < received.find(b"ready") and len(requests) == 1
            writer.close()
            assert state.in_flight_by_client.total() == 0

    run(scenario)
