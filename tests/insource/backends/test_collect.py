"""Calls that lose nothing: the real SDKs against a provider on loopback that fails in every way."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insource.backends import budgets, collection, failures, response_cache
from insource.backends import client as asking
from insource.backends.budgets import Budget
from insource.backends.collection import MAX_CONSECUTIVE_FAILURES, CollectResult
from insource.backends.response_cache import CachedResponse
from insource.backends.types import ApiFormat
from insource.config.errors import RecipeError, StageError
from tests.helpers.api_requests import (
    IDENTITY,
    Price,
    collect,
    collect_and_kill,
    make_backend,
    make_request,
    make_requests,
    outputs_by_row,
    read_cache_lines,
    sum_cost_usd,
)
from tests.helpers.errors import raises_error
from tests.helpers.provider.faulty_provider import FAULT_KINDS, ROW_ERROR, Provider, run_provider
from tests.helpers.provider.provider_answers import correct_label, make_completion

FULL = 3080


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are real, and short."""
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".answers" / "provider.jsonl"


def right(result: CollectResult) -> bool:
    """Whether every answer is the provider's to that very prompt."""
    return all(response.output == correct_label(f"row {int(row[1:])}") for (row, _), response in result.answers.items())


@pytest.mark.parametrize(
    ("wire", "rows"),
    [
        ("openai", 120),
        ("anthropic", 120),
        ("decisions", 120),
        ("systemone", 120),
        pytest.param("openai", FULL, marks=pytest.mark.nightly),
        pytest.param("decisions", FULL, marks=pytest.mark.nightly),
    ],
)
def test_of_a_faulty_providers_answers_none_is_lost_and_none_paid_for_twice(
    path: Path, wire: ApiFormat, rows: int
) -> None:
    provider, budget, price = Provider(fault_rate=0.2), Budget(10.0), Price()
    with run_provider(provider) as address:
        result = collect(address, path, make_requests(rows), wire, budget=budget, price=price)
    assert result.complete and result.n_requested == len(result.answers) == rows
    assert right(result) and all(response.error is None and response.final for response in result.answers.values())
    assert len(provider.delivered) == rows and set(provider.delivered.values()) == {1}
    if rows == FULL:
        assert provider.fault_counts.keys() == set(FAULT_KINDS)
    assert result.n_retries == provider.attempts.total() - rows >= rows * 0.15
    # What was worked out and did not arrive may have been charged: it is not held to be free.
    assert len(provider.charged_tokens) > rows
    assert price.sum_usd(provider.charged_tokens) <= result.spent_usd == pytest.approx(budget.spent_usd)
    assert budget.spent_usd <= budget.limit_usd
    assert [response.key for response in response_cache.read_responses(path)] != [] and len(
        response_cache.read_responses(path)
    ) == rows


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_the_day_when_a_model_is_shut_down_is_asked_for(wire: ApiFormat) -> None:
    provider = Provider()
    with run_provider(provider) as address:
        endpoint = make_backend(address, wire)
        assert asking.fetch_shutdown_date(endpoint) is None
        provider.shutdown_date = "2027-01-31"
        assert asking.fetch_shutdown_date(endpoint) == "2027-01-31"
        assert asking.fetch_shutdown_date(replace(endpoint, model="unknown")) is None
    assert asking.fetch_shutdown_date(endpoint) is None, "nobody is there"


