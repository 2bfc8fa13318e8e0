"""Whether rows may share a decision request is measured: an endpoint that mixes them up is found out."""

from pathlib import Path
from typing import Any

import pytest

from compare import together
from compare.records import System
from insource.backends import failures
from insource.backends.types import Request
from insource.config.errors import RecipeError, StageError
from tests.compare.test_api_models import Made
from tests.compare.test_api_models import make_context as make_context
from tests.helpers import commands
from tests.helpers.api_comparison import list_api_systems, make_two_label_comparison, redirect_sdks
from tests.helpers.api_requests import make_backend, make_requests, to_choice_requests
from tests.helpers.errors import raises_error
from tests.helpers.provider.faulty_provider import Provider, run_provider
from tests.helpers.provider.provider_answers import Json, correct_label, make_decision

ROWS = 12


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


def endpoint(drift: float = 0.0, mixed_up: bool = False) -> Provider:
    """Answers each question by its own text; `drift`: what a probability moves for each question before it in the
    request; `mixed_up`: each question by the text of the one before."""

    def answers(body: Json, _: str) -> Json:
        texts = [question["instructions"][-1]["text"] if isinstance(question["instructions"], list) else body["input"]
                 for question in body["questions"]]  # fmt: skip
        decided = []
        for index, question in enumerate(body["questions"]):
            text = texts[index - 1] if mixed_up else texts[index]
            (answer,) = make_decision({**body, "input": text, "questions": [question]}, correct_label(text))["answers"]
            for entry in answer.get("probabilities", []):
                entry["probability"] += -drift * index if entry["value"] == answer["choice"] else drift * index / 2
            decided.append(answer)
        return {**make_decision({**body, "questions": body["questions"][:1]}, correct_label("")), "answers": decided}

    return Provider(response_makers={"decisions": answers})


def requests() -> list[Request]:
    return [question.request for question in to_choice_requests(make_requests(ROWS))]


def test_an_endpoint_that_takes_each_question_by_itself_may_be_asked_several_rows() -> None:
    provider = endpoint()
    with run_provider(provider) as address:
        measurement = together.measure_sharing(make_backend(address, "decisions"), requests())
    assert (
        measurement.may_share
        and measurement.together.same_choices == ROWS
        and measurement.together.max_difference == pytest.approx(0)
    )
    assert [len(body["questions"]) for _, _, body in provider.requests] == [1] * 2 * ROWS + [ROWS]
    assert not provider.rule_violations and measurement.individual_tokens > 0 and measurement.together_tokens > 0
    assert "yes       rows that share" in "\n".join(measurement.lines("luna"))


def test_an_endpoint_whose_answers_depend_on_the_other_rows_is_found_out() -> None:
    for faulty, same_choices, max_shift in (
        (endpoint(drift=0.001), ROWS, 0.011),
        (endpoint(mixed_up=True), None, 0.85),
    ):
        with run_provider(faulty) as address:
            measurement = together.measure_sharing(make_backend(address, "decisions"), requests())
        assert not measurement.may_share and measurement.together.max_difference == pytest.approx(max_shift)
        assert (
            measurement.together.same_choices == same_choices
            if same_choices
            else measurement.together.same_choices < ROWS
        )
        assert measurement.repeated.max_difference == 0 and "no        rows that share" in "\n".join(
            measurement.lines("luna")
        )


def test_what_is_not_answered_is_no_measurement() -> None:
    provider = endpoint()
    provider.refuse = lambda prompt, attempts: (400, {}) if prompt.startswith("Each question") else None
    with (
        run_provider(provider) as address,
        raises_error(StageError, "INS-A009", match="12 rows in one request were not answered"),
    ):
        together.measure_sharing(make_backend(address, "decisions"), requests())


def test_it_asks_train_rows_within_the_budget_of_the_recipe(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = endpoint()
    with run_provider(provider) as address:
        redirect_sdks(monkeypatch, address)
        context = make_two_label_comparison(tmp_path, tokenizer)
        system: System = list_api_systems(context)[0]
        measurement = together._measure_system(context, system, 5)
        assert measurement.rows == 5 and all("test" not in str(body) for _, _, body in provider.requests)
        poor_context = make_two_label_comparison(tmp_path / "poor", tokenizer, budget_usd=0.00001)
        n_requests = len(provider.requests)
        with raises_error(RecipeError, "INS-A003", match=r"5 rows requested three times may cost .* raise it"):
            together._measure_system(poor_context, system, 5)
        assert len(provider.requests) == n_requests


def test_the_command_says_what_it_measured_and_its_exit_code_says_it_too(make_context: Made) -> None:
    trained_run = make_context().run
    for provider, code, prefix in ((endpoint(), 0, "yes "), (endpoint(mixed_up=True), 3, "no ")):
        with run_provider(provider) as address:
            baseline = (
                f"{{provider: openai, api: decisions, model: gpt-6-luna, name: decides, base_url: '{address}/v1'}}"
            )
            args = [f"compare.baselines=[{baseline}]", "compare.primary=null", "--run", trained_run.id, "--rows", "3"]
            completed = commands.run_command(trained_run.folder.parents[1], "compare.together", "classifier", *args)
        assert completed.returncode == code, completed.stderr
        alone, together, conclusion = completed.stdout.splitlines()
        assert alone.startswith("single    decides: 3 requests, ") and together.startswith("together  1 request, ")
        assert conclusion.startswith(prefix) and len(provider.requests) == 7
