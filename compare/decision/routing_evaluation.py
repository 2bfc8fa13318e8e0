"""What a routing policy does on the test rows, beside all-owned, all-closed and random routing of the same share.

{"rows": 2055, "kept": {"value": 0.71, "ci_low": 0.69, "ci_high": 0.73}, "right_of_kept": {"value": 0.968, ...},
 "difference_of_kept": null, "baseline": "openai:gpt-6-luna",
 "ways": {"routed": {"local": 0.71, "right": {"value": 0.952, ...}, "usd_per_1k": 1.31}, "owned": {...},
          "closed": {...}, "random": {...}},
 "curve": [{"threshold": 0.97, "kept": 0.41, "right_of_kept": 0.981, "right": 0.949}, ...]}

The test rows choose nothing: the threshold is that of the calibration rows, and the curve is drawn at the thresholds of
the validation rows. Routed, every request is answered by the owned model first, and those below the threshold by the
closed one too: its cost is that of owning, and of the closed answers. What was not measured is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compare.analysis import system_scores
from compare.analysis.system_scores import SystemScores
from compare.decision.routing_policy import RoutingPolicy, confidence_array
from compare.eval_dataset import cluster_ids
from compare.scoring.confidence import Scale
from compare.systems import catalog
from insource.config.recipe import Recipe
from insource.stats import intervals, learn_then_test, paired
from insource.stats.metric_stats import mean_metric

Json = dict[str, Any]
# Points of the curve, at most.
MAX_CURVE_POINTS = 40


def select_fallback(recipe: Recipe, every: Sequence[SystemScores]) -> SystemScores | None:
    """Returns the system that would answer the rest: the first that has answered everything; None where none has."""
    able = {one.name: one for one in every if one.gathered.system.kind in ("closed", "file") and one.gathered.complete}
    return next((able[name] for name in (*catalog.fallback_names(recipe), *able) if name in able), None)


def evaluate_policy(
    policy: RoutingPolicy, own: SystemScores, other: SystemScores | None, scale: Scale | None, costs: Mapping[str, Any]
) -> Json | None:
    """Returns what the policy does on the test rows that both systems answered; None where the owned model tells no
    confidence. `costs`: those of scores.json."""
    if scale is None or all(one is None for one in own.confidences):
        return None
    rows, confidences, right = own.rows, confidence_array(own.confidences), np.asarray(own.right)
    theirs = (
        np.asarray(other.right) if other and [row["id"] for row in other.rows] == [row["id"] for row in rows] else None
    )
    found: Json = {"rows": len(rows), "kept": None, "right_of_kept": None, "difference_of_kept": None}
    found["baseline"] = other.name if other and theirs is not None else None
    groups = cluster_ids(rows)
    if policy.threshold is not None:
        stays = confidences >= policy.threshold
        found["kept"] = _interval(stays, groups)
        if stays.any():
            mine = [groups[at] for at in np.flatnonzero(stays)] if groups else None
            found["right_of_kept"] = _interval(right[stays], mine)
            if other and theirs is not None and other.name == policy.not_worse_than:
                found["difference_of_kept"] = _difference(right[stays], theirs[stays], mine)
    found["ways"] = compare_strategies(
        policy, own, other if theirs is not None else None, confidences, owned_usd_per_1k(costs)
    )
    thresholds = learn_then_test.build_thresholds(scale.confidences, MAX_CURVE_POINTS)
    found["curve"] = [curve_point(one, confidences, right, theirs) for one in thresholds]
    return found


def compare_strategies(
    policy: RoutingPolicy, own: SystemScores, other: SystemScores | None, confidences: Any, owned_usd: float | None
) -> Json:
    """Returns for each way to answer: the share that the owned model answers alone, the share that is right, and USD a
    thousand requests."""
    groups, right = cluster_ids(own.rows), np.asarray(own.right)
    found: Json = {"owned": {"local": 1.0, "right": _interval(right, groups), "usd_per_1k": owned_usd}}
    if other is None:
        return found
    theirs, closed_usd = np.asarray(other.right), _api_usd_per_1k(other)
    found["closed"] = {"local": 0.0, "right": _interval(theirs, groups), "usd_per_1k": closed_usd}
    if policy.threshold is None:
        return found
    stays = confidences >= policy.threshold
    share = float(stays.mean())
    chosen = _interval(np.where(stays, right, theirs), groups)
    # Of a random share what is right is known without drawing it.
    at_random = share * float(right.mean()) + (1 - share) * float(theirs.mean())
    rest = _api_usd_per_1k(other, np.flatnonzero(~stays))
    found["routed"] = {"local": share, "right": chosen, "usd_per_1k": _routed_usd(owned_usd, rest, 1 - share)}
    alike = {"local": share, "right": {"value": at_random, "ci_low": None, "ci_high": None}}
    found["random"] = {**alike, "usd_per_1k": _routed_usd(owned_usd, closed_usd, 1 - share)}
    return found


def curve_point(threshold: float, confidences: Any, right: Any, theirs: Any) -> Json:
    """Returns a point of the curve: what a threshold keeps, how much of it is right, and of the whole."""
    stays = confidences >= threshold
    return {
        "threshold": threshold,
        "kept": float(stays.mean()),
        "right_of_kept": float(right[stays].mean()) if stays.any() else None,
        "right": None if theirs is None else float(np.where(stays, right, theirs).mean()),
    }


def owned_usd_per_1k(costs: Mapping[str, Any]) -> float | None:
    """Returns what owning costs for a thousand requests at the recipe's volume; None where it was not measured."""
    owned = costs["owned"]
    return 1000 * float(owned["usd_per_month"]) / int(owned["requests"]) if owned["measured"] else None


def _api_usd_per_1k(other: SystemScores, rows: Any = None) -> float | None:
    """What a thousand of these rows cost there, by default of all."""
    answers = other.gathered.test if rows is None else [other.gathered.test[at] for at in rows]
    each = system_scores.request_cost(replace(other, gathered=replace(other.gathered, test=answers))).usd_per_request
    return None if each is None else 1000 * each


def _routed_usd(owned_usd: float | None, closed_usd: float | None, share: float) -> float | None:
    if owned_usd is None or (closed_usd is None and share > 0):
        return None
    return owned_usd + share * (closed_usd or 0.0)


def _interval(values: Any, groups: Sequence[str | None] | None) -> Json:
    found = intervals.compute_interval(mean_metric([float(one) for one in values]), groups)
    return {"value": found.value, "ci_low": found.low, "ci_high": found.high}


def _difference(right: Any, theirs: Any, groups: Sequence[str | None] | None) -> Json:
    a, b = (mean_metric([float(one) for one in values]) for values in (right, theirs))
    found = paired.compute_paired_difference(a, b, groups)
    return {"value": found.delta, "ci_low": found.low, "ci_high": found.high}
