"""What decides: the plan that was fixed, the five questions, the router. And what never decides: a stand-in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compare.decision import preregistration, verdict, verdict_rule
from compare.decision.routing_policy import RoutingPolicy
from compare.decision.verdict_inputs import VerdictInputs
from compare.systems import catalog
from insource.config.errors import RecipeError, StageError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.compare import Primary
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Scores
from tests.helpers import example_scores
from tests.helpers.errors import raises_error
from tests.helpers.example_scores import API_MODEL, TUNED_MODEL

PRIMARY = Primary(system=TUNED_MODEL, baseline=API_MODEL, metric="accuracy", margin=0.02, alpha=0.05)
NO_ROUTE = RoutingPolicy(
    threshold=None,
    target_accuracy=0.95,
    confidence=0.95,
    calibration_rows=600,
    no_threshold_reason="no threshold can be shown",
)
ROUTE = RoutingPolicy(
    threshold=0.8, target_accuracy=0.95, confidence=0.95, calibration_rows=600, coverage=0.7, accuracy=0.968
)


def recipe(*overrides: str) -> Recipe:
    return load("classifier", overrides, "cpu").recipe


def scores(judged: str = "non-inferior", cheaper: bool = True, **kwargs: Any) -> dict[str, Any]:
    """The example's scores, with the planned comparison judged so, and owning cheaper or dearer at the volume."""
    example = example_scores.make_json(**kwargs)
    example["systems"][API_MODEL]["complete"] = True
    for entry in example["comparisons"]:
        if entry["family"] == "primary":
            entry |= {"a": TUNED_MODEL, "b": API_MODEL, "judged": judged, "rows_to_decide": 9000}
    row = next(line for line in example["cost"]["systems"][API_MODEL]["monthly"] if line["of_recipe"])
    row |= {"owned_usd": 100.0, "closed_usd": 900.0 if cheaper else 9.0}
    return example


def decided(example: dict[str, Any], policy: RoutingPolicy = NO_ROUTE, *overrides: str) -> verdict.Verdict:
    return verdict.decide(VerdictInputs(recipe(*overrides), Scores.model_validate(example), policy))


@pytest.mark.parametrize(
    ("judged", "cheaper", "policy", "choice"),
    [
        ("superior", True, NO_ROUTE, "open"),
        ("non-inferior", True, NO_ROUTE, "open"),
        ("non-inferior", False, NO_ROUTE, "closed"),
        ("worse", True, NO_ROUTE, "closed"),
        ("worse", True, ROUTE, "hybrid"),
        ("undecided", True, NO_ROUTE, "inconclusive"),
        ("undecided", True, ROUTE, "hybrid"),
    ],
)
def test_quality_cost_and_routing_decide(judged: str, cheaper: bool, policy: RoutingPolicy, choice: str) -> None:
    assert decided(scores(judged, cheaper), policy).choice == choice


def test_a_stand_in_never_decides() -> None:
    for judged in ("superior", "non-inferior", "worse", "undecided"):
        example = scores(judged)
        example["systems"][API_MODEL]["stand_in"] = True
        result = decided(example, ROUTE)
        assert result.choice == "inconclusive"
        assert any("decides nothing" in line for line in result.open_questions)


def test_an_incomplete_baseline_never_decides() -> None:
    example = scores("superior")
    example["systems"][API_MODEL] |= {"complete": False, "why_incomplete": "asked 812 of 3,080"}
    result = decided(example)
    assert result.choice == "inconclusive" and any("asked 812 of 3,080" in line for line in result.open_questions)


def test_a_baseline_that_was_refused_is_the_first_reason_and_nothing_is_said_of_its_quality() -> None:
    example = scores("superior")
    reason = "INCOMPLETE: its first request: HTTP 400: temperature: Extra inputs are not permitted"
    del example["systems"][API_MODEL]
    example["comparisons"] = [entry for entry in example["comparisons"] if API_MODEL not in (entry["a"], entry["b"])]
    example["not_run"].append({"name": API_MODEL, "title": API_MODEL, "why": reason, "incomplete": True})
    result = decided(example)
    assert result.choice == "inconclusive" and reason in result.headline
    assert result.reasons[0].topic == "completeness" and reason in result.reasons[0].text
    assert not any(entry.topic == "quality" for entry in result.reasons)


def test_a_baseline_that_answered_less_than_99_of_100_rows_never_decides() -> None:
    example = scores("superior")
    outcomes = {"answered": 1980, "refused": 0, "cut": 100, "malformed": 0, "failed": 0, "not_asked": 0}
    example["systems"][API_MODEL]["rows"] = outcomes
    result = decided(example)
    assert result.choice == "inconclusive" and result.reasons[0].topic == "completeness"
    assert "really answered 95.2% of the rows (100 cut)" in result.reasons[0].text
    outcomes |= {"answered": 2078, "cut": 2}
    assert decided(example).choice == "open"


