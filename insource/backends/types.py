"""Requests to a model, and their results.

Request("T000017", [{"role": "user", "content": "Route ..."}], max_tokens=64, constraint=Constraint(grammar=...))
RequestResult("T000017", request_sha256="9f2c...", completion=Completion("delivery_delay", "classifier",
              Usage(231, 5, cached_tokens=208), "stop", log_probability=-0.03), error=None, latency_seconds=0.041,
              attempt_latencies_seconds=(0.041,))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from insource.config.hosts import is_loopback, parse_host
from insource.config.providers import ChatFormat, Cloud, DecisionFormat

Messages = Sequence[Mapping[str, str]]
ApiFormat = Literal[ChatFormat, DecisionFormat]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
StructuredOutput = Literal["grammar", "json_schema", "none"]
ResponseHook = Callable[[int, Mapping[str, str]], None]
"""Gets the status and the headers of a response."""
DUMMY_API_KEY = "none"


@dataclass(frozen=True)
class Backend:
    """A model and the settings for requests to it."""

    api_format: ApiFormat
    model: str
    """The provider's name of the model."""
    base_url: str | None = None
    """None: the provider's own address, as its SDK has it."""
    api_key: str = field(default=DUMMY_API_KEY, repr=False)
    structured: StructuredOutput = "none"
    """How the output constraint is sent: as a grammar (vLLM), as a JSON Schema (all APIs), or not at all."""
    log_probabilities: bool = False
    temperature: float | None = 0.0
    """0 by default for local servers. None: not sent, the default for API models."""
    effort: Effort | None = None
    """Reasoning effort; none turns thinking off. None: not sent, the provider's default applies."""
    is_provider_api: bool = False
    """Whether it is a provider's API, for which only facts in the table of model families are assumed."""
    omitted_parameters: tuple[str, ...] = ()
    """Parameters that the provider rejected by name, which are not sent."""
    timeout_seconds: float = 60.0
    """For one attempt."""
    retries: int = 4
    """Attempts after the first."""
    max_retry_wait_seconds: float = 60.0
    """A request is not retried if the server requests a longer wait (Retry-After)."""
    concurrency: int = 16
    """Maximum of concurrent requests; fewer while the provider rejects requests for overload."""
    bypass_proxy: bool = False
    """Whether to bypass any proxy, because the data must reach no other host."""
    cloud: Cloud | None = None
    """A private cloud that serves the provider's models: azure with OpenAI's API format, the others with
    Anthropic's."""

    @property
    def http_client_options(self) -> dict[str, Any]:
        """The options of the SDK's HTTP client.

        Redirects are not followed: one could lead to a host that the data must not reach. Proxies of the environment
        are bypassed for local servers, over plain http (a proxy would read prompt and key), and if the data must not
        leave.
        """
        is_http = (self.base_url or "").startswith("http://")
        bypass_proxy = self.bypass_proxy or is_http or is_loopback(parse_host(self.base_url))
        options = {"timeout": self.timeout_seconds, "follow_redirects": False, "trust_env": not bypass_proxy}
        # Anthropic's client (2.12) mounts the environment's proxies itself, regardless of trust_env.
        return options | ({"mounts": dict.fromkeys(("all://", "http://", "https://"))} if bypass_proxy else {})


@dataclass(frozen=True)
class Constraint:
    """The constraint of an answer: an EBNF grammar for xgrammar and vLLM, and an equivalent JSON Schema."""

    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with fixed answers, for endpoints that decide instead of generating text."""

    instruction: str
    labels: Sequence[tuple[str, str]]
    """Each with its description, "" if it has none."""
    text: str
    """The row's input."""


@dataclass(frozen=True)
class Request:
    """One request to a model."""

    id: str
    messages: Messages
    max_tokens: int
    constraint: Constraint = Constraint()
    thinking_tokens: int = 0
    """The part of max_tokens that is reserved for thinking."""
    choices: ChoiceQuestion | None = None
    """Replaces messages and constraint in API formats that take choice questions."""


@dataclass(frozen=True)
class RowRequest:
    """A request to one system for one row."""

    id: str
    """The row's id."""
    repeat: int
    """0, or 1 for a second identical request that measures whether the answer varies."""
    request: Request


@dataclass(frozen=True)
class Usage:
    """Token counts of the provider; None where it reports none."""

    input_tokens: int | None = None
    """All input tokens, cached ones included."""
    output_tokens: int | None = None
    """All output tokens, reasoning included."""
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Completion:
    """A parsed response."""

    output: str
    model_id: str
    """The model name in the response: often more precise than the requested one."""
    usage: Usage
    finish_reason: str
    """stop, length, refusal, or another value of the provider."""
    log_probability: float | None = None
    """Of the complete answer, natural logarithm; None if the provider does not return it."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, from endpoints that decide instead of generating text."""
    field_log_probability: float | None = None
    """Of the least certain field of an extracted record (insource/tasks/records/field_confidence.py)."""


@dataclass(frozen=True)
class RequestResult:
    """The outcome of a request after its last attempt; `completion` is None if all attempts failed."""

    id: str
    request_sha256: str
    completion: Completion | None
    error: str | None
    """The error of the last attempt; None with a completion."""
    latency_seconds: float
    """From the first attempt to the end of the last, waits between them included."""
    attempt_latencies_seconds: tuple[float, ...]
    """One for each attempt; empty if the request was never sent."""
    retryable: bool = False
    """Without a completion: whether a later invocation may succeed. False if the row's input is the cause."""
    refused: bool = False
    """Whether it was refused because of its configuration, which is no result about the model."""


class SpendLimiter(Protocol):
    """Permits or denies paid attempts, and records their cost. Requests differ in their id."""

    async def reserve(self, request: Request) -> bool:
        """Return whether the attempt may be made; the upper bound of its cost is reserved then."""

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Record the outcome of an attempt. `possibly_charged`: no response, but the attempt may have been charged."""