@pytest.mark.parametrize(
    ("wire", "rows"),
    [
        ("openai", 160),
        ("decisions", 160),
        pytest.param("openai", FULL, marks=pytest.mark.nightly),
        pytest.param("decisions", FULL, marks=pytest.mark.nightly),
    ],
)
def test_killed_in_the_middle_and_run_again_it_has_the_same_answers(tmp_path: Path, wire: ApiFormat, rows: int) -> None:
    path, provider = tmp_path / "killed.jsonl", Provider(fault_rate=0.2, hang_after=rows // 2)
    with run_provider(provider) as address:
        collect_and_kill(
            address, path, wire, "live", rows, should_kill=lambda: len(read_cache_lines(path)) >= rows // 4
        )
        provider.hang_after = None
        cached = {entry["id"]: entry for entry in read_cache_lines(path)}
        attempts_before = provider.attempts.copy()
        resumed = collect(address, path, make_requests(rows), wire)
    assert rows // 4 <= len(cached) < rows and resumed.n_reused == len(cached)
    for row in cached:
        assert provider.attempts[f"row {int(row[1:])}"] == attempts_before[f"row {int(row[1:])}"]
        assert resumed.answers[row, 0].reused and resumed.answers[row, 0].output == cached[row]["output"]
    with run_provider(Provider()) as address:
        uninterrupted = collect(address, tmp_path / "whole.jsonl", make_requests(rows), wire)
    assert resumed.complete and outputs_by_row(resumed) == outputs_by_row(uninterrupted) and right(resumed)


@pytest.mark.parametrize(("concurrency", "faults"), [(1, 0.0), (16, 0.0), (16, 0.2)])
def test_the_cap_stops_asking_and_is_never_exceeded(path: Path, concurrency: int, faults: float) -> None:
    price, requests = Price(), make_requests(200)
    with run_provider(Provider(fault_rate=faults)) as address:
        full_usd = collect(address, path.with_name("whole.jsonl"), requests).spent_usd
    budget, provider = Budget(full_usd / 2), Provider(fault_rate=faults)
    with run_provider(provider) as address:
        endpoint = make_backend(address, concurrency=concurrency)
        result = collect(address, path, requests, backend=endpoint, budget=budget, price=price)
        assert not result.complete and result.why_incomplete is not None
        message = f"queried {len(result.answers)} of 200: the next call could exceed budget_usd {budget.limit_usd:g}"
        assert result.why_incomplete == message
        assert price.sum_usd(provider.charged_tokens) <= result.spent_usd <= budget.limit_usd
        # Nor is it left unused: what was set aside for calls on their way was given back.
        assert budget.remaining_usd < budgets.SystemBudget(None, price).max_usd(requests[-1].request)
        assert result.spent_usd == pytest.approx(sum_cost_usd(path))
        resumed = collect(address, path, requests, backend=endpoint, budget=Budget(2 * full_usd), price=price)
    assert resumed.complete and right(resumed)
    successful = [response for response in result.answers.values() if response.error is None]
    assert resumed.n_reused == len(successful) and resumed.n_requested == 200 - len(successful)


def test_nothing_is_sent_on_a_budget_of_nothing(path: Path, address: str, provider: Provider) -> None:
    result = collect(address, path, make_requests(5), budget=Budget(0))
    assert result.why_incomplete == "queried 0 of 5: the next call could exceed budget_usd 0"
    assert not provider.requests and not result.answers
    exhausted = collect(address, path, make_requests(5), budget=Budget(1, spent_usd=1))
    assert not exhausted.complete and not provider.requests


def test_a_budget_without_a_price_is_refused(path: Path) -> None:
    with raises_error(RecipeError, "INS-A002", match="the price of gpt-6-luna is unknown"):
        collect("http://127.0.0.1:9", path, make_requests(1), budget=Budget(1), price=None)


def test_tokens_that_are_not_told_count_at_their_most(path: Path) -> None:
    def complete_without_usage(body: Any, text: str) -> Any:
        return {**make_completion(body, text), "usage": None}

    class Silent(Provider):
        async def complete(self, request: Any, api: str, make_response: Any = None) -> Any:
            return await super().complete(request, api, complete_without_usage)

    budget = Budget(1)
    with run_provider(Silent()) as address:
        result = collect(address, path, make_requests(3), budget=budget)
    (response, *_) = result.answers.values()
    assert response.usd is None and response.possibly_charged_usd > 0 and response.input_tokens is None
    assert budget.spent_usd == pytest.approx(3 * response.possibly_charged_usd, rel=0.1)


def test_the_estimate_is_not_exceeded(path: Path, address: str) -> None:
    requests = make_requests(50)
    estimate = budgets.estimate_cost(requests, Price())
    result = collect(address, path, requests)
    assert 0 < estimate.expected_usd < estimate.upper_usd and result.spent_usd <= estimate.upper_usd
    assert (
        estimate.requests == 50
        and budgets.estimate_cost(requests, Price(), batch=True).upper_usd == estimate.upper_usd / 2
    )
    assert collection.count_pending_requests(make_backend(address), IDENTITY, make_requests(60), path) == 10


def test_an_answer_is_used_again_for_the_same_request_alone(path: Path, address: str, provider: Provider) -> None:
    first_result = collect(address, path, make_requests(3))
    repeated = collect(address, path, make_requests(3))
    assert (first_result.n_requested, first_result.n_reused, repeated.n_requested, repeated.n_reused) == (3, 0, 0, 3)
    assert outputs_by_row(first_result) == outputs_by_row(repeated) and len(provider.requests) == 3
    assert all(response.reused and response.latency_seconds for response in repeated.answers.values())
    for changes in (
        {"asked": make_requests(3, instruction="what of")},
        {"asked": make_requests(3, max_tokens=17)},
        {"asked": make_requests(3, repeat=1)},
        {"backend": replace(make_backend(address), effort="low")},
        {"backend": make_backend(address, model="other")},
        {"identity": ["openai", "somebody else"]},
    ):
        result = collect(address, path, changes.pop("asked", make_requests(3)), **changes)
        assert (result.n_requested, result.n_reused) == (3, 0), changes
    assert len(provider.requests) == 3 * 7
    moved_endpoint = make_backend(address, base_url=address.replace("127.0.0.1", "localhost") + "/v1")
    assert collect(address, path, make_requests(3), backend=moved_endpoint).n_reused == 3


def test_rows_with_the_same_request_share_one_answer(path: Path, address: str, provider: Provider) -> None:
    requests = [make_request("T1", "hello"), make_request("T2", "hello"), make_request("T1", "hello", repeat=1)]
    reported: list[CachedResponse] = []
    result = collect(address, path, requests, on_response=reported.append)
    assert result.complete and provider.attempts == {"hello": 2}
    assert {key: response.reused for key, response in result.answers.items()} == {
        ("T1", 0): False,
        ("T2", 0): True,
        ("T1", 1): False,
    }
    assert result.answers["T2", 0].id == "T2" and sorted(response.id for response in reported) == ["T1", "T1", "T2"]


def test_what_may_pass_is_asked_again_another_day_and_what_will_not_is_not(path: Path, provider: Provider) -> None:
    refusals: dict[str, tuple[int, dict[str, str]] | None] = {
        "bad question": (ROW_ERROR, {}), "wrong key": (401, {}), "out of order": (500, {}), "fine": None,
    }  # fmt: skip
    provider.refuse = lambda prompt, attempts: refusals[prompt]
    requests = [make_request(prompt, prompt) for prompt in refusals]
    with run_provider(provider) as address:
        result = collect(address, path, requests, backend=make_backend(address, retries=1))
        assert {row for (row, _), response in result.answers.items() if response.error} == {
            "bad question", "wrong key", "out of order",
        }  # fmt: skip
        # The key is no fault of the model's: that row is no wrong answer, and nothing is decided by the others.
        assert [response.id for response in result.answers.values() if response.refused] == [
            "wrong key"
        ] and not result.complete
        assert "queried 4 of 4: 1 refused because of their parameters, the last: HTTP 401: refused" in (
            result.why_incomplete or ""
        )
        assert provider.attempts == {"bad question": 1, "wrong key": 1, "out of order": 2, "fine": 1}
        refusals.update({"wrong key": None, "out of order": None})
        repeated = collect(address, path, requests)
    assert repeated.complete and [response.id for response in repeated.answers.values() if response.error] == [
        "bad question"
    ]
    assert provider.attempts == {"bad question": 1, "wrong key": 2, "out of order": 3, "fine": 1}
    assert (repeated.n_requested, repeated.n_reused) == (2, 2)


def test_an_empty_answer_and_a_refusal_are_answers(path: Path) -> None:
    provider = Provider(answer=lambda prompt: "")

    def refusing(body: Any, text: str) -> Any:
        completion = make_completion(body, text)
        completion["choices"][0]["message"]["refusal"] = "I cannot help with that."
        return completion

    class Refusing(Provider):
        async def complete(self, request: Any, api: str, make_response: Any = None) -> Any:
            return await super().complete(request, api, refusing)

    with run_provider(provider) as address:
        (empty,) = collect(address, path, make_requests(1)).answers.values()
        assert collect(address, path, make_requests(1)).n_reused == 1
    with run_provider(Refusing()) as address:
        (response,) = collect(address, path, make_requests(1, instruction="evil")).answers.values()
    assert (empty.output, empty.error, empty.final, empty.finish_reason) == ("", None, True, "stop")
    assert (response.error, response.final, response.finish_reason) == (None, True, "refusal")


def test_a_provider_that_is_gone_is_not_asked_three_thousand_times(path: Path) -> None:
    unreachable = make_backend("http://127.0.0.1:9", retries=0, concurrency=4)
    result = collect("", path, make_requests(500), backend=unreachable, budget=Budget(1))
    assert not result.complete and MAX_CONSECUTIVE_FAILURES <= len(result.answers) <= MAX_CONSECUTIVE_FAILURES + 2 * 4
    assert result.why_incomplete is not None and "20 requests in succession brought no answer" in result.why_incomplete
    # Nothing reached anybody, so nothing can have been paid for.
    assert result.spent_usd == 0


def test_a_provider_that_wants_to_be_left_alone_is(path: Path, address: str, provider: Provider) -> None:
    provider.refuse = lambda prompt, attempts: (429, {"Retry-After": "3600"})
    result = collect(address, path, make_requests(200))
    assert not result.complete and result.why_incomplete is not None and "asks to wait 3600 s" in result.why_incomplete
    assert len(provider.requests) <= 16


def row(number: int) -> CachedResponse:
    return response_cache.make_cached_response(
        f"{number:064}", f"T{number}", 0, "9f2c", None, requested_at="2026-11-21T10:00:00Z"
    )


def written(path: Path, rows: int) -> bytes:
    with response_cache.open_cache(path) as cache:
        cache.append([row(number) for number in range(rows)])
    return path.read_bytes()


@settings(deadline=None)
@given(position=st.integers(0, 2000))
def test_a_journal_cut_off_anywhere_keeps_its_whole_lines_and_goes_on(position: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        data = written(path, 4)
        cut_at = min(position, len(data))
        path.write_bytes(data[:cut_at])
        with response_cache.open_cache(path) as cache:
            cached = list(cache.responses)
            cache.append([row(9)])
        # A last line that lacks nothing but its end is whole.
        assert cached == [row(number).key for number in range((data[:cut_at] + b"\n").count(b"}\n"))]
        assert [response.key for response in response_cache.read_responses(path)] == [*cached, row(9).key]


def test_a_line_broken_in_the_middle_is_named(path: Path) -> None:
    data = written(path, 3).split(b"\n")
    for broken_line in (data[1][:40], b"", b"[]", b'{"key": "x"}', b"\x00" * 10):
        path.write_bytes(b"\n".join([data[0], broken_line, *data[2:]]))
        with (
            raises_error(StageError, "INS-A010", match=r"provider\.jsonl:2: this line is not a recorded answer"),
            response_cache.open_cache(path),
        ):
            pass


def test_a_journal_has_one_writer(path: Path) -> None:
    with (
        response_cache.open_cache(path),
        raises_error(StageError, "INS-X003", match="is in use by another process"),
        response_cache.open_cache(path),
    ):
        pass
    with response_cache.open_cache(path) as cache:
        assert not cache.responses


def test_the_last_line_of_a_key_counts(path: Path) -> None:
    failed = replace(row(1), error="HTTP 500", final=False, possibly_charged_usd=0.25)
    with response_cache.open_cache(path) as cache:
        cache.append([failed])
        cache.append([replace(row(1), output="late", usd=0.5)])
    with response_cache.open_cache(path) as cache:
        assert cache.responses[row(1).key].output == "late"
    assert sum_cost_usd(path) == 0.75


def test_refused_for_how_it_was_asked_it_stops_at_once_and_nothing_counts_as_wrong(path: Path) -> None:
    provider = Provider()
    with run_provider(provider) as address:
        # As this project asked until November 2026: with a temperature, which neither of them takes.
        for wire in ("openai", "anthropic"):
            backend = replace(make_backend(address, wire), temperature=0.0)  # type: ignore[arg-type]
            result = collect(address, path.with_name(wire), make_requests(500), backend=backend)
            assert not result.complete and all(response.refused for response in result.answers.values())
            assert MAX_CONSECUTIVE_FAILURES <= len(result.answers) <= MAX_CONSECUTIVE_FAILURES + 2 * 16
            assert "refused because of their parameters, the last: HTTP 400: " in (result.why_incomplete or "")
            assert "temperature" in (result.why_incomplete or "") and result.spent_usd == 0


@pytest.mark.parametrize("wire", ["openai", "anthropic", "decisions"])
def test_a_key_that_is_revoked_in_the_middle_leaves_it_incomplete_and_the_next_run_asks_the_rest(
    path: Path, wire: ApiFormat
) -> None:
    provider = Provider(fault_rate=0.1)
    provider.refuse = lambda prompt, attempts: (401, {}) if provider.delivered.total() >= 60 else None
    with run_provider(provider) as address:
        result = collect(address, path, make_requests(200), wire)
        assert not result.complete and "HTTP 401" in (result.why_incomplete or "")
        successful = [response for response in result.answers.values() if response.error is None]
        assert 60 <= len(successful) < 200 and all(
            response.error is None or response.refused for response in result.answers.values()
        )
        provider.refuse = lambda prompt, attempts: None
        repeated = collect(address, path, make_requests(200), wire)
    assert repeated.complete and right(repeated) and repeated.n_reused == len(successful)
    assert set(provider.delivered.values()) == {1} and len(provider.delivered) == 200


def test_a_decision_brings_the_probability_of_every_label_and_a_refusal_is_an_answer(path: Path) -> None:
    provider = Provider(answer=lambda prompt: "none of these" if prompt == "row 1" else "late")
    with run_provider(provider) as address:
        result = collect(address, path, make_requests(2), "decisions")
        repeated = collect(address, path, make_requests(2), "decisions")
    decision, refusal = result.answers["T000000", 0], result.answers["T000001", 0]
    assert decision.output == "late" and decision.probabilities == pytest.approx(
        {"late": 0.9, "lost": 0.05, "broken": 0.05}
    )
    assert decision.log_probability == pytest.approx(-0.10536, abs=1e-4)
    assert (refusal.output, refusal.finish_reason, refusal.error, refusal.final) == ("", "refusal", None, True)
    assert repeated.n_reused == 2 and repeated.answers["T000000", 0].probabilities == decision.probabilities
