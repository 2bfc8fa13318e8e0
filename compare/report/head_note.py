"""Texts on the classification head of a comparison (compare.head): is it better than the label tokens, and how fast?"""

from insource.config.schema.compare import HEAD, TUNED
from insource.system.number_format import (
    format_count,
    format_delta_range,
    format_percent,
    format_points,
    format_seconds,
)
from insource.tasks import metric_label
from insource.tracking.scores.comparison import PairedResult, Scores

COST_NOTE = (
    "The classification head is self-hosted as well, and no cost is computed for it: transformers answered its rows in "
    "a process of its own, whose throughput is not that of a server. vLLM can serve such a model as a pooling model; "
    "insource does not."
)


def describe_head(scores: Scores) -> str | None:
    """Return the result of head against label tokens, with both speeds; None without a head."""
    head, tuned = scores.systems.get(HEAD), scores.systems.get(TUNED)
    comparison = find_comparison(scores)
    if head is None or tuned is None or comparison is None:
        return None
    return f"{_quality(scores, comparison)} {_speed(scores)}".strip()


def find_comparison(scores: Scores) -> PairedResult | None:
    """Return the paired difference of label tokens minus head in the deciding metric, None if there is none."""
    return next(
        (
            comparison
            for comparison in scores.comparisons
            if (comparison.a, comparison.b, comparison.metric) == (TUNED, HEAD, scores.deciding_metric)
        ),
        None,
    )


def _quality(scores: Scores, comparison: PairedResult) -> str:
    head, tuned = (scores.deciding_value(name) for name in (HEAD, TUNED))
    values = (
        f"{metric_label(comparison.metric)} {format_percent(head)} of the head and {format_percent(tuned)} of the "
        f"label tokens on {format_count(comparison.n, 'row')}"
    )
    low, high = -comparison.ci_high, -comparison.ci_low
    if low > 0 or high < 0:
        better = "the head is" if low > 0 else "the label tokens are"
        first, last = sorted((abs(low), abs(high)))
        return (
            f"Head or tokens: {better} better by {format_points(abs(comparison.delta))} points "
            f"({format_points(first)} to {format_points(last)}); {values}."
        )
    return (
        f"Head or tokens: neither is shown to be better; {values}, the head's difference is "
        f"{format_delta_range(low, high)} points."
    )


def _speed(scores: Scores) -> str:
    """Return the latency and throughput of both, each with its conditions: they are not those of one server."""
    head, tuned = scores.systems[HEAD], scores.systems[TUNED]
    parts = []
    if head.latency:
        text = f"The head answers a row in {format_seconds(head.latency.p50_seconds)} (median, one row at a time"
        rate = f"; {head.throughput.requests_per_second:.1f} rows/s in batches)" if head.throughput else ")"
        parts.append(f"{text}, in transformers without a server{rate}")
    if tuned.latency:
        text = f"the tuned model in {format_seconds(tuned.latency.p50_seconds)} at {tuned.latency.concurrency} requests"
        rate = f" ({tuned.throughput.requests_per_second:.1f} requests/s)" if tuned.throughput else ""
        parts.append(f"{text} at a time to vLLM{rate}")
    return f"{', '.join(parts)}." if parts else ""
