"""A routing policy on the test rows, compared with no routing and with random routing of the same fraction.

{"rows": 2055, "kept": {"value": 0.71, "ci_low": 0.69, "ci_high": 0.73}, "right_of_kept": {"value": 0.968, ...},
 "difference_of_kept": null, "baseline": "openai:gpt-6-luna",
 "ways": {"routed": {"local": 0.71, "right": {"value": 0.952, ...}, "usd_per_1k": 1.31}, "owned": {...},
          "closed": {...}, "random": {...}},
 "curve": [{"threshold": 0.97, "kept": 0.41, "right_of_kept": 0.981, "right": 0.949}, ...]}

The test rows choose nothing. The threshold is from the calibration rows, and the curve has the thresholds of the
validation rows. With routing the tuned model answers every request. The fallback also answers those below the
threshold. So the cost is that of self-hosting plus that of the fallback's answers. A value that was not measured is
None.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compare.analysis import system_scores
from compare.analysis.system_scores import SystemScores
from compare.decision.routing_policy import RoutingPolicy, confidence_array
from compare.eval_dataset import cluster_ids
from compare.records import Scale
from compare.systems import catalog
from insource.config.recipe import Recipe
from insource.stats import intervals, learn_then_test, paired
from insource.stats.metric_stats import mean_metric
from insource.tracking.scores.cost_result import MeasuredCost, UnmeasuredCost
from insource.tracking.scores.routing_result import CurvePoint, Estimate, ExpectedValue, RoutingTest, StrategyResult

MAX_CURVE_POINTS = 40


def select_fallback(recipe: Recipe, scored_systems: Sequence[SystemScores]) -> SystemScores | None:
    """Return the system that answers the rest: the first by priority with all answers; None if there is none."""
    candidates = {
        scored.name: scored
        for scored in scored_systems
        if scored.responses.system.kind in ("closed", "file") and scored.responses.complete
    }
    return next(
        (candidates[name] for name in (*catalog.fallback_names(recipe), *candidates) if name in candidates), None
    )


def evaluate_policy(
    policy: RoutingPolicy,
    tuned: SystemScores,
    fallback: SystemScores | None,
    scale: Scale | None,
    self_hosted: MeasuredCost | UnmeasuredCost,
) -> RoutingTest | None:
    """Return the results of the policy on the test rows that both systems answered.

    None if the tuned model has no confidences. `self_hosted` is the cost of self-hosting.
    """
    if scale is None or all(value is None for value in tuned.confidences):
        return None
    rows, confidences, correct = tuned.rows, confidence_array(tuned.confidences), np.asarray(tuned.correct)
    if fallback and [row["id"] for row in fallback.rows] != [row["id"] for row in rows]:
        fallback = None
    fallback_correct = np.asarray(fallback.correct) if fallback else None
    groups = cluster_ids(rows)
    kept, correct_of_kept, difference = None, None, None
    if policy.threshold is not None:
        is_kept = confidences >= policy.threshold
        kept = _interval(is_kept, groups)
        if is_kept.any():
            kept_groups = [groups[index] for index in np.flatnonzero(is_kept)] if groups else None
            correct_of_kept = _interval(correct[is_kept], kept_groups)
            if fallback and fallback_correct is not None and fallback.name == policy.not_worse_than:
                difference = _difference(correct[is_kept], fallback_correct[is_kept], kept_groups)
    thresholds = learn_then_test.build_thresholds(scale.confidences, MAX_CURVE_POINTS)
    return RoutingTest(
        rows=len(rows),
        kept=kept,
        correct_of_kept=correct_of_kept,
        difference_of_kept=difference,
        baseline=fallback.name if fallback else None,
        strategies=compare_strategies(policy, tuned, fallback, confidences, self_hosted_usd_per_1k(self_hosted)),
        curve=[curve_point(threshold, confidences, correct, fallback_correct) for threshold in thresholds],
    )


def compare_strategies(
    policy: RoutingPolicy,
    tuned: SystemScores,
    fallback: SystemScores | None,
    confidences: Any,
    self_hosted_usd: float | None,
) -> dict[str, StrategyResult]:
    """Return the results of each strategy: owned, closed, routed and random."""
    groups, correct = cluster_ids(tuned.rows), np.asarray(tuned.correct)
    strategies = {"owned": StrategyResult(local=1.0, correct=_interval(correct, groups), usd_per_1k=self_hosted_usd)}
    if fallback is None:
        return strategies
    fallback_correct, api_usd = np.asarray(fallback.correct), _api_usd_per_1k(fallback)
    strategies["closed"] = StrategyResult(local=0.0, correct=_interval(fallback_correct, groups), usd_per_1k=api_usd)
    if policy.threshold is None:
        return strategies
    is_kept = confidences >= policy.threshold
    kept_fraction = float(is_kept.mean())
    routed = _interval(np.where(is_kept, correct, fallback_correct), groups)
    # The expected value of random routing needs no sampling.
    random_correct = kept_fraction * float(correct.mean()) + (1 - kept_fraction) * float(fallback_correct.mean())
    rest_usd = _api_usd_per_1k(fallback, np.flatnonzero(~is_kept))
    strategies["routed"] = StrategyResult(
        local=kept_fraction, correct=routed, usd_per_1k=_routed_usd(self_hosted_usd, rest_usd, 1 - kept_fraction)
    )
    strategies["random"] = StrategyResult(
        local=kept_fraction,
        correct=ExpectedValue(value=random_correct, ci_low=None, ci_high=None),
        usd_per_1k=_routed_usd(self_hosted_usd, api_usd, 1 - kept_fraction),
    )
    return strategies


def curve_point(threshold: float, confidences: Any, correct: Any, fallback_correct: Any) -> CurvePoint:
    """Return a point of the curve: the fraction kept at a threshold, the fraction right of those, and of all rows."""
    is_kept = confidences >= threshold
    return CurvePoint(
        threshold=threshold,
        kept=float(is_kept.mean()),
        correct_of_kept=float(correct[is_kept].mean()) if is_kept.any() else None,
        correct=None if fallback_correct is None else float(np.where(is_kept, correct, fallback_correct).mean()),
    )


def self_hosted_usd_per_1k(self_hosted: MeasuredCost | UnmeasuredCost) -> float | None:
    """Return the cost of self-hosting per 1,000 requests at the recipe's volume; None if it was not measured."""
    return 1000 * self_hosted.usd_per_month / self_hosted.requests if isinstance(self_hosted, MeasuredCost) else None


