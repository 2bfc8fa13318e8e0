"""Every closed model is asked one train row first: what is refused there judges nobody."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compare import first_request, stage
from compare.analysis import comparisons, system_scores
from compare.cost import estimate
from compare.records import System, SystemAnswer, SystemResponses
from compare.scoring import completeness
from compare.systems import api_models, collect
from compare.systems.responses import ComparisonContext
from insource.backends import failures
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.tracking.data_report import RowCounts
from tests.helpers import example_scores
from tests.helpers.api_comparison import (
    list_api_systems,
    make_comparison,
    make_correct_answerer,
    make_shipped_comparison,
    make_two_label_comparison,
    redirect_sdks,
    run_comparison,
)
from tests.helpers.data_reports import write_data_report
from tests.helpers.errors import raises_error
from tests.helpers.example_scores import API_MODEL
from tests.helpers.provider.faulty_provider import Provider

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
WITH_CLOSED = [name for name in SHIPPED if load(name, (), "gpu").recipe.compare.baselines]


def test_every_recipe_but_that_of_preferences_names_a_closed_baseline() -> None:
    assert [name for name in SHIPPED if name not in WITH_CLOSED] == ["preference"]
    assert len(WITH_CLOSED) == 5


def test_a_classification_is_compared_with_a_decision_endpoint_by_its_plan_and_with_a_chat_model_beside() -> None:
    for name in WITH_CLOSED:
        recipe = load(name, (), "gpu").recipe
        if recipe.task.kind == "classification":
            apis = {baseline.display_name: baseline.api for baseline in recipe.compare.baselines}
            assert recipe.compare.primary and apis[recipe.compare.primary.baseline] == "decisions", name
            assert "chat" in apis.values(), name


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def address(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    redirect_sdks(monkeypatch, address)
    return address


@pytest.mark.parametrize("name", WITH_CLOSED)
def test_the_shipped_recipes_unchanged_are_answered_by_strict_providers_on_every_row(
    name: str, tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = make_shipped_comparison(name, tmp_path, tokenizer)
    provider.answer = make_correct_answerer(context)
    systems, refused = first_request.send_first_requests(context, list_api_systems(context))
    assert not refused and len(systems) == len(context.recipe.compare.baselines)
    # Nothing of the test set was shown to anybody yet.
    assert not any("test" in prompt for prompt in provider.attempts)
    by_system = api_models.collect_from_apis(context, systems)
    for responses in by_system.values():
        assert responses.complete and all(answer.error is None for answer in responses.test_answers), (
            responses.system.name
        )
        result = system_scores.summarize_system(
            system_scores.score_system(responses, context.dataset, None), context.dataset, None, False
        )
        assert result.outcomes == dict.fromkeys(completeness.OUTCOMES, 0) | {"answered": 10}, responses.system.name
        assert responses.spent_usd is not None and responses.spent_usd > 0 and not responses.notes
    assert not provider.rule_violations
    n_attempts = provider.attempts.total()
    first_request.send_first_requests(context, list_api_systems(context))
    assert provider.attempts.total() == n_attempts, "called again it asks for nothing"


def test_a_parameter_refused_by_name_is_left_out_once_told_and_remembered(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    price = {"input_usd_per_million": 1, "output_usd_per_million": 2}
    baseline = {"provider": "openai", "model": "gateway-model", "temperature": 0, "effort": "low", "price": price}
    context = make_shipped_comparison("classifier", tmp_path, tokenizer, baselines=[baseline], primary=None)
    provider.rejected_parameters, provider.answer = (
        ("temperature", "reasoning_effort"),
        lambda prompt: "billing_dispute",
    )
    systems, refused = first_request.send_first_requests(context, list_api_systems(context))
    assert not refused and set(systems[0].omitted_parameters) == {"temperature", "reasoning_effort"}
    assert (
        provider.attempts.total() == 3
        and "left out  temperature, which openai:gateway-model refuses: HTTP 400" in capsys.readouterr().err
    )
    responses = api_models.collect_from_apis(context, systems)["openai:gateway-model"]
    assert responses.complete and sum("queried without" in note for note in responses.notes) == 2
    assert not any("temperature" in body for _, _, body in provider.requests[3:])
    first_request.send_first_requests(context, list_api_systems(context))
    assert provider.rule_violations.total() == 2, "what was refused is remembered"
    assert len(provider.requests) == 3 + 10 * 2


def test_a_server_that_knows_only_max_tokens_gets_its_limit_by_that_name(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    price = {"input_usd_per_million": 1, "output_usd_per_million": 2}
    baseline = {"provider": "openai", "model": "mistral-small", "price": price, "max_output_tokens": 64}
    context = make_shipped_comparison("classifier", tmp_path, tokenizer, baselines=[baseline], primary=None)
    provider.rejected_parameters, provider.rejection_status = ("max_completion_tokens",), 422
    provider.answer = lambda prompt: "billing_dispute"
    systems, refused = first_request.send_first_requests(context, list_api_systems(context))
    assert not refused and systems[0].omitted_parameters == ("max_completion_tokens",)
    assert "left out  max_completion_tokens, which openai:mistral-small refuses: HTTP 422" in capsys.readouterr().err
    assert api_models.collect_from_apis(context, systems)["openai:mistral-small"].complete
    first, *others = [body for _, _, body in provider.requests]
    assert first["max_completion_tokens"] == 64
    assert len(others) > 10 and all(body["max_tokens"] == 64 for body in others)
    assert not any("max_completion_tokens" in body for body in others)


def test_a_refused_parameter_leaves_the_name_of_the_recipe_as_it_is(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM serves the tuned model under the name of the recipe."""
    price = {"input_usd_per_million": 1, "output_usd_per_million": 2}
    baseline = {"provider": "openai", "model": "gateway-model", "temperature": 0, "price": price}
    comparison = make_two_label_comparison(tmp_path, tokenizer, baselines=[baseline], primary=None, repeat_rows=0)
    provider.rejected_parameters, provider.answer = ("temperature",), make_correct_answerer(comparison)
    names = []
    collect_all = collect.collect_all

    def record_name(context: ComparisonContext, systems: Sequence[System]) -> Any:
        names.append(context.recipe_name)
        return collect_all(context, systems)

    monkeypatch.setattr(collect, "collect_all", record_name)
    scores = run_comparison(comparison, list_api_systems(comparison))
    assert any("queried without temperature" in note for note in scores.integrity.fallbacks)
    assert names == ["mine"]


