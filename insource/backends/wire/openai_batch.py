"""OpenAI's batch API: a file of requests is uploaded, a file of responses and one of errors are downloaded.

in   {"custom_id": "9f2c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-6-luna", ...}}
out  {"custom_id": "9f2c", "response": {"status_code": 200, "body": {"choices": [...], ...}}, "error": null}
or   {"custom_id": "9f2c", "response": null, "error": {"code": "batch_expired", "message": "..."}}

The files remain in the account until they are deleted there.
"""

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from insource.backends import api_errors
from insource.backends.failures import AttemptFailure, failure_from_malformed_response, failure_from_status
from insource.backends.types import Backend, Completion, Request
from insource.backends.wire.openai_chat import build_body, parse_completion

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NAME_KEY = "insource"
# The local clock may be ahead of the provider's.
CLOCK_SKEW = timedelta(hours=1)
_BATCH_STATES = {"completed": "ended", "expired": "ended", "cancelled": "cancelled", "failed": "failed"}


async def create(client: "AsyncOpenAI", backend: Backend, name: str, requests: Sequence[Request]) -> str:
    """Create a batch and return its id."""
    lines = [
        json.dumps(
            {
                "custom_id": request.id,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": build_body(backend, request),
            },
            ensure_ascii=False,
        )
        for request in requests
    ]
    file = await client.files.create(file=(f"{name}.jsonl", "\n".join(lines).encode() + b"\n"), purpose="batch")
    batch = await client.batches.create(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id, metadata={NAME_KEY: name}
    )
    return batch.id


async def find(
    client: "AsyncOpenAI", name: str, started_at: datetime, ids: Sequence[str], foreign_batch_ids: Collection[str]
) -> str | None:
    """Return the id of the batch with this name in its metadata, None if there is none.

    Reliable, except for a batch so new that the provider does not list it yet.
    """
    async for batch in client.batches.list(limit=100):
        if batch.id not in foreign_batch_ids and (batch.metadata or {}).get(NAME_KEY) == name:
            return batch.id
        if batch.created_at < (started_at - CLOCK_SKEW).timestamp():
            break
    return None


async def poll(client: "AsyncOpenAI", batch_id: str) -> tuple[str, str]:
    """Return the state of a batch, and its progress as text."""
    batch = await client.batches.retrieve(batch_id)
    counts = batch.request_counts
    progress = (
        f"{batch.status}, {counts.completed + counts.failed:,} of {counts.total:,} done" if counts else batch.status
    )
    if batch.errors and batch.errors.data:
        progress += "; " + "; ".join(
            error.message or error.code or "an error without a name" for error in batch.errors.data[:3]
        )
    return _BATCH_STATES.get(batch.status, "running"), progress


async def fetch_results(
    client: "AsyncOpenAI", backend: Backend, batch_id: str, request: Request
) -> dict[str, Completion | AttemptFailure]:
    """Return the outcome of each request, by custom id."""
    batch = await client.batches.retrieve(batch_id)
    outcomes: dict[str, Completion | AttemptFailure] = {}
    for file_id in (batch.error_file_id, batch.output_file_id):
        if file_id is None:
            continue
        content = await client.files.content(file_id)
        # Not splitlines, which also splits at characters that JSON strings may contain.
        for line in content.content.decode().split("\n"):
            if line.strip():
                row = json.loads(line)
                outcomes[row["custom_id"]] = _parse_result(row, backend, request)
    return outcomes


def _parse_result(row: dict[str, Any], backend: Backend, request: Request) -> Completion | AttemptFailure:
    from openai.types.chat import ChatCompletion

    try:
        response, error = row.get("response"), row.get("error")
        if not response:
            message = f"{error['code']}: {error['message']}" if error else "neither an answer nor an error"
            return AttemptFailure(message, retry_now=False, retry_later=True)
        if response["status_code"] != 200:
            return failure_from_status(response["status_code"], api_errors.parse_api_error(response["body"]))
        return parse_completion(ChatCompletion.construct(**response["body"]), backend, request)
    except (ValueError, LookupError, AttributeError, TypeError) as problem:
        return failure_from_malformed_response(problem)
