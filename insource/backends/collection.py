"""Answers to questions, each paid for once: what the journal knows is used again, the rest is asked for.

collect(backend, ["openai", None], questions, journal, budget=budget, price=price)
Collected(answers={("T000017", 0): Answered(...), ...}, complete=True, why_incomplete=None, asked=812, reused=2268,
          retries=31, spent_usd=0.21, wall_seconds=118.0)

An answer is used again for the same request to the byte: who is asked (`identity`), the whole body with model, prompt
and parameters, and the number of the repeat. Rows whose requests are the same share one answer.

Errors are answers too, and count as wrong, but for requests that were refused for how they were asked (key, account,
model, parameters: insource/backends/api_errors.py): these make the system INCOMPLETE. They and errors that may pass (no
connection, no answer in time, 408, 409, 429, 5xx, what cannot be read) are asked for again by the next invocation; what
the row is to blame for (too long, filtered) is not.

What was on its way when a process was killed is asked again, as nobody knows its answer, and counts as paid: attempts
are on disk before they are sent (insource/backends/attempt_log.py). To a live model that is at most
`backend.concurrency` calls, and in a batch none.
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
from insource.tracking.run import utc_timestamp

# So many requests in succession without an answer, none of them to blame for it, and nobody is asked any more.
MAX_CONSECUTIVE_FAILURES = 20
POLL_SECONDS = 10.0


@dataclass(frozen=True)
class CollectResult:
    """The answers to a list of questions."""

    answers: Mapping[tuple[str, int], CachedResponse]
    """By the row's id and the repeat; those are missing that were never asked."""
    complete: bool
    """Whether every question was asked to its end. Errors do not make it incomplete, they are wrong answers; requests
    refused for how they were asked do, and errors of a batch that may pass, where nothing was asked a second time."""
    why_incomplete: str | None
    asked: int
    """Questions that were asked here, once or several times."""
    reused: int
    retries: int
    """Attempts after the first."""
    spent_usd: float
    """Here, what may have been paid for nothing included; 0 where nobody knows a price."""
    wall_seconds: float
    """That asking took."""


def collect(
    backend: Backend,
    identity: Any,
    questions: Sequence[RowRequest],
    cache_path: Path,
    *,
    budget: Budget | None,
    price: Pricing | None,
    mode: Literal["live", "batch"] = "live",
    on_response: Callable[[CachedResponse], None] = lambda answered: None,
    poll_seconds: float = POLL_SECONDS,
    log: Callable[[str], None] = lambda message: None,
) -> CollectResult:
    """Returns the answers to all questions, as far as the budget goes.

    `identity`: any JSON that says who answers, wherever it listens. `on_response` gets every answer once it is on disk,
    those used again first. `poll_seconds`: the first wait for a batch, `log` is told how far that is. Raises
    RecipeError where a budget cannot be kept because there is no price, or where a batch is on its way that mode live
    would pay for again, and what `journal.opened` raises.
    """
    if budget is not None and price is None:
        raise RecipeError(
            f"nobody knows what {backend.model} costs, so compare.budget_usd cannot be kept; give the baseline a "
            "price: {input_usd_per_million: ..., output_usd_per_million: ...}"
        )
    with response_cache.open_cache(cache_path) as cache:
        cached_responses, pending = _split_cached(backend, identity, questions, cache.rows)
        system_budget = SystemBudget(budget, price, batch=mode == "batch") if price is not None else None
        session = CollectSession(backend, cache, pending, system_budget, {}, on_response)
        for question, cached_response in cached_responses:
            session.answers[question.id, question.repeat] = reused_response = replace(
                cached_response, id=question.id, reused=True
            )
            on_response(reused_response)
        started_at, retries, reason = time.monotonic(), 0, None
        if mode == "batch":
            # Also where nothing is waiting: a batch that was paid for brings its answers into the journal.
            reason = asyncio.run(batch_collection.collect_batches(session, poll_seconds, log))
        elif pending:
            _refuse_if_batch_pending(cache_path)
            retries, reason = asyncio.run(_collect_live(session))
        wall_seconds = time.monotonic() - started_at
    if system_budget is not None and system_budget.empty and budget is not None:
        reason = f"the next call could exceed budget_usd {budget.limit_usd:g}"
    if refused := [response for response in session.answers.values() if response.refused]:
        reason = f"{len(refused):,} refused for how they were asked, the last: {refused[-1].error}"
    reused = sum(response.reused for response in session.answers.values())
    return CollectResult(
        answers=session.answers,
        complete=reason is None,
        why_incomplete=reason and f"asked {len(session.answers):,} of {len(questions):,}: {reason}",
        asked=len(session.answers) - reused,
        reused=reused,
        retries=retries,
        spent_usd=system_budget.spent_usd if system_budget else 0.0,
        wall_seconds=wall_seconds,
    )


