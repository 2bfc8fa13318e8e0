"""What stands before vLLM where it needs no key: requests that a web page made are refused, others pass."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from insource.config.schema.serving_and_cost import Serve
from serve.vllm import server_process
from serve.vllm.host_check import HostCheck
from serve.vllm.server_process import Address, LaunchPlan


def answered(kind: str = "http", **headers: str) -> list[dict[str, Any]]:
    """What goes back for a request with these headers."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    asyncio.run(HostCheck(app)({"type": kind, "headers": raw_headers}, receive, send))
    return sent


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "pages.example:8000"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "https://pages.example"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "null"}, 403),
        ({"host": "\xff"}, 403),
        ({}, 403),
    ],
)
def test_requests_of_web_pages_are_refused(headers: dict[str, str], status: int) -> None:
    start, *rest = answered(**headers)
    assert start["status"] == status
    assert bool(rest) == (status == 403)


def test_a_socket_of_a_web_page_is_closed_and_what_has_no_headers_passes() -> None:
    assert answered("websocket", host="pages.example") == [{"type": "websocket.close", "code": 1008}]
    assert answered("lifespan")[0]["status"] == 200


def test_it_stands_before_what_needs_no_key_and_listens_on_a_port() -> None:
    plan = LaunchPlan("base", "base", Serve(), use_cpu=True)
    port, socket = Address("127.0.0.1", 8000), Address(socket=Path("vllm.sock"))
    assert server_process.HOST_CHECK in server_process.vllm_command(plan, port)
    assert server_process.HOST_CHECK not in server_process.vllm_command(plan, port, with_key=True)
    assert server_process.HOST_CHECK not in server_process.vllm_command(plan, socket)
