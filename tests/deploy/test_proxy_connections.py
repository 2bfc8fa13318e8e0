"""Connections of the proxy: silent, too many, slow and malformed ones."""

import asyncio
import json
import socket

import pytest
from aiohttp import ClientSession

from deploy.gateway import http_server, proxy
from deploy.gateway.paths import forwarding
from insource.config.schema.serving_and_cost import Limits
from tests.helpers.gateway.proxy import REQUEST_BODY, listen, run, run_proxy

HALVES = {
    "nothing": b"",
    "half a header": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ",
    "half a body": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    "a whole request": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("sent", HALVES.values(), ids=HALVES)
def test_connections_that_are_silent_are_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(http_server, "_LINGER_SECONDS", 0.1)
    monkeypatch.setattr(proxy, "BODY_SECONDS", 0.3)

    async def scenario() -> None:
        async with listen() as (port, state, requests):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            async with asyncio.timeout(30):
                received = await reader.read()
            writer.close()
            assert (
                (b" 408 " in received) == sent.endswith(b"{")
                and requests == []
                and state.in_flight_by_client.total() == 0
            )

    run(scenario)


def test_connections_beyond_the_room_are_told_so_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "compute_connection_limits", lambda descriptors: (3, 16))

    async def scenario() -> None:
        async with listen() as (port, _, _requests):
            connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            received = await reader.read()
            assert received.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in received
            for _, stream_writer in (*connections, (reader, writer)):
                stream_writer.close()
            await asyncio.sleep(0.1)
            async with ClientSession() as client, client.get(f"http://127.0.0.1:{port}/health") as response:
                assert response.status == 200

    run(scenario)


def test_the_room_is_within_the_descriptors() -> None:
    for descriptors in (128, 200, 1024, 20_000, 2**20):
        connections, backlog = http_server.compute_connection_limits(descriptors)
        assert connections >= 1 and 2 * connections + backlog < descriptors


def test_a_client_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(forwarding, "MIN_BYTES_PER_SECOND", 2**30)

    async def scenario() -> None:
        async with run_proxy(limits=Limits(body_kib=2**15)) as (client, state, requests):
            server = client.server
            assert server is not None and server.port is not None
            for kind in ("application/json", "text/event-stream"):
                large = json.dumps({"text": "x" * (6 * 2**20)})
                body = json.dumps(REQUEST_BODY | {"raw": f"data: {large}\n\n", "type": kind}).encode()
                connection = socket.create_connection(("127.0.0.1", server.port))
                connection.setblocking(False)
                head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
                await asyncio.get_running_loop().sock_sendall(connection, head + body)
                async with asyncio.timeout(30):
                    while state.in_flight_by_client.total() == 0:
                        await asyncio.sleep(0.01)
                    while state.in_flight_by_client.total():
                        await asyncio.sleep(0.05)
                connection.close()
            assert len(requests) == 2

    run(scenario)


def test_garbage_is_answered_400_and_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with listen() as (port, _, _requests):
            for garbage in (b"\x16\x03\x01 no http\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(garbage)
                assert b" 400 " in await reader.read()
                writer.close()

    run(scenario)
    assert "Traceback" not in caplog.text
