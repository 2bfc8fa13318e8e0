"""Batches through the real SDKs: half the price, and never made twice, whoever is killed when."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from insource.backends import batch_client, batch_collection, failures, response_cache
from insource.backends import client as asking
from insource.backends.budgets import Budget
from insource.backends.types import ApiFormat
from insource.config.errors import RecipeError, StageError
from tests.helpers.api_requests import (
    Price,
    collect,
    collect_and_kill,
    make_backend,
    make_requests,
    outputs_by_row,
    read_pending_batch,
    sum_cost_usd,
)
from tests.helpers.provider import provider_rules
from tests.helpers.provider.faulty_provider import Batch, Provider, run_provider
from tests.helpers.provider.provider_answers import correct_label

ROWS = 120
EXPECTED = {(f"T{at:06}", 0): correct_label(f"row {at}") for at in range(ROWS)}
both = pytest.mark.parametrize("wire", ["openai", "anthropic"])


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are real, and short."""
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "provider.jsonl"


@both
def test_a_batch_brings_every_answer_at_its_own_price(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    result = collect(address, path, make_requests(ROWS), wire, mode="batch", budget=Budget(1))
    assert result.complete and outputs_by_row(result) == EXPECTED and result.n_requested == ROWS
    assert len(provider.batches) == 1 and read_pending_batch(path) is None and not provider.requests
    response = result.answers["T000007", 0]
    assert (
        response.batch
        and response.latency_seconds is None
        and response.attempt_latencies_seconds == ()
        and response.input_tokens
    )
    assert response.usd == pytest.approx(Price().max_usd(response.input_tokens, 3, batch=True))
    assert result.spent_usd == pytest.approx(sum(row.usd or 0 for row in result.answers.values()))
    repeated = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert repeated.n_reused == ROWS and len(provider.batches) == 1
    # The same request was answered, however it was sent.
    assert collect(address, path, make_requests(ROWS), wire, mode="live").n_reused == ROWS


@both
def test_constrained_answers_are_unwrapped(path: Path, provider: Provider, wire: ApiFormat) -> None:
    provider.answer = lambda prompt: json.dumps({"answer": correct_label(prompt)})
    with run_provider(provider) as address:
        endpoint = make_backend(address, wire, structured="json_schema")
        result = collect(address, path, make_requests(ROWS), wire, mode="batch", backend=endpoint)
    assert outputs_by_row(result) == EXPECTED


@both
def test_killed_while_it_waits_it_waits_for_the_same_batch(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.batches_ended = False
    collect_and_kill(
        address, path, wire, "batch", ROWS, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
    )
    pending = read_pending_batch(path)
    assert pending is not None and len(pending["keys"]) == ROWS and len(provider.batches) == 1
    provider.batches_ended = True
    result = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert result.complete and outputs_by_row(result) == EXPECTED
    assert [batch.id for batch in provider.batches] == [pending["id"]] and read_pending_batch(path) is None


@both
def test_killed_before_it_knew_the_id_it_finds_the_batch(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.hang_on_create = True
    collect_and_kill(address, path, wire, "batch", ROWS, should_kill=lambda: len(provider.batches) == 1)
    pending = read_pending_batch(path)
    assert pending is not None and pending["id"] is None
    provider.hang_on_create = False
    result = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert result.complete and outputs_by_row(result) == EXPECTED and len(provider.batches) == 1


@both
def test_a_batch_that_was_made_though_the_answer_was_an_error_is_not_made_again(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.create_failures = 1
    result = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert result.complete and outputs_by_row(result) == EXPECTED and len(provider.batches) == 1


@both
def test_killed_between_journal_and_file_it_writes_no_line_twice(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.batches_ended = False
    collect_and_kill(
        address, path, wire, "batch", ROWS, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
    )
    file = path.with_suffix(".batch.json")
    pending_bytes, provider.batches_ended = file.read_bytes(), True
    collect(address, path, make_requests(ROWS), wire, mode="batch")
    file.write_bytes(pending_bytes)
    result = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert (
        result.complete
        and result.n_reused == ROWS
        and len(response_cache.read_responses(path)) == ROWS
        and not file.exists()
    )


def test_a_strangers_batch_of_the_same_size_is_recognised(path: Path, provider: Provider) -> None:
    with run_provider(provider) as address:
        provider.hang_on_create = True
        collect_and_kill(address, path, "anthropic", "batch", ROWS, should_kill=lambda: len(provider.batches) == 1)
        provider.hang_on_create = False
        (own_batch,) = provider.batches
        # Ours never came to be; somebody else made one at that time.
        other_requests = [(f"other-{index}", body) for index, (_, body) in enumerate(own_batch.requests)]
        provider.batches[:] = [Batch("msgbatch_other", other_requests, own_batch.created_at)]
        result = collect(address, path, make_requests(ROWS), "anthropic", mode="batch")
    assert result.complete and outputs_by_row(result) == EXPECTED
    assert [batch.id for batch in provider.batches] == ["msgbatch_other", "msgbatch_1"]


@both
def test_what_a_batch_left_out_is_told_and_asked_for_by_the_next_run(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.batch_end_state = "expired"
    budget = Budget(1)
    result = collect(address, path, make_requests(ROWS), wire, mode="batch", budget=budget)
    assert not result.complete and len(result.answers) == ROWS
    message = f"queried {ROWS} of {ROWS}: {ROWS // 2} requests brought no answer in their batch"
    assert result.why_incomplete is not None and result.why_incomplete.startswith(message)
    expired = [item for item in result.answers.values() if item.error]
    assert len(expired) == ROWS // 2 and all("expired" in (item.error or "") and not item.final for item in expired)
    assert budget.spent_usd == pytest.approx(sum(item.usd or 0 for item in result.answers.values()))
    provider.batch_end_state = "completed"
    repeated = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert repeated.complete and outputs_by_row(repeated) == EXPECTED and repeated.n_reused == ROWS // 2
    assert [len(item.requests) for item in provider.batches] == [ROWS, ROWS // 2]


@both
def test_a_bad_question_in_a_batch_is_wrong_for_good(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.is_filtered = lambda prompt: prompt == "row 3"
    result = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert result.complete
    (failed,) = [response for response in result.answers.values() if response.error]
    assert failed.id == "T000003" and failed.final and "flagged by the content filter" in (failed.error or "")
    assert collect(address, path, make_requests(ROWS), wire, mode="batch").n_reused == ROWS


@both
def test_a_cancelled_batch_is_told_and_what_it_brought_is_kept(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.batch_end_state = "cancelled"
    result = collect(address, path, make_requests(ROWS), wire, mode="batch")
    assert not result.complete and result.why_incomplete is not None and "was cancelled" in result.why_incomplete
    assert (
        sum(response.error is None for response in result.answers.values()) == ROWS // 2
        and read_pending_batch(path) is None
    )


def test_a_batch_that_the_provider_does_not_take_is_told(path: Path, address: str, provider: Provider) -> None:
    provider.batch_end_state = "failed"
    budget = Budget(1)
    result = collect(address, path, make_requests(ROWS), mode="batch", budget=budget)
    assert result.why_incomplete is not None and "batch_0 failed: failed, 0 of 120 done" in result.why_incomplete
    assert "too many tokens" in result.why_incomplete and not result.answers
    assert budget.spent_usd == 0 and budget.remaining_usd == pytest.approx(1) and read_pending_batch(path) is None


def test_one_batch_after_the_other_as_the_budget_surely_allows(
    path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_collection, "MIN_BATCH_SIZE", 20)
    requests, price = make_requests(300), Price()
    full_usd = collect(address, path.with_name("whole.jsonl"), requests, mode="batch").spent_usd
    provider.batches.clear()
    budget = Budget(10 * full_usd)
    result = collect(address, path, requests, mode="batch", budget=budget)
    assert result.complete and len(provider.batches) > 1 and result.spent_usd == pytest.approx(full_usd)
    tight_budget = Budget(1.2 * full_usd)
    result = collect(address, path.with_name("tight.jsonl"), requests, mode="batch", budget=tight_budget, price=price)
    assert not result.complete and "could exceed budget_usd" in (result.why_incomplete or "")
    assert 0 < len(result.answers) < 300
    assert result.spent_usd <= tight_budget.limit_usd and tight_budget.remaining_usd == pytest.approx(
        tight_budget.limit_usd - tight_budget.spent_usd
    )


def test_a_batch_begun_elsewhere_is_not_looked_for_here(path: Path, address: str, provider: Provider) -> None:
    provider.batches_ended = False
    collect_and_kill(
        address, path, "openai", "batch", ROWS, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
    )
    other_endpoint = replace(make_backend(address), base_url="http://127.0.0.1:9/v1")
    with pytest.raises(StageError, match="records a batch that was started at"):
        collect(address, path, make_requests(ROWS), mode="batch", backend=other_endpoint)


def test_what_is_on_its_way_in_a_batch_is_not_asked_live(path: Path, address: str, provider: Provider) -> None:
    provider.batches_ended = False
    collect_and_kill(
        address, path, "openai", "batch", ROWS, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
    )
    with pytest.raises(RecipeError, match="a batch that was started and will be charged"):
        collect(address, path, make_requests(ROWS), mode="live")
    assert not provider.requests


def test_answers_that_are_no_longer_asked_for_are_kept_all_the_same(
    path: Path, address: str, provider: Provider
) -> None:
    provider.batches_ended = False
    collect_and_kill(
        address, path, "openai", "batch", ROWS, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
    )
    provider.batches_ended = True
    budget = Budget(1)
    result = collect(address, path, make_requests(ROWS, max_tokens=17), mode="batch", budget=budget)
    assert result.complete and result.n_requested == ROWS and len(provider.batches) == 2
    assert budget.spent_usd == pytest.approx(sum_cost_usd(path))
    assert collect(address, path, make_requests(ROWS), mode="batch").n_reused == ROWS


@both
@pytest.mark.nightly
def test_3080_rows_are_asked_once_in_a_batch_though_the_process_is_killed(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    provider.batches_ended = False
    collect_and_kill(
        address, path, wire, "batch", 3080, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
    )
    provider.batches_ended = True
    endpoint = make_backend(address, wire, timeout_seconds=60.0)
    result = collect(address, path, make_requests(3080), wire, mode="batch", budget=Budget(50), backend=endpoint)
    assert result.complete and len(provider.batches) == 1 and not provider.rule_violations
    assert outputs_by_row(result) == {(f"T{index:06}", 0): correct_label(f"row {index}") for index in range(3080)}
    assert len(response_cache.read_responses(path)) == 3080


@both
def test_requests_of_a_batch_that_were_refused_for_how_they_were_asked_are_no_wrong_answers(
    path: Path, address: str, provider: Provider, wire: ApiFormat
) -> None:
    backend = replace(make_backend(address, wire), temperature=0.0)
    result = collect(address, path, make_requests(ROWS), wire, mode="batch", backend=backend)
    assert not result.complete and all(response.refused and not response.final for response in result.answers.values())
    assert f"{ROWS} refused because of their parameters, the last: HTTP 400: " in (result.why_incomplete or "")
    assert collect(address, path, make_requests(ROWS), wire, mode="batch").complete


def test_an_endpoint_that_decides_has_no_batches() -> None:
    refusal = provider_rules.find_openai_batch_refusal({"endpoint": "/v1/decisions", "completion_window": "24h"}, [], 0)
    assert refusal is not None and refusal.status == 400


@both
@pytest.mark.parametrize("minutes", [-40, 0, 40])
def test_a_batch_is_found_again_though_the_clocks_differ(address: str, wire: ApiFormat, minutes: int) -> None:
    async def ask() -> None:
        backend = make_backend(address, wire)
        async with asking.API_MODULES[wire].make_client(backend) as client:
            requests = [replace(question.request, id=question.id) for question in make_requests(3)]
            ids = [request.id for request in requests]
            created = await batch_client.create_batch(client, backend, "name", datetime.now(UTC), requests)
            local_time = datetime.now(UTC) + timedelta(minutes=minutes)
            assert await batch_client.find_batch(client, backend, "name", local_time, ids) == created

    asyncio.run(ask())
