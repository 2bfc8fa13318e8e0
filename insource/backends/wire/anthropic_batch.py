"""Anthropic's batches: requests go up in one call, their results come back as lines, in any order.

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

# Our clock may differ from theirs, and creating may be tried for a while. A batch of others that is taken for ours
# costs a look at its results, and one of ours that is not found is paid for again.
CLOCK_SKEW, CREATION_WINDOW = timedelta(hours=1), timedelta(minutes=15)
# What each error of a batch would be as the answer to a live request; any other may have gone another day.
_HTTP_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


async def create(client: "AsyncAnthropic", backend: Backend, name: str, requests: Sequence[Request]) -> str:
    """Returns the id of a new batch. It cannot bear a name."""
    entries: list[Any] = [{"custom_id": request.id, "params": build_body(backend, request)} for request in requests]
    batch = await client.messages.batches.create(requests=entries)
    return batch.id


async def find(
    client: "AsyncAnthropic", name: str, started_at: datetime, ids: Sequence[str], foreign_batch_ids: Collection[str]
) -> str | None:
    """Returns the id of the oldest batch of as many requests that was made since `started_at`, None where there is
    none.

    Whether it is ours nobody can know before it ended: batches bear no name, and show their custom ids only in the
    results. The caller looks at those, and counts a batch with others among the `foreign_batch_ids`.
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
    """Returns how far a batch is, and that in words."""
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
    """Returns what became of each request, by its custom id. Read whole: a stream of lines that breaks off would end
    like one that is complete."""
    path = f"/v1/messages/batches/{batch_id}/results"
    content = await client.get(path, cast_to=bytes, options={"headers": {"Accept": "application/binary"}})
    # Not splitlines, which takes more for the end of a line than JSON does.
    rows = [json.loads(line) for line in content.decode().split("\n") if line.strip()]
    return {row["custom_id"]: _parse_result(row["result"], backend, request) for row in rows}


def _parse_result(result: dict[str, Any], backend: Backend, request: Request) -> Completion | AttemptFailure:
    from anthropic.types import Message

    try:
        if result["type"] == "succeeded":
            return parse_completion(Message.construct(**result["message"]), backend, request)
        if result["type"] != "errored":
            return AttemptFailure(f"{result['type']} in its batch", again=False, another_day=True)
        error = api_errors.parse_api_error(result["error"])
        if status := _HTTP_STATUS.get(error.code):
            return failure_from_status(status, error)
        return AttemptFailure(f"{error.code}: {error.message}", again=False, another_day=True)
    except (ValueError, LookupError, AttributeError, TypeError) as problem:
        return failure_from_malformed_response(problem)


def _count_requests(batch: "MessageBatch") -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