def test_a_plan_that_was_changed_after_the_opening_never_decides() -> None:
    example = scores("superior")
    example["plan"] |= {"confirmatory": False, "why_not": "the plan was changed after the test set was opened"}
    result = decided(example)
    assert result.choice == "inconclusive" and any("was changed" in line for line in result.open_questions)


def test_data_that_may_not_leave_ends_the_debate() -> None:
    assert decided(scores("worse"), NO_ROUTE, "privacy.data_may_leave=false").choice == "open"


def test_without_somebody_who_looks_after_it_nothing_is_owned() -> None:
    assert decided(scores("superior"), NO_ROUTE, "decide.operations_owner=false").choice == "closed"


def test_as_good_without_a_measured_cost_is_not_decided() -> None:
    result = decided(scores("non-inferior", measured=False))
    assert result.choice == "inconclusive" and "was not measured" in result.headline


def test_a_linear_model_that_does_as_well_is_the_first_line() -> None:
    for accuracy, word in ((0.915, "does as well"), (0.95, "does better")):
        result = decided(scores("superior", linear=accuracy))
        assert result.reasons[0].topic == "linear" and word in result.reasons[0].text


def test_undecided_tells_how_many_rows_would_decide() -> None:
    assert any("9,000 test rows" in line for line in decided(scores("undecided")).open_questions)


def test_each_of_the_five_questions_has_a_voice_and_a_figure_and_is_counted() -> None:
    result = decided(scores())
    reasons = [reason for reason in result.reasons if reason.question]
    assert [reason.topic for reason in reasons] == list(verdict_rule.QUESTIONS)
    assert all(reason.value and reason.favors in ("open", "closed", "neutral") for reason in reasons)
    assert result.votes == {"open": 1, "closed": 0, "neutral": 4}


def voice(topic: str, example: dict[str, Any], *overrides: str) -> str | None:
    return next(reason.favors for reason in decided(example, NO_ROUTE, *overrides).reasons if reason.topic == topic)


@pytest.mark.parametrize(
    ("requirement", "tuned", "closed", "expected"),
    [
        ("required", 1.0, 0.98, "open"),
        ("required", 0.98, 1.0, "closed"),
        ("required", 1.0, 0.99, "neutral"),
        ("required", 0.95, 0.97, "neutral"),
        ("useful", 0.97, 0.95, "open"),
        ("useful", 0.95, 0.97, "closed"),
        ("useful", 0.972, 0.97, "neutral"),
        ("'no'", 1.0, 0.5, "neutral"),
    ],
)
def test_who_alone_delivers_the_form_has_its_voice(
    requirement: str, tuned: float, closed: float, expected: str
) -> None:
    example = scores()
    for name, fraction in ((TUNED_MODEL, tuned), (API_MODEL, closed)):
        example["systems"][name]["validity"]["label"] = fraction
    override = f"decide.structured_output={requirement}"
    assert voice("structured output", example, override) == expected
    if requirement == "required" and expected != "neutral":
        assert decided(example, NO_ROUTE, override).choice == expected
    example["systems"][API_MODEL]["stand_in"] = True
    assert voice("structured output", example, override) == "neutral"


@pytest.mark.parametrize(("times", "expected"), [(0, "open"), (1, "neutral"), (8, "neutral"), (9, "closed")])
def test_how_often_the_prompt_changes_has_a_voice(times: int, expected: str) -> None:
    assert voice("prompt changes", scores(), f"decide.prompt_changes_per_month={times}") == expected


@pytest.mark.parametrize(
    ("owned", "closed", "expected"),
    [(3100, 6200, "open"), (3100, 6000, "neutral"), (3100, 1700, "neutral"), (3100, 1500, "closed")],
)
def test_engineering_speaks_where_its_share_does_not_matter(owned: float, closed: float, expected: str) -> None:
    """An engineer of $3,000 a month: twice that, and half of it."""
    example = scores()
    row = next(line for line in example["cost"]["systems"][API_MODEL]["monthly"] if line["of_recipe"])
    row |= {"owned_usd": float(owned), "closed_usd": float(closed)}
    assert voice("engineering", example) == expected
    assert voice("engineering", example, "decide.operations_owner=false") == "closed"


def test_two_questions_outvote_a_cost_that_speaks_alone() -> None:
    example = scores()
    example["systems"][TUNED_MODEL]["validity"]["label"] = 0.9
    overrides = ("decide.structured_output=useful", "decide.prompt_changes_per_month=20")
    result = decided(example, NO_ROUTE, *overrides)
    assert result.choice == "closed" and "2 of the other questions are against self-hosting" in result.headline
    assert decided(example, NO_ROUTE, overrides[0]).choice == "open", "one alone does not"


def test_the_cost_of_another_model_than_the_planned_one_decides_nothing() -> None:
    example = scores()
    del example["cost"]["systems"][API_MODEL]
    result = decided(example)
    assert voice("cost", example) == "neutral" and result.choice == "inconclusive"


