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

from insource.backends import response_cache as journals
from insource.backends.attempt_log import AttemptLog
from insource.backends.budgets import Budget, Pricing, SystemBudget
from insource.backends.client import API_MODULES, stream_results
from insource.backends.response_cache import CachedResponse, ResponseCache, RowRequest, compute_cache_key
from insource.backends.types import Backend, Request, RequestResult
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


@dataclass(frozen=True)
class CollectSession:
    """One invocation: what is to be asked, by key, and where answers go."""

    backend: Backend
    journal: ResponseCache
    waiting: Mapping[str, Sequence[RowRequest]]
    """Several questions have one key where their requests are the same."""
    purse: SystemBudget | None
    answers: dict[tuple[str, int], CachedResponse]
    on_answer: Callable[[CachedResponse], None]

    def tell(self, row: CachedResponse) -> None:
        """Takes a row that is in the journal as the answer to the questions that it answers."""
        for number, question in enumerate(self.waiting.get(row.key, ())):
            answered = replace(row, id=question.id, reused=row.reused or number > 0)
            self.answers[question.id, question.repeat] = answered
            self.on_answer(answered)


def collect(
    backend: Backend,
    identity: Any,
    questions: Sequence[RowRequest],
    journal: Path,
    *,
    budget: Budget | None,
    price: Pricing | None,
    mode: Literal["live", "batch"] = "live",
    on_answer: Callable[[CachedResponse], None] = lambda answered: None,
    poll_seconds: float = POLL_SECONDS,
    say: Callable[[str], None] = lambda told: None,
) -> CollectResult:
    """Returns the answers to all questions, as far as the budget goes.

    `identity`: any JSON that says who answers, wherever it listens. `on_answer` gets every answer once it is on disk,
    those used again first. `poll_seconds`: the first wait for a batch, `say` is told how far that is. Raises
    RecipeError where a budget cannot be kept because there is no price, or where a batch is on its way that mode live
    would pay for again, and what `journal.opened` raises.
    """
    if budget is not None and price is None:
        raise RecipeError(
            f"nobody knows what {backend.model} costs, so compare.budget_usd cannot be kept; give the baseline a "
            "price: {input_usd_per_million: ..., output_usd_per_million: ...}"
        )
    with journals.open_cache(journal) as opened:
        known, waiting = _split_cached(backend, identity, questions, opened.rows)
        purse = SystemBudget(budget, price, batch=mode == "batch") if price is not None else None
        a_round = CollectSession(backend, opened, waiting, purse, {}, on_answer)
        for question, row in known:
            a_round.answers[question.id, question.repeat] = told = replace(row, id=question.id, reused=True)
            on_answer(told)
        began, retries, why = time.monotonic(), 0, None
        if mode == "batch":
            from insource.backends import batch_collection

            # Also where nothing is waiting: a batch that was paid for brings its answers into the journal.
            why = asyncio.run(batch_collection.collect_batches(a_round, poll_seconds, say))
        elif waiting:
            _refuse_if_batch_pending(journal)
            retries, why = asyncio.run(_collect_live(a_round))
        wall_seconds = time.monotonic() - began
    if purse is not None and purse.empty and budget is not None:
        why = f"the next call could exceed budget_usd {budget.limit_usd:g}"
    if refused := [one for one in a_round.answers.values() if one.refused]:
        why = f"{len(refused):,} refused for how they were asked, the last: {refused[-1].error}"
    reused = sum(one.reused for one in a_round.answers.values())
    return CollectResult(
        answers=a_round.answers,
        complete=why is None,
        why_incomplete=why and f"asked {len(a_round.answers):,} of {len(questions):,}: {why}",
        asked=len(a_round.answers) - reused,
        reused=reused,
        retries=retries,
        spent_usd=purse.spent_usd if purse else 0.0,
        wall_seconds=wall_seconds,
    )


def list_pending_requests(
    backend: Backend, identity: Any, questions: Sequence[RowRequest], journal: Path
) -> list[RowRequest]:
    """Returns the questions that `collect` would ask, those with the same request once."""
    rows = {row.key: row for row in journals.read_responses(journal)}
    return [same[0] for same in _split_cached(backend, identity, questions, rows)[1].values()]


def count_pending_requests(backend: Backend, identity: Any, questions: Sequence[RowRequest], journal: Path) -> int:
    """Returns how many questions `collect` would ask."""
    return len(list_pending_requests(backend, identity, questions, journal))


def find_last_response(backend: Backend, identity: Any, question: RowRequest, journal: Path) -> CachedResponse | None:
    """Returns what became of a question when it was last asked, an error that may pass included; None where it was
    never asked."""
    key = compute_cache_key(identity, API_MODULES[backend.wire].build_body(backend, question.request), question.repeat)
    return {row.key: row for row in journals.read_responses(journal)}.get(key)


