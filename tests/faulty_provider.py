"""A provider on loopback that speaks every wire, batches included: strict as the real ones (provider_rules.py), and
behaving as badly as one wants.

    provider = Provider(faults=0.2)
    with running(provider) as address:
        ...
    provider.delivered["row 17"]    how often the answer to that prompt was handed over whole

What goes wrong depends on the prompt and on how often it came before, and on nothing else: the same in every run.
"""

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests import provider_rules

LABELS = ("late", "lost", "broken")
# As often as they stand here; a timeout costs a test seconds.
KINDS = ("429",) * 6 + ("500",) * 4 + ("reset",) * 3 + ("timeout",) + ("truncated",) * 3 + ("text",) * 3
SLOW_SECONDS = 60.0
# As a status of `refuse`: a 400 for what the row says.
ABOUT_THE_ROW = -400
# Of requests in a batch, which were signed when that was made.
SIGNED = {"authorization": "Bearer secret", "anthropic-version": "2026-10-21"}
Json = dict[str, Any]


def label(prompt: str) -> str:
    """The answer to a prompt."""
    return LABELS[number(prompt) % len(LABELS)]


def number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def prompt_of(body: Json) -> str:
    told = body["messages"][-1]["content"] if "messages" in body else body.get("input", body.get("state"))
    return str(told)


def tokens(body: Json) -> tuple[int, int]:
    """What is charged for an answer: tokens read and written. Who decides writes nothing."""
    if "messages" in body:
        return max(1, len(json.dumps(body["messages"])) // 4), 3
    return max(1, len(json.dumps(body)) // 4), 0


def completion(body: Json, text: str) -> Json:
    asked, written = tokens(body)
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{body.get('model', 'deployed')}-2026-11-01",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
    }


def message(body: Json, text: str) -> Json:
    asked, written = tokens(body)
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": f"{body.get('model', 'deployed')}-20261101",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": asked, "output_tokens": written},
    }


def spread(labels: list[str], text: str) -> dict[str, float]:
    """A probability for every label, most of it for one."""
    return {one: 0.9 if one == text else 0.1 / (len(labels) - 1) for one in labels}


def decision(body: Json, text: str) -> Json:
    (question,) = body["questions"]
    chances = spread([one["value"] for one in question["choices"]], text)
    usage = {"input_tokens": tokens(body)[0], "output_tokens": 0, "total_tokens": tokens(body)[0]}
    usage |= {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}  # type: ignore[dict-item]
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}  # type: ignore[dict-item]
    told = [{"value": value, "probability": chance} for value, chance in chances.items()]
    answer: Json = {"type": "choice", "name": None, "choice": text, "confidence": 0.8, "probabilities": told}
    if text not in chances:
        answer = {"type": "refusal", "name": None}
    return {"model": body["model"], "answers": [answer], "usage": usage}


def systemone(body: Json, text: str) -> Json:
    ((name, question),) = body["questions"].items()
    chances = spread([*question["criteria"]], text)
    answer = {"type": "choice", "choice": text, "probabilities": chances, "confidence": 0.8}
    usage = {"input_tokens": tokens(body)[0], "output_tokens": 0}
    return {"model": body["model"], "answers": {name: answer}, "usage": usage}


ANSWERS: dict[str, Callable[[Json, str], Json]] = {
    "chat": completion,
    "messages": message,
    "decisions": decision,
    "systemone": systemone,
}


@dataclass
class Batch:
    id: str
    requests: list[tuple[str, Json]]
    """Custom id and body."""
    created: datetime
    metadata: Json | None = None
    input_file_id: str = ""