def test_a_baseline_that_was_not_run_leaves_the_verdict_open_and_says_why() -> None:
    example = scores()
    example["comparisons"] = [entry for entry in example["comparisons"] if entry["family"] != "primary"]
    del example["systems"][API_MODEL]
    example["not_run"] = [{"name": API_MODEL, "title": API_MODEL, "why": "no key: OPENAI_API_KEY is not set"}]
    result = decided(example)
    assert result.choice == "inconclusive"
    assert any("OPENAI_API_KEY" in line for line in result.open_questions)


def a_run(folder: Path, name: str = "20261121T090000Z-aaaa") -> Run:
    created_run = Run(folder / "runs" / "classifier" / name)
    created_run.folder.mkdir(parents=True)
    return created_run


def test_the_ledger_has_every_opening_once_and_the_first_plan_of_a_run_counts(tmp_path: Path) -> None:
    created_run = a_run(tmp_path)
    first = preregistration.register_and_open(created_run, PRIMARY, "t" * 64)
    repeated = preregistration.register_and_open(created_run, PRIMARY, "t" * 64)
    assert first.exploratory_reason is None and repeated.exploratory_reason is None
    assert len(repeated.openings) == 1 and repeated.registered_at == first.registered_at
    changed = preregistration.register_and_open(created_run, PRIMARY.model_copy(update={"margin": 0.1}), "t" * 64)
    assert changed.exploratory_reason is not None and "margin was 0.02" in changed.exploratory_reason
    second = preregistration.register_and_open(a_run(tmp_path, "20261121T100000Z-bbbb"), PRIMARY, "t" * 64)
    assert second.exploratory_reason is None and len(second.openings) == 3
    ledger = (tmp_path / "runs" / "classifier" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["plan"]["margin"] for line in ledger] == [0.02, 0.1, 0.02]


def test_another_test_set_has_openings_of_its_own(tmp_path: Path) -> None:
    created_run = a_run(tmp_path)
    preregistration.register_and_open(created_run, PRIMARY, "a" * 64)
    assert len(preregistration.register_and_open(created_run, PRIMARY, "b" * 64).openings) == 1


def test_a_ledger_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    created_run = a_run(tmp_path)
    (created_run.folder.parent / "ledger.jsonl").write_text('{"run": \n', encoding="utf-8")
    with raises_error(StageError, "INS-C005", match=r"ledger.jsonl:1"):
        preregistration.register_and_open(created_run, PRIMARY, "t" * 64)


def test_without_a_plan_nothing_is_confirmed(tmp_path: Path) -> None:
    registration = preregistration.register_and_open(a_run(tmp_path), None, "t" * 64)
    assert registration.exploratory_reason is not None and "no primary comparison" in registration.exploratory_reason


def test_a_target_against_a_stand_in_decides_nothing() -> None:
    example = scores("worse")
    route = replace(ROUTE, target_accuracy=None, not_worse_than=API_MODEL, margin=0.02)
    assert decided(example, route).choice == "hybrid"
    example["systems"]["here"] = {**example["systems"][API_MODEL], "stand_in": True}
    assert decided(example, replace(route, not_worse_than="here")).choice == "closed"


def test_nobody_is_asked_whom_the_data_may_not_reach() -> None:
    baselines = [
        "{provider: openai, model: gpt-6-luna}",
        "{provider: openai, model: m, base_url: 'https://models.example.org/v1', name: elsewhere}",
        "{provider: openai, model: m, base_url: 'https://gateway.corp.example/v1', name: trusted, api_key_env: PATH}",
        "{provider: anthropic, model: m, base_url: 'http://127.0.0.1:9', name: here}",
        "{provider: bedrock, model: m}",
    ]
    loaded = recipe(
        "privacy.data_may_leave=false",
        "privacy.trusted_hosts=[gateway.corp.example]",
        f"compare.baselines=[{', '.join(baselines)}]",
    )
    systems = [catalog._api_system(baseline) for baseline in loaded.compare.baselines]
    assert {system.name for system in catalog.skipped_systems(systems, loaded)} == {
        "openai:gpt-6-luna",
        "elsewhere",
        "bedrock:m",
    }


def test_a_stand_in_is_called_one() -> None:
    loaded = recipe("compare.baselines=[{provider: openai, model: gpt-6-luna, base_url: 'http://localhost:1/v1'}]")
    (system,) = [catalog._api_system(baseline) for baseline in loaded.compare.baselines]
    assert system.is_stand_in and "stand-in" in system.title


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare.primary.metric=rouge_l", "compare.primary.metric: given 'rouge_l'"),
        ("compare.baselines=[{provider: openai, model: m, name: tfidf}]", "choose another"),
        ("compare.baselines=[{provider: openai, model: m}, {provider: openai, model: m}]", "is used twice"),
        ("compare.baselines=[{provider: azure, model: m}]", "provider azure takes base_url"),
        ("compare.baselines=[{provider: file, path: x, mode: batch}]", "no batches"),
    ],
)
def test_a_comparison_that_cannot_be_is_told_when_the_recipe_is_read(override: str, message: str) -> None:
    with raises_error(RecipeError, "INS-R001", match=message.replace("(", r"\(")):
        recipe(override)
