"""The records of a comparison: a system, its answers to rows, its confidence scale, and its collected responses.

TODO
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from insource.backends.pricing import TokenPrice
from insource.config.schema.compare import Baseline
from insource.stats.calibration import Platt

SystemKind = Literal["tuned", "base", "linear", "nearest", "closed", "file"]
ScoredPart = Literal["answer", "least certain field"]


@dataclass(frozen=True)
class System:
    """One thing that answers."""

    name: str
    kind: SystemKind
    title: str
    """As reports show it."""
    which: str | None = None
    """tuned: the exported form, adapter, merged or quantized/<scheme>."""
    shots: int = 0
    baseline: Baseline | None = None
    left_out: tuple[str, ...] = ()
    """Parameters that its provider refused at the first request, and that are therefore not sent."""

    @property
    def stand_in(self) -> bool:
        """Returns whether it answers on this machine in the place of a provider, of whom it tells nothing."""
        return self.baseline is not None and self.baseline.loopback

    @property
    def on_tuned_scale(self) -> bool:
        """Returns whether the confidence scale of the tuned model, which was fitted without examples, is its own."""
        return self.kind == "tuned" and not self.shots


@dataclass(frozen=True)
class SkippedSystem:
    """A system of the recipe that cannot be asked, and why."""

    name: str
    title: str
    why: str
    incomplete: bool = False
    """Whether it was tried, and refused: the next comparison tries it again."""


@dataclass(frozen=True)
class SystemAnswer:
    """What a system said to a row, from wherever it came."""

    id: str
    output: str | None
    """None: there was no answer."""
    finish_reason: str = "stop"
    model_id: str = ""
    log_probability: float | None = None
    field_log_probability: float | None = None
    """Of the field of a record that the system was least sure of."""
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
    """Without an answer: whether the cause is of the moment (a rate limit, a time-out, a server's error)."""
    confidence: float | None = None
    """Where the system tells its own."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, where the system tells them."""
    not_asked: bool = False
    """Never put to the model: not sent, or refused for how it was asked. Such a row is no wrong answer; it makes the
    system INCOMPLETE."""


@dataclass(frozen=True)
class Scale:
    """How log-probabilities become confidences, and what the validation rows that this was fitted on have on it."""

    platt: Platt | None
    """None: these answers are all right or all wrong, and probabilities are taken as they are."""
    part: ScoredPart
    """Whose probability it is."""
    confidences: Sequence[float] = ()
    """Of validation rows."""
    right: Sequence[float] = ()

    def json(self) -> dict[str, Any]:
        """Returns what routing.json says of it, so that whoever serves computes the same confidence."""
        slope, intercept = (self.platt.slope, self.platt.intercept) if self.platt else (None, None)
        return {"of": self.part, "slope": slope, "intercept": intercept}


@dataclass(frozen=True)
class SystemResponses:
    """What a system answered."""

    system: System
    test: Sequence[SystemAnswer]
    """Of all test rows in their order, or of those that the system was asked."""
    calibration: Sequence[SystemAnswer] = ()
    """Of all calibration rows in their order; none where the system was not asked, or not all of them."""
    why_not_calibration: str | None = None
    """Why not all calibration rows were asked that were to be."""
    again: Sequence[SystemAnswer] = ()
    """Answers to the first rows of the test set, asked a second time."""
    complete: bool = True
    why_incomplete: str | None = None
    reused: int = 0
    retries: int = 0
    spent_usd: float | None = None
    concurrency: int | None = None
    rate: Mapping[str, Any] | None = None
    """What the server did a second: requests_per_second, tokens_per_second, concurrency, hardware, n, measured."""
    parity: Mapping[str, Any] | None = None
    """How what was served answered the validation rows, against the trained weights: n, prompt_ids_equal, agreement
    (None for other weights), difference, ci_low, ci_high."""
    price: TokenPrice | None = None
    shutdown_date: str | None = None
    """The day, ISO 8601, when the provider will shut the model down, where it says so."""
    scale: Scale | None = None
    """Of its own probabilities, fitted on validation rows, where a provider was asked those."""
    notes: Sequence[str] = ()
    """What was done otherwise than one would expect."""