def sum_cached_cost_usd(backend: Backend, identity: Any, questions: Sequence[RowRequest], journal: Path) -> float:
    """Returns what was paid, or may have been paid, for these questions by earlier invocations."""
    body = API_MODULES[backend.wire].build_body
    keys = {compute_cache_key(identity, body(backend, one.request), one.repeat) for one in questions}
    # Every line of a question, not only the last: each attempt that another invocation repeated may have been paid for.
    return sum((row.usd or 0.0) + row.unsure_usd for row in journals.read_responses(journal) if row.key in keys)


def _split_cached(
    backend: Backend, identity: Any, questions: Sequence[RowRequest], rows: Mapping[str, CachedResponse]
) -> tuple[list[tuple[RowRequest, CachedResponse]], dict[str, list[RowRequest]]]:
    """Returns the questions whose answer is known, with it, and the others by key."""
    body = API_MODULES[backend.wire].build_body
    known, waiting = [], dict[str, list[RowRequest]]()
    for question in questions:
        key = compute_cache_key(identity, body(backend, question.request), question.repeat)
        row = rows.get(key)
        if row is not None and row.final:
            known.append((question, row))
        else:
            waiting.setdefault(key, []).append(question)
    return known, waiting


def _refuse_if_batch_pending(journal: Path) -> None:
    """Raises RecipeError where a batch was begun whose answers would be paid for twice."""
    if (file := journals.batch_file_path(journal)).exists():
        raise RecipeError(
            f"{file} names a batch that was begun and will be paid for; compare once more with mode: batch to get its "
            "answers, or give it up by removing the file"
        )


async def _collect_live(a_round: CollectSession) -> tuple[int, str | None]:
    """Returns how many attempts were repeated, and why asking stopped before its end, if it did."""
    stopped: list[str] = []
    retries, in_a_row, purse = 0, 0, a_round.purse

    def requests() -> Iterator[Request]:
        for key, questions in a_round.waiting.items():
            if stopped or (purse is not None and purse.empty):
                return
            yield replace(questions[0].request, id=key)

    rows: asyncio.Queue[CachedResponse | None] = asyncio.Queue()
    attempts = AttemptLog(purse, a_round.journal.path) if purse is not None else None
    written = asyncio.create_task(_write_responses(a_round, rows, attempts))
    try:
        async with aclosing(stream_results(a_round.backend, requests(), attempts)) as coming:
            async for reply in coming:
                if written.done():
                    break
                if not reply.attempt_latencies_seconds:
                    # Not asked: no money, or the provider wants to be left alone for too long.
                    stopped.append(reply.error or "")
                    continue
                retries += len(reply.attempt_latencies_seconds) - 1
                in_a_row = in_a_row + 1 if reply.again or reply.refused else 0
                if in_a_row == MAX_CONSECUTIVE_FAILURES:
                    stopped.append(
                        f"{MAX_CONSECUTIVE_FAILURES} requests in succession brought no answer, the last: {reply.error}"
                    )
                rows.put_nowait(_make_response(a_round, reply))
    finally:
        rows.put_nowait(None)
        await written
        if attempts:
            attempts.close()
    return retries, stopped[0] if stopped else None


async def _write_responses(
    a_round: CollectSession, rows: asyncio.Queue[CachedResponse | None], attempts: AttemptLog | None
) -> None:
    """Writes what comes, all that is there at once: one flush to disk takes as long as many answers, and must neither
    hold up the others nor show in their latencies."""
    last = False
    while not last:
        together = [await rows.get()]
        while not rows.empty():
            together.append(rows.get_nowait())
        last = None in together
        found = [row for row in together if row is not None]
        if found:
            await asyncio.to_thread(a_round.journal.append, found)
            if attempts:
                await asyncio.to_thread(attempts.answered, [row.key for row in found])
        for row in found:
            a_round.tell(row)


def _make_response(a_round: CollectSession, reply: RequestResult) -> CachedResponse:
    purse, received, question = a_round.purse, reply.received, a_round.waiting[reply.id][0]
    return journals.make_cached_response(
        reply.id,
        question.id,
        question.repeat,
        reply.request_sha256,
        received,
        asked=utc_timestamp(),
        error=reply.error,
        final=not (reply.again or reply.refused),
        refused=reply.refused,
        usd=purse.usd(received) if purse and received else None,
        unsure_usd=purse.unsure_usd.pop(reply.id, 0.0) if purse else 0.0,
        latency_seconds=reply.latency_seconds,
        attempt_latencies_seconds=reply.attempt_latencies_seconds,
    )