@dataclass
class Provider:
    faults: float = 0.0
    """Share of the requests that meet with one of KINDS."""
    delay_seconds: float = 0.0
    answer: Callable[[str], str] = label
    refuse: Callable[[str, int], tuple[int, dict[str, str]] | None] = lambda prompt, before: None
    """Prompt, and how often it came before -> HTTP status and headers of a refusal."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of every answer."""
    picky: tuple[str, ...] = ()
    """Parameters that it refuses from every model, by their name."""
    bodies: dict[str, Callable[[Json, str], Json]] = field(default_factory=dict)
    """By API, in the place of ANSWERS: what an answer looks like."""
    broken_rules: Counter[str] = field(default_factory=Counter)
    """Refusals by the rules of the API, by their sentence."""

    attempts: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    """How often each fault was met with."""
    charged: list[tuple[int, int]] = field(default_factory=list)
    """Tokens of every answer that was worked out, also where it did not arrive."""
    seen: list[tuple[str, dict[str, str], Json]] = field(default_factory=list)
    """Path, headers and body of every request but those of batches."""

    shutdown: str | None = None
    """The day when its models are shut down, as its list of models says."""
    batches: list[Batch] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    ended: bool = True
    """Whether batches are done when they are looked at."""
    end_state: str = "completed"
    """Of OpenAI's batches; cancelled or expired: every second request was not answered, on both wires."""
    hold_created: bool = False
    """Batches are made, and nobody is told."""
    fail_created: int = 0
    """As many batches are made while the answer is a 500."""
    batch_refuse: Callable[[str], bool] = lambda prompt: False
    """Which requests of a batch are answered with a 400."""

    def fault(self, prompt: str, before: int) -> str | None:
        share = number(f"{prompt} {before}") / 2**32
        return KINDS[int(share / self.faults * len(KINDS))] if share < self.faults else None

    def work(self, body: Json) -> str:
        self.charged.append(tokens(body))
        return self.answer(prompt_of(body))

    def strictly(self, api: str, headers: Any, body: Json) -> provider_rules.Refused | None:
        """Returns how the API would refuse a request."""
        refused = provider_rules.refusal(api, headers, body)
        for name in (name for name in self.picky if name in body):
            told = f"Unsupported parameter: '{name}' is not supported with this model."
            refused = provider_rules.Refused(400, told, name, "unsupported_parameter")
        if refused:
            self.broken_rules[refused.message] += 1
        return refused

    async def complete(
        self, request: web.Request, api: str, answer: Callable[[Json, str], Json] | None = None
    ) -> web.StreamResponse:
        body, answer = await request.json(), answer or self.bodies.get(api, ANSWERS[api])
        prompt = prompt_of(body)
        before = self.attempts[prompt]
        self.attempts[prompt] += 1
        self.seen.append((request.path, dict(request.headers), body))
        # A cloud names the model in the address.
        named = {"model": request.match_info.get("model", "deployed"), **body}
        if broken := self.strictly(api, request.headers, named):
            return web.json_response(broken.body(api), status=broken.status)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if refused := self.refuse(prompt, before):
            told = error(*FILTERED) if refused[0] == ABOUT_THE_ROW else error("refused")
            status = 400 if refused[0] == ABOUT_THE_ROW else refused[0]
            return web.json_response(told, status=status, headers=refused[1])
        if kind := self.fault(prompt, before):
            self.met[kind] += 1
            return await self.go_wrong(kind, request, body, answer)
        data = json.dumps(answer(body, self.work(body))).encode()
        response = await self.begun(request, len(data))
        await response.write(data)
        await response.write_eof()
        self.delivered[prompt] += 1
        return response

    async def begun(self, request: web.Request, length: int) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", "Content-Length": str(length), **self.headers}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return response

    async def go_wrong(
        self, kind: str, request: web.Request, body: Json, answer: Callable[[Json, str], Json]
    ) -> web.StreamResponse:
        if kind == "429":
            return web.json_response(error("slow down"), status=429, headers={"Retry-After": "0.02"})
        if kind == "500":
            return web.json_response(error("internal"), status=500)
        data = json.dumps(answer(body, self.work(body))).encode()
        if kind == "text":
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        if kind == "timeout":
            await asyncio.sleep(SLOW_SECONDS)
        assert request.transport is not None
        if kind == "truncated":
            response = await self.begun(request, len(data))
            await response.write(data[: len(data) // 2])
            request.transport.close()
            return response
        request.transport.abort()
        return web.Response()

    # Batches of both wires

    async def made(self, batch: Batch, told: Json) -> web.Response:
        self.batches.append(batch)
        if self.hold_created:
            await asyncio.sleep(SLOW_SECONDS)
        if self.fail_created:
            self.fail_created -= 1
            return web.json_response(error("internal"), status=500)
        return web.json_response(told)

    def one(self, request: web.Request) -> Batch:
        return next(batch for batch in self.batches if batch.id == request.match_info["id"])

    def unanswered(self, at: int) -> bool:
        return self.end_state in ("cancelled", "expired") and at % 2 == 1

    def page(self, request: web.Request, after: str) -> tuple[list[Batch], bool]:
        """The newest first, two on a page so that there is more than one."""
        newest = self.batches[::-1]
        if last := request.query.get(after):
            newest = newest[[batch.id for batch in newest].index(last) + 1 :]
        return newest[:2], len(newest) > 2


def error(told: str, code: str | None = None) -> Json:
    kind = "invalid_request_error" if code else "api_error"
    return {"type": "error", "error": {"type": kind, "message": told, "code": code}}


# What is about the row: OpenAI's code, and what Anthropic says, who has none.
FILTERED = ("This prompt was flagged by the content filter", "content_filter")


def openai_batch(provider: Provider, batch: Batch) -> Json:
    """A batch as OpenAI describes it; its files are there once it ended."""
    status, outputs = "in_progress", (None, None)
    if provider.ended:
        status = provider.end_state
        outputs = openai_results(provider, batch) if status != "failed" else outputs
    problem = {"data": [{"code": "token_limit_exceeded", "message": "too many tokens"}], "object": "list"}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "input_file_id": batch.input_file_id,
        "created_at": int(batch.created.timestamp()),
        "metadata": batch.metadata,
        "status": status,
        "output_file_id": outputs[0],
        "error_file_id": outputs[1],
        "errors": problem if status == "failed" else None,
        "request_counts": {"completed": 0, "failed": 0, "total": len(batch.requests)},
    }


def openai_results(provider: Provider, batch: Batch) -> tuple[str, str]:
    """The names of the files of answers and of errors."""
    answered, failed = [], []
    for at, (custom_id, body) in enumerate(batch.requests):
        row: Json = {"id": f"r{at}", "custom_id": custom_id, "response": None, "error": None}
        if provider.unanswered(at):
            failed.append({**row, "error": {"code": f"batch_{provider.end_state}", "message": "too late"}})
        elif broken := provider.strictly("chat", SIGNED, body):
            failed.append({**row, "response": {"status_code": broken.status, "body": broken.body("chat")}})
        elif provider.batch_refuse(prompt_of(body)):
            failed.append({**row, "response": {"status_code": 400, "body": error(*FILTERED)}})
        else:
            told = completion(body, provider.answer(prompt_of(body)))
            answered.append({**row, "response": {"status_code": 200, "request_id": "q", "body": told}})
    names = (f"{batch.id}-out", f"{batch.id}-errors")
    for name, rows in zip(names, (answered, failed), strict=True):
        # Not in the order of the requests, as it is allowed.
        provider.files[name] = "\n".join(json.dumps(row) for row in rows[::-1]).encode()
    return names


def anthropic_batch(provider: Provider, batch: Batch) -> Json:
    """A batch as Anthropic describes it."""
    left = sum(provider.unanswered(at) for at in range(len(batch.requests))) if provider.ended else 0
    counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    counts["succeeded" if provider.ended else "processing"] = len(batch.requests) - left
    counts["expired" if provider.end_state == "expired" else "canceled"] = left
    created = batch.created.isoformat()
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if provider.ended else "in_progress",
        "request_counts": counts,
        "created_at": created,
        "expires_at": created,
        "results_url": None,
    }


