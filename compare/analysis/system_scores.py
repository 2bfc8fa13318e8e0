"""The figures of each system in scores.json: metrics with intervals, slices, latency, tokens and cost.

Every figure is computed from the sums of the task's metrics (insource/stats/metric_stats.py). A value, its interval,
its difference to another system (comparisons.py) and its value on a slice are therefore consistent. The figures of an
exploratory system are of its subset of the test rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compare.cost import ownership
from compare.eval_dataset import EvalDataset, cluster_ids
from compare.records import Scale, SystemResponses
from compare.scoring import completeness, confidence, predictions
from compare.scoring.predictions import Predictions
from insource.backends.types import Usage
from insource.config.schema.compare import Primary
from insource.stats import intervals
from insource.stats.metric_stats import MetricStats
from insource.tasks import references, slice_name
from insource.tasks.data_row import Rows
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tracking.scores.system_result import (
    Latency,
    MetricValue,
    Parity,
    PartResult,
    Price,
    Repeats,
    SliceResult,
    SystemResult,
    Throughput,
    TokenCounts,
    Validity,
)

LATENCY_PERCENTILES = (50, 95, 99)
EXPLORATORY_ALPHA = 0.05
# Intervals of smaller slices are too wide to be useful.
MIN_SLICE_ROWS = 5


@dataclass(frozen=True)
class SystemScores:
    """A system with its scored answers."""

    responses: SystemResponses
    rows: Rows
    """The test rows that the system was to answer: all of them, or a subset for an exploratory system."""
    predictions: Predictions
    metric_stats: Mapping[str, MetricStats]
    """Metric statistics of the counted rows."""
    confidences: Sequence[float | None]
    correct: Sequence[float]
    """1 or 0 for each row."""
    counted_positions: Sequence[int]
    """The positions of the rows that the system got: all of them unless it is INCOMPLETE."""

    @cached_property
    def counted_rows(self) -> Rows:
        """Return the counted rows."""
        return [self.rows[index] for index in self.counted_positions]

    @cached_property
    def parsed(self) -> list[ParsedAnswer]:
        """Return the parsed answers to the counted rows."""
        return [self.predictions.parsed[index] for index in self.counted_positions]

    @property
    def name(self) -> str:
        return self.responses.system.name


def score_system(responses: SystemResponses, dataset: EvalDataset, tuned_scale: Scale | None) -> SystemScores:
    """Return a system's answers to the test rows, scored."""
    queried_ids = {answer.id for answer in responses.test_answers}
    rows = [row for row in dataset.test if row["id"] in queried_ids]
    scored = predictions.score_answers(dataset, rows, responses.test_answers)
    counted_positions = [index for index, answer in enumerate(responses.test_answers) if not answer.not_queried]
    parsed = [scored.parsed[index] for index in counted_positions]
    return SystemScores(
        responses,
        rows,
        scored,
        dataset.compute_metric_stats([rows[index] for index in counted_positions], parsed),
        confidence.compute_confidences(responses, tuned_scale, responses.test_answers),
        confidence.row_correctness(scored, dataset),
        counted_positions,
    )


