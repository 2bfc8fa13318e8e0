"""From answers to scores.json: each system's metrics with their intervals, its slices, latency, tokens and cost.

Every figure here is made of the sums of the task's metrics (insource/stats/metric_stats.py), so that its interval, its
difference to another system (comparisons.py) and its value on a slice are of one kind. A system that only explores is
asked a part of the test rows: its figures are of these.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compare.cost import ownership
from compare.eval_dataset import EvalDataset, Rows, cluster_ids
from compare.scoring import completeness, confidence, predictions
from compare.scoring.confidence import Scale
from compare.scoring.predictions import Predictions
from compare.systems.responses import SystemResponses
from insource.backends.types import Usage
from insource.config.schema.compare import Primary
from insource.stats import intervals
from insource.stats.metric_stats import MetricStats
from insource.tasks import references, slice_name
from insource.tasks.parsed_answer import ParsedAnswer

LATENCY_PERCENTILES = (50, 95, 99)
EXPLORATORY_ALPHA = 0.05
# Slices of fewer rows have intervals that say nothing.
MIN_SLICE_ROWS = 5


@dataclass(frozen=True)
class SystemScores:
    """A system with what its answers are worth."""

    gathered: SystemResponses
    rows: Rows
    """The test rows that it was to answer: all of them, or a part where it only explores."""
    found: Predictions
    tallies: Mapping[str, MetricStats]
    """Of the rows that count."""
    confidences: Sequence[float | None]
    right: Sequence[float]
    """Of each row, 1 or 0."""
    counted: Sequence[int]
    """The positions of the rows that were put to the system: all of them but in an INCOMPLETE system."""

    @cached_property
    def counted_rows(self) -> Rows:
        """Returns the rows that count."""
        return [self.rows[at] for at in self.counted]

    @cached_property
    def parsed(self) -> list[ParsedAnswer]:
        """Returns the answers to the rows that count, as the task reads them."""
        return [self.found.parsed[at] for at in self.counted]

    @property
    def name(self) -> str:
        return self.gathered.system.name


def score_system(one: SystemResponses, material: EvalDataset, fitted: Scale | None) -> SystemScores:
    """Returns a system's answers to the test rows, scored."""
    asked = {answer.id for answer in one.test}
    rows = [row for row in material.test if row["id"] in asked]
    found = predictions.score_answers(material, rows, one.test)
    counted = [at for at, answer in enumerate(one.test) if not answer.not_asked]
    parsed = [found.parsed[at] for at in counted]
    targets = references.select_targets(material.module, material.spec, [rows[at] for at in counted], parsed)
    tallies = material.module.compute_metric_stats(material.spec, targets, parsed)
    told = confidence.compute_confidences(one, fitted, one.test)
    return SystemScores(one, rows, found, tallies, told, confidence.row_correctness(found, material), counted)


def system_json(one: SystemScores, material: EvalDataset, primary: Primary | None, fitted: bool) -> dict[str, Any]:
    """Returns what scores.json says of a system."""
    got, system, clusters = one.gathered, one.gathered.system, cluster_ids(one.counted_rows)
    alpha = primary.alpha if primary else EXPLORATORY_ALPHA
    targets = references.select_targets(material.module, material.spec, one.counted_rows, one.parsed)
    score = material.module.score(material.spec, targets, one.parsed)
    problems = Counter(parsed.problem for parsed in one.parsed if parsed.problem)
    on_a_scale = fitted if system.on_tuned_scale else got.scale is not None and got.scale.platt is not None
    return {
        "kind": system.kind,
        "title": system.title,
        "form": system.which,
        "stand_in": system.stand_in,
        "model_ids": sorted({answer.model_id for answer in got.test if answer.model_id}),
        "shots": system.shots,
        "role": _role(system.name, primary),
        "n": len(got.test),
        "answered": sum(answer.output is not None for answer in got.test),
        "rows": completeness.count_outcomes(got.test, one.found.parsed),
        "complete": got.complete,
        "why_incomplete": got.why_incomplete,
        "n_train": len(material.train) if system.kind in ("tuned", "linear", "nearest") else None,
        "metrics": {name: _interval(tally, clusters, alpha) for name, tally in one.tallies.items()},
        "slices": _slices(one, material, alpha),
        "per_part": score.get("per_class")
        or score.get("per_field", {}) | _label_whole_entries(score.get("per_item", {})),
        "validity": _validity(one),
        "invalid": dict(problems.most_common()),
        "errors": dict(Counter(_error_class(answer.error) for answer in got.test if answer.error).most_common()),
        "calibration": confidence.reliability(one.confidences, one.right, on_a_scale),
        "latency": _latency(got),
        "throughput": dict(got.rate) if got.rate else None,
        "parity": dict(got.parity) if got.parity else None,
        "tokens": _tokens(got),
        "retries": got.retries,
        "reused": got.reused,
        "price": got.price.json() if got.price else None,
        "cost_usd": got.spent_usd,
        **_cost_fields(one),
        "repeats": _repeats(one, material),
        "shutdown_date": got.shutdown_date,
    }


def _interval(tally: MetricStats, clusters: Any, alpha: float) -> dict[str, Any]:
    found = intervals.compute_interval(tally, clusters, alpha=alpha)
    return {"value": found.value, "ci_low": found.low, "ci_high": found.high, "method": found.method}


