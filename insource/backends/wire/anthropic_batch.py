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
from insource.backends.client import Failed, refused, unreadable
from insource.backends.types import Backend, Received, Request
from insource.backends.wire.anthropic_messages import body, received

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

# Our clock may differ from theirs, and creating may be tried for a while. A batch of others that is taken for ours
# costs a look at its results, and one of ours that is not found is paid for again.
CLOCKS_DIFFER, TRIED_FOR = timedelta(hours=1), timedelta(minutes=15)
# What each error of a batch would be as the answer to a live request; any other may have gone another day.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


async def create(client: "AsyncAnthropic", backend: Backend, name: str, requests: Sequence[Request]) -> str:
    """Returns the id of a new batch. It cannot bear a name."""
    asked: list[Any] = [{"custom_id": request.id, "params": body(backend, request)} for request in requests]
    batch = await client.messages.batches.create(requests=asked)
    return batch.id


async def found(
    client: "AsyncAnthropic", name: str, began: datetime, ids: Sequence[str], strangers: Collection[str]
) -> str | None:
    """Returns the id of the oldest batch of as many requests that was made since `began`, None where there is none.

    Whether it is ours nobody can know before it ended: batches bear no name, and show their custom ids only in the
    results. The caller looks at those, and counts a batch with others among the `strangers`.
    """
    oldest = None
    async for batch in client.messages.batches.list(limit=100):
        if batch.created_at < began - CLOCKS_DIFFER:
            break
        in_time = batch.created_at < began + TRIED_FOR + CLOCKS_DIFFER
        if batch.id not in strangers and in_time and _total(batch) == len(ids):
            oldest = batch.id
    return oldest


async def look(client: "AsyncAnthropic", batch_id: str) -> tuple[str, str]:
    """Returns how far a batch is, and that in words."""
    batch = await client.messages.batches.retrieve(batch_id)
    counts = batch.request_counts
    told = f"{batch.processing_status}, {_total(batch) - counts.processing:,} of {_total(batch):,} done"
    if batch.processing_status != "ended":
        return "running", told
    return "cancelled" if counts.canceled else "ended", told


async def results(
    client: "AsyncAnthropic", backend: Backend, batch_id: str, asked: Request
) -> dict[str, Received | Failed]:
    """Returns what became of each request, by its custom id. Read whole: a stream of lines that breaks off would end
    like one that is complete."""
    path = f"/v1/messages/batches/{batch_id}/results"
    found = await client.get(path, cast_to=bytes, options={"headers": {"Accept": "application/binary"}})
    # Not splitlines, which takes more for the end of a line than JSON does.
    rows = [json.loads(line) for line in found.decode().split("\n") if line.strip()]
    return {row["custom_id"]: _outcome(row["result"], backend, asked) for row in rows}


def _outcome(result: dict[str, Any], backend: Backend, asked: Request) -> Received | Failed:
    from anthropic.types import Message

    try:
        if result["type"] == "succeeded":
            return received(Message.construct(**result["message"]), backend, asked)
        if result["type"] != "errored":
            return Failed(f"{result['type']} in its batch", again=False, another_day=True)
        refusal = api_errors.read(result["error"])
        if status := _STATUS.get(refusal.code):
            return refused(status, refusal)
        return Failed(f"{refusal.code}: {refusal.message}", again=False, another_day=True)
    except (ValueError, LookupError, AttributeError, TypeError) as problem:
        return unreadable(problem)


def _total(batch: "MessageBatch") -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
