"""ASGI middleware for a vLLM without a key: reject requests that a web page makes a browser send.

vLLM accepts every Host header. Without this check a page could send requests to a server on its visitor's machine by
DNS rebinding.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from insource.config.hosts import cross_origin_problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class HostCheck:
    """ASGI middleware for `--middleware` of vLLM."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request to the application, or answer 403."""
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        reason = cross_origin_problem(headers.get(b"host", ""), headers.get(b"origin"), needs_key=False)
        if scope["type"] == "lifespan" or reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = {"type": "error", "error": {"type": "permission_error", "message": reason, "code": 403}}
            response_headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 403, "headers": response_headers})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})
