"""Anthropic's batch API: requests are sent in one call, results arrive as JSON lines in any order.

in   {"custom_id": "9f2c", "params": {"model": "claude-haiku-5-5", "messages": [...], "max_tokens": 64}}
out  {"custom_id": "9f2c", "result": {"type": "succeeded", "message": {"content": [...], ...}}}
or   {"custom_id": "9f2c", "result": {"type": "errored", "error": {"error": {"type": "api_error", ...}}}}
or   {"custom_id": "9f2c", "result": {"type": "expired"}}
"""

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from insource.backends import api_errors
from insource.backends.failures import AttemptFailure, failure_from_malformed_response, failure_from_status
from insource.backends.types import Backend, Completion, Request
from insource.backends.wire.anthropic_messages import build_body, parse_completion

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

# The local clock may differ from the provider's, and creation may be retried for a while. A foreign batch that is taken
# for this one costs one download of its results; a batch that is not found is paid for again.
CLOCK_SKEW, CREATION_WINDOW = timedelta(hours=1), timedelta(minutes=15)
# HTTP status that each error type has in a live response. Any other type counts as transient.
_HTTP_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


async def create(client: "AsyncAnthropic", backend: Backend, name: str, requests: Sequence[Request]) -> str:
    """Create a batch and return its id. Anthropic's batches have no name."""
    entries: list[Any] = [{"custom_id": request.id, "params": build_body(backend, request)} for request in requests]
    batch = await client.messages.batches.create(requests=entries)
    return batch.id


async def find(
    client: "AsyncAnthropic", name: str, started_at: datetime, ids: Sequence[str], foreign_batch_ids: Collection[str]
) -> str | None:
    """Return the id of the oldest batch since `started_at` with the same number of requests, None if there is none.

    Ownership is unknown until the batch ends: batches have no name, and list custom ids only in their results. The
    caller compares those, and adds a foreign batch to `foreign_batch_ids`.
    """
    oldest = None
    async for batch in client.messages.batches.list(limit=100):
        if batch.created_at < started_at - CLOCK_SKEW:
            break
        in_time = batch.created_at < started_at + CREATION_WINDOW + CLOCK_SKEW
        if batch.id not in foreign_batch_ids and in_time and _count_requests(batch) == len(ids):
            oldest = batch.id
    return oldest


async def poll(client: "AsyncAnthropic", batch_id: str) -> tuple[str, str]:
    """Return the state of a batch, and its progress as text."""
    batch = await client.messages.batches.retrieve(batch_id)
    counts = batch.request_counts
    progress = (
        f"{batch.processing_status}, {_count_requests(batch) - counts.processing:,} of {_count_requests(batch):,} done"
    )
    if batch.processing_status != "ended":
        return "running", progress
    return "cancelled" if counts.canceled else "ended", progress


async def fetch_results(
    client: "AsyncAnthropic", backend: Backend, batch_id: str, request: Request
) -> dict[str, Completion | AttemptFailure]:
    """Return the outcome of each request, by custom id.

    Download the complete body first: a truncated stream of lines would look complete.
    """
    path = f"/v1/messages/batches/{batch_id}/results"
    content = await client.get(path, cast_to=bytes, options={"headers": {"Accept": "application/binary"}})
    # Not splitlines, which also splits at characters that JSON strings may contain.
    rows = [json.loads(line) for line in content.decode().split("\n") if line.strip()]
    return {row["custom_id"]: _parse_result(row["result"], backend, request) for row in rows}


def _parse_result(result: dict[str, Any], backend: Backend, request: Request) -> Completion | AttemptFailure:
    from anthropic.types import Message

    try:
        if result["type"] == "succeeded":
            return parse_completion(Message.construct(**result["message"]), backend, request)
        if result["type"] != "errored":
            return AttemptFailure(f"{result['type']} in its batch", retry_now=False, retry_later=True)
        error = api_errors.parse_api_error(result["error"])
        if status := _HTTP_STATUS.get(error.code):
            return failure_from_status(status, error)
        return AttemptFailure(f"{error.code}: {error.message}", retry_now=False, retry_later=True)
    except (ValueError, LookupError, AttributeError, TypeError) as problem:
        return failure_from_malformed_response(problem)


def _count_requests(batch: "MessageBatch") -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