def summarize_system(
    scored: SystemScores, dataset: EvalDataset, primary: Primary | None, calibrated: bool
) -> SystemResult:
    """Return the record of a system in scores.json."""
    responses, system, clusters = scored.responses, scored.responses.system, cluster_ids(scored.counted_rows)
    alpha = primary.alpha if primary else EXPLORATORY_ALPHA
    problems = Counter(parsed.problem for parsed in scored.parsed if parsed.problem)
    errors = Counter(_error_class(answer.error) for answer in responses.test_answers if answer.error)
    is_calibrated = (
        calibrated if system.uses_tuned_scale else responses.scale is not None and responses.scale.platt is not None
    )
    cost, validity = request_cost(scored), _validity(scored)
    return SystemResult(
        kind=system.kind,
        title=system.title,
        variant=system.variant,
        stand_in=system.is_stand_in,
        model_ids=sorted({answer.model_id for answer in responses.test_answers if answer.model_id}),
        shots=system.shots,
        role=_role(system.name, primary),
        n=len(responses.test_answers),
        answered=sum(answer.output is not None for answer in responses.test_answers),
        outcomes=completeness.count_outcomes(responses.test_answers, scored.predictions.parsed),
        complete=responses.complete,
        incomplete_reason=responses.incomplete_reason,
        n_train=len(dataset.train) if system.kind in ("tuned", "linear", "nearest", "head") else None,
        metrics={name: _interval(stats, clusters, alpha) for name, stats in scored.metric_stats.items()},
        slices=_slices(scored, dataset, alpha),
        per_part=_breakdown(scored, dataset),
        validity=validity,
        invalid=dict(problems.most_common()),
        errors=dict(errors.most_common()),
        calibration=confidence.reliability(scored.confidences, scored.correct, is_calibrated),
        latency=_latency(responses),
        throughput=Throughput.model_validate(dict(responses.throughput)) if responses.throughput else None,
        parity=Parity.model_validate(dict(responses.parity)) if responses.parity else None,
        tokens=_tokens(responses),
        retries=responses.retries,
        reused=responses.reused,
        price=Price.model_validate(responses.price.to_json()) if responses.price else None,
        cost_usd=responses.spent_usd,
        cost_usd_per_1k=_usd_per_1k(cost.usd_per_request),
        cost_usd_per_1k_correct=_usd_per_1k(cost.usd_per_request, validity.correct),
        cost_usd_per_1k_batch=_usd_per_1k(cost.usd_per_request_batch),
        repeats=_repeats(scored, dataset),
        shutdown_date=responses.shutdown_date,
    )


def _usd_per_1k(usd_per_request: float | None, fraction: float = 1.0) -> float | None:
    """Return the cost of 1,000 requests, or of 1,000 right answers for their `fraction`; None: unknown."""
    return None if usd_per_request is None or not fraction else 1000 * usd_per_request / fraction


def _interval(stats: MetricStats, clusters: Any, alpha: float) -> MetricValue:
    interval = intervals.compute_interval(stats, clusters, alpha=alpha)
    return MetricValue(value=interval.value, ci_low=interval.low, ci_high=interval.high, method=interval.method)


def _slices(scored: SystemScores, dataset: EvalDataset, alpha: float) -> dict[str, dict[str, SliceResult]]:
    by_slice: dict[str, dict[str, list[int]]] = {}
    rows, all_parsed = scored.counted_rows, scored.parsed
    for index, row in enumerate(rows):
        for name, value in row.get("slices", {}).items():
            by_slice.setdefault(name, {}).setdefault(slice_name(value), []).append(index)
    clusters = cluster_ids(rows)

    def score_slice(positions: list[int]) -> SliceResult:
        metric_stats = dataset.compute_metric_stats(
            [rows[index] for index in positions], [all_parsed[index] for index in positions]
        )
        groups = [clusters[index] for index in positions] if clusters else None
        return SliceResult(
            n=len(positions),
            metrics={name: _interval(stats, groups, alpha) for name, stats in metric_stats.items()},
        )

    return {
        name: {
            value: score_slice(positions)
            for value, positions in sorted(values.items())
            if len(positions) >= MIN_SLICE_ROWS
        }
        for name, values in by_slice.items()
    }


def _breakdown(scored: SystemScores, dataset: EvalDataset) -> dict[str, PartResult]:
    """Return the figures of each label or field; {} if the task has none."""
    targets = references.select_targets(dataset.task, dataset.spec, scored.counted_rows, scored.parsed)
    score = dataset.task.score(dataset.spec, targets, scored.parsed)
    parts = score.get("per_class") or score.get("per_field", {}) | _label_whole_entries(score.get("per_item", {}))
    return {name: PartResult.model_validate(entry) for name, entry in parts.items()}


def _label_whole_entries(items: Mapping[str, object]) -> dict[str, object]:
    return {f"{name}, whole entries": entry for name, entry in items.items()}


def _validity(scored: SystemScores) -> Validity:
    flags = [predictions.validity_flags(parsed.problem) for parsed in scored.parsed]
    parse, schema, label = (fraction_true(stage[index] for stage in flags) for index in range(3))
    correct_fraction = fraction_true(scored.correct[index] for index in scored.counted_positions)
    return Validity(parse=parse, in_schema=schema, label=label, correct=correct_fraction)


