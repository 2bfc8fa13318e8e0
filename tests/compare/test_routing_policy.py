"""The routing policy: what it promises, why there is none, what it does on test rows, a target against a baseline."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compare.analysis import system_scores
from compare.decision import routing_evaluation, routing_policy
from compare.decision.routing_policy import CalibrationAnswers, RoutingPolicy
from compare.records import Scale, System, SystemAnswer, SystemResponses
from compare.report import html_page, markdown_page
from compare.scoring import predictions
from insource.backends import failures
from insource.config.errors import StageError
from insource.config.load import load
from insource.config.schema.serving_and_cost import Route
from insource.stats.calibration import Platt
from insource.system import atomic_files
from tests.helpers import example_scores
from tests.helpers.errors import raises_error
from tests.helpers.recipe_errors import load_error

CHAT = "openai:gpt-6-luna"


def drawn(n: int, seed: int, groups: bool = False) -> tuple[list[float], list[float], CalibrationAnswers]:
    """Confidences and right answers of 500 validation rows, and calibration rows: as often right as sure."""
    rng = np.random.default_rng(seed)
    validation, calibration = 0.3 + 0.7 * rng.random(500) ** 0.1, 0.3 + 0.7 * rng.random(n) ** 0.1
    correct = [float(value) for value in rng.random(n) < calibration]
    ids = [f"c{index}" for index in range(n)]
    rows = CalibrationAnswers(
        ids, calibration.tolist(), correct, [f"g{index // 3}" for index in range(n)] if groups else None
    )
    return validation.tolist(), [float(value) for value in rng.random(500) < validation], rows


def policy_of(n: int, seed: int, route: Route, **kwargs: Any) -> RoutingPolicy:
    validation, correct, rows = drawn(n, seed, **kwargs)
    return routing_policy.fit_policy(Scale(Platt(1.0, 0.0), "answer", validation, correct), rows, route)


def test_the_threshold_is_a_confidence_of_the_validation_rows_and_the_calibration_rows_keep_the_target() -> None:
    validation, correct, rows = drawn(900, 1)
    scale = Scale(Platt(1.4, -0.3), "answer", validation, correct)
    policy = routing_policy.fit_policy(scale, rows, Route())
    assert policy.threshold in validation and policy.sequence is not None
    kept_mask = np.array(rows.confidences) >= policy.threshold
    assert policy.coverage == kept_mask.mean() > 0.3
    assert policy.accuracy == np.array(rows.correct)[kept_mask].mean() > 0.95
    assert policy.p_value is not None and policy.p_value <= 0.05
    assert policy.threshold <= policy.sequence.start and policy.sequence.validation_rows == 500
    assert policy.score == {"of": "answer", "slope": 1.4, "intercept": -0.3}
    shuffled = np.random.default_rng(9).permutation(900)
    shuffled_rows = CalibrationAnswers(
        *([values[index] for index in shuffled] for values in (rows.ids, rows.confidences, rows.correct))
    )
    assert routing_policy.fit_policy(scale, shuffled_rows, Route()) == policy, "the order of the rows means nothing"


def test_the_guarantee_says_what_it_covers_and_what_not() -> None:
    policy = policy_of(900, 1, Route(target_accuracy=0.94, confidence=0.9))
    guarantee = policy.guarantee or ""
    assert guarantee.startswith(
        "With 90% confidence more than 94.0% of the answers that only the self-hosted model gives"
    )
    for phrase in ("on average", "exchangeable", "a single request", "of the API model", "at most 10% of draws"):
        assert phrase in guarantee
    assert "each group counting once" not in guarantee
    grouped = policy_of(2400, 1, Route(target_accuracy=0.94), groups=True)
    assert grouped.threshold is not None and "each group counting once" in (grouped.guarantee or "")


def test_of_rows_of_one_group_one_counts() -> None:
    validation, correct, rows = drawn(900, 2)
    scale = Scale(None, "answer", validation, correct)
    # Copies within a group bring no evidence.
    copied = CalibrationAnswers(
        [f"{row_id}-{copy}" for row_id in rows.ids for copy in range(4)],
        [confidence for confidence in rows.confidences for _ in range(4)],
        [value for value in rows.correct for _ in range(4)],
        [group for group in rows.ids for _ in range(4)],
    )
    single, repeated = (
        routing_policy.fit_policy(scale, rows, Route()),
        routing_policy.fit_policy(scale, copied, Route()),
    )
    assert (repeated.calibration_rows, repeated.left_out_rows) == (900, 2700)
    assert (single.threshold, single.p_value) == (repeated.threshold, repeated.p_value)
    # A row without a group is one of its own.
    ungrouped = replace(copied, groups=[None] * 3600)
    assert routing_policy.fit_policy(scale, ungrouped, Route()).calibration_rows == 3600


def test_why_there_is_no_threshold_is_told_with_the_rows_that_would_show_one() -> None:
    few = policy_of(120, 3, Route(target_accuracy=0.97))
    assert few.threshold is None and few.guarantee is None and few.coverage is None
    assert few.rows_needed is not None and few.rows_needed > 120
    assert f"about {few.rows_needed:,} calibration rows would probably show one" in (few.no_threshold_reason or "")
    succeeded = [
        policy_of(few.rows_needed, seed, Route(target_accuracy=0.97)).threshold is not None for seed in range(40)
    ]
    assert sum(succeeded) >= 20, "by 620 rows it is only known about"
    ten = policy_of(10, 3, Route())
    assert "fewer than 59 rows, not even where all are right" in (ten.no_threshold_reason or "")
    hopeless = routing_policy.fit_policy(
        Scale(None, "answer", [0.5, 0.7, 0.9] * 100, [0.0, 1.0] * 150),
        CalibrationAnswers([str(index) for index in range(600)], [0.5, 0.7, 0.9] * 200, [0.0, 1.0] * 300),
        Route(),
    )
    assert hopeless.rows_needed is None and "even a million rows would probably show none" in (
        hopeless.no_threshold_reason or ""
    )


def test_without_confidences_or_rows_the_reason_is_told() -> None:
    scale = Scale(None, "answer", [0.5, 0.9], [0.0, 1.0])
    rows = CalibrationAnswers(["a", "b"], [None, None], [1.0, 1.0])
    assert "no answer to a calibration row has" in (
        routing_policy.fit_policy(scale, rows, Route()).no_threshold_reason or ""
    )
    no_rows = CalibrationAnswers([], [], [])
    assert "data.split.calibration" in (routing_policy.fit_policy(None, no_rows, Route()).no_threshold_reason or "")
    assert "thresholds are those of validation rows" in (
        routing_policy.fit_policy(None, rows, Route()).no_threshold_reason or ""
    )


def test_without_calibration_rows_validation_rows_tell_how_many_are_needed() -> None:
    validation, correct, _ = drawn(1, 3)
    scale, no_rows = Scale(None, "answer", validation, correct), CalibrationAnswers([], [], [])
    policy = routing_policy.fit_policy(scale, no_rows, Route())
    assert policy.rows_needed is not None and policy.rows_needed >= 59
    assert f"about {policy.rows_needed:,} calibration rows would probably show one" in (
        policy.no_threshold_reason or ""
    )
    succeeded = [policy_of(policy.rows_needed, seed, Route()).threshold is not None for seed in range(20)]
    assert sum(succeeded) >= 10
    beside = routing_policy.fit_policy(scale, no_rows, Route(not_worse_than="api", margin=0.02))
    assert beside.rows_needed == 149
    few = replace(drawn(100, 3)[2], baseline_correct=[1.0] * 100)
    reason = routing_policy.fit_policy(scale, few, Route(not_worse_than="api", margin=0.02)).no_threshold_reason or ""
    assert "on fewer than 149 rows, not even where both are right in every row" in reason


def test_an_answer_of_unknown_confidence_never_stays() -> None:
    validation, correct, rows = drawn(900, 1)
    scale = Scale(None, "answer", validation, correct)
    unsure = replace(rows, confidences=[*rows.confidences[:450], *[None] * 450])
    policy = routing_policy.fit_policy(scale, unsure, Route(target_accuracy=0.5))
    assert policy.threshold == 0.0 and policy.coverage == 0.5


def test_routing_json_is_read_again_and_an_older_one_is_told_to_be_old(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    for policy in (policy_of(900, 1, Route()), policy_of(30, 1, Route())):
        atomic_files.write_json(path, {**policy.json(), "test": {"rows": 7}})
        assert routing_policy.read_policy(path) == policy
    old_payload = {
        "threshold": 0.83,
        "target_accuracy": 0.95,
        "confidence": 0.95,
        "calibration_rows": 1180,
        "coverage": 0.71,
    }
    path.write_text(json.dumps(old_payload), encoding="utf-8")
    with raises_error(
        StageError, "INS-C004", match=r"routing.json has schema_version 1, this insource reads 2; compare again"
    ):
        routing_policy.read_policy(path)
    with raises_error(StageError, "INS-C004", match="there is no"):
        routing_policy.read_policy(tmp_path / "nothing.json")


# The recipe


def test_a_recipe_has_one_target() -> None:
    default = load("classifier", (), "gpu").recipe.route
    assert (default.target_accuracy, default.not_worse_than, default.margin) == (0.95, None, None)
    override = f"route.not_worse_than={CHAT}"
    route = load("classifier", (override,), "gpu").recipe.route
    assert (route.target_accuracy, route.not_worse_than, route.margin) == (None, CHAT, 0.02)
    assert Route.model_validate(route.model_dump()) == route, "as the recipe of a run is read again"
    assert "leave one out" in load_error("classifier", override, "route.target_accuracy=0.9")
    assert "goes with not_worse_than" in load_error("classifier", "route.margin=0.01")
    assert "needs a target" in load_error("classifier", "route.target_accuracy=null")
    assert "below 1" in load_error("classifier", "route.target_accuracy=1.0")


def test_a_target_names_a_baseline_that_there_is() -> None:
    message = load_error("classifier", "route.not_worse_than=openai:gpt-9")
    assert "route.not_worse_than: given 'openai:gpt-9', allowed: a baseline" in message and CHAT in message
    assert "not evaluated on kind preference" in load_error("preference", "route.not_worse_than=x")


# The test rows


def scored(correct: list[float], confidences: list[float], name: str = "tuned", usd: list[float] | None = None) -> Any:
    kind: Any = "tuned" if name == "tuned" else "file"
    costs = usd or [None] * len(correct)
    answers = [SystemAnswer(f"t{index}", "x", cost_usd=cost) for index, cost in enumerate(costs)]
    rows = [{"id": f"t{index}"} for index in range(len(correct))]
    responses = SystemResponses(System(name, kind, name), answers)
    predicted = predictions.Predictions(answers, [])
    return system_scores.SystemScores(responses, rows, predicted, {}, confidences, correct, range(len(correct)))


def test_on_the_test_rows_it_stands_beside_all_owned_all_closed_and_random_routing() -> None:
    tuned_scores = scored([1, 1, 1, 0, 0, 1, 0, 0, 0, 0], [0.9, 0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    baseline_scores = scored(
        [1, 0, 1, 1, 1, 1, 1, 1, 0, 1], [0.0] * 10, "answers", [0.001, 0.001, 0.001, 0.001] + [0.002] * 6
    )
    scale = Scale(None, "answer", [0.8, 0.5, 0.9], [1.0, 0.0, 1.0])
    policy = RoutingPolicy(
        threshold=0.8, target_accuracy=0.7, confidence=0.9, calibration_rows=99, coverage=0.5, accuracy=0.8
    )
    cost = example_scores.make_scores().cost.self_hosted.model_copy(
        update={"usd_per_month": 500.0, "requests": 1_000_000}
    )
    result = routing_evaluation.evaluate_policy(policy, tuned_scores, baseline_scores, scale, cost)
    assert result is not None and result.rows == 10 and result.baseline == "answers"
    assert result.kept and result.kept.value == 0.4 and result.correct_of_kept and result.correct_of_kept.value == 0.75
    ways = result.strategies
    assert {name: way.local for name, way in ways.items()} == {
        "owned": 1.0, "closed": 0.0, "routed": 0.4, "random": 0.4
    }  # fmt: skip
    # Of the four kept three are right, of the six others the closed model has five right.
    assert ways["owned"].correct.value == 0.4 and ways["closed"].correct.value == 0.8
    assert ways["routed"].correct.value == 0.8
    assert ways["random"].correct.value == pytest.approx(0.4 * 0.4 + 0.6 * 0.8)
    assert ways["owned"].usd_per_1k == 0.5 and ways["closed"].usd_per_1k == pytest.approx(1.6)
    assert ways["routed"].usd_per_1k == pytest.approx(0.5 + 0.6 * 2.0), "the rest is what is dear"
    assert ways["random"].usd_per_1k == pytest.approx(0.5 + 0.6 * 1.6)
    assert [point.threshold for point in result.curve] == [0.9, 0.8, 0.5, 0.0]
    assert result.curve[-1].to_json() == {"threshold": 0.0, "kept": 1.0, "right_of_kept": 0.4, "right": 0.4}
    # Without a threshold there is still the curve, without a cost of owning there is none of routing.
    bare = routing_evaluation.evaluate_policy(
        replace(policy, threshold=None),
        tuned_scores,
        baseline_scores,
        scale,
        example_scores.make_scores(measured=False).cost.self_hosted,
    )
    assert bare is not None and set(bare.strategies) == {"owned", "closed"} and bare.kept is None
    assert bare.strategies["owned"].usd_per_1k is None and bare.curve == result.curve
    alone = routing_evaluation.evaluate_policy(policy, tuned_scores, None, scale, cost)
    assert alone is not None and set(alone.strategies) == {"owned"} and alone.curve[0].correct is None


def test_the_rest_is_answered_by_whom_the_target_or_else_the_plan_names() -> None:
    first, second = (replace_kind(scored([1.0], [0.5], name)) for name in ("one", "two"))
    tuned_scores = scored([1.0], [0.5])
    recipe: Any = SimpleNamespace(route=Route(), compare=SimpleNamespace(primary=None, baselines=[]))
    assert routing_evaluation.select_fallback(recipe, [tuned_scores]) is None
    assert routing_evaluation.select_fallback(recipe, [tuned_scores, first, second]) is first
    recipe.compare.primary = SimpleNamespace(baseline="two")
    assert routing_evaluation.select_fallback(recipe, [tuned_scores, first, second]) is second
    recipe.route = Route(not_worse_than="one")
    assert routing_evaluation.select_fallback(recipe, [tuned_scores, first, second]) is first
    recipe.route = Route(not_worse_than="one", baseline="two")
    assert routing_evaluation.select_fallback(recipe, [tuned_scores, first, second]) is second
    recipe.route = Route(not_worse_than="one")
    incomplete = replace(first, responses=replace(first.responses, complete=False))
    assert routing_evaluation.select_fallback(recipe, [tuned_scores, incomplete, second]) is second


def replace_kind(scored_system: Any) -> Any:
    return replace(
        scored_system,
        responses=replace(scored_system.responses, system=replace(scored_system.responses.system, kind="closed")),
    )


# The report


def test_the_report_has_the_policy_its_guarantee_and_every_way_to_answer() -> None:
    scores = example_scores.make_scores()
    assert scores.routing is not None and scores.routing.guarantee is not None
    page, text = html_page.render_html(scores, []), markdown_page.render_markdown(scores).replace("\\", "")
    for document in (page, text):
        assert (
            "From a confidence of 0.8312 on, only the self-hosted model answers: 71.0% of 1,180 calibration rows"
            in document
        )
        assert "target more than 95.0% right, with 95% confidence" in document
        assert scores.routing.guarantee in document
        assert "it keeps 70.0%; 96.5% of these are right" in document
        for name in ("all by the self-hosted model", "routed, the rest by", "the same share at random"):
            assert name in document
    assert "120 rows of the same groups left out" in page and "41 thresholds of 98" in page
    no_policy = routing_policy.RoutingPolicy(
        threshold=None, target_accuracy=0.95, confidence=0.95, calibration_rows=60, rows_needed=400,
        no_threshold_reason=f"too few {example_scores.SCRIPT_TAG}",
        score={"of": "answer", "slope": 1.4, "intercept": -0.3},
    )  # fmt: skip
    scores = scores.model_copy(update={"routing": no_policy.summarize().model_copy(update={"test": None})})
    page, text = html_page.render_html(scores, []), markdown_page.render_markdown(scores)
    assert "No part of the traffic can be answered by the self-hosted model only: too few" in page
    assert example_scores.SCRIPT_TAG not in page and example_scores.SCRIPT_TAG not in text


# A target against a baseline, end to end


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)
