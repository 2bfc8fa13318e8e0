"""The routing policy: the confidence from which the tuned model may answer without the fallback.

routing.json
{"schema_version": 2, "threshold": 0.83, "target_accuracy": 0.95, "not_worse_than": null, "margin": null,
 "confidence": 0.95, "calibration_rows": 1180, "left_out_rows": 0, "coverage": 0.71, "accuracy": 0.968,
 "difference": null, "p_value": 0.031, "why_none": null, "rows_needed": null,
 "sequence": {"validation_rows": 500, "thresholds": 98, "start": 0.97, "tested": 41},
 "score": {"of": "answer", "slope": 1.4, "intercept": -0.3}, "guarantee": "...", "test": {...}, "calibration": {...}}

An answer is kept if its confidence is at least `threshold`. Thresholds are confidences of validation rows. They are
tested on calibration rows, which have no other use. The test goes from strict to loose thresholds and stops at the
first that cannot be shown to reach the target (Learn then Test, insource/stats/learn_then_test.py; docs/routing.md).
That no threshold passes is a usual result.

`test` has the results on the test rows (compare/decision/routing_evaluation.py), which choose nothing. `calibration` is
the profile with which traffic is compared (compare/decision/answer_profile.py).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from compare.records import Scale
from insource.config.errors import StageError
from insource.config.schema.serving_and_cost import Route
from insource.stats import learn_then_test
from insource.stats.learn_then_test import Claim, MeanAbove, NonInferior
from insource.stats.metric_stats import Array
from insource.system import atomic_files
from insource.tracking.scores.routing_result import RoutingResult

SCHEMA_VERSION = 2
# Below every threshold: an answer of unknown confidence is never kept.
UNKNOWN_CONFIDENCE = -1.0


@dataclass(frozen=True)
class CalibrationAnswers:
    """Answers of the tuned model to calibration rows."""

    ids: Sequence[str]
    confidences: Sequence[float | None]
    correct: Sequence[float]
    groups: Sequence[str | None] | None = None
    baseline_correct: Sequence[float] | None = None
    """Of the baseline in `not_worse_than`."""

    def pick_one_per_group(self) -> "CalibrationAnswers":
        """Return one row of each group, selected by the hash of its id.

        Rows of one group are not independent, and p-values would not be valid.
        """
        if self.groups is None:
            return self
        indices = pick_one_per_group(self.ids, self.groups)

        def select(values: Sequence[object]) -> list[Any]:
            return [values[index] for index in indices]

        baseline_correct = None if self.baseline_correct is None else select(self.baseline_correct)
        return CalibrationAnswers(
            select(self.ids), select(self.confidences), select(self.correct), select(self.groups), baseline_correct
        )


def pick_one_per_group(ids: Sequence[str], groups: Sequence[str | None] | None) -> list[int]:
    """Return the positions of one row of each group, see `CalibrationAnswers.pick_one_per_group`.

    Return all positions if there are no groups.
    """
    if groups is None:
        return list(range(len(ids)))
    chosen: dict[object, int] = {}
    for index in sorted(range(len(ids)), key=lambda index: hashlib.sha256(ids[index].encode()).digest()):
        group = groups[index]
        chosen.setdefault(index if group is None else (group,), index)
    return sorted(chosen.values())


@dataclass(frozen=True)
class TestedThresholds:
    """The sequence of tested thresholds."""

    validation_rows: int
    """Number of rows whose confidences are the thresholds."""
    thresholds: int
    start: float
    """The strictest tested threshold. Stricter ones keep too few rows for a significant result."""
    tested: int
    """Number of tested thresholds, including the first that did not pass."""


@dataclass(frozen=True, kw_only=True)
class RoutingPolicy:
    """A routing policy, or the reason why there is no threshold."""

    threshold: float | None
    """None: no threshold can be shown to reach the target."""
    target_accuracy: float | None
    not_worse_than: str | None = None
    margin: float | None = None
    confidence: float
    calibration_rows: int
    """Tested rows: one of each group."""
    left_out_rows: int = 0
    """Further calibration rows of the same groups."""
    coverage: float | None = None
    """Fraction of the calibration rows that the tuned model would answer without the fallback."""
    accuracy: float | None = None
    """Fraction of the kept rows that is right."""
    difference: float | None = None
    """Fraction of the kept rows that is right, minus that of the baseline `not_worse_than`."""
    p_value: float | None = None
    """Of the threshold."""
    no_threshold_reason: str | None = None
    rows_needed: int | None = None
    """Without a threshold: the number of calibration rows that would probably give one, None if no number would."""
    sequence: TestedThresholds | None = None
    score: Mapping[str, Any] | None = None
    """The computation of a confidence: the part of the answer, and the scale of its logit."""

    @property
    def target(self) -> str:
        """Return the target as text."""
        if self.not_worse_than is not None:
            return f"less than {self.margin:.1%} less often right than {self.not_worse_than}"
        return f"more than {self.target_accuracy:.1%} right"

    @property
    def guarantee(self) -> str | None:
        """Return the guarantee of the threshold and its limits; None without a threshold."""
        if self.threshold is None:
            return None
        if self.not_worse_than is not None:
            promise = (
                "the answers that only the self-hosted model gives (confidence of at least "
                f"{self.threshold:.4f}) are right less often than those of {self.not_worse_than} to the same requests "
                f"by less than {self.margin:.1%}"
            )
        else:
            promise = (
                f"more than {self.target_accuracy:.1%} of the answers that only the self-hosted model gives "
                f"(confidence of at least {self.threshold:.4f}) are right"
            )
        group_note = ", each group counting once," if self.left_out_rows else ""
        return (
            f"With {self.confidence:.0%} confidence{group_note} {promise}. It holds on average over requests that "
            "come from where the calibration rows come from (exchangeable with them), by labels like theirs, with "
            "the same weights, prompt, constraint and scale. It says nothing of a single request, of one label or "
            "slice, of answers of the API model, or of traffic that has changed. The confidence is over the draw "
            f"of the calibration rows: at most {100 * (1 - self.confidence):.4g}% of draws give a threshold that "
            "misses it."
        )

    def summarize(self) -> RoutingResult:
        """Return the record of the policy, without results on the test rows."""
        return RoutingResult.model_validate(
            {"schema_version": SCHEMA_VERSION, **asdict(self), "guarantee": self.guarantee}
        )

    def json(self) -> dict[str, Any]:
        """Return the content of routing.json without results on the test rows."""
        return self.summarize().to_json()


def fit_policy(
    scale: Scale | None, calibration: CalibrationAnswers, route: Route, missing_reason: str | None = None
) -> RoutingPolicy:
    """Return the loosest threshold that reaches the target of `route` with its confidence.

    `missing_reason` is why answers of the baseline in the target are missing.
    """
    rows, claim, alpha = calibration.pick_one_per_group(), build_claim(route), 1 - route.confidence
    settings: dict[str, Any] = {
        "target_accuracy": route.target_accuracy,
        "not_worse_than": route.not_worse_than,
        "margin": route.margin,
        "confidence": route.confidence,
        "calibration_rows": len(rows.ids),
        "left_out_rows": len(calibration.ids) - len(rows.ids),
        "score": scale.json() if scale else None,
    }
    if not rows.ids:
        reason, rows_needed = "there are no calibration rows; give data.split.calibration a share", None
        if scale and scale.confidences:
            thresholds = learn_then_test.build_thresholds(scale.confidences)
            no_rows = np.array([])
            rows_needed = estimate_rows_needed(claim, thresholds, scale, no_rows, no_rows, alpha)
            reason += f"; {rows_needed_text(rows_needed)}"
        return RoutingPolicy(threshold=None, no_threshold_reason=reason, rows_needed=rows_needed, **settings)
    if route.not_worse_than is not None and rows.baseline_correct is None:
        reason = f"{route.not_worse_than} has not answered the calibration rows ({missing_reason or 'it was not run'})"
        return RoutingPolicy(threshold=None, no_threshold_reason=reason, **settings)
    if scale is None or not scale.confidences:
        reason = "thresholds are those of validation rows, and no answer to one has a probability"
        return RoutingPolicy(threshold=None, no_threshold_reason=reason, **settings)
    if all(value is None for value in rows.confidences):
        return RoutingPolicy(
            threshold=None, no_threshold_reason="no answer to a calibration row has a probability", **settings
        )
    confidences, scores = confidence_array(rows.confidences), claim_scores(rows)
    thresholds = learn_then_test.build_thresholds(scale.confidences)
    validation, correct = np.asarray(scale.confidences), np.asarray(scale.correct, dtype=np.float64)
    start = learn_then_test.find_start(claim, thresholds, validation, correct, len(rows.ids), alpha)
    result = learn_then_test.run_fixed_sequence(claim, thresholds[start:], confidences, scores, alpha)
    settings["sequence"] = TestedThresholds(len(validation), len(thresholds), thresholds[start], len(result.p_values))
    if result.selected_index is None:
        rows_needed = estimate_rows_needed(claim, thresholds, scale, confidences, scores, alpha)
        reason = no_threshold_reason(claim, rows, confidences, route, rows_needed)
        return RoutingPolicy(threshold=None, no_threshold_reason=reason, rows_needed=rows_needed, **settings)
    threshold = result.thresholds[result.selected_index]
    is_kept = confidences >= threshold
    return RoutingPolicy(
        threshold=threshold,
        coverage=float(is_kept.mean()),
        accuracy=float(np.asarray(rows.correct)[is_kept].mean()),
        difference=float(scores[is_kept].mean()) if route.not_worse_than is not None else None,
        p_value=result.p_values[result.selected_index],
        **settings,
    )


def build_claim(route: Route) -> Claim:
    """Return the claim to be shown for the kept answers."""
    if route.margin is not None:
        return NonInferior(route.margin)
    assert route.target_accuracy is not None, "the schema wants one of the two targets"
    return MeanAbove(route.target_accuracy)


def confidence_array(confidences: Sequence[float | None]) -> Array:
    """Return confidences as an array, UNKNOWN_CONFIDENCE for None."""
    return np.array([UNKNOWN_CONFIDENCE if value is None else value for value in confidences], dtype=np.float64)


def claim_scores(rows: CalibrationAnswers) -> Array:
    """Return the score of each row for the claim: right (1 or 0), or right minus the baseline's."""
    correct = np.asarray(rows.correct, dtype=np.float64)
    return correct if rows.baseline_correct is None else correct - np.asarray(rows.baseline_correct, dtype=np.float64)


