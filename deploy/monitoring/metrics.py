"""Metrics for Prometheus at GET /metrics.

insource_answers_total{model="classifier",answered_by="local",reason="confident",degraded="false"} 912.0
insource_confidence_bucket{model="classifier",le="0.95"} 231.0

Only counts, sums and histograms: no text of a request or an answer, no id, no client. Every metric label has few
values: models, versions, paths, statuses, reasons, API models, engines, and the labels of a task.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
VALID = "valid"
DISCONNECTED = "broken_off"
"""Status of a request whose client disconnected, or whose answer was incomplete when vLLM ended.

Errors of the gateway itself count as 500.
"""
NOBODY = "nobody"
"""Answering system of an input that got an error."""
_Labels = TypeVar("_Labels", bound=tuple[str, ...])


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gauge_labels: dict[Gauge, set[tuple[str, ...]]] = {}
        """Label values of gauges that name versions."""
        self._requests = self._counter("requests", "Requests by path and HTTP status.", "path", "status")
        self._seconds = Histogram(
            "insource_request_seconds",
            "Seconds from the header of a request to the end of its answer.",
            ["path"],
            registry=self.registry,
            buckets=SECONDS_BUCKETS,
        )
        description = "Inputs of tasks by who answered them and why."
        self._answers = self._counter("answers", description, "model", "answered_by", "reason", "degraded")
        description = "Answers that were checked against the task's schema, by what was found."
        self._checked = self._counter("checked_answers", description, "model", "by", "result")
        description = (
            "Tokens read and written, of requests whose answer the gateway reads (streams of vLLM: not counted)."
        )
        self._tokens = self._counter("tokens", description, "model", "by", "kind")
        self._confidence = Histogram(
            "insource_confidence",
            "Confidence of the deployed model's valid answers, whoever answered in the end.",
            ["model"],
            registry=self.registry,
            buckets=CONFIDENCE_BUCKETS,
        )
        self._labels = self._counter("labels", "Labels that the deployed model answered.", "model", "label")
        description = "How far the deployed model's answers today are from those to the calibration rows, from 0 to 1."
        self._drift = self._gauge("drift", description, "model", "version", "of")
        description = "Right answers that came by POST /v1/feedback."
        self._feedback = self._counter("feedback", description, "model", "by", "right")
        description = (
            "API answers to inputs that the deployed model answered too (route.mirror), by whether both agree."
        )
        self._mirrored = self._counter("mirrored", description, "model", "result")
        self._ready = self._gauge("ready", "1 while requests are passed on.")
        self._in_flight = self._gauge("requests_in_flight", "Requests in flight.")
        self._deployed = self._gauge("deployed", "1 for the version that answers.", "model", "version")
        description = (
            "Requests to engines (serve.engines) by result; one that broke off or failed goes to another engine."
        )
        self._engine_requests = self._counter("engine_requests", description, "engine", "result")
        self._engine_up = self._gauge("engine_up", "1 for an engine that answers requests.", "engine")
        self._engine_in_flight = self._gauge("engine_requests_in_flight", "Requests in flight to an engine.", "engine")
        description = "USD that API calls of this month cost or may have cost, of all gateways that share the registry."
        self._spent_usd = self._gauge("api_month_usd", description, "model")
        self._limit = self._gauge("api_month_limit_usd", "route.usd_per_month.", "model")

    def count_request(self, path: str, status: str, seconds: float) -> None:
        """Count a completed request and its seconds."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def count_answer(self, model: str, answered_by: str, reason: str, degraded: bool = False) -> None:
        """Count an input of a task."""
        self._answers.labels(model, answered_by, reason, str(degraded).lower()).inc()

    def count_checked_answer(self, model: str, answered_by: str, problem: str | None) -> None:
        """Count an answer that was checked against the task's schema."""
        self._checked.labels(model, answered_by, problem or VALID).inc()

    def count_tokens(self, model: str, answered_by: str, input_tokens: int | None, output_tokens: int | None) -> None:
        """Count input and output tokens."""
        for kind, tokens in (("input", input_tokens), ("output", output_tokens)):
            if tokens:
                self._tokens.labels(model, answered_by, kind).inc(tokens)

    def count_prediction(self, model: str, confidence: float | None, labels: Sequence[str]) -> None:
        """Count a valid answer of the deployed model."""
        if confidence is not None:
            self._confidence.labels(model).observe(confidence)
        for label in labels:
            self._labels.labels(model, label).inc()

    def set_drift(self, distances: Mapping[tuple[str, str, str], float]) -> None:
        """Set the distances of answers from those to the calibration rows.

        `distances` is {(model, version, "confidence" or "labels"): distance from 0 to 1}.
        """
        self._set_gauge(self._drift, distances)

    def count_mirrored(self, model: str, result: str) -> None:
        """Count a mirrored input by its result."""
        self._mirrored.labels(model, result).inc()

    def count_feedback(self, model: str, answered_by: str, is_correct: bool) -> None:
        """Count a right answer from feedback. `answered_by` is "local" or "api"."""
        self._feedback.labels(model, answered_by, str(is_correct).lower()).inc()

    def set_state(self, ready: bool, in_flight: int, versions: Mapping[str, str]) -> None:
        """Set readiness, requests in flight and active versions."""
        self._ready.set(ready)
        self._in_flight.set(in_flight)
        self._set_gauge(self._deployed, dict.fromkeys(versions.items(), 1.0))

    def count_engine_request(self, engine: str, result: str) -> None:
        """Count a request to an engine by its result."""
        self._engine_requests.labels(engine, result).inc()

    def set_engines(self, engines: Mapping[str, tuple[bool, int]]) -> None:
        """Set whether engines answer, and their requests in flight: {URL: (answers, requests)}."""
        for url, (answers, in_flight) in engines.items():
            self._engine_up.labels(url).set(answers)
            self._engine_in_flight.labels(url).set(in_flight)

    def set_spend(self, model: str, usd: float, limit_usd: float) -> None:
        """Set the cost of this month's API calls and its limit, in USD."""
        self._spent_usd.labels(model).set(usd)
        self._limit.labels(model).set(limit_usd)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)

    def _set_gauge(self, gauge: Gauge, values: Mapping[_Labels, float]) -> None:
        """Set a gauge for these label values and remove all others.

        Values are set before others are removed, so a thread that renders the metrics meanwhile misses none.
        """
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        for stale in self._gauge_labels.get(gauge, set()) - set(values):
            gauge.remove(*stale)
        self._gauge_labels[gauge] = set(values)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"insource_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"insource_{name}", description, labels, registry=self.registry)


def filter_labels(value: object, labels: Mapping[str, str] | None) -> list[str]:
    """Return the labels in an answer, an empty list if its task has no labels."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return [label for label in values if labels and label in labels]
