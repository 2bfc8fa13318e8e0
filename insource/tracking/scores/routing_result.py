"""The routing policy with its results: `routing` in scores.json, and the content of routing.json.

{"schema_version": 2, "threshold": 0.83, "target_accuracy": 0.95, ..., "score": {"of": "answer", ...},
 "guarantee": "...", "test": {"rows": 2055, "kept": {...}, "ways": {...}, "curve": [...]}, "calibration": {...}}
"""

from collections.abc import Mapping, Sequence

from insource.tracking.record import Number, Record, key


class TestedSequence(Record):
    """The sequence of tested thresholds."""

    validation_rows: int
    thresholds: int
    start: Number
    tested: int


class ConfidenceScale(Record):
    """The part of an answer whose probability is used, and the scale of its logit."""

    part: str = key("of")
    slope: Number | None
    intercept: Number | None


class Estimate(Record):
    """A value with its interval."""

    value: Number
    ci_low: Number
    ci_high: Number


class ExpectedValue(Record):
    """A value that was computed, not sampled: it has no interval."""

    value: Number
    ci_low: None
    ci_high: None


class StrategyResult(Record):
    """One way to answer the test rows."""

    local: Number
    """The fraction that only the tuned model answers."""
    correct: Estimate | ExpectedValue = key("right")
    usd_per_1k: Number | None


class CurvePoint(Record):
    """The results at one threshold."""

    threshold: Number
    kept: Number
    correct_of_kept: Number | None = key("right_of_kept")
    correct: Number | None = key("right")


class RoutingTest(Record):
    """The results of the policy on the test rows."""

    rows: int
    kept: Estimate | None
    correct_of_kept: Estimate | None = key("right_of_kept")
    difference_of_kept: Estimate | None
    baseline: str | None
    strategies: Mapping[str, StrategyResult] = key("ways")
    """Of owned, closed, routed and random: those that were measured."""
    curve: Sequence[CurvePoint]


class AnswerCounts(Record):
    """The distribution of the answers to the calibration rows."""

    rows: int
    confidences: Mapping[str, int]
    answers: Mapping[str, int]


class RoutingResult(Record):
    """A routing policy with its results."""

    schema_version: int
    threshold: Number | None
    target_accuracy: Number | None
    not_worse_than: str | None
    margin: Number | None
    confidence: Number
    calibration_rows: int
    left_out_rows: int
    coverage: Number | None
    accuracy: Number | None
    difference: Number | None
    p_value: Number | None
    no_threshold_reason: str | None = key("why_none")
    rows_needed: int | None
    sequence: TestedSequence | None
    score: ConfidenceScale | None
    guarantee: str | None
    test: RoutingTest | None = None
    calibration: AnswerCounts | None = None
