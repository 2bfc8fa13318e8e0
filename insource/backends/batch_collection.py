"""Questions asked in batches, one batch after the other, each as large as the budget surely allows.

<journal>.batch.json, written before a batch is made and gone once its answers are in the journal:
{"name": "insource-1f0c...", "id": "batch_68f...", "began": "2026-11-21T10:00:00Z", "wire": "openai",
 "base_url": null, "structured": "json_schema", "json_schema": {...}, "strangers": [],
 "keys": {"5d41...": {"id": "T000017", "repeat": 0, "request_sha256": "9f2c..."}, ...}}

The id is null between the two writes. Whoever is killed then leaves it so, and the next process asks the provider
whether there is a batch: OpenAI's bear the name, of Anthropic's those are looked at that were made since and hold as
many requests, and their custom ids are compared once they ended. What cannot be found is a batch that the provider does
not list yet; it would be made, and paid for, a second time.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from insource.backends import batch_client
from insource.backends.budgets import count_input_bytes
from insource.backends.client import API_MODULES, AttemptFailure, hash_request
from insource.backends.collection import CollectSession
from insource.backends.response_cache import batch_file_path, make_cached_response
from insource.backends.types import ApiFormat, Backend, Completion, Constraint, Request, StructuredOutput
from insource.config.errors import StageError
from insource.system import atomic_files
from insource.tracking.run import utc_timestamp

# Fewer are worth a batch only where they are all that is left: each may take a day.
MIN_BATCH_SIZE = 100
MISSING_FROM_BATCH = AttemptFailure("the batch ended without a word of it", again=False, another_day=True)


@dataclass(frozen=True)
class PendingBatch:
    """A batch that was begun: what stands in <journal>.batch.json."""

    name: str
    id: str | None
    began: str
    wire: ApiFormat
    base_url: str | None
    structured: StructuredOutput
    json_schema: Mapping[str, Any] | None
    """That answers are read by: all requests of a batch have the same."""
    strangers: tuple[str, ...]
    """Ids that were taken for this batch, and turned out to be others."""
    keys: Mapping[str, Mapping[str, Any]]

    def began_at(self) -> datetime:
        """Returns when it was begun."""
        return datetime.fromisoformat(self.began)


class _StopError(Exception):
    """Why no more is asked."""


async def collect_batches(a_round: CollectSession, poll_seconds: float, say: Callable[[str], None]) -> str | None:
    """Asks all that is waiting, after the batch that an earlier process began. Returns why it stopped before, or what
    is left for another time; None where all is answered. A budget that allows no more leaves the purse empty."""
    path, backend = batch_file_path(a_round.journal.path), a_round.backend
    pending = _read_pending(path, backend)
    if pending is None and not a_round.waiting:
        return None
    tried: set[str] = set()
    lost = 0
    async with API_MODULES[backend.wire].make_client(backend) as client:
        try:
            while True:
                if pending is not None:
                    pending = await _resume_batch(client, a_round, pending)
                if pending is None:
                    requests = _choose_requests(a_round, tried)
                    if not requests:
                        break
                    pending = await _submit_batch(client, a_round, requests)
                outcomes, stop = await _await_results(client, backend, pending, poll_seconds, say)
                if outcomes and not outcomes.keys() & pending.keys.keys():
                    pending = _discard_foreign_id(a_round, pending)
                    continue
                if outcomes is None:
                    _release_budget(a_round, pending.keys)
                else:
                    lost += _store_results(a_round, pending, outcomes)
                path.unlink()
                if stop:
                    return stop
                tried |= pending.keys.keys()
                pending = None
        except _StopError as why:
            return str(why)
    return f"{lost:,} requests brought no answer in their batch; the next run asks for them again" if lost else None


def _read_pending(path: Path, backend: Backend) -> PendingBatch | None:
    if not path.exists():
        return None
    try:
        told = atomic_files.read_json(path)
        pending = PendingBatch(**{**told, "strangers": tuple(told["strangers"])})
    except (ValueError, TypeError, KeyError) as error:
        raise StageError(f"{path} does not say which batch was begun: {error}") from None
    if (pending.wire, pending.base_url) != (backend.wire, backend.base_url):
        raise StageError(
            f"{path} holds a batch that was begun at {pending.base_url or pending.wire}, and {backend.model} is asked "
            f"at {backend.base_url or backend.wire}: compare once more with the former address, or give up the batch "
            "by removing the file"
        )
    return pending


def _write_pending(path: Path, pending: PendingBatch) -> None:
    atomic_files.write_json(path, asdict(pending))


async def _resume_batch(client: Any, a_round: CollectSession, pending: PendingBatch) -> PendingBatch | None:
    """Returns the batch that an earlier process began, with its id; None where it never came to be."""
    path = batch_file_path(a_round.journal.path)
    if pending.id is None:
        ids = list(pending.keys)
        there = await batch_client.find_batch(
            client, a_round.backend, pending.name, pending.began_at(), ids, strangers=pending.strangers
        )
        if isinstance(there, AttemptFailure):
            raise _StopError(f"nobody knows whether a batch was made on {pending.began}: {there.error}")
        if there is None:
            path.unlink()
            return None
        pending = replace(pending, id=there)
        _write_pending(path, pending)
    if a_round.purse:
        for key in pending.keys.keys() & a_round.waiting.keys():
            a_round.purse.set_aside(_build_request(a_round, key), anyway=True)
    return pending


def _choose_requests(a_round: CollectSession, tried: set[str]) -> list[Request]:
    """Returns the requests of the next batch, for which the most that they can cost is set aside; none where all were
    tried, or where the budget allows so few that they are not worth waiting for."""
    purse, chosen, size = a_round.purse, list[Request](), 0
    for key in a_round.waiting:
        request = _build_request(a_round, key)
        if key in tried or (chosen and request.constraint.json_schema != chosen[0].constraint.json_schema):
            continue
        size += count_input_bytes(request)
        if len(chosen) == batch_client.MAX_BATCH_REQUESTS or (chosen and size > batch_client.MAX_BATCH_BYTES):
            break
        if purse and not purse.set_aside(request):
            if len(chosen) < MIN_BATCH_SIZE:
                _release_budget(a_round, [one.id for one in chosen])
                purse.empty = True
                return []
            break
        chosen.append(request)
    return chosen


async def _submit_batch(client: Any, a_round: CollectSession, requests: Sequence[Request]) -> PendingBatch:
    """Returns the batch that was made of requests, whose id is on disk."""
    path, backend = batch_file_path(a_round.journal.path), a_round.backend
    pending = PendingBatch(
        name=f"insource-{uuid.uuid4().hex}",
        id=None,
        began=utc_timestamp(),
        wire=backend.wire,
        base_url=backend.base_url,
        structured=backend.structured,
        json_schema=requests[0].constraint.json_schema,
        strangers=(),
        keys={request.id: _describe_request(a_round, request) for request in requests},
    )
    _write_pending(path, pending)
    made = await batch_client.create_batch(client, backend, pending.name, pending.began_at(), requests)
    if isinstance(made, AttemptFailure):
        if not made.again:
            path.unlink()
            _release_budget(a_round, pending.keys)
        raise _StopError(f"no batch could be made: {made.error}")
    pending = replace(pending, id=made)
    _write_pending(path, pending)
    return pending


async def _await_results(
    client: Any, backend: Backend, pending: PendingBatch, poll_seconds: float, say: Callable[[str], None]
) -> tuple[dict[str, Completion | AttemptFailure] | None, str | None]:
    """Returns what became of the requests of a batch, once it ended, and why nothing is to be asked after it; None
    where none of them was asked."""
    assert pending.id is not None
    state = await batch_client.wait_for_batch(client, backend, pending.id, poll_seconds, say)
    if isinstance(state, AttemptFailure):
        raise _StopError(
            f"batch {pending.id} cannot be looked at: {state.error}; the next run tries again, and asks anew if "
            "<journal>.batch.json is removed"
        )
    ends = {"failed": "failed", "cancelled": "was cancelled"}
    stop = f"batch {pending.id} {ends[state.state]}: {state.told}" if state.state in ends else None
    if state.state == "failed":
        return None, stop
    asked = Request("", (), 0, Constraint(None, pending.json_schema))
    outcomes = await batch_client.fetch_results(
        client, replace(backend, structured=pending.structured), pending.id, asked
    )
    if isinstance(outcomes, AttemptFailure):
        raise _StopError(
            f"the results of batch {pending.id} cannot be read: {outcomes.error}; the next run tries again"
        )
    return outcomes, stop


def _store_results(
    a_round: CollectSession, pending: PendingBatch, outcomes: Mapping[str, Completion | AttemptFailure]
) -> int:
    """Writes what a batch brought into the journal. Returns how many requests are to be asked again another time."""
    rows, lost = [], 0
    for key, about in pending.keys.items():
        known = a_round.journal.rows.get(key)
        if known is not None and known.final:
            # The process was killed between the journal and the end of the file that names the batch.
            continue
        outcome = outcomes.get(key, MISSING_FROM_BATCH)
        received, failed = (outcome, None) if isinstance(outcome, Completion) else (None, outcome)
        usd, unsure_usd = _settle_cost(a_round, key, received)
        again = failed is not None and (failed.another_day or failed.refused)
        lost += again
        rows.append(
            make_cached_response(
                key,
                about["id"],
                about["repeat"],
                about["request_sha256"],
                received,
                asked=pending.began,
                error=failed.error if failed else None,
                final=not again,
                usd=usd,
                unsure_usd=unsure_usd,
                batch=True,
                refused=failed is not None and failed.refused,
            )
        )
    a_round.journal.append(rows)
    for row in rows:
        a_round.tell(row)
    return lost


def _settle_cost(a_round: CollectSession, key: str, received: Completion | None) -> tuple[float | None, float]:
    """Returns what an answer cost, and what it may have cost, and takes both off the budget. Nobody is paid for what a
    batch did not answer."""
    purse = a_round.purse
    if purse is None:
        return None, 0.0
    usd = purse.usd(received) if received else None
    if key not in a_round.waiting:
        # The question was changed after the batch was begun. Its answer is paid for, and may be asked for again.
        purse.pay(usd or 0.0)
        return usd, 0.0
    purse.settle(_build_request(a_round, key), received, unsure=False)
    return usd, purse.unsure_usd.pop(key, 0.0)


def _discard_foreign_id(a_round: CollectSession, pending: PendingBatch) -> PendingBatch:
    """Returns the batch without the id that turned out to be another's."""
    assert pending.id is not None
    _release_budget(a_round, pending.keys)
    pending = replace(pending, id=None, strangers=(*pending.strangers, pending.id))
    _write_pending(batch_file_path(a_round.journal.path), pending)
    return pending


def _release_budget(a_round: CollectSession, keys: Iterable[str]) -> None:
    if a_round.purse:
        for key in keys:
            if key in a_round.waiting:
                a_round.purse.settle(_build_request(a_round, key), None, unsure=False)


def _build_request(a_round: CollectSession, key: str) -> Request:
    return replace(a_round.waiting[key][0].request, id=key)


def _describe_request(a_round: CollectSession, request: Request) -> dict[str, Any]:
    question = a_round.waiting[request.id][0]
    return {
        "id": question.id,
        "repeat": question.repeat,
        "request_sha256": hash_request(a_round.backend, request),
    }
