"""The routing section of the report: the policy, its results on the test rows, and the curve of all thresholds.

in   scores.routing, which is the content of routing.json
out  {"summary": "From a confidence of 0.8312 on ...", "strategies": [{"title": "routed", ...}], "picture": {...}}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from compare.report import charts, wording
from compare.report.charts import Axis
from insource.system.number_format import (
    format_axis_percent,
    format_count,
    format_delta,
    format_delta_range,
    format_percent,
    format_points,
    format_range,
)
from insource.tracking.scores.comparison import Scores
from insource.tracking.scores.routing_result import RoutingResult, RoutingTest

View = dict[str, Any]
# A fraction of fewer rows is too uncertain for a point of the curve.
MIN_KEPT_ROWS = 20


def build_routing_section(scores: Scores) -> View | None:
    """Return the routing section; None if there is no policy, or if no confidences are known."""
    policy = scores.routing
    if policy is None or policy.score is None:
        return None
    titles, test = wording.display_names(scores), policy.test
    return {
        "policy": policy,
        "summary": policy_text(policy),
        "on_test": test_result_text(test, titles) if test else None,
        "strategies": strategy_rows(test, titles) if test else [],
        "picture": threshold_chart(policy, test) if test else None,
    }


def policy_text(policy: RoutingResult) -> str:
    """Return the result on the calibration rows."""
    if policy.threshold is None:
        return f"No part of the traffic can be answered by the self-hosted model only: {policy.no_threshold_reason}."
    assert policy.coverage is not None and policy.accuracy is not None, "a threshold has both"
    text = f"From a confidence of {policy.threshold:.4f} on, only the self-hosted model answers: "
    text += f"{format_percent(policy.coverage)} of {format_count(policy.calibration_rows, 'calibration row')}, "
    return text + f"{format_percent(policy.accuracy)} of these right, target {target_text(policy)}."


def policy_summary(policy: RoutingResult) -> str:
    """Return the result on the calibration rows for one console line."""
    if policy.threshold is None:
        rows_needed = policy.rows_needed
        hint = f"about {rows_needed:,} calibration rows would show one" if rows_needed else "see the report"
        return f"no threshold keeps the target ({target_text(policy)}); {hint}"
    assert policy.coverage is not None, "a threshold has one"
    return f"keeps {format_percent(policy.coverage)} from confidence {policy.threshold:.4f} on, {target_text(policy)}"


def target_text(policy: RoutingResult) -> str:
    """Return the target with its confidence: more than 95.0% right, with 95% confidence."""
    confidence_text = f"with {format_axis_percent(policy.confidence)} confidence"
    if policy.not_worse_than is not None:
        assert policy.margin is not None, "such a target has one"
        margin = format_points(policy.margin)
        return f"less than {margin} points less often right than {policy.not_worse_than}, {confidence_text}"
    assert policy.target_accuracy is not None, "the schema wants one of the two targets"
    return f"more than {format_percent(policy.target_accuracy)} right, {confidence_text}"


def test_result_text(test: RoutingTest, titles: Mapping[str, str]) -> str | None:
    """Return the results of the policy on the test rows; None without a threshold."""
    if not test.kept:
        return None
    correct_fraction = test.correct_of_kept
    text = f"On the {format_count(test.rows, 'test row')} it keeps {format_percent(test.kept.value)}"
    if correct_fraction is None:
        return text + "."
    text += (
        f"; {format_percent(correct_fraction.value)} of these are right "
        f"({format_range(correct_fraction.ci_low, correct_fraction.ci_high)})"
    )
    if difference := test.difference_of_kept:
        bounds = format_delta_range(difference.ci_low, difference.ci_high)
        name = titles[test.baseline or ""]
        text += f", {format_delta(difference.value)} points ({bounds}) beside {name}"
    return text + "."


def strategy_rows(test: RoutingTest, titles: Mapping[str, str]) -> list[View]:
    """Return a row for each strategy of answering the test rows."""
    baseline_title = titles.get(test.baseline or "", "")
    labels = {
        "owned": "all by the self-hosted model",
        "routed": f"routed, the rest by {baseline_title}",
        "random": f"the same share at random, the rest by {baseline_title}",
        "closed": f"all by {baseline_title}",
    }
    return [
        {"title": label, "result": test.strategies[name]} for name, label in labels.items() if name in test.strategies
    ]


def threshold_chart(policy: RoutingResult, test: RoutingTest) -> View:
    """Return the threshold curve: x is the fraction kept, y the fraction right of those and of all rows."""
    curve, strategies, min_fraction = test.curve, test.strategies, MIN_KEPT_ROWS / test.rows
    kept_points = [
        (point.kept, point.correct_of_kept)
        for point in curve
        if point.kept >= min_fraction and point.correct_of_kept is not None
    ]
    overall_points = [(point.kept, point.correct) for point in curve if point.correct is not None]
    target = policy.target_accuracy
    random_points = (
        [(0.0, strategies["closed"].correct.value), (1.0, strategies["owned"].correct.value)] if overall_points else []
    )
    values = [value for _, value in kept_points + overall_points + random_points] + (
        [target] if target is not None else []
    )
    x_axis, y_axis = Axis(0, 1), charts.fraction_axis(values)
    return {
        "kept": _polyline(kept_points, x_axis, y_axis),
        "whole": _polyline(overall_points, x_axis, y_axis),
        "random": _polyline(random_points, x_axis, y_axis),
        "target": None if target is None else round(100 - y_axis.position(target), 2),
        "chosen": x_axis.position(test.kept.value) if test.kept else None,
        "x_ticks": x_axis.ticks(6),
        "y_ticks": y_axis.ticks(6),
        "points": kept_points,
    }


def _polyline(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    return " ".join(f"{x_axis.position(x):.2f},{100 - y_axis.position(y):.2f}" for x, y in sorted(points))
