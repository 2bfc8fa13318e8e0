"""A provider on loopback with every API format and batches, the rules of the real APIs (provider_rules.py), and faults.

    provider = Provider(fault_rate=0.2)
    with run_provider(provider) as address:
        ...
    provider.delivered["row 17"]    number of complete answers to that prompt

The fault of a request depends only on its prompt and the number of earlier requests with it: equal in every run.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web

from tests.helpers.provider import provider_rules
from tests.helpers.provider.provider_answers import (
    RESPONSE_MAKERS,
    Json,
    correct_label,
    count_tokens,
    read_prompt,
    stable_number,
)
from tests.helpers.provider.provider_checks import Refusal

# Weighted by repetition; few timeouts, because each costs a test seconds.
FAULT_KINDS = ("429",) * 6 + ("500",) * 4 + ("reset",) * 3 + ("timeout",) + ("truncated",) * 3 + ("text",) * 3
SLOW_SECONDS = 60.0
# As a status of `refuse`: a 400 because of the row's content.
ROW_ERROR = -400
# Headers of requests in a batch: those of its creation.
AUTH_HEADERS = {"authorization": "Bearer secret", "anthropic-version": "2026-10-21"}


@dataclass
class Batch:
    """A batch of requests."""

    id: str
    requests: list[tuple[str, Json]]
    """Custom id and body."""
    created_at: datetime
    metadata: Json | None = None
    input_file_id: str = ""


@dataclass
class Provider:
    """The state of the provider: its behaviour, and records of requests."""

    fault_rate: float = 0.0
    """Fraction of requests with a fault (FAULT_KINDS)."""
    delay_seconds: float = 0.0
    hang_after: int | None = None
    """Number of delivered answers after which it answers no more, until this is None."""
    answer: Callable[[str], str] = correct_label
    refuse: Callable[[str, int], tuple[int, dict[str, str]] | None] = lambda prompt, attempts: None
    """Prompt, and number of earlier requests with it -> HTTP status and headers of a refusal."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of every response."""
    rejected_parameters: tuple[str, ...] = ()
    """Parameters that it refuses for every model."""
    rejection_status: int = 400
    """The status of that refusal."""
    response_makers: dict[str, Callable[[Json, str], Json]] = field(default_factory=dict)
    """{API: function that makes a response}, instead of RESPONSE_MAKERS."""
    rule_violations: Counter[str] = field(default_factory=Counter)
    """Refusals by rules of the APIs, counted by message."""

    attempts: Counter[str] = field(default_factory=Counter)
    """Requests by prompt."""
    delivered: Counter[str] = field(default_factory=Counter)
    """Complete answers by prompt."""
    fault_counts: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    charged_tokens: list[tuple[int, int]] = field(default_factory=list)
    """Input and output tokens of every computed answer, also of those that did not arrive."""
    requests: list[tuple[str, dict[str, str], Json]] = field(default_factory=list)
    """Path, headers and body of every request outside batches."""

    shutdown_date: str | None = None
    """The shutdown date of its models."""
    batches: list[Batch] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches_ended: bool = True
    """Whether batches have ended when they are polled."""
    batch_end_state: str = "completed"
    """End state of OpenAI's batches. cancelled or expired: every second request has no answer, for both APIs."""
    hang_on_create: bool = False
    """Whether batches are created without a response."""
    create_failures: int = 0
    """Number of batches that are created with the response 500."""
    is_filtered: Callable[[str], bool] = lambda prompt: False
    """Prompt -> whether the result in a batch is a 400."""
    is_key_revoked: Callable[[Batch, int], bool] = lambda batch, index: False
    """Batch and index of a request -> whether it is refused because the key was revoked."""
    batch_fault_rate: float = 0.0
    """Fraction of requests about batches and files with a fault (FAULT_KINDS without timeouts)."""
    batch_attempts: Counter[str] = field(default_factory=Counter)
    batch_fault_counts: Counter[str] = field(default_factory=Counter)
    batch_answers: set[tuple[str, str]] = field(default_factory=set)
    """Batch id and prompt of every answer in results."""

    def choose_fault(self, prompt: str, attempts: int) -> str | None:
        fraction = stable_number(f"{prompt} {attempts}") / 2**32
        return FAULT_KINDS[int(fraction / self.fault_rate * len(FAULT_KINDS))] if fraction < self.fault_rate else None

    def choose_batch_fault(self, endpoint: str, attempts: int) -> str | None:
        kinds = [kind for kind in FAULT_KINDS if kind != "timeout"]
        fraction = stable_number(f"{endpoint} {attempts}") / 2**32
        return kinds[int(fraction / self.batch_fault_rate * len(kinds))] if fraction < self.batch_fault_rate else None

    def charge_and_answer(self, body: Json) -> str:
        self.charged_tokens.append(count_tokens(body))
        return self.answer(read_prompt(body))

    def find_violation(self, api: str, headers: Any, body: Json) -> Refusal | None:
        """Return the refusal of a request by the rules of its API, and count it."""
        refusal = provider_rules.find_refusal(api, headers, body)
        for name in (name for name in self.rejected_parameters if name in body):
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            refusal = Refusal(self.rejection_status, message, name, "unsupported_parameter")
        if refusal:
            self.rule_violations[refusal.message] += 1
        return refusal

    async def complete(
        self, request: web.Request, api: str, make_response: Callable[[Json, str], Json] | None = None
    ) -> web.StreamResponse:
        body, make_response = await request.json(), make_response or self.response_makers.get(api, RESPONSE_MAKERS[api])
        prompt = read_prompt(body)
        attempts = self.attempts[prompt]
        self.attempts[prompt] += 1
        self.requests.append((request.path, dict(request.headers), body))
        # Clouds have the model in the URL.
        rule_body = {"model": request.match_info.get("model", "deployed"), **body}
        if violation := self.find_violation(api, request.headers, rule_body):
            return web.json_response(violation.body(api), status=violation.status)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        while self.hang_after is not None and self.delivered.total() >= self.hang_after:
            await asyncio.sleep(0.01)
        if refusal := self.refuse(prompt, attempts):
            payload = error_response(*CONTENT_FILTER_ERROR) if refusal[0] == ROW_ERROR else error_response("refused")
            status = 400 if refusal[0] == ROW_ERROR else refusal[0]
            return web.json_response(payload, status=status, headers=refusal[1])
        if kind := self.choose_fault(prompt, attempts):
            self.fault_counts[kind] += 1
            return await self.respond_with_fault(kind, request, body, make_response)
        data = json.dumps(make_response(body, self.charge_and_answer(body))).encode()
        response = await self.start_response(request, len(data))
        await response.write(data)
        await response.write_eof()
        self.delivered[prompt] += 1
        return response

    async def start_response(self, request: web.Request, length: int) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", "Content-Length": str(length), **self.headers}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return response

    async def respond_with_fault(
        self, kind: str, request: web.Request, body: Json, make_response: Callable[[Json, str], Json]
    ) -> web.StreamResponse:
        if kind == "429":
            return web.json_response(error_response("slow down"), status=429, headers={"Retry-After": "0.02"})
        if kind == "500":
            return web.json_response(error_response("internal"), status=500)
        data = json.dumps(make_response(body, self.charge_and_answer(body))).encode()
        if kind == "text":
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        if kind == "timeout":
            await asyncio.sleep(SLOW_SECONDS)
        assert request.transport is not None
        if kind == "truncated":
            response = await self.start_response(request, len(data))
            await response.write(data[: len(data) // 2])
            request.transport.close()
            return response
        request.transport.abort()
        return web.Response()

    # Batches of both APIs

    async def add_batch(self, batch: Batch, payload: Json) -> web.Response:
        self.batches.append(batch)
        if self.hang_on_create:
            await asyncio.sleep(SLOW_SECONDS)
        if self.create_failures:
            self.create_failures -= 1
            return web.json_response(error_response("internal"), status=500)
        return web.json_response(payload)

    def find_batch(self, request: web.Request) -> Batch:
        return next(batch for batch in self.batches if batch.id == request.match_info["id"])

    def is_unanswered(self, index: int) -> bool:
        return self.batch_end_state in ("cancelled", "expired") and index % 2 == 1

    def list_page(self, request: web.Request, cursor_key: str) -> tuple[list[Batch], bool]:
        """Return two batches, newest first, and whether there are more. Small pages, so that there are several."""
        batches = self.batches[::-1]
        if last_id := request.query.get(cursor_key):
            batches = batches[[batch.id for batch in batches].index(last_id) + 1 :]
        return batches[:2], len(batches) > 2


def error_response(message: str, code: str | None = None) -> Json:
    kind = "invalid_request_error" if code else "api_error"
    return {"type": "error", "error": {"type": kind, "message": message, "code": code}}


# A refusal because of the row's content: message, and OpenAI's code. Anthropic has no code.
CONTENT_FILTER_ERROR = ("This prompt was flagged by the content filter", "content_filter")


def make_application(provider: Provider) -> web.Application:
    def api(name: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await provider.complete(request, name)

        return handle

    async def model(request: web.Request) -> web.Response:
        """Return the model with the fields of both APIs, which share this URL."""
        name, shutdown = request.match_info["model"], provider.shutdown_date
        if name == "unknown":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        lifecycle = (
            {"lifecycle": "deprecated", "retires_at": f"{shutdown}T00:00:00Z"} if shutdown else {"lifecycle": "active"}
        )
        kind = {"object": "model", "type": "model", "owned_by": "nobody", "created": 1, "display_name": name}
        return web.json_response({"id": name, **kind, "shutdown_date": shutdown, **lifecycle})

    # Not at the top: faulty_batches imports this module.
    from tests.helpers.provider import faulty_batches

    app = web.Application(client_max_size=2**30, middlewares=[faulty_batches.batch_faults])
    app[faulty_batches.PROVIDER] = provider
    app.add_routes(faulty_batches.openai_routes(provider))
    app.add_routes(faulty_batches.anthropic_routes(provider))
    app.add_routes(
        [
            web.get("/v1/models/{model}", model),
            web.post("/v1/chat/completions", api("chat")),
            web.post("/v1/messages", api("messages")),
            web.post("/v1/decisions", api("decisions")),
            web.post("/v1/systemone", api("systemone")),
            web.post("/openai/deployments/{model}/chat/completions", api("chat")),
            web.post("/model/{model}/invoke", api("messages")),
            web.post("/projects/{project}/locations/{region}/publishers/anthropic/models/{call}", api("messages")),
        ]
    )
    return app


@contextmanager
def run_provider(provider: Provider) -> Iterator[str]:
    """Run the provider in a thread of its own. Yield its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    state: Json = {}

    async def serve() -> None:
        runner = web.AppRunner(
            make_application(provider), handler_cancellation=True, shutdown_timeout=0.1, access_log=None
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
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
