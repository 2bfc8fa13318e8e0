"""The baseline of a routing target: its answers to the calibration rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compare import assemble
from compare.analysis import system_scores
from compare.decision import routing_evaluation
from compare.records import Scale, System, SystemAnswer, SystemResponses
from compare.scoring import confidence
from compare.systems import api_models, catalog
from compare.systems.responses import ComparisonContext
from insource.backends import failures
from insource.config.schema.compare import Baseline
from insource.system import atomic_files
from tests.helpers import example_scores
from tests.helpers.api_comparison import (
    list_api_systems,
    make_shipped_comparison,
    make_two_label_comparison,
    redirect_sdks,
)
from tests.helpers.provider.faulty_provider import Provider

CHAT = "openai:gpt-6-luna"


def tuned(context: ComparisonContext) -> tuple[SystemResponses, Scale]:
    """A tuned model that is right where it is sure: a third of its answers are neither."""
    dataset = context.dataset

    def answers(rows: Any) -> list[SystemAnswer]:
        return [
            SystemAnswer(
                row["id"], row["target"] if index % 3 else "refund_status", log_probability=-0.01 if index % 3 else -1.0
            )
            for index, row in enumerate(rows)
        ]

    validation_rows = list(atomic_files.read_jsonl(context.run.folder / "data" / "validation.jsonl"))
    scale = confidence.fit_scale(dataset, validation_rows, answers(validation_rows))
    assert scale is not None
    system = System("tuned", "tuned", "tuned")
    return SystemResponses(system, answers(dataset.test), answers(dataset.calibration)), scale


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def address(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    redirect_sdks(monkeypatch, address)
    return address


def comparison(folder: Path, tokenizer: Any, budget: float = 5.0) -> ComparisonContext:
    return make_two_label_comparison(
        folder,
        tokenizer,
        settings=(f"route.not_worse_than={CHAT}", "route.margin=0.05"),
        validation=60,
        calibration=150,
        test=40,
        baselines=[{"provider": "openai", "model": "gpt-6-luna", "max_output_tokens": 16}],
        primary={"baseline": CHAT},
        repeat_rows=0,
        budget_usd=budget,
    )


def test_the_baseline_that_the_target_names_is_asked_the_calibration_rows_once(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    context = comparison(tmp_path, tokenizer)
    provider.answer = lambda prompt: prompt.rsplit(": ")[-1]
    responses = api_models.collect_from_apis(context, list_api_systems(context))[CHAT]
    prompts = [prompt for prompt in provider.delivered if "calibration" in prompt]
    assert (
        len(prompts) == 150
        and len(responses.calibration_answers) == 150
        and responses.calibration_missing_reason is None
    )
    repeated = api_models.collect_from_apis(context, list_api_systems(context))[CHAT]
    assert sum(provider.delivered.values()) == 190 and repeated.spent_usd == pytest.approx(responses.spent_usd)
    tuned_responses, scale = tuned(context)
    scored_systems = [
        system_scores.score_system(system_responses, context.dataset, scale)
        for system_responses in (tuned_responses, responses)
    ]
    policy = assemble.fit_tuned_policy(scored_systems, context.dataset, scale, context.recipe)
    # 100 rows of which it is sure and right, as the baseline is: as good within 5 points; of the others it is not.
    assert policy.threshold is not None and policy.coverage == pytest.approx(2 / 3) and policy.difference == 0
    assert "less than 5.0% less often right than openai:gpt-6-luna" in policy.target
    assert "less often than those of openai:gpt-6-luna to the same requests" in (policy.guarantee or "")
    cost = example_scores.make_scores(measured=False).cost.self_hosted
    result = routing_evaluation.evaluate_policy(policy, scored_systems[0], scored_systems[1], scale, cost)
    assert result is not None and result.difference_of_kept and result.difference_of_kept.value == 0
    assert result.strategies["routed"].correct.value == 1.0 > result.strategies["random"].correct.value


def test_where_the_budget_ends_before_the_calibration_rows_the_comparison_is_whole_and_the_reason_is_told(
    tmp_path: Path, tokenizer: Any, provider: Provider, address: str
) -> None:
    provider.answer = lambda prompt: prompt.rsplit(": ")[-1]
    full_context = comparison(tmp_path / "enough", tokenizer)
    full_responses = api_models.collect_from_apis(full_context, list_api_systems(full_context))
    assert full_responses[CHAT].spent_usd is not None
    # Enough for the test rows, and for some of the calibration rows.
    context = comparison(tmp_path / "few", tokenizer, 0.66 * full_responses[CHAT].spent_usd)
    responses = api_models.collect_from_apis(context, list_api_systems(context))[CHAT]
    assert (
        responses.complete
        and not responses.calibration_answers
        and "could exceed budget_usd" in (responses.calibration_missing_reason or "")
    )
    assert responses.spent_usd is not None and responses.spent_usd <= context.recipe.compare.budget_usd
    tuned_responses, scale = tuned(context)
    scored_systems = [
        system_scores.score_system(system_responses, context.dataset, scale)
        for system_responses in (tuned_responses, responses)
    ]
    policy = assemble.fit_tuned_policy(scored_systems, context.dataset, scale, context.recipe)
    assert policy.threshold is None and "has not answered the calibration rows (queried" in (
        policy.no_threshold_reason or ""
    )
    missing = assemble.fit_tuned_policy(scored_systems[:1], context.dataset, scale, context.recipe)
    assert "it was not run" in (missing.no_threshold_reason or "")


@pytest.mark.parametrize("answered", [150, 149])
def test_answers_one_has_may_be_the_baseline_if_they_answer_every_calibration_row(
    answered: int, tmp_path: Path, tokenizer: Any
) -> None:
    context = comparison(tmp_path, tokenizer)
    rows = [*context.dataset.test, *context.dataset.calibration[:answered]]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": row["id"], "output": row["target"]}) + "\n" for row in rows))
    baseline = Baseline(provider="file", path=str(path), name=CHAT)
    responses = api_models.load_answer_file(context, catalog._api_system(baseline))
    assert responses.complete and len(responses.calibration_answers) == (150 if answered == 150 else 0)
    if answered == 149:
        assert responses.calibration_missing_reason == "answers.jsonl has no answer to 1 of the 150 calibration rows"


def test_the_confidence_of_a_record_is_that_of_its_least_certain_field(tmp_path: Path, tokenizer: Any) -> None:
    context = make_shipped_comparison("extractor", tmp_path, tokenizer)
    row, wrong = context.dataset.test[0], {**context.dataset.test[0]["target"], "supplier": "y"}

    def make_answer(index: int, path: float, field: float | None) -> SystemAnswer:
        output = row["target"] if index % 2 else wrong
        return SystemAnswer(row["id"], json.dumps(output), log_probability=path, field_log_probability=field)

    # The whole answer tells nothing here, the field does.
    answers = [make_answer(index, -1.0, -0.01 if index % 2 else -0.9) for index in range(40)]
    scale = confidence.fit_scale(context.dataset, [row] * 40, answers)
    assert scale is not None and scale.part == "least certain field" and scale.platt is not None
    responses = SystemResponses(System("tuned", "tuned", "tuned"), answers)
    sure, unsure = confidence.compute_confidences(
        responses, scale, [make_answer(1, -1.0, -0.01), make_answer(1, -1.0, -0.9)]
    )
    assert sure is not None and unsure is not None and sure > 0.8 > 0.2 > unsure
    assert confidence.compute_confidences(responses, confidence.scale_from_json(scale.json()), answers) == list(
        scale.confidences
    )
    # What is no record has no field; its whole path counts.
    truncated = confidence.compute_confidences(responses, scale, [SystemAnswer(row["id"], "{", log_probability=-0.9)])
    assert truncated == [unsure]
    # References that were written before fields were told apart.
    old_scale = confidence.fit_scale(
        context.dataset, [row] * 40, [replace(answer, field_log_probability=None) for answer in answers]
    )
    assert old_scale is not None and old_scale.part == "answer"
