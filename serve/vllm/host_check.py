"""What vLLM has before it where it needs no key: requests that a web page had a browser send are refused.

vLLM itself takes every Host, so that a page could ask a server on its visitor's machine by a name of its own.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from insource.config.hosts import cross_origin_problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class HostCheck:
    """An ASGI middleware, for vLLM's --middleware."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 403."""
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
