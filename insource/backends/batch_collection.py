"""Batch mode of `collect`: one batch after the other, each as large as the budget is certain to allow.

<cache>.batch.json, written before a batch is created and removed when its responses are in the cache:

{"name": "insource-1f0c...", "id": "batch_68f...", "began": "2026-11-21T10:00:00Z", "wire": "openai",
 "base_url": null, "structured": "json_schema", "json_schema": {...}, "strangers": [],
 "keys": {"5d41...": {"id": "T000017", "repeat": 0, "request_sha256": "9f2c..."}, ...}}

The id is null until the batch is created. If the process dies between the two writes, the next one searches the
provider's batches. OpenAI batches have our name in their metadata. For Anthropic, batches created since then with the
same number of requests are candidates; their custom ids are compared when they end. A batch that the provider does not
list yet is not found; it is created, and paid for, a second time.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from insource.backends import batch_client
from insource.backends.budgets import count_input_bytes
from insource.backends.client import API_MODULES, hash_request
from insource.backends.failures import AttemptFailure
from insource.backends.response_cache import batch_file_path, make_cached_response
from insource.backends.session import CollectSession
from insource.backends.types import ApiFormat, Backend, Completion, Constraint, Request, StructuredOutput
from insource.config.errors import StageError
from insource.system import atomic_files
from insource.system.timestamps import utc_timestamp

# Each batch may take a day. Fewer requests are sent only if they are all that remain.
MIN_BATCH_SIZE = 100
MISSING_FROM_BATCH = AttemptFailure("the batch ended without a word of it", retry_now=False, retry_later=True)


@dataclass(frozen=True)
class PendingBatch:
    """A batch that was started: the content of <cache>.batch.json."""

    name: str
    id: str | None
    started: str
    """UTC time; `began` in the file."""
    wire: ApiFormat
    base_url: str | None
    structured: StructuredOutput
    json_schema: Mapping[str, Any] | None
    """The schema for parsing responses: all requests of a batch share one."""
    foreign_batch_ids: tuple[str, ...]
    """`strangers` in the file: ids that were taken for this batch and turned out to belong to others."""
    keys: Mapping[str, Mapping[str, Any]]

    def started_at(self) -> datetime:
        """Return the start time."""
        return datetime.fromisoformat(self.started)


class _StopError(Exception):
    """Ends the collection; the message is the reason."""


async def collect_batches(session: CollectSession, poll_seconds: float, log: Callable[[str], None]) -> str | None:
    """Send all pending requests in batches, after the batch that an earlier process started.

    Return the reason for stopping early or for requests that remain; None if every request has a response. If the
    budget is used up, `system_budget.exhausted` is set.
    """
    path, backend = batch_file_path(session.cache.path), session.backend
    pending = _read_pending(path, backend)
    if pending is None and not session.pending:
        return None
    attempted_keys: set[str] = set()
    n_failed = 0
    async with API_MODULES[backend.api_format].make_client(backend) as client:
        try:
            while True:
                if pending is not None:
                    pending = await _resume_batch(client, session, pending)
                if pending is None:
                    requests = _choose_requests(session, attempted_keys)
                    if not requests:
                        break
                    pending = await _submit_batch(client, session, requests)
                outcomes, stop_reason = await _await_results(client, backend, pending, poll_seconds, log)
                if outcomes and not outcomes.keys() & pending.keys.keys():
                    pending = _discard_foreign_id(session, pending)
                    continue
                if outcomes is None:
                    _release_budget(session, pending.keys)
                else:
                    n_failed += _store_results(session, pending, outcomes)
                path.unlink()
                if stop_reason:
                    return stop_reason
                attempted_keys |= pending.keys.keys()
                pending = None
        except _StopError as error:
            return str(error)
    if n_failed:
        return f"{n_failed:,} requests brought no answer in their batch; the next run requests them again"
    return None


def _read_pending(path: Path, backend: Backend) -> PendingBatch | None:
    """Return the pending batch on disk, None if there is none.

    Raise StageError if the file is malformed, or if the batch was created at another address.
    """
    if not path.exists():
        return None
    try:
        payload = atomic_files.read_json(path)
        renamed = {"started": payload.pop("began"), "foreign_batch_ids": tuple(payload.pop("strangers"))}
        pending = PendingBatch(**payload, **renamed)
    except (ValueError, TypeError, KeyError) as error:
        raise StageError(
            f"{path} does not name the batch that was started: {error}; remove the file to give up the batch",
            code="INS-A008",
        ) from None
    if (pending.wire, pending.base_url) != (backend.api_format, backend.base_url):
        raise StageError(
            f"{path} records a batch that was started at {pending.base_url or pending.wire}, but {backend.model} is "
            f"now at {backend.base_url or backend.api_format}: compare again with the former address, or remove the "
            "file to give up the batch",
            code="INS-A008",
        )
    return pending


def _write_pending(path: Path, pending: PendingBatch) -> None:
    keys = {"started": "began", "foreign_batch_ids": "strangers"}
    atomic_files.write_json(path, {keys.get(name, name): value for name, value in asdict(pending).items()})


async def _resume_batch(client: object, session: CollectSession, pending: PendingBatch) -> PendingBatch | None:
    """Return the batch of an earlier process, with its id; None if it was never created."""
    path = batch_file_path(session.cache.path)
    if pending.id is None:
        ids = list(pending.keys)
        batch_id = await batch_client.find_batch(
            client,
            session.backend,
            pending.name,
            pending.started_at(),
            ids,
            foreign_batch_ids=pending.foreign_batch_ids,
        )
        if isinstance(batch_id, AttemptFailure):
            raise _StopError(f"it is unknown whether a batch was created on {pending.started}: {batch_id.error}")
        if batch_id is None:
            path.unlink()
            return None
        pending = replace(pending, id=batch_id)
        _write_pending(path, pending)
    if session.system_budget:
        for key in pending.keys.keys() & session.pending.keys():
            session.system_budget.reserve_now(_build_request(session, key), force=True)
    return pending


def _choose_requests(session: CollectSession, attempted_keys: set[str]) -> list[Request]:
    """Return the requests of the next batch, and reserve the upper bound of their cost.

    Return none if all were tried, or if the budget allows fewer than MIN_BATCH_SIZE.
    """
    system_budget, chosen, size = session.system_budget, list[Request](), 0
    for key in session.pending:
        request = _build_request(session, key)
        if key in attempted_keys or (chosen and request.constraint.json_schema != chosen[0].constraint.json_schema):
            continue
        size += count_input_bytes(request)
        if len(chosen) == batch_client.MAX_BATCH_REQUESTS or (chosen and size > batch_client.MAX_BATCH_BYTES):
            break
        if system_budget and not system_budget.reserve_now(request):
            if len(chosen) < MIN_BATCH_SIZE:
                _release_budget(session, [item.id for item in chosen])
                system_budget.exhausted = True
                return []
            break
        chosen.append(request)
    return chosen


async def _submit_batch(client: object, session: CollectSession, requests: Sequence[Request]) -> PendingBatch:
    """Create a batch and return it. Its id is on disk then."""
    path, backend = batch_file_path(session.cache.path), session.backend
    pending = PendingBatch(
        name=f"insource-{uuid.uuid4().hex}",
        id=None,
        started=utc_timestamp(),
        wire=backend.api_format,
        base_url=backend.base_url,
        structured=backend.structured,
        json_schema=requests[0].constraint.json_schema,
        foreign_batch_ids=(),
        keys={request.id: _describe_request(session, request) for request in requests},
    )
    _write_pending(path, pending)
    batch_id = await batch_client.create_batch(client, backend, pending.name, pending.started_at(), requests)
    if isinstance(batch_id, AttemptFailure):
        if not batch_id.retry_now:
            path.unlink()
            _release_budget(session, pending.keys)
        raise _StopError(f"no batch could be made: {batch_id.error}")
    pending = replace(pending, id=batch_id)
    _write_pending(path, pending)
    return pending


async def _await_results(
    client: object, backend: Backend, pending: PendingBatch, poll_seconds: float, log: Callable[[str], None]
) -> tuple[dict[str, Completion | AttemptFailure] | None, str | None]:
    """Return the outcomes of an ended batch, and a reason to create no further batch.

    The outcomes are None if the provider processed no request.
    """
    assert pending.id is not None
    state = await batch_client.wait_for_batch(client, backend, pending.id, poll_seconds, log)
    if isinstance(state, AttemptFailure):
        raise _StopError(
            f"batch {pending.id} cannot be read: {state.error}; the next run tries again. It sends the requests again "
            "if <journal>.batch.json is removed"
        )
    stop_states = {"failed": "failed", "cancelled": "was cancelled"}
    stop_reason = (
        f"batch {pending.id} {stop_states[state.state]}: {state.progress}" if state.state in stop_states else None
    )
    if state.state == "failed":
        return None, stop_reason
    request = Request("", (), 0, Constraint(None, pending.json_schema))
    outcomes = await batch_client.fetch_results(
        client, replace(backend, structured=pending.structured), pending.id, request
    )
    if isinstance(outcomes, AttemptFailure):
        raise _StopError(
            f"the results of batch {pending.id} cannot be read: {outcomes.error}; the next run tries again"
        )
    return outcomes, stop_reason


def _store_results(
    session: CollectSession, pending: PendingBatch, outcomes: Mapping[str, Completion | AttemptFailure]
) -> int:
    """Write the outcomes of a batch to the cache. Return the number of requests to retry later."""
    responses, n_failed = [], 0
    for key, metadata in pending.keys.items():
        cached = session.cache.responses.get(key)
        if cached is not None and cached.final:
            # The earlier process was killed after it wrote the cache and before it removed the batch file.
            continue
        outcome = outcomes.get(key, MISSING_FROM_BATCH)
        completion, failure = (outcome, None) if isinstance(outcome, Completion) else (None, outcome)
        usd, possibly_charged_usd = _settle_cost(session, key, completion)
        retry_later = failure is not None and (failure.retry_later or failure.refused)
        n_failed += retry_later
        responses.append(
            make_cached_response(
                key,
                metadata["id"],
                metadata["repeat"],
                metadata["request_sha256"],
                completion,
                requested_at=pending.started,
                error=failure.error if failure else None,
                final=not retry_later,
                usd=usd,
                possibly_charged_usd=possibly_charged_usd,
                batch=True,
                refused=failure is not None and failure.refused,
            )
        )
    session.cache.append(responses)
    for response in responses:
        session.record(response)
    return n_failed


def _settle_cost(session: CollectSession, key: str, completion: Completion | None) -> tuple[float | None, float]:
    """Settle a request with the budget. Return its cost in USD and the possible further charge.

    Requests without a response in a batch are free of charge.
    """
    system_budget = session.system_budget
    if system_budget is None:
        return None, 0.0
    usd = system_budget.usd(completion) if completion else None
    if key not in session.pending:
        # The request changed after the batch was created. Its response is paid for, and may be requested again.
        system_budget.charge(usd or 0.0)
        return usd, 0.0
    system_budget.settle(_build_request(session, key), completion, possibly_charged=False)
    return usd, system_budget.possibly_charged_usd.pop(key, 0.0)


def _discard_foreign_id(session: CollectSession, pending: PendingBatch) -> PendingBatch:
    """Return the pending batch without an id that belongs to another batch."""
    assert pending.id is not None
    _release_budget(session, pending.keys)
    pending = replace(pending, id=None, foreign_batch_ids=(*pending.foreign_batch_ids, pending.id))
    _write_pending(batch_file_path(session.cache.path), pending)
    return pending


def _release_budget(session: CollectSession, keys: Iterable[str]) -> None:
    if session.system_budget:
        for key in keys:
            if key in session.pending:
                session.system_budget.settle(_build_request(session, key), None, possibly_charged=False)


def _build_request(session: CollectSession, key: str) -> Request:
    return replace(session.pending[key][0].request, id=key)


def _describe_request(session: CollectSession, request: Request) -> dict[str, object]:
    row_request = session.pending[request.id][0]
    return {
        "id": row_request.id,
        "repeat": row_request.repeat,
        "request_sha256": hash_request(session.backend, request),
    }