def _slices(one: SystemScores, material: EvalDataset, alpha: float) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, list[int]]] = {}
    rows, every = one.counted_rows, one.parsed
    for at, row in enumerate(rows):
        for name, value in row.get("slices", {}).items():
            parts.setdefault(name, {}).setdefault(slice_name(value), []).append(at)
    clusters = cluster_ids(rows)

    def of(mine: list[int]) -> dict[str, Any]:
        parsed = [every[at] for at in mine]
        targets = references.select_targets(material.module, material.spec, [rows[at] for at in mine], parsed)
        tallies = material.module.compute_metric_stats(material.spec, targets, parsed)
        groups = [clusters[at] for at in mine] if clusters else None
        return {
            "n": len(mine),
            "metrics": {name: _interval(tally, groups, alpha) for name, tally in tallies.items()},
        }

    return {
        name: {value: of(mine) for value, mine in sorted(values.items()) if len(mine) >= MIN_SLICE_ROWS}
        for name, values in parts.items()
    }


def _label_whole_entries(items: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}, whole entries": one for name, one in items.items()}


def _validity(one: SystemScores) -> dict[str, float]:
    came = [predictions.validity_flags(parsed.problem) for parsed in one.parsed]
    parse, schema, label = (fraction_true(stage[at] for stage in came) for at in range(3))
    return {
        "parse": parse,
        "schema": schema,
        "label": label,
        "right": fraction_true(one.right[at] for at in one.counted),
    }


def _latency(got: SystemResponses) -> dict[str, Any] | None:
    """Of answers that a server computed now; one from its cache of whole answers would have no latency at all."""
    import numpy as np

    told = [answer.latency_seconds for answer in got.test if answer.latency_seconds is not None and not answer.error]
    if not told:
        return None
    figures = {f"p{p}_seconds": float(np.percentile(told, p)) for p in LATENCY_PERCENTILES}
    return {"n": len(told), **figures, "concurrency": got.concurrency}


def _tokens(got: SystemResponses) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name in ("input", "output", "reasoning", "cached"):
        told = [value for answer in got.test if (value := getattr(answer, f"{name}_tokens")) is not None]
        found[name] = sum(told) if told else None
    return found


def token_usages(got: SystemResponses) -> list[Usage]:
    """Returns what the provider counted for each test row that it answered."""
    return [
        Usage(one.input_tokens, one.output_tokens, one.reasoning_tokens, one.cached_tokens)
        for one in got.test
        if one.output is not None
    ]


def request_cost(one: SystemScores) -> ownership.ApiCost:
    """Returns what a request to a system costs that is paid by the request."""
    told = reported_costs_usd(one.gathered)
    if told is not None:
        return ownership.compute_reported_cost(one.name, told)
    return ownership.compute_api_cost(one.name, one.gathered.price, token_usages(one.gathered))


def reported_costs_usd(got: SystemResponses) -> list[float] | None:
    """Returns what the requests of a file of answers cost as its lines tell it (cost_usd); None where a price and
    tokens tell it, and of every other system."""
    counted = any(one.input_tokens is not None and one.output_tokens is not None for one in token_usages(got))
    if got.system.kind != "file" or (got.price is not None and counted):
        return None
    return [answer.cost_usd for answer in got.test if answer.cost_usd is not None]


def tokens_per_request(got: SystemResponses) -> float:
    """Returns the mean of tokens read and written, 0 where nothing counted them."""
    told = [(one.input_tokens or 0) + (one.output_tokens or 0) for one in token_usages(got)]
    return sum(told) / len(told) if told else 0.0


def _cost_fields(one: SystemScores) -> dict[str, float | None]:
    """USD a thousand requests, and a thousand right answers, at the list price or as answers tell it; in batches."""
    found = request_cost(one)
    each, batch = found.usd_per_request, found.usd_per_request_batch
    right = fraction_true(one.right[at] for at in one.counted)
    return {
        "cost_usd_per_1k": None if each is None else 1000 * each,
        "cost_usd_per_1k_right": 1000 * each / right if each is not None and right else None,
        "cost_usd_per_1k_batch": None if batch is None else 1000 * batch,
    }


def _repeats(one: SystemScores, material: EvalDataset) -> dict[str, Any] | None:
    """How many answers are the same when the same rows are asked again."""
    again = [answer for answer in one.gathered.again if not answer.not_asked]
    if not again:
        return None
    first = {row["id"]: parsed for row, parsed in zip(one.rows, one.found.parsed, strict=True)}
    read = [(first[answer.id], predictions.parse_answer(material, answer)) for answer in again]
    return {"rows": len(read), "same": fraction_true(a.value == b.value and a.problem == b.problem for a, b in read)}


def _role(name: str, primary: Primary | None) -> str:
    if primary and name == primary.system:
        return "primary system"
    return "primary baseline" if primary and name == primary.baseline else "exploratory"


def _error_class(error: str | None) -> str:
    """An error without what differs from row to row."""
    text = (error or "").partition(":")[0]
    return text if len(text) <= 60 else text[:57] + "..."


def fraction_true(values: Any) -> float:
    """Returns the share of values that are true, 0 of none."""
    told = [bool(value) for value in values]
    return sum(told) / len(told) if told else 0.0