def _latency(responses: SystemResponses) -> Latency | None:
    """Return latency percentiles of successful answers that a server computed, None if there are none.

    An answer from a server's cache of complete answers has no latency.
    """
    import numpy as np

    latencies = [
        answer.latency_seconds
        for answer in responses.test_answers
        if answer.latency_seconds is not None and not answer.error
    ]
    if not latencies:
        return None
    p50, p95, p99 = (float(np.percentile(latencies, percentile)) for percentile in LATENCY_PERCENTILES)
    return Latency(
        n=len(latencies), p50_seconds=p50, p95_seconds=p95, p99_seconds=p99, concurrency=responses.concurrency
    )


def _tokens(responses: SystemResponses) -> TokenCounts:
    def total(counts: Iterable[int | None]) -> int | None:
        reported_counts = [count for count in counts if count is not None]
        return sum(reported_counts) if reported_counts else None

    answers = responses.test_answers
    return TokenCounts(
        input=total(answer.input_tokens for answer in answers),
        output=total(answer.output_tokens for answer in answers),
        reasoning=total(answer.reasoning_tokens for answer in answers),
        cached=total(answer.cached_tokens for answer in answers),
    )


def token_usages(responses: SystemResponses) -> list[Usage]:
    """Return the token usage of each answered test row, as the provider counted it."""
    return [
        Usage(answer.input_tokens, answer.output_tokens, answer.reasoning_tokens, answer.cached_tokens)
        for answer in responses.test_answers
        if answer.output is not None
    ]


def request_cost(scored: SystemScores) -> ownership.ApiCost:
    """Return the cost per request of a paid system."""
    reported_usd = reported_costs_usd(scored.responses)
    if reported_usd is not None:
        return ownership.compute_reported_cost(scored.name, reported_usd)
    return ownership.compute_api_cost(scored.name, scored.responses.price, token_usages(scored.responses))


def reported_costs_usd(responses: SystemResponses) -> list[float] | None:
    """Return the costs in the lines of a file of answers (cost_usd).

    None if price and token counts give the cost, and for every other system.
    """
    has_usage = any(
        usage.input_tokens is not None and usage.output_tokens is not None for usage in token_usages(responses)
    )
    if responses.system.kind != "file" or (responses.price is not None and has_usage):
        return None
    return [answer.cost_usd for answer in responses.test_answers if answer.cost_usd is not None]


def tokens_per_request(responses: SystemResponses) -> float:
    """Return the mean number of input and output tokens, 0 if no tokens were counted."""
    totals = [(usage.input_tokens or 0) + (usage.output_tokens or 0) for usage in token_usages(responses)]
    return sum(totals) / len(totals) if totals else 0.0


def _repeats(scored: SystemScores, dataset: EvalDataset) -> Repeats | None:
    """Return the fraction of repeated requests with the same answer."""
    repeats = [answer for answer in scored.responses.repeat_answers if not answer.not_queried]
    if not repeats:
        return None
    first_answers = {row["id"]: parsed for row, parsed in zip(scored.rows, scored.predictions.parsed, strict=True)}
    pairs = [(first_answers[answer.id], predictions.parse_answer(dataset, answer)) for answer in repeats]
    agreement = fraction_true(a.value == b.value and a.problem == b.problem for a, b in pairs)
    return Repeats(rows=len(pairs), agreement=agreement)


def _role(name: str, primary: Primary | None) -> str:
    if primary and name == primary.system:
        return "primary system"
    return "primary baseline" if primary and name == primary.baseline else "exploratory"


def _error_class(error: str | None) -> str:
    """Return an error message without its row-specific part."""
    text = (error or "").partition(":")[0]
    return text if len(text) <= 60 else text[:57] + "..."


def fraction_true(values: Any) -> float:
    """Return the fraction of true values, 0 for no values."""
    flags = [bool(value) for value in values]
    return sum(flags) / len(flags) if flags else 0.0
