"""The figures of one system: an entry of `systems` in scores.json.

"tuned": {"kind": "tuned", "title": "tuned (adapter)", "form": "adapter", "n": 3080, "answered": 3080,
          "metrics": {"accuracy": {"value": 0.912, "ci_low": 0.901, "ci_high": 0.922, "method": "Wilson"}}, ...}
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from insource.tracking.record import Number, Record, key
from insource.tracking.scores.routing_result import RoutingResult

SystemKind = Literal["tuned", "base", "linear", "nearest", "head", "closed", "file"]


class MetricValue(Record):
    """A metric with its interval."""

    value: Number
    ci_low: Number
    ci_high: Number
    method: str


class SliceResult(Record):
    """The metrics of the rows with one value of a slice column."""

    n: int
    metrics: Mapping[str, MetricValue]


class PartResult(Record):
    """Precision, recall and F1 of one label or field."""

    precision: Number
    recall: Number
    f1: Number
    n: int


class Validity(Record):
    """The fraction of the answers that passes each stage."""

    parse: Number
    in_schema: Number = key("schema")
    label: Number
    correct: Number = key("right")


class ReliabilityBin(Record):
    """Answers of similar confidence, with the fraction that is right."""

    low: Number
    high: Number
    n: int
    confidence: Number
    accuracy: Number
    ci_low: Number
    ci_high: Number


class Reliability(Record):
    """The calibration error of the confidences."""

    n: int
    ece: Number
    bins: Sequence[ReliabilityBin]
    fitted_on: str


class Latency(Record):
    """Percentiles over the answers that a server computed."""

    n: int
    p50_seconds: Number
    p95_seconds: Number
    p99_seconds: Number
    concurrency: int | None


class Throughput(Record):
    """The measured throughput of the server."""

    identity: str | None = key("of", default=None)
    """Digest of the requests whose answers are cached with it."""
    requests_per_second: Number
    tokens_per_second: Number
    concurrency: int
    n: int | None = None
    hardware: str
    measured: str | None = None


class Parity(Record):
    """The served variant against the trained weights, on the validation rows."""

    identity: str | None = key("of", default=None)
    """Digest of the requests whose answers are cached with it."""
    n: int
    prompt_ids_equal: Number
    """The fraction of prompts with the token ids that were trained on."""
    agreement: Number | None
    """None for other weights than were trained."""
    metric: str
    trained: Number
    served: Number
    difference: Number
    ci_low: Number
    ci_high: Number


class TokenCounts(Record):
    """Tokens of all test rows; None if they were not counted."""

    input: int | None
    output: int | None
    reasoning: int | None
    cached: int | None


class Price(Record):
    """A list price."""

    input_usd_per_million: Number
    output_usd_per_million: Number
    cached_input_usd_per_million: Number | None
    batch_input_usd_per_million: Number | None
    batch_output_usd_per_million: Number | None
    source: str
    date: str | None
    note: str | None = None


class Repeats(Record):
    """Rows that were requested twice."""

    rows: int
    agreement: Number = key("same")
    """The fraction with the same answer."""


class SystemResult(Record):
    """The figures of one system."""

    kind: SystemKind
    title: str
    variant: str | None = key("form", default=None)
    stand_in: bool
    """Whether a local server replaced the provider."""
    model_ids: Sequence[str]
    shots: int
    role: str
    n: int
    answered: int
    outcomes: Mapping[str, int] | None = key("rows", default=None)
    """{outcome: rows} (compare/scoring/completeness.py)."""
    complete: bool
    incomplete_reason: str | None = key("why_incomplete")
    n_train: int | None
    metrics: Mapping[str, MetricValue]
    slices: Mapping[str, Mapping[str, SliceResult]]
    per_part: Mapping[str, PartResult]
    validity: Validity
    invalid: Mapping[str, int]
    """{problem: answers}."""
    errors: Mapping[str, int]
    """{class of errors: requests}."""
    calibration: Reliability | None
    latency: Latency | None
    throughput: Throughput | None
    parity: Parity | None
    tokens: TokenCounts
    retries: int
    reused: int
    price: Price | None
    cost_usd: Number | None
    cost_usd_per_1k: Number | None
    cost_usd_per_1k_correct: Number | None = key("cost_usd_per_1k_right")
    cost_usd_per_1k_batch: Number | None
    repeats: Repeats | None
    shutdown_date: str | None = None
    routing: RoutingResult | None = None
    """Of a decision endpoint or a classification head: the traffic that it could answer without a fallback."""
