"""Whole comparisons with closed models that are asked rightly, asked wrongly, cut or held off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compare import first_request, stage
from insource.backends import failures
from insource.backends.types import Backend, Request
from insource.backends.wire import anthropic_messages, openai_chat
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.tracking.scores.comparison import read_scores, write_scores
from tests.compare.test_first_request import WITH_CLOSED
from tests.helpers.api_comparison import (
    list_api_systems,
    make_comparison,
    make_correct_answerer,
    make_shipped_comparison,
    make_two_label_comparison,
    redirect_sdks,
    run_comparison,
)
from tests.helpers.errors import raises_error
from tests.helpers.provider.faulty_provider import ROW_ERROR, Provider
from tests.helpers.provider.provider_answers import Json, make_completion, make_message

CHAT = "openai:gpt-6-luna"


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def address(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    redirect_sdks(monkeypatch, address)
    return address


@pytest.mark.parametrize("name", WITH_CLOSED)
def test_a_shipped_recipe_unchanged_is_compared_with_closed_models_that_answered_every_row(
    name: str, tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = make_shipped_comparison(name, tmp_path, tokenizer, labels=2 if name in ("classifier", "banking77") else 1)
    provider.answer = make_correct_answerer(context)
    scores = run_comparison(context, list_api_systems(context))
    assert not provider.rule_violations and not scores.not_run and not scores.integrity.incomplete
    names = {baseline.display_name for baseline in context.recipe.compare.baselines}
    assert names == {system for system, entry in scores.systems.items() if entry.kind == "closed"}
    for system in names:
        result = scores.systems[system]
        assert result.complete and result.outcomes["answered"] == result.n == 10, system
        assert result.cost_usd_per_1k > 0 and result.metrics[scores.task.metrics[0]].value == 1.0
    assert scores.verdict.reasons[0].topic != "completeness"
    assert stage.finish(context.run, context.recipe, scores) == 0
    path = context.run.folder / "scores.json"
    write_scores(tmp_path / "again.json", read_scores(path))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def as_until_november(body: Callable[[Backend, Request], Json]) -> Callable[[Backend, Request], Json]:
    """The body as this project sent it until November 2026: with temperature 0, whatever the model takes."""
    return lambda backend, request: {**body(backend, request), "temperature": 0.0}


@pytest.mark.parametrize("name", WITH_CLOSED)
def test_with_the_old_bodies_it_is_incomplete_and_inconclusive_with_that_reason_first(
    name: str,
    tmp_path: Path,
    tokenizer: Any,
    provider: Provider,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for wire in (openai_chat, anthropic_messages):
        monkeypatch.setattr(wire, "build_body", as_until_november(wire.build_body))
    is_classification = name in ("classifier", "banking77")
    # Then the plan was against the chat model; the decision endpoint was not asked at all.
    context = make_shipped_comparison(
        name, tmp_path, tokenizer, f"compare.primary.baseline={CHAT}", labels=2 if is_classification else 1
    )
    chats = [
        system for system in list_api_systems(context) if system.baseline and not system.baseline.uses_decision_api
    ]
    scores = run_comparison(context, chats)
    assert list(scores.systems) == ["tuned"], "nobody got 0% for how it was asked"
    assert {entry.name for entry in scores.not_run} == {entry.name for entry in chats}
    for entry in scores.not_run:
        assert entry.incomplete and entry.reason.startswith("INCOMPLETE: its first request: HTTP 400: ")
        assert "temperature" in entry.reason
    assert scores.verdict.choice == "inconclusive"
    assert scores.verdict.reasons[0].topic == "completeness"
    assert f"{CHAT} is INCOMPLETE" in scores.verdict.reasons[0].text
    assert provider.rule_violations.total() == len(chats), "what was refused once is not retried blindly"
    assert not any("test" in prompt for prompt in provider.attempts), "nobody saw a test row"
    assert stage.finish(context.run, context.recipe, scores) == 0
    assert capsys.readouterr().out.startswith("verdict   INCONCLUSIVE: Not decided yet: ")
    assert "against 0.0%" not in (context.run.folder / "report.md").read_text(encoding="utf-8")


def one_baseline(folder: Path, tokenizer: Any, **overrides: Any) -> Any:
    """A comparison with one chat model as the planned baseline."""
    baseline = {"provider": "openai", "model": "gpt-6-luna", **overrides}
    name = f"{baseline['provider']}:{baseline['model']}"
    return make_two_label_comparison(folder, tokenizer, baselines=[baseline], primary={"baseline": name}, repeat_rows=0)


def last_word(prompt: str) -> str:
    return prompt.rsplit(": ")[-1]


def test_a_rate_limit_that_outlasts_all_attempts_is_no_refusal_of_the_model(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = one_baseline(tmp_path, tokenizer, retries=1)
    provider.answer = last_word
    prefixes = {f"test {index}: " for index in range(0, 60, 10)}
    provider.refuse = lambda prompt, attempts: (429, {}) if any(prefix in prompt for prefix in prefixes) else None
    scores = run_comparison(context, list_api_systems(context))
    result = scores.systems[CHAT]
    assert result.outcomes["failed"] == 6 and result.outcomes["refused"] == 0 and result.outcomes["answered"] == 54
    assert scores.verdict.choice == "inconclusive"
    assert "really answered 90.0% of the rows (6 failed)" in scores.verdict.reasons[0].text
    provider.refuse = lambda prompt, attempts: None
    repeated = run_comparison(context, list_api_systems(context)).systems[CHAT]
    assert repeated.outcomes["answered"] == 60 and repeated.reused == 54


def test_a_first_row_that_is_filtered_says_nothing_of_the_others(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    context = one_baseline(tmp_path, tokenizer)
    provider.answer = last_word
    provider.refuse = lambda prompt, attempts: (ROW_ERROR, {}) if "train 0: " in prompt else None
    result = run_comparison(context, list_api_systems(context)).systems[CHAT]
    assert "accepts requests, but refuses the content of this train row" in capsys.readouterr().err
    assert result.complete and result.outcomes["answered"] == 60


def cut_chat(body: Json, text: str) -> Json:
    completion = make_completion(body, "")
    completion["choices"][0]["finish_reason"] = "length"
    return completion


def cut_message(body: Json, text: str) -> Json:
    return make_message(body, "") | {"stop_reason": "max_tokens"}


@pytest.mark.parametrize("baseline", [{"model": "gpt-6-luna"}, {"provider": "anthropic", "model": "claude-haiku-5-5"}])
def test_answers_that_the_output_limit_cuts_are_told_apart_from_wrong_ones(
    baseline: dict[str, str],
    tmp_path: Path,
    tokenizer: Any,
    provider: Provider,
    address: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = one_baseline(tmp_path, tokenizer, **baseline)
    provider.response_makers = {"chat": cut_chat, "messages": cut_message}
    scores = run_comparison(context, list_api_systems(context))
    assert "CUT by the output limit: raise max_output_tokens, or lower effort" in capsys.readouterr().err
    (name,) = (planned.display_name for planned in context.recipe.compare.baselines)
    assert scores.systems[name].outcomes["cut"] == 60 and scores.systems[name].outcomes["malformed"] == 0
    assert scores.systems[name].invalid == {"unfinished": 60}
    assert scores.verdict.choice == "inconclusive"
    assert "really answered 0.0% of the rows (60 cut)" in scores.verdict.reasons[0].text
    assert "0 of 60 (60 cut)" in (context.run.folder / "report.md").read_text(encoding="utf-8")
    assert "60 cut" in (context.run.folder / "report.html").read_text(encoding="utf-8")


def test_what_a_schema_could_not_say_is_checked_here(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    """A supplier of more than 40 characters is invalid, though neither provider takes maxLength."""
    context = make_shipped_comparison("extractor", tmp_path, tokenizer)
    target = {**context.dataset.test[0]["target"], "supplier": "x" * 41}
    provider.answer = lambda prompt: json.dumps(target)
    scores = run_comparison(context, list_api_systems(context))
    for baseline in context.recipe.compare.baselines:
        result = scores.systems[baseline.display_name]
        assert result.outcomes["malformed"] == 10 and result.validity.label == 0 and result.complete
    bodies = [json.dumps(body) for _, _, body in provider.requests]
    assert bodies and all("at most 40 characters" in text and "maxLength" not in text for text in bodies)


def test_everything_that_can_be_known_is_checked_before_the_first_request(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    """The first baseline could be asked; the others have more labels, a value and a mode that nobody takes."""
    labels = {f"label_{index}": "" for index in range(256)}
    recipe = load("classifier", (), "gpu").recipe
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": labels})})
    rows = {
        split: [
            {"id": f"{split}{index}", "input": {"text": f"{split} {index}"}, "target": "label_0"} for index in range(3)
        ]
        for split in ("train", "validation", "test")
    }
    price = {"input_usd_per_million": 1, "output_usd_per_million": 1}
    baselines = [
        {"provider": "openai", "model": "gpt-6-luna"},
        {"provider": "openai", "api": "decisions", "model": "gpt-6-luna", "price": price},
        {"provider": "anthropic", "model": "claude-haiku-5-5", "temperature": 0},
        {"provider": "openai", "model": "model-of-2028", "mode": "batch", "price": price},
    ]
    context = make_comparison(tmp_path, recipe, tokenizer, rows, baselines=baselines, primary=None)
    with raises_error(RecipeError, "INS-A004") as error:
        first_request.check_baselines("mine", context.run, context.recipe)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(
        "compare.baselines: openai:gpt-6-luna:decisions: api: decisions takes 2 to 255 labels, and the task has 256 "
        "(openai SDK 3.54, types/decision_create_params.py"
    )
    assert "temperature: given 0, but claude haiku 5.5 supports none" in lines[1]
    assert "mode: given batch, but it is not known that model-of-2028 is served in batches" in lines[2]
    assert not provider.requests
