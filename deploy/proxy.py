"""The only door to vLLM: who may come in, what they may ask for, and which version answers.

Clients ask for `model: classifier`; vLLM knows `classifier@3f2a90c17b5e44d0`. The door puts the one for the other on
the way in and takes it back on the way out. Because every version has a name of its own, no prefix cache of one version
is ever read by another, and changing over is one assignment: requests on their way end where they began.

vLLM itself checks its key on some paths alone and lets everyone load adapters; here is what passes, and no more:
POST /v1/chat/completions, /v1/completions and /v1/messages, GET /v1/models, and GET /health without a key.
"""

import hmac
import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from aiohttp.web import Application, Request, StreamResponse

ASKING = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
LARGEST_BODY_BYTES = 16 * 2**20
VERSION_HEADER = "X-Insource-Version"
# What belongs to one connection and is not passed on (RFC 9110, 7.6.1), and what is counted anew.
_NOT_PASSED = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host"}
# The key is the door's; the engine has none.
_NOT_PASSED |= {"authorization", "x-api-key", "accept-encoding", "server", "date"}
_RETRY_SECONDS = "5"


class Door:
    """What stands behind the door now."""

    def __init__(self, api_key: str | None) -> None:
        self.versions: dict[str, str] = {}
        """{model: version} that new requests go to."""
        self.engine: ClientSession | None = None
        """The session with vLLM, None while it is down."""
        self.on_their_way: Counter[str] = Counter()
        """{model@version: requests}."""
        self._api_key = api_key

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Returns whether a request bears the key, as OpenAI's or as Anthropic's clients send it."""
        if self._api_key is None:
            return True
        scheme, _, bearer = headers.get("Authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), self._api_key.encode())


def application(door: Door) -> "Application":
    """Returns the door as an aiohttp application."""
    from aiohttp import web

    app = web.Application(client_max_size=LARGEST_BODY_BYTES)

    async def ask(request: "Request") -> "StreamResponse":
        return await _ask(door, request)

    async def models(request: "Request") -> "StreamResponse":
        if not door.admits(request.headers):
            return _refused(401, "authentication_error", "a valid key is needed (Authorization: Bearer, or x-api-key)")
        listed = [{"id": name, "object": "model", "owned_by": "insource"} for name in sorted(door.versions)]
        return web.json_response({"object": "list", "data": listed})

    async def health(request: "Request") -> "StreamResponse":
        return web.json_response({"ready": door.engine is not None}, status=200 if door.engine else 503)

    async def nothing(request: "Request") -> "StreamResponse":
        return _refused(404, "not_found_error", f"there is no {request.method} {request.path} here")

    for path in ASKING:
        app.router.add_post(path, ask)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_route("*", "/{anything:.*}", nothing)
    return app


async def _ask(door: Door, request: "Request") -> "StreamResponse":
    """Returns vLLM's answer to one request."""
    from aiohttp import web

    if not door.admits(request.headers):
        return _refused(401, "authentication_error", "a valid key is needed (Authorization: Bearer, or x-api-key)")
    try:
        body = json.loads(await request.read())
    except web.HTTPRequestEntityTooLarge:
        return _refused(413, "request_too_large", f"a request may have {LARGEST_BODY_BYTES // 2**20} MiB")
    except ValueError:
        return _refused(400, "invalid_request_error", "the body is not JSON")
    name = body.get("model") if isinstance(body, dict) else None
    version = door.versions.get(name) if isinstance(name, str) else None
    if version is None:
        there = ", ".join(sorted(door.versions)) or "none yet"
        return _refused(404, "not_found_error", f"there is no model {name!r}; there are: {there}")
    if door.engine is None:
        return _refused(503, "overloaded_error", "the model is being started", {"Retry-After": _RETRY_SECONDS})
    inside = f"{name}@{version}"
    door.on_their_way[inside] += 1
    try:
        return await _passed_on(door.engine, request, body | {"model": inside}, (inside, str(name)), version)
    finally:
        door.on_their_way[inside] -= 1


async def _passed_on(
    engine: "ClientSession", request: "Request", body: Mapping[str, Any], names: tuple[str, str], version: str
) -> "StreamResponse":
    """Sends a request to vLLM and its answer back, event by event where it is a stream."""
    from aiohttp import ClientError, web

    inside, outside = (json.dumps(name).encode() for name in names)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED}
    answer: StreamResponse | None = None
    try:
        async with engine.post(request.path, data=json.dumps(body), headers=headers) as found:
            kept = {name: value for name, value in found.headers.items() if name.lower() not in _NOT_PASSED}
            kept[VERSION_HEADER] = version
            if not found.headers.get("Content-Type", "").startswith("text/event-stream"):
                said = (await found.read()).replace(inside, outside)
                return web.Response(status=found.status, body=said, headers=kept)
            answer = web.StreamResponse(status=found.status, headers=kept)
            await answer.prepare(request)
            # A line is one event or a part of one; a name never spans two.
            async for line in found.content:
                await answer.write(line.replace(inside, outside))
            await answer.write_eof()
            return answer
    except ClientError as error:
        if answer is not None:
            raise  # half an answer is out: the connection breaks off, which the client sees
        told = f"the model broke off: {type(error).__name__}"
        return _refused(503, "overloaded_error", told, {"Retry-After": _RETRY_SECONDS})


def _refused(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> "StreamResponse":
    """An error as both SDKs read it."""
    from aiohttp import web

    return web.json_response(
        {"type": "error", "error": {"type": kind, "message": message, "code": status}}, status=status, headers=headers
    )