def estimate_rows_needed(
    claim: Claim, thresholds: Sequence[float], scale: Scale, confidences: Array, scores: Array, alpha: float
) -> int | None:
    """Return about how many calibration rows would give a threshold, more than there are; None if no number would.

    Validation rows are used too if the claim does not need the baseline's answers.
    """
    if isinstance(claim, MeanAbove):
        confidences = np.append(confidences, scale.confidences)
        all_scores = np.append(scores, scale.correct)
    elif len(confidences) < learn_then_test.MIN_KEPT_ROWS:
        return claim.min_rows(alpha)
    else:
        all_scores = scores
    required_rows = learn_then_test.estimate_required_rows(claim, thresholds, confidences, all_scores, alpha)
    return None if required_rows is None else max(required_rows, len(scores) + 1)


def no_threshold_reason(
    claim: Claim, rows: CalibrationAnswers, confidences: Array, route: Route, rows_needed: int | None
) -> str:
    """Return why no threshold passed, and how many calibration rows would suffice."""
    n, min_rows = len(rows.ids), claim.min_rows(1 - route.confidence)
    surest_rows = np.argsort(-confidences, kind="stable")[: max(1, n // 10)]
    accuracy_text = (
        f"of the tenth that the model is surest of {np.asarray(rows.correct)[surest_rows].mean():.1%} are right"
    )
    if rows.baseline_correct is not None:
        accuracy_text += f", {np.asarray(rows.baseline_correct)[surest_rows].mean():.1%} of the baseline's"
    conclusion = "no threshold can be shown to keep the target"
    if n < min_rows:
        all_right = "all are right" if rows.baseline_correct is None else "both are right in every row"
        conclusion += f" on fewer than {min_rows:,} rows, not even where {all_right}"
    return (
        f"{conclusion}, with {route.confidence:.0%} confidence on {n:,} calibration rows; {accuracy_text}; "
        f"{rows_needed_text(rows_needed)}"
    )


def rows_needed_text(rows_needed: int | None) -> str:
    """Return how many calibration rows would probably give a threshold."""
    if rows_needed is None:
        return "even a million rows would probably show none if answers are as good as these"
    return f"about {rows_needed:,} calibration rows would probably show one"


def read_policy(path: Path) -> RoutingPolicy:
    """Return the policy of a routing.json. Raise StageError if the file is missing or has another version.

    Before version 2 thresholds were from the calibration rows themselves, so that the guarantee does not hold.
    """
    hint = "compare again (`make compare RECIPE=...`)"
    if not path.is_file():
        raise StageError(f"there is no {path}; {hint}", code="INS-C004")
    payload = atomic_files.read_json(path)
    version = payload.get("schema_version", 1) if isinstance(payload, dict) else None
    if version != SCHEMA_VERSION:
        raise StageError(
            f"{path} has schema_version {version}, this insource reads {SCHEMA_VERSION}; {hint}", code="INS-C004"
        )
    names = {policy_field.name for policy_field in fields(RoutingPolicy)}
    sequence = payload.get("sequence")
    return RoutingPolicy(
        **{name: value for name, value in payload.items() if name in names}
        | {
            "no_threshold_reason": payload.get("why_none"),
            "sequence": TestedThresholds(**sequence) if sequence else None,
        }
    )