def _api_usd_per_1k(fallback: SystemScores, indices: Any = None) -> float | None:
    """Return the fallback's cost per 1,000 of these rows, by default of all rows."""
    answers = (
        fallback.responses.test_answers
        if indices is None
        else [fallback.responses.test_answers[index] for index in indices]
    )
    usd_per_request = system_scores.request_cost(
        replace(fallback, responses=replace(fallback.responses, test_answers=answers))
    ).usd_per_request
    return None if usd_per_request is None else 1000 * usd_per_request


def _routed_usd(self_hosted_usd: float | None, api_usd: float | None, fraction: float) -> float | None:
    if self_hosted_usd is None or (api_usd is None and fraction > 0):
        return None
    return self_hosted_usd + fraction * (api_usd or 0.0)


def _interval(values: Any, groups: Sequence[str | None] | None) -> Estimate:
    interval = intervals.compute_interval(mean_metric([float(value) for value in values]), groups)
    return Estimate(value=interval.value, ci_low=interval.low, ci_high=interval.high)


def _difference(correct: Any, fallback_correct: Any, groups: Sequence[str | None] | None) -> Estimate:
    a, b = (mean_metric([float(value) for value in values]) for values in (correct, fallback_correct))
    difference = paired.compute_paired_difference(a, b, groups)
    return Estimate(value=difference.delta, ci_low=difference.low, ci_high=difference.high)
