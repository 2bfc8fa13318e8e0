"""The batch APIs of the test provider, in both formats, with faults."""

import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.helpers.provider import provider_rules
from tests.helpers.provider.faulty_provider import AUTH_HEADERS, CONTENT_FILTER_ERROR, Batch, Provider, error_response
from tests.helpers.provider.provider_answers import Json, make_completion, make_message, read_prompt
from tests.helpers.provider.provider_checks import Refusal

KEY_REVOKED = Refusal(401, "The API key was revoked.")


@web.middleware
async def batch_faults(request: web.Request, handler: Any) -> web.StreamResponse:
    """Apply faults to requests about batches: a refusal, or a response that is lost after the work was done."""
    provider = request.app[PROVIDER]
    if not ("/batches" in request.path or "/files" in request.path):
        return await handler(request)  # type: ignore[no-any-return]
    endpoint = f"{request.method} {request.path}"
    attempts = provider.batch_attempts[endpoint]
    provider.batch_attempts[endpoint] += 1
    kind = provider.choose_batch_fault(endpoint, attempts)
    if kind is None:
        return await handler(request)  # type: ignore[no-any-return]
    provider.batch_fault_counts[kind] += 1
    if kind == "429":
        return web.json_response(error_response("slow down"), status=429, headers={"Retry-After": "0.02"})
    if kind == "500":
        return web.json_response(error_response("internal"), status=500)
    handled = await handler(request)
    if kind == "text":
        return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
    assert request.transport is not None and isinstance(handled, web.Response)
    if kind == "truncated":
        data = bytes(handled.body or b"")  # type: ignore[arg-type]
        response = web.StreamResponse(headers={"Content-Type": handled.content_type, "Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        request.transport.close()
        return response
    request.transport.abort()
    return web.Response()


PROVIDER: web.AppKey[Provider] = web.AppKey("provider", Provider)


def describe_openai_batch(provider: Provider, batch: Batch) -> Json:
    """Return a batch in OpenAI's format; it has files once it ended."""
    status = "in_progress"
    outputs: tuple[str, str] | tuple[None, None] = (None, None)
    if provider.batches_ended:
        status = provider.batch_end_state
        outputs = write_openai_results(provider, batch) if status != "failed" else outputs
    error = {"data": [{"code": "token_limit_exceeded", "message": "too many tokens"}], "object": "list"}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "input_file_id": batch.input_file_id,
        "created_at": int(batch.created_at.timestamp()),
        "metadata": batch.metadata,
        "status": status,
        "output_file_id": outputs[0],
        "error_file_id": outputs[1],
        "errors": error if status == "failed" else None,
        "request_counts": {"completed": 0, "failed": 0, "total": len(batch.requests)},
    }


def write_openai_results(provider: Provider, batch: Batch) -> tuple[str, str]:
    """Write the files of responses and of errors. Return their names."""
    succeeded, failed = [], []
    for index, (custom_id, body) in enumerate(batch.requests):
        row: Json = {"id": f"r{index}", "custom_id": custom_id, "response": None, "error": None}
        if provider.is_unanswered(index):
            failed.append({**row, "error": {"code": f"batch_{provider.batch_end_state}", "message": "too late"}})
        elif violation := provider.find_violation("chat", AUTH_HEADERS, body):
            failed.append({**row, "response": {"status_code": violation.status, "body": violation.body("chat")}})
        elif provider.is_filtered(read_prompt(body)):
            failed.append({**row, "response": {"status_code": 400, "body": error_response(*CONTENT_FILTER_ERROR)}})
        elif provider.is_key_revoked(batch, index):
            failed.append({**row, "response": {"status_code": 401, "body": KEY_REVOKED.body("chat")}})
        else:
            provider.batch_answers.add((batch.id, read_prompt(body)))
            completion = make_completion(body, provider.answer(read_prompt(body)))
            succeeded.append({**row, "response": {"status_code": 200, "request_id": "q", "body": completion}})
    names = (f"{batch.id}-out", f"{batch.id}-errors")
    for name, rows in zip(names, (succeeded, failed), strict=True):
        # Not in the order of the requests, which the API allows.
        provider.files[name] = "\n".join(json.dumps(row) for row in rows[::-1]).encode()
    return names


def describe_anthropic_batch(provider: Provider, batch: Batch) -> Json:
    """Return a batch in Anthropic's format."""
    n_unanswered = (
        sum(provider.is_unanswered(index) for index in range(len(batch.requests))) if provider.batches_ended else 0
    )
    counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    counts["succeeded" if provider.batches_ended else "processing"] = len(batch.requests) - n_unanswered
    counts["expired" if provider.batch_end_state == "expired" else "canceled"] = n_unanswered
    created_at = batch.created_at.isoformat()
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if provider.batches_ended else "in_progress",
        "request_counts": counts,
        "created_at": created_at,
        "expires_at": created_at,
        "results_url": None,
    }


