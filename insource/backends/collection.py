"""Responses to row requests, each paid for once: cached responses are reused, the others are requested.

collect(backend, ["openai", None], row_requests, cache_path, budget=budget, price=price)
CollectResult(answers={("T000017", 0): CachedResponse(...), ...}, complete=True, why_incomplete=None,
              n_requested=812, n_reused=2268, n_retries=31, spent_usd=0.21, wall_seconds=118.0)

Cached responses are keyed by model identity, the exact request body (model, prompt, parameters) and the number of the
repeat. Rows with identical requests share one response.

Errors count as wrong answers, with one exception: requests that were refused because of their configuration (key,
account, model, parameters: insource/backends/api_errors.py) make the system INCOMPLETE. Those and transient errors (no
connection, timeout, 408, 409, 429, 5xx, unreadable responses) are requested again by the next invocation. Errors caused
by the row's input (too long, filtered) are not.

Requests in flight when a process is killed are sent again, because their responses are unknown. They count as paid:
attempts are on disk before they are sent (insource/backends/attempt_log.py). In live mode these are at most
`backend.concurrency` calls, in batch mode none.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from insource.backends import batch_collection, response_cache
from insource.backends.attempt_log import AttemptLog
from insource.backends.budgets import Budget, Pricing, SystemBudget
from insource.backends.client import API_MODULES, stream_results
from insource.backends.response_cache import CachedResponse, compute_cache_key
from insource.backends.session import CollectSession
from insource.backends.types import Backend, Request, RequestResult, RowRequest
from insource.config.errors import RecipeError
from insource.system.timestamps import utc_timestamp

# Consecutive failures that no row's input caused, after which no more requests are sent.
MAX_CONSECUTIVE_FAILURES = 20
POLL_SECONDS = 10.0


@dataclass(frozen=True)
class CollectResult:
    """The responses to a list of row requests."""

    answers: Mapping[tuple[str, int], CachedResponse]
    """By row id and repeat. Requests that were never sent are missing."""
    complete: bool
    """Whether every request was completed. Errors count as wrong answers and leave it complete. Requests refused
    because of their configuration make it incomplete, and so do transient errors of a batch, which are not retried
    here."""
    why_incomplete: str | None
    n_requested: int
    """Row requests sent by this invocation, with one or several attempts."""
    n_reused: int
    n_retries: int
    """Attempts after the first."""
    spent_usd: float
    """By this invocation, possible charges included; 0 if no price is known."""
    wall_seconds: float
    """Duration of the requests."""
    budget_exhausted: bool = False
    """Whether requests were not sent because their cost could exceed the budget."""


def collect(
    backend: Backend,
    identity: Any,
    row_requests: Sequence[RowRequest],
    cache_path: Path,
    *,
    budget: Budget | None,
    price: Pricing | None,
    mode: Literal["live", "batch"] = "live",
    on_response: Callable[[CachedResponse], None] = lambda response: None,
    poll_seconds: float = POLL_SECONDS,
    log: Callable[[str], None] = lambda message: None,
) -> CollectResult:
    """Return the responses to all row requests, as far as the budget allows.

    `identity` is any JSON value that identifies the model, independent of its address. `on_response` gets every
    response once it is on disk, cached ones first. `poll_seconds` is the first wait for a batch; `log` gets its
    progress. Raise RecipeError if a budget is set but no price is known, or if mode live would pay again for a batch in
    flight. Raise what `response_cache.open_cache` raises.
    """
    if budget is not None and price is None:
        raise RecipeError(
            f"the price of {backend.model} is unknown, so compare.budget_usd cannot be enforced; set in the "
            "baseline price: {input_usd_per_million: ..., output_usd_per_million: ...}",
            code="INS-A002",
        )
    with response_cache.open_cache(cache_path) as cache:
        cached_responses, pending = _split_cached(backend, identity, row_requests, cache.responses)
        system_budget = SystemBudget(budget, price, batch=mode == "batch") if price is not None else None
        session = CollectSession(backend, cache, pending, system_budget, {}, on_response)
        for row_request, cached_response in cached_responses:
            reused_response = replace(cached_response, id=row_request.id, reused=True)
            session.answers[row_request.id, row_request.repeat] = reused_response
            on_response(reused_response)
        started_at, retries, reason = time.monotonic(), 0, None
        if mode == "batch":
            # Also without pending requests: the responses of a batch in flight are paid for, and go to the cache.
            reason = asyncio.run(batch_collection.collect_batches(session, poll_seconds, log))
        elif pending:
            _refuse_if_batch_pending(cache_path)
            retries, reason = asyncio.run(_collect_live(session))
        wall_seconds = time.monotonic() - started_at
    budget_exhausted = system_budget is not None and system_budget.exhausted
    if budget_exhausted and budget is not None:
        reason = f"the next call could exceed budget_usd {budget.limit_usd:g}"
    if refused := [response for response in session.answers.values() if response.refused]:
        reason = f"{len(refused):,} refused because of their parameters, the last: {refused[-1].error}"
    reused = sum(response.reused for response in session.answers.values())
    return CollectResult(
        answers=session.answers,
        complete=reason is None,
        why_incomplete=reason and f"queried {len(session.answers):,} of {len(row_requests):,}: {reason}",
        n_requested=len(session.answers) - reused,
        n_reused=reused,
        n_retries=retries,
        spent_usd=system_budget.spent_usd if system_budget else 0.0,
        wall_seconds=wall_seconds,
        budget_exhausted=budget_exhausted,
    )


def list_pending_requests(
    backend: Backend, identity: object, row_requests: Sequence[RowRequest], cache_path: Path
) -> list[RowRequest]:
    """Return the row requests that `collect` would send, one of each key."""
    _, pending = _split_cached(backend, identity, row_requests, _last_responses(cache_path))
    return [group[0] for group in pending.values()]


def count_pending_requests(
    backend: Backend, identity: object, row_requests: Sequence[RowRequest], cache_path: Path
) -> int:
    """Return the number of requests that `collect` would send."""
    return len(list_pending_requests(backend, identity, row_requests, cache_path))


def find_last_response(
    backend: Backend, identity: object, row_request: RowRequest, cache_path: Path
) -> CachedResponse | None:
    """Return the last response to a request, transient errors included; None if it was never sent."""
    return _last_responses(cache_path).get(_cache_key(backend, identity, row_request))


def sum_cached_cost_usd(
    backend: Backend, identity: object, row_requests: Sequence[RowRequest], cache_path: Path
) -> float:
    """Return the cost of these requests in earlier invocations, possible charges included, in USD."""
    keys = {_cache_key(backend, identity, row_request) for row_request in row_requests}
    # All lines of a key, not only the last: each attempt of another invocation may have been charged.
    return sum(response.total_usd for response in response_cache.read_responses(cache_path) if response.key in keys)


def _cache_key(backend: Backend, identity: object, row_request: RowRequest) -> str:
    body = API_MODULES[backend.api_format].build_body(backend, row_request.request)
    return compute_cache_key(identity, body, row_request.repeat)


def _last_responses(cache_path: Path) -> dict[str, CachedResponse]:
    return {response.key: response for response in response_cache.read_responses(cache_path)}


def _split_cached(
    backend: Backend, identity: object, row_requests: Sequence[RowRequest], responses: Mapping[str, CachedResponse]
) -> tuple[list[tuple[RowRequest, CachedResponse]], dict[str, list[RowRequest]]]:
    """Return the row requests with a final cached response, and the others by key."""
    cached, pending = [], dict[str, list[RowRequest]]()
    for row_request in row_requests:
        key = _cache_key(backend, identity, row_request)
        response = responses.get(key)
        if response is not None and response.final:
            cached.append((row_request, response))
        else:
            pending.setdefault(key, []).append(row_request)
    return cached, pending


def _refuse_if_batch_pending(cache_path: Path) -> None:
    """Raise RecipeError if a batch is in flight, whose requests would be paid for twice."""
    if (file := response_cache.batch_file_path(cache_path)).exists():
        raise RecipeError(
            f"{file} records a batch that was started and will be charged; compare again with mode: batch to get its "
            "answers, or remove the file to give up the batch",
            code="INS-A008",
        )


async def _collect_live(session: CollectSession) -> tuple[int, str | None]:
    """Send the pending requests. Return the number of retries, and the reason for stopping early."""
    stop_reasons: list[str] = []
    retries, consecutive_failures, system_budget = 0, 0, session.system_budget

    def iter_requests() -> Iterator[Request]:
        for key, row_requests in session.pending.items():
            if stop_reasons or (system_budget is not None and system_budget.exhausted):
                return
            yield replace(row_requests[0].request, id=key)

    queue: asyncio.Queue[CachedResponse | None] = asyncio.Queue()
    attempt_log = AttemptLog(system_budget, session.cache.path) if system_budget is not None else None
    writer = asyncio.create_task(_write_responses(session, queue, attempt_log))
    try:
        async with aclosing(stream_results(session.backend, iter_requests(), attempt_log)) as results:
            async for result in results:
                if writer.done():
                    break
                if not result.attempt_latencies_seconds:
                    # Not sent: the budget is used up, or the provider requests too long a wait.
                    stop_reasons.append(result.error or "")
                    continue
                retries += len(result.attempt_latencies_seconds) - 1
                consecutive_failures = consecutive_failures + 1 if result.retryable or result.refused else 0
                if consecutive_failures == MAX_CONSECUTIVE_FAILURES:
                    stop_reasons.append(
                        f"{MAX_CONSECUTIVE_FAILURES} requests in succession brought no answer, the last: {result.error}"
                    )
                queue.put_nowait(_make_response(session, result))
    finally:
        queue.put_nowait(None)
        await writer
        if attempt_log:
            attempt_log.close()
    return retries, stop_reasons[0] if stop_reasons else None


async def _write_responses(
    session: CollectSession, queue: asyncio.Queue[CachedResponse | None], attempt_log: AttemptLog | None
) -> None:
    """Write responses to the cache, all queued ones with one fsync.

    A separate task, so that the disk delays no request and is not part of a latency.
    """
    finished = False
    while not finished:
        chunk = [await queue.get()]
        while not queue.empty():
            chunk.append(queue.get_nowait())
        finished = None in chunk
        responses = [response for response in chunk if response is not None]
        if responses:
            await asyncio.to_thread(session.cache.append, responses)
            if attempt_log:
                await asyncio.to_thread(attempt_log.record_answered, [response.key for response in responses])
        for response in responses:
            session.record(response)


def _make_response(session: CollectSession, result: RequestResult) -> CachedResponse:
    system_budget, completion, row_request = session.system_budget, result.completion, session.pending[result.id][0]
    return response_cache.make_cached_response(
        result.id,
        row_request.id,
        row_request.repeat,
        result.request_sha256,
        completion,
        requested_at=utc_timestamp(),
        error=result.error,
        final=not (result.retryable or result.refused),
        refused=result.refused,
        usd=system_budget.usd(completion) if system_budget and completion else None,
        possibly_charged_usd=system_budget.possibly_charged_usd.pop(result.id, 0.0) if system_budget else 0.0,
        latency_seconds=result.latency_seconds,
        attempt_latencies_seconds=result.attempt_latencies_seconds,
    )
