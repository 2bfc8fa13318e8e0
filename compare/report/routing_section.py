"""What the report shows of routing: the policy, what it does on the test rows, and the curve of all thresholds.

in   scores["routing"], which is routing.json
out  {"said": "From a confidence of 0.8312 on ...", "ways": [{"title": "routed", "local": 0.71, ...}], "picture": {...}}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from compare.report import charts, wording
from compare.report.charts import Axis
from compare.report.wording import Scores

View = dict[str, Any]
# Of fewer rows a share is no point of a curve.
MIN_KEPT_ROWS = 20


def build_routing_section(scores: Scores) -> View | None:
    """Returns the section of routing; None where there is no policy, or nobody tells a confidence."""
    policy = scores.get("routing")
    if policy is None or policy["score"] is None:
        return None
    test = policy["test"]
    return {
        "policy": policy,
        "said": policy_text(policy),
        "on_test": test_result_text(scores),
        "ways": strategy_rows(scores),
        "picture": threshold_chart(policy) if test else None,
    }


def policy_text(policy: Mapping[str, Any]) -> str:
    """Returns what the calibration rows show."""
    if policy["threshold"] is None:
        return f"No part of the traffic can be given to the owned model alone: {policy['why_none']}."
    told = f"From a confidence of {policy['threshold']:.4f} on the owned model may answer alone: "
    told += (
        f"{wording.format_percent(policy['coverage'])} of "
        f"{wording.format_count(policy['calibration_rows'], 'calibration row')}, "
    )
    return told + f"{wording.format_percent(policy['accuracy'])} of these right, target {target_text(policy)}."


def policy_summary(policy: Mapping[str, Any]) -> str:
    """Returns the same for a line of the console."""
    if policy["threshold"] is None:
        needed = policy["rows_needed"]
        more = f"about {needed:,} calibration rows would show one" if needed else "see the report"
        return f"no threshold keeps the target ({target_text(policy)}); {more}"
    return (
        f"keeps {wording.format_percent(policy['coverage'])} from confidence {policy['threshold']:.4f} on, "
        f"{target_text(policy)}"
    )


def target_text(policy: Mapping[str, Any]) -> str:
    """Returns the target with its confidence: more than 95.0% right, with 95% confidence."""
    sure = f"with {wording.format_axis_percent(policy['confidence'])} confidence"
    if policy["not_worse_than"] is not None:
        margin = wording.format_points(policy["margin"])
        return f"less than {margin} points less often right than {policy['not_worse_than']}, {sure}"
    return f"more than {wording.format_percent(policy['target_accuracy'])} right, {sure}"


def test_result_text(scores: Scores) -> str | None:
    """Returns what the policy does on the test rows; None where there is no threshold."""
    policy = scores["routing"]
    test = policy["test"]
    if not test or not test["kept"]:
        return None
    kept, right = test["kept"], test["right_of_kept"]
    told = f"On the {wording.format_count(test['rows'], 'test row')} it keeps {wording.format_percent(kept['value'])}"
    if right is None:
        return told + "."
    told += (
        f"; {wording.format_percent(right['value'])} of these are right "
        f"({wording.format_range(right['ci_low'], right['ci_high'])})"
    )
    if difference := test["difference_of_kept"]:
        ends = wording.format_delta_range(difference["ci_low"], difference["ci_high"])
        name = wording.display_names(scores)[test["baseline"]]
        told += f", {wording.format_delta(difference['value'])} points ({ends}) beside {name}"
    return told + "."


def strategy_rows(scores: Scores) -> list[View]:
    """Returns a row for each way to answer the test rows."""
    test = scores["routing"]["test"]
    if not test:
        return []
    other = wording.display_names(scores).get(test["baseline"] or "", "")
    titles = {
        "owned": "all by the owned model",
        "routed": f"routed, the rest by {other}",
        "random": f"the same share at random, the rest by {other}",
        "closed": f"all by {other}",
    }
    return [{"title": title, **test["ways"][name]} for name, title in titles.items() if name in test["ways"]]


def threshold_chart(policy: Mapping[str, Any]) -> View:
    """Returns the curve: to the right what a threshold keeps, upwards how much of that, and of the whole, is right."""
    test = policy["test"]
    curve, ways_, least = test["curve"], test["ways"], MIN_KEPT_ROWS / test["rows"]
    kept = [(one["kept"], one["right_of_kept"]) for one in curve if one["kept"] >= least]
    whole = [(one["kept"], one["right"]) for one in curve if one["right"] is not None]
    aim = policy["target_accuracy"]
    at_random = [(0.0, ways_["closed"]["right"]["value"]), (1.0, ways_["owned"]["right"]["value"])] if whole else []
    ends = [value for _, value in kept + whole + at_random] + ([aim] if aim is not None else [])
    across, upwards = Axis(0, 1), charts.fraction_axis(ends)
    chosen = test["kept"]
    return {
        "kept": _polyline(kept, across, upwards),
        "whole": _polyline(whole, across, upwards),
        "random": _polyline(at_random, across, upwards),
        "target": None if aim is None else round(100 - upwards.at(aim), 2),
        "chosen": across.at(chosen["value"]) if chosen else None,
        "x_ticks": across.ticks(6),
        "y_ticks": upwards.ticks(6),
        "points": kept,
    }


def _polyline(points: Sequence[tuple[float, float]], across: Axis, upwards: Axis) -> str:
    return " ".join(f"{across.at(x):.2f},{100 - upwards.at(y):.2f}" for x, y in sorted(points))