def test_the_day_that_an_sdk_announces_is_shown_where_the_provider_says_none(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = {"provider": "openai", "model": "gpt-4o-mini"}
    context = make_shipped_comparison(
        "classifier", tmp_path, tokenizer, baselines=[baseline], primary=None, repeat_rows=0
    )
    provider.answer = make_correct_answerer(context)
    systems, _ = first_request.send_first_requests(context, list_api_systems(context))
    assert "it is shut down on 2027-01-14" in capsys.readouterr().err
    assert api_models.collect_from_apis(context, systems)["openai:gpt-4o-mini"].shutdown_date == "2027-01-14"
    provider.shutdown_date = "2026-12-31"
    other_context = make_shipped_comparison(
        "classifier", tmp_path / "another", tokenizer, baselines=[baseline], primary=None, repeat_rows=0
    )
    assert api_models.collect_from_apis(other_context, systems)["openai:gpt-4o-mini"].shutdown_date == "2026-12-31"
    assert not provider.rule_violations


def test_a_refused_first_request_leaves_the_test_unasked_and_the_verdict_says_so_first(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = make_shipped_comparison("classifier", tmp_path, tokenizer)
    provider.refuse = lambda prompt, attempts: (401, {})
    systems, refused = first_request.send_first_requests(context, list_api_systems(context))
    assert not systems and [entry.incomplete for entry in refused] == [True] * 3
    assert all(entry.reason == "INCOMPLETE: its first request: HTTP 401: refused" for entry in refused)
    assert not any("test" in prompt for prompt in provider.attempts)


def test_without_a_price_or_with_what_a_family_does_not_take_nobody_is_asked(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    valid = {"provider": "anthropic", "model": "claude-haiku-5-5"}
    for invalid, message in (
        (
            {"provider": "openai", "api": "decisions", "model": "gpt-6-luna"},
            "the price of openai:gpt-6-luna:decisions is unknown",
        ),
        ({"provider": "openai", "model": "gpt-6-luna", "temperature": 0}, "supports none unless effort"),
    ):
        folder = tmp_path / str(invalid.get("api"))
        folder.mkdir()
        context = make_shipped_comparison("classifier", folder, tokenizer, baselines=[invalid, valid], primary=None)
        with pytest.raises(RecipeError, match=message):
            first_request.send_first_requests(context, list_api_systems(context))
    assert not provider.requests


def test_too_many_labels_for_an_endpoint_that_decides_are_refused_in_words(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    labels = {f"label_{index}": "" for index in range(256)}
    recipe = load("classifier", (), "gpu").recipe
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": labels})})
    rows = [{"id": f"r{index}", "input": {"text": f"text {index}"}, "target": "label_0"} for index in range(4)]
    splits = {
        name: [{**row, "id": name + row["id"], "input": {"text": name}} for row in rows] for name in ("train", "test")
    }
    context = make_comparison(tmp_path, recipe, tokenizer, splits, primary=None)
    with raises_error(
        RecipeError,
        "INS-A004",
        match=r"api: decisions takes 2 to 255 labels, and the task has 256 \(openai .*\); .* api: chat",
    ):
        first_request.send_first_requests(context, list_api_systems(context))
    assert not provider.requests


def test_the_dry_run_shows_the_body_and_sends_nothing(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = make_shipped_comparison("extractor", tmp_path, tokenizer)
    rows = RowCounts(read=10, written={"test": 10}, rejected={}, dropped={})
    write_data_report(context.run.folder / "data", rows=rows)
    output = "\n".join(estimate.cost_estimate_lines(context.run, context.recipe, list_api_systems(context)))
    assert not provider.requests and "train 0" in output and "test 0" not in output
    bodies = [json.loads(text) for text in re.findall(r"^\{.*?^\}", output, re.MULTILINE | re.DOTALL)]
    assert [body["model"] for body in bodies] == ["gpt-6-luna", "claude-haiku-5-5"]
    assert all("temperature" not in body for body in bodies)


def revoked_after(provider: Provider, n_answers: int) -> None:
    provider.refuse = lambda prompt, attempts: (401, {}) if provider.delivered.total() >= n_answers else None


def test_rows_that_were_refused_for_how_they_were_asked_are_never_wrong(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = make_shipped_comparison("classifier", tmp_path, tokenizer, repeat_rows=0)
    provider.answer = lambda prompt: "billing_dispute"
    chat = list_api_systems(context)[1]
    revoked_after(provider, 6)
    responses = api_models.collect_from_apis(context, [chat])[chat.name]
    result = system_scores.summarize_system(
        system_scores.score_system(responses, context.dataset, None), context.dataset, None, False
    )
    assert result.outcomes is not None and result.outcomes["answered"] == 6 and result.outcomes["not_asked"] == 4
    # Of the rows that were put to it all are right: the others are not counted at all.
    assert result.metrics["accuracy"].value == 1.0 and result.validity.label == 1.0 and not result.complete
    assert "HTTP 401" in (result.incomplete_reason or "") and not completeness.is_sufficient(result)
    tuned = SystemResponses(
        System("tuned", "tuned", "tuned"),
        [SystemAnswer(answer.id, "billing_dispute") for answer in responses.test_answers],
    )
    scored_systems = [
        system_scores.score_system(system_responses, context.dataset, None) for system_responses in (tuned, responses)
    ]
    (paired,) = [
        difference
        for difference in comparisons.paired_differences(scored_systems, None)
        if difference.metric == "accuracy"
    ]
    assert paired.n == 6 and paired.delta == 0, "compared on the rows that were put to both"


def test_a_system_that_was_never_answered_is_not_run_and_no_figure() -> None:
    tuned = SystemResponses(System("tuned", "tuned", "tuned"), [])
    reason = "asked 36 of 60: 36 refused because of their parameters, the last: HTTP 400: no"
    system = System("openai:x", "closed", "openai:x")
    refused = SystemResponses(
        system, [SystemAnswer("T1", None, not_queried=True)], complete=False, incomplete_reason=reason
    )
    answered, missing = completeness.exclude_unanswered([tuned, refused], [])
    assert answered == [tuned] and missing[0].incomplete and missing[0].reason == f"INCOMPLETE: {reason}"


def test_cut_and_failed_rows_count_and_a_verdict_needs_99_of_100_answered() -> None:
    scores = example_scores.make_scores()
    outcomes = dict.fromkeys(completeness.OUTCOMES, 0) | {"answered": 980, "malformed": 9, "refused": 2, "cut": 9}
    result = scores.systems[API_MODEL].model_copy(update={"outcomes": outcomes})
    assert completeness.answered_fraction(outcomes) == pytest.approx(0.991) and completeness.is_sufficient(result)
    result = result.model_copy(update={"outcomes": outcomes | {"cut": 40}})
    assert not completeness.is_sufficient(result)
    scores = scores.model_copy(update={"systems": {"x": result}})
    assert "really answered 96.1% of the rows (40 cut)" in (completeness.incomplete_reason(scores, "x") or "")


def test_refused_on_every_request_it_ends_inconclusive_with_that_reason_first_and_exit_code_0(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_two_label_comparison(tmp_path, tokenizer)
    provider.refuse = lambda prompt, attempts: (400, {})
    scores = run_comparison(context, list_api_systems(context))
    assert list(scores.systems) == ["tuned"], "nobody got 0% for it"
    assert [entry.reason for entry in scores.not_run] == ["INCOMPLETE: its first request: HTTP 400: refused"] * 3
    assert scores.verdict.choice == "inconclusive" and scores.verdict.reasons[0].topic == "completeness"
    assert "openai:gpt-6-luna:decisions is INCOMPLETE: its first request: HTTP 400" in scores.verdict.headline
    assert len(scores.integrity.incomplete) == 3, "the next comparison tries again"
    assert not any("test" in prompt for prompt in provider.attempts)
    assert stage.finish(context.run, context.recipe, scores) == 0
    assert capsys.readouterr().out.startswith(
        "verdict   INCONCLUSIVE: Not decided yet: openai:gpt-6-luna:decisions is INC"
    )
    report = (context.run.folder / "report.html").read_text(encoding="utf-8")
    assert "INCOMPLETE" in report and "against 0.0%" not in report


def test_refused_in_the_middle_it_is_incomplete_and_what_it_answered_is_scored_by_itself(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = make_two_label_comparison(
        tmp_path, tokenizer, repeat_rows=0, calibrate_rows=0, primary={"baseline": "openai:gpt-6-luna"}
    )
    provider.answer = lambda prompt: prompt.rsplit(": ")[-1]
    revoked_after(provider, 31)
    scores = run_comparison(context, list_api_systems(context)[1:2])
    result = scores.systems["openai:gpt-6-luna"]
    assert result.outcomes["answered"] == 30 and result.outcomes["not_asked"] == 30 and not result.complete
    assert result.metrics["accuracy"].value == 1.0 and scores.comparisons[0].n == 30
    assert scores.verdict.choice == "inconclusive"
    assert "HTTP 401: refused" in scores.verdict.reasons[0].text
    assert stage.finish(context.run, context.recipe, scores) == 0


def test_make_doctor_asks_each_baseline_one_train_row_and_says_which_do_not_answer(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_two_label_comparison(tmp_path, tokenizer)
    provider.answer = lambda prompt: "refund_status"
    assert first_request.check_baselines("mine", context.run, context.recipe) == 0
    assert provider.attempts.total() == 3
    stderr = capsys.readouterr().err
    assert stderr.count("queried   ") == 3 and "model claude-haiku-5-5-20261101" in stderr
    other_context = make_two_label_comparison(tmp_path / "other", tokenizer)
    provider.refuse = lambda prompt, attempts: (403, {})
    assert first_request.check_baselines("mine", other_context.run, other_context.recipe) == 3
    assert capsys.readouterr().err.count("refused   ") == 3