def openai_routes(provider: Provider) -> list[web.RouteDef]:
    async def upload(request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        file_id = f"file-{len(provider.files)}"
        with form["file"].file as file:  # type: ignore[union-attr]
            provider.files[file_id] = file.read()
        told = {"id": file_id, "object": "file", "bytes": 1, "created_at": 1, "filename": "a", "purpose": "batch"}
        return web.json_response({**told, "status": "processed"})

    async def content(request: web.Request) -> web.Response:
        return web.Response(body=provider.files[request.match_info["id"]], content_type="application/octet-stream")

    async def create(request: web.Request) -> web.Response:
        asked = await request.json()
        lines = provider.files[asked["input_file_id"]].decode().split("\n")
        rows = [json.loads(line) for line in lines if line]
        size = len(provider.files[asked["input_file_id"]])
        if broken := provider_rules.openai_batch(asked, rows, size):
            return web.json_response(broken.body("chat"), status=broken.status)
        requests = [(row["custom_id"], row["body"]) for row in rows]
        name = f"batch_{len(provider.batches)}"
        batch = Batch(name, requests, datetime.now(UTC), asked.get("metadata"), asked["input_file_id"])
        return await provider.made(batch, openai_batch(provider, batch))

    async def look(request: web.Request) -> web.Response:
        return web.json_response(openai_batch(provider, provider.one(request)))

    async def every(request: web.Request) -> web.Response:
        page, more = provider.page(request, "after")
        return web.json_response(
            {"object": "list", "data": [openai_batch(provider, one) for one in page], "has_more": more}
        )

    return [
        web.post("/v1/files", upload),
        web.get("/v1/files/{id}/content", content),
        web.post("/v1/batches", create),
        web.get("/v1/batches", every),
        web.get("/v1/batches/{id}", look),
    ]


def anthropic_routes(provider: Provider) -> list[web.RouteDef]:
    async def create(request: web.Request) -> web.Response:
        asked = (await request.json())["requests"]
        if broken := provider_rules.anthropic_batch(asked):
            return web.json_response(broken.body("messages"), status=broken.status)
        requests = [(one["custom_id"], one["params"]) for one in asked]
        batch = Batch(f"msgbatch_{len(provider.batches)}", requests, datetime.now(UTC))
        return await provider.made(batch, anthropic_batch(provider, batch))

    async def look(request: web.Request) -> web.Response:
        return web.json_response(anthropic_batch(provider, provider.one(request)))

    async def every(request: web.Request) -> web.Response:
        page, more = provider.page(request, "after_id")
        ends = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
        return web.json_response({"data": [anthropic_batch(provider, one) for one in page], "has_more": more, **ends})

    async def results(request: web.Request) -> web.Response:
        lines = []
        for at, (custom_id, body) in enumerate(provider.one(request).requests):
            result: Json = {"type": "succeeded", "message": message(body, provider.answer(prompt_of(body)))}
            if provider.unanswered(at):
                result = {"type": "expired" if provider.end_state == "expired" else "canceled"}
            elif broken := provider.strictly("messages", SIGNED, body):
                result = {"type": "errored", "error": broken.body("messages")}
            elif provider.batch_refuse(prompt_of(body)):
                told = {"type": "invalid_request_error", "message": FILTERED[0]}
                result = {"type": "errored", "error": {"type": "error", "error": told}}
            lines.append(json.dumps({"custom_id": custom_id, "result": result}))
        return web.Response(body="\n".join(lines[::-1]).encode(), content_type="application/x-jsonl")

    return [
        web.post("/v1/messages/batches", create),
        web.get("/v1/messages/batches", every),
        web.get("/v1/messages/batches/{id}", look),
        web.get("/v1/messages/batches/{id}/results", results),
    ]


def application(provider: Provider) -> web.Application:
    def api(name: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await provider.complete(request, name)

        return handle

    async def model(request: web.Request) -> web.Response:
        """In the words of both wires, which have this address in common."""
        name, day = request.match_info["model"], provider.shutdown
        if name == "unknown":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        retires = {"lifecycle": "deprecated", "retires_at": f"{day}T00:00:00Z"} if day else {"lifecycle": "active"}
        kind = {"object": "model", "type": "model", "owned_by": "nobody", "created": 1, "display_name": name}
        return web.json_response({"id": name, **kind, "shutdown_date": day, **retires})

    app = web.Application(client_max_size=2**30)
    app.add_routes(openai_routes(provider))
    app.add_routes(anthropic_routes(provider))
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
def running(provider: Provider) -> Iterator[str]:
    """The provider in a thread of its own. Yields its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    told: Json = {}

    async def serve() -> None:
        runner = web.AppRunner(application(provider), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told["port"] = runner.addresses[0][1]
        told["stop"] = asyncio.Event()
        started.set()
        await told["stop"].wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{told['port']}"
    finally:
        loop.call_soon_threadsafe(told["stop"].set)
        thread.join()
        loop.close()
