"""What is asked of a model, and what came back.

Request("T000017", [{"role": "user", "content": "Route ..."}], max_tokens=64, constraint=Constraint(grammar=...))
Reply("T000017", output="delivery_delay", model_id="classifier", log_probability=-0.03, input_tokens=231,
      output_tokens=5, cached_tokens=208, latency_seconds=0.041, attempt_latencies_seconds=(0.041,), error=None)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from insource.config.hosts import is_loopback, parse_host

Messages = Sequence[Mapping[str, str]]
ApiFormat = Literal["openai", "anthropic", "decisions", "systemone"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
StructuredOutput = Literal["grammar", "json_schema", "none"]
Cloud = Literal["azure", "bedrock", "vertex"]
ResponseHook = Callable[[int, Mapping[str, str]], None]
"""Takes the status and the headers of a response."""
DUMMY_API_KEY = "none"


@dataclass(frozen=True)
class Backend:
    """A model that answers, and how it is reached."""

    wire: ApiFormat
    model: str
    """As the provider calls it."""
    base_url: str | None = None
    """None: the provider's own address, as its SDK knows it."""
    api_key: str = field(default=DUMMY_API_KEY, repr=False)
    structured: StructuredOutput = "none"
    """How the output constraint is sent: as a grammar (vLLM), as a JSON Schema (all of them), or not at all."""
    log_probabilities: bool = False
    temperature: float | None = 0.0
    """0 is the rule for servers of our own. None: not sent, the rule for closed models."""
    effort: Effort | None = None
    """How much the model is to think; none: not at all. None: not sent, the provider's default holds."""
    closed: bool = False
    """Whether it is a provider's, of which nothing is assumed that the table of model families does not state."""
    left_out: tuple[str, ...] = ()
    """Parameters that the provider refused by name, which are therefore not sent."""
    timeout_seconds: float = 60.0
    """Of one attempt."""
    retries: int = 4
    """Attempts after the first."""
    longest_wait_seconds: float = 60.0
    """A server that asks for a longer wait (Retry-After) is not asked again."""
    concurrency: int = 16
    """Requests on their way at the same time, at most: fewer while the provider says that it is too much."""
    direct: bool = False
    """Whether no proxy may stand between, since the data may leave to nobody else."""
    cloud: Cloud | None = None
    """A private cloud that serves the provider's models: azure on the wire of OpenAI, the others on Anthropic's."""

    @property
    def transport(self) -> dict[str, Any]:
        """Returns what the SDK's HTTP client is told: a redirect is not followed, since it could lead to a host that
        the data may not reach. Nor does a request go through a proxy that the environment names to a server on this
        machine, over plain http, where the proxy would read prompt and key, and where the data may not leave."""
        is_http = (self.base_url or "").startswith("http://")
        bypass_proxy = self.direct or is_http or is_loopback(parse_host(self.base_url))
        options = {"timeout": self.timeout_seconds, "follow_redirects": False, "trust_env": not bypass_proxy}
        # Anthropic's client (2.12) mounts the proxies of the environment by itself, whatever trust_env says.
        return options | ({"mounts": dict.fromkeys(("all://", "http://", "https://"))} if bypass_proxy else {})


@dataclass(frozen=True)
class Constraint:
    """What an answer must fit: an EBNF grammar as xgrammar and vLLM read it, and a JSON Schema that says the same."""

    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with fixed answers, for endpoints that decide instead of writing."""

    instruction: str
    labels: Sequence[tuple[str, str]]
    """Each with what it means, "" where that is not said."""
    text: str
    """Of the row."""


@dataclass(frozen=True)
class Request:
    """One question."""

    id: str
    messages: Messages
    max_tokens: int
    constraint: Constraint = Constraint()
    thinking_tokens: int = 0
    """Of max_tokens, the room that is left for thinking."""
    choices: ChoiceQuestion | None = None
    """In the place of messages and constraint, where the wire takes those."""


@dataclass(frozen=True)
class RowRequest:
    """What one system is asked of one row."""

    id: str
    """Of the row."""
    repeat: int
    """0, and 1 where the same is asked a second time to see whether the answer varies."""
    request: Request


@dataclass(frozen=True)
class Usage:
    """Tokens as the provider counts them; None where it does not tell."""

    input_tokens: int | None = None
    """All that was read, cached ones included."""
    output_tokens: int | None = None
    """All that was written, reasoning included."""
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Completion:
    """What one attempt brought."""

    output: str
    model_id: str
    """The model as the answer names it: often more precise than what was asked for."""
    usage: Usage
    finish_reason: str
    """stop, length, refusal, or what else the provider says."""
    log_probability: float | None = None
    """Of the whole answer, natural logarithm; None where the provider does not tell."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, from endpoints that decide instead of writing."""
    field_log_probability: float | None = None
    """Of the field of an answered record that the model was least sure of
    (insource/tasks/records/field_confidence.py)."""


@dataclass(frozen=True)
class RequestResult:
    """What became of a request after its last attempt; `received` is None where none of them was answered."""

    id: str
    request_sha256: str
    received: Completion | None
    error: str | None
    """What went wrong at the last attempt; None where there is an answer."""
    latency_seconds: float
    """From the first attempt to the end of the last, waits between them included."""
    attempt_latencies_seconds: tuple[float, ...]
    """One for each attempt; none where the request was never sent."""
    again: bool = False
    """Without an answer: whether the cause may have gone another day. False where it lies in the question itself."""
    refused: bool = False
    """Whether it was refused for how it was asked, which says nothing of the model."""


class SpendLimiter(Protocol):
    """Who says whether an attempt may be paid for, and keeps what it cost. Requests differ in their id."""

    async def reserve(self, request: Request) -> bool:
        """Returns whether the attempt may be made; the most that it can cost is then set aside."""

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Takes what an attempt brought. `possibly_charged`: it brought nothing, and may have been paid for all the
        same."""
