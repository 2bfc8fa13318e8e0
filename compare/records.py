"""The records of a comparison, from a system to its collected responses.

System           one system of the comparison, such as the tuned model or an API model
SkippedSystem    a system that was not run, with the reason
SystemAnswer     the answer of a system to one row
Scale            the map from log-probabilities to confidences
SystemResponses  all answers of a system, with cost, throughput and parity
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from insource.backends.pricing import TokenPrice
from insource.config.schema.compare import Baseline
from insource.stats.calibration import Platt
from insource.tracking.scores.system_result import SystemKind

ScoredPart = Literal["answer", "least certain field"]


@dataclass(frozen=True)
class System:
    """One system of a comparison."""

    name: str
    kind: SystemKind
    title: str
    """The name that reports show."""
    variant: str | None = None
    """The exported variant of a tuned system: adapter, merged or quantized/<scheme>."""
    shots: int = 0
    """Number of examples in each prompt."""
    trained_shots: int = 0
    """Number of examples in the prompts of training (train.shots)."""
    baseline: Baseline | None = None
    omitted_parameters: tuple[str, ...] = ()
    """Parameters that the provider rejected at the first request. They are not sent."""

    @property
    def is_stand_in(self) -> bool:
        """Return whether a local server replaces a provider. Its scores show nothing about that provider."""
        return self.baseline is not None and self.baseline.is_loopback

    @property
    def uses_tuned_scale(self) -> bool:
        """Return whether the confidence scale of the tuned model applies: its prompts are those of training."""
        return self.kind == "tuned" and self.shots == self.trained_shots


@dataclass(frozen=True)
class SkippedSystem:
    """A system of the recipe that was not run, and the reason."""

    name: str
    title: str
    reason: str
    incomplete: bool = False
    """Whether it was tried and failed. The next comparison tries it again."""


@dataclass(frozen=True)
class SystemAnswer:
    """The answer of a system to one row, from any source."""

    id: str
    output: str | None
    """None if there is no answer."""
    finish_reason: str = "stop"
    model_id: str = ""
    log_probability: float | None = None
    field_log_probability: float | None = None
    """Of the field of a record with the lowest probability."""
    request_sha256: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    latency_seconds: float | None = None
    attempt_latencies_seconds: Sequence[float] = ()
    reused: bool = False
    cost_usd: float | None = None
    error: str | None = None
    may_pass: bool = False
    """Whether a missing answer has a temporary cause: a rate limit, a timeout or a server error."""
    confidence: float | None = None
    """The confidence that the system reports itself."""
    probabilities: Mapping[str, float] | None = None
    """The probability of every label, if the system reports them."""
    not_queried: bool = False
    """Whether the model never got the row: not sent, or the request itself was rejected. Such a row is not a wrong
    answer. It makes the system INCOMPLETE."""


@dataclass(frozen=True)
class Scale:
    """Map from log-probabilities to confidences, with the validation rows on which it was fitted."""

    platt: Platt | None
    """None if the answers were all right or all wrong. Then probabilities are used unchanged."""
    part: ScoredPart
    """The part of an answer whose probability is used."""
    confidences: Sequence[float] = ()
    """Of validation rows."""
    correct: Sequence[float] = ()

    def json(self) -> dict[str, Any]:
        """Return the entry `score` of routing.json, from which serving computes the same confidence."""
        slope, intercept = (self.platt.slope, self.platt.intercept) if self.platt else (None, None)
        return {"of": self.part, "slope": slope, "intercept": intercept}


@dataclass(frozen=True)
class SystemResponses:
    """All answers of a system."""

    system: System
    test_answers: Sequence[SystemAnswer]
    """Answers to all test rows in their order, or to the subset that the system got."""
    calibration_answers: Sequence[SystemAnswer] = ()
    """Answers to all calibration rows in their order. Empty if the system did not get all of them."""
    calibration_missing_reason: str | None = None
    """Why the calibration rows that were planned are not complete."""
    repeat_answers: Sequence[SystemAnswer] = ()
    """Second answers to the first test rows, from repeated requests."""
    complete: bool = True
    incomplete_reason: str | None = None
    reused: int = 0
    retries: int = 0
    spent_usd: float | None = None
    concurrency: int | None = None
    throughput: Mapping[str, Any] | None = None
    """Throughput of the server: requests_per_second, tokens_per_second, concurrency, hardware, n, measured."""
    parity: Mapping[str, Any] | None = None
    """Parity of the served variant with the trained weights on the validation rows: n, prompt_ids_equal, agreement
    (None for other weights), difference, ci_low, ci_high."""
    price: TokenPrice | None = None
    shutdown_date: str | None = None
    """The day, ISO 8601, when the provider shuts the model down, if the provider announces one."""
    scale: Scale | None = None
    """The scale of the provider's probabilities, fitted on validation rows, if the provider got them."""
    notes: Sequence[str] = ()
    """Deviations from the usual procedure, for the report."""