def list_pending_requests(
    backend: Backend, identity: Any, questions: Sequence[RowRequest], cache_path: Path
) -> list[RowRequest]:
    """Returns the questions that `collect` would ask, those with the same request once."""
    responses = {response.key: response for response in response_cache.read_responses(cache_path)}
    return [group[0] for group in _split_cached(backend, identity, questions, responses)[1].values()]


def count_pending_requests(backend: Backend, identity: Any, questions: Sequence[RowRequest], cache_path: Path) -> int:
    """Returns how many questions `collect` would ask."""
    return len(list_pending_requests(backend, identity, questions, cache_path))


def find_last_response(
    backend: Backend, identity: Any, question: RowRequest, cache_path: Path
) -> CachedResponse | None:
    """Returns what became of a question when it was last asked, an error that may pass included; None where it was
    never asked."""
    key = compute_cache_key(identity, API_MODULES[backend.wire].build_body(backend, question.request), question.repeat)
    return {response.key: response for response in response_cache.read_responses(cache_path)}.get(key)


def sum_cached_cost_usd(backend: Backend, identity: Any, questions: Sequence[RowRequest], cache_path: Path) -> float:
    """Returns what was paid, or may have been paid, for these questions by earlier invocations."""
    build_body = API_MODULES[backend.wire].build_body
    keys = {
        compute_cache_key(identity, build_body(backend, question.request), question.repeat) for question in questions
    }
    # Every line of a question, not only the last: each attempt that another invocation repeated may have been paid for.
    return sum(
        (response.usd or 0.0) + response.unsure_usd
        for response in response_cache.read_responses(cache_path)
        if response.key in keys
    )


def _split_cached(
    backend: Backend, identity: Any, questions: Sequence[RowRequest], responses: Mapping[str, CachedResponse]
) -> tuple[list[tuple[RowRequest, CachedResponse]], dict[str, list[RowRequest]]]:
    """Returns the questions whose answer is known, with it, and the others by key."""
    build_body = API_MODULES[backend.wire].build_body
    cached, pending = [], dict[str, list[RowRequest]]()
    for question in questions:
        key = compute_cache_key(identity, build_body(backend, question.request), question.repeat)
        response = responses.get(key)
        if response is not None and response.final:
            cached.append((question, response))
        else:
            pending.setdefault(key, []).append(question)
    return cached, pending


def _refuse_if_batch_pending(cache_path: Path) -> None:
    """Raises RecipeError where a batch was begun whose answers would be paid for twice."""
    if (file := response_cache.batch_file_path(cache_path)).exists():
        raise RecipeError(
            f"{file} names a batch that was begun and will be paid for; compare once more with mode: batch to get its "
            "answers, or give it up by removing the file"
        )


async def _collect_live(session: CollectSession) -> tuple[int, str | None]:
    """Returns how many attempts were repeated, and why asking stopped before its end, if it did."""
    stop_reasons: list[str] = []
    retries, consecutive_failures, system_budget = 0, 0, session.purse

    def requests() -> Iterator[Request]:
        for key, questions in session.waiting.items():
            if stop_reasons or (system_budget is not None and system_budget.empty):
                return
            yield replace(questions[0].request, id=key)

    queue: asyncio.Queue[CachedResponse | None] = asyncio.Queue()
    attempt_log = AttemptLog(system_budget, session.journal.path) if system_budget is not None else None
    writer = asyncio.create_task(_write_responses(session, queue, attempt_log))
    try:
        async with aclosing(stream_results(session.backend, requests(), attempt_log)) as results:
            async for result in results:
                if writer.done():
                    break
                if not result.attempt_latencies_seconds:
                    # Not asked: no money, or the provider wants to be left alone for too long.
                    stop_reasons.append(result.error or "")
                    continue
                retries += len(result.attempt_latencies_seconds) - 1
                consecutive_failures = consecutive_failures + 1 if result.again or result.refused else 0
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
    """Writes what comes, all that is there at once: one flush to disk takes as long as many answers, and must neither
    hold up the others nor show in their latencies."""
    finished = False
    while not finished:
        chunk = [await queue.get()]
        while not queue.empty():
            chunk.append(queue.get_nowait())
        finished = None in chunk
        responses = [response for response in chunk if response is not None]
        if responses:
            await asyncio.to_thread(session.journal.append, responses)
            if attempt_log:
                await asyncio.to_thread(attempt_log.answered, [response.key for response in responses])
        for response in responses:
            session.tell(response)


def _make_response(session: CollectSession, result: RequestResult) -> CachedResponse:
    system_budget, completion, question = session.purse, result.received, session.waiting[result.id][0]
    return response_cache.make_cached_response(
        result.id,
        question.id,
        question.repeat,
        result.request_sha256,
        completion,
        requested_at=utc_timestamp(),
        error=result.error,
        final=not (result.again or result.refused),
        refused=result.refused,
        usd=system_budget.usd(completion) if system_budget and completion else None,
        unsure_usd=system_budget.unsure_usd.pop(result.id, 0.0) if system_budget else 0.0,
        latency_seconds=result.latency_seconds,
        attempt_latencies_seconds=result.attempt_latencies_seconds,
    )