def openai_routes(provider: Provider) -> list[web.RouteDef]:
    async def upload(request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        file_id = f"file-{len(provider.files)}"
        with form["file"].file as file:  # type: ignore[union-attr]
            provider.files[file_id] = file.read()
        file_object = {
            "id": file_id,
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "a",
            "purpose": "batch",
        }
        return web.json_response({**file_object, "status": "processed"})

    async def content(request: web.Request) -> web.Response:
        return web.Response(body=provider.files[request.match_info["id"]], content_type="application/octet-stream")

    async def create(request: web.Request) -> web.Response:
        body = await request.json()
        lines = provider.files[body["input_file_id"]].decode().split("\n")
        rows = [json.loads(line) for line in lines if line]
        size = len(provider.files[body["input_file_id"]])
        if violation := provider_rules.find_openai_batch_refusal(body, rows, size):
            return web.json_response(violation.body("chat"), status=violation.status)
        requests = [(row["custom_id"], row["body"]) for row in rows]
        name = f"batch_{len(provider.batches)}"
        batch = Batch(name, requests, datetime.now(UTC), body.get("metadata"), body["input_file_id"])
        return await provider.add_batch(batch, describe_openai_batch(provider, batch))

    async def retrieve_batch(request: web.Request) -> web.Response:
        return web.json_response(describe_openai_batch(provider, provider.find_batch(request)))

    async def list_batches(request: web.Request) -> web.Response:
        page, has_more = provider.list_page(request, "after")
        return web.json_response(
            {"object": "list", "data": [describe_openai_batch(provider, batch) for batch in page], "has_more": has_more}
        )

    return [
        web.post("/v1/files", upload),
        web.get("/v1/files/{id}/content", content),
        web.post("/v1/batches", create),
        web.get("/v1/batches", list_batches),
        web.get("/v1/batches/{id}", retrieve_batch),
    ]


def anthropic_routes(provider: Provider) -> list[web.RouteDef]:
    async def create(request: web.Request) -> web.Response:
        entries = (await request.json())["requests"]
        if violation := provider_rules.find_anthropic_batch_refusal(entries):
            return web.json_response(violation.body("messages"), status=violation.status)
        requests = [(entry["custom_id"], entry["params"]) for entry in entries]
        batch = Batch(f"msgbatch_{len(provider.batches)}", requests, datetime.now(UTC))
        return await provider.add_batch(batch, describe_anthropic_batch(provider, batch))

    async def retrieve_batch(request: web.Request) -> web.Response:
        return web.json_response(describe_anthropic_batch(provider, provider.find_batch(request)))

    async def list_batches(request: web.Request) -> web.Response:
        page, has_more = provider.list_page(request, "after_id")
        bounds = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
        return web.json_response(
            {"data": [describe_anthropic_batch(provider, batch) for batch in page], "has_more": has_more, **bounds}
        )

    async def results(request: web.Request) -> web.Response:
        lines = []
        for index, (custom_id, body) in enumerate(provider.find_batch(request).requests):
            result: Json = {"type": "succeeded", "message": make_message(body, provider.answer(read_prompt(body)))}
            if provider.is_unanswered(index):
                result = {"type": "expired" if provider.batch_end_state == "expired" else "canceled"}
            elif violation := provider.find_violation("messages", AUTH_HEADERS, body):
                result = {"type": "errored", "error": violation.body("messages")}
            elif provider.is_filtered(read_prompt(body)):
                error = {"type": "invalid_request_error", "message": CONTENT_FILTER_ERROR[0]}
                result = {"type": "errored", "error": {"type": "error", "error": error}}
            elif provider.is_key_revoked(provider.find_batch(request), index):
                result = {"type": "errored", "error": KEY_REVOKED.body("messages")}
            else:
                provider.batch_answers.add((provider.find_batch(request).id, read_prompt(body)))
            lines.append(json.dumps({"custom_id": custom_id, "result": result}))
        return web.Response(body="\n".join(lines[::-1]).encode(), content_type="application/x-jsonl")

    return [
        web.post("/v1/messages/batches", create),
        web.get("/v1/messages/batches", list_batches),
        web.get("/v1/messages/batches/{id}", retrieve_batch),
        web.get("/v1/messages/batches/{id}/results", results),
    ]
