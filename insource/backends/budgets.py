"""The spend cap: the upper bound of a call's cost is reserved before it, and its real cost is charged after it.

Budget(limit_usd=5, spent_usd=1.2)    shared by all systems of a comparison
SystemBudget(budget, price)           of one system: reserves before every attempt (insource/backends/client.py)
estimate_cost(row_requests, price)    Estimate(requests=3080, upper_usd=4.1, expected_usd=0.6), before any request

Upper bound of a call's cost: its input tokens, which are unknown until the provider counts them, plus max_tokens of
output. No tokenizer in use makes more tokens of a text than it has bytes, so the byte count is the first bound. Once
MIN_OBSERVATIONS responses report their tokens, the bound is the largest observed tokens per byte, times SAFETY_FACTOR.
"""

import asyncio
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from insource.backends.types import Completion, Request, RowRequest, Usage

# Tokens that a chat template adds, and that a provider adds around a schema.
TEMPLATE_OVERHEAD_TOKENS, SCHEMA_OVERHEAD_TOKENS = 64, 512
MIN_OBSERVATIONS = 20
SAFETY_FACTOR = 1.5
# Only for the expected cost: English text, and answers where the limit is four times the longest known one.
BYTES_PER_TOKEN = 4.0
EXPECTED_OUTPUT_FRACTION = 0.25
# Fraction of the thinking tokens. A guess: no provider publishes how much a model thinks about a short question.
EXPECTED_THINKING_FRACTION = 0.05


class Pricing(Protocol):
    """The price of a model (insource/backends/pricing.py)."""

    def usd(self, usage: Usage, batch: bool = False) -> float:
        """Return the cost of a request in USD."""

    def max_usd(self, input_tokens: int, max_output_tokens: int, batch: bool = False) -> float:
        """Return the upper bound of a request's cost in USD."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of requests."""

    requests: int
    upper_usd: float
    """Upper bound of the cost with one attempt each."""
    expected_usd: float
    """Cost at usual token and answer lengths."""


class Budget:
    """The limit and the spending so far, in USD. Not thread-safe: systems are queried one after the other."""

    def __init__(self, limit_usd: float, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self._reserved_usd = 0.0

    def reserve(self, usd: float, force: bool = False) -> bool:
        """Reserve an amount. Return False if less is left, unless `force` is set."""
        if usd > self.remaining_usd and not force:
            return False
        self._reserved_usd += usd
        return True

    def release(self, usd: float, spent_usd: float) -> None:
        """Replace a reserved amount with the amount that was spent."""
        self._reserved_usd = max(0.0, self._reserved_usd - usd)
        self.spent_usd += spent_usd

    @property
    def remaining_usd(self) -> float:
        """The amount that is neither spent nor reserved."""
        return self.limit_usd - self.spent_usd - self._reserved_usd


class TokenEstimator:
    """An upper bound of a request's input tokens, tighter with every response that reports its tokens."""

    def __init__(self) -> None:
        self._n_observed = 0
        self._max_tokens_per_byte = 0.0

    def max_input_tokens(self, request: Request) -> int:
        """Return a number of input tokens that the request will not exceed."""
        observed = SAFETY_FACTOR * self._max_tokens_per_byte
        density = observed if self._n_observed >= MIN_OBSERVATIONS else max(1.0, observed)
        overhead_tokens = TEMPLATE_OVERHEAD_TOKENS + (
            SCHEMA_OVERHEAD_TOKENS if request.constraint.json_schema is not None else 0
        )
        return math.ceil(density * count_input_bytes(request)) + overhead_tokens

    def observe(self, request: Request, usage: Usage) -> None:
        """Record the input tokens of a response."""
        if usage.input_tokens is not None:
            self._n_observed += 1
            self._max_tokens_per_byte = max(self._max_tokens_per_byte, usage.input_tokens / count_input_bytes(request))


class SystemBudget:
    """The share of one system in a budget (None: no limit), and its spending. Requests differ in their id.

    The upper bound counts as spent if the provider does not report the tokens of a response. So it does if an attempt
    without a response may have been charged: a timeout, a broken connection, an unreadable response.
    """

    def __init__(self, budget: Budget | None, price: Pricing, batch: bool = False) -> None:
        self.spent_usd = 0.0
        self.exhausted = False
        """Whether an attempt was refused while nothing in flight could release budget."""
        self.possibly_charged_usd: dict[str, float] = {}
        """Possible charges that are not confirmed, in USD, by request id."""
        self._budget, self._price, self._batch = budget, price, batch
        self._estimator = TokenEstimator()
        self._reserved_usd: dict[str, float] = {}
        self._settled = asyncio.Event()

    async def reserve(self, request: Request) -> bool:
        """Return whether an attempt may be made; wait for attempts in flight that may release enough."""
        while not self.exhausted:
            if self.reserve_now(request):
                return True
            if not self._reserved_usd:
                self.exhausted = True
            else:
                self._settled.clear()
                await self._settled.wait()
        return False

    def reserve_now(self, request: Request, force: bool = False) -> bool:
        """Reserve the upper bound of a request's cost. Return False if less is left.

        `force` reserves it in any case, for a request that was sent before.
        """
        max_usd = self.max_usd(request)
        if self._budget is not None and not self._budget.reserve(max_usd, force):
            return False
        self._reserved_usd[request.id] = max_usd
        return True

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Replace the amount reserved for an attempt with its real cost."""
        max_usd, spent_usd = self._reserved_usd.pop(request.id), 0.0
        if completion is not None:
            self._estimator.observe(request, completion.usage)
            usd = self.usd(completion)
            spent_usd, possibly_charged = (max_usd, True) if usd is None else (usd, False)
        elif possibly_charged:
            spent_usd = max_usd
        if possibly_charged:
            self.possibly_charged_usd[request.id] = self.possibly_charged_usd.get(request.id, 0.0) + max_usd
        self.spent_usd += spent_usd
        if self._budget is not None:
            self._budget.release(max_usd, spent_usd)
        self._settled.set()

    def usd(self, completion: Completion) -> float | None:
        """Return the cost of a response in USD, None if its tokens are unknown."""
        if completion.usage.input_tokens is None or completion.usage.output_tokens is None:
            return None
        return self._price.usd(completion.usage, batch=self._batch)

    def max_usd(self, request: Request) -> float:
        """Return the upper bound of an attempt's cost in USD."""
        tokens = self._estimator.max_input_tokens(request)
        return self._price.max_usd(tokens, request.max_tokens, batch=self._batch)

    def charge(self, usd: float) -> None:
        """Charge a cost for which nothing was reserved."""
        self.spent_usd += usd
        if self._budget is not None:
            self._budget.release(0.0, usd)


def estimate_cost(row_requests: Iterable[RowRequest], price: Pricing, batch: bool = False) -> Estimate:
    """Return the estimated cost of requests without a cached response (`collection.list_pending_requests`)."""
    estimator, n_requests, upper_usd, expected_usd = TokenEstimator(), 0, 0.0, 0.0
    for row_request in row_requests:
        request = row_request.request
        expected_usage = Usage(
            input_tokens=round(count_input_bytes(request) / BYTES_PER_TOKEN) + TEMPLATE_OVERHEAD_TOKENS,
            output_tokens=round(
                (request.max_tokens - request.thinking_tokens) * EXPECTED_OUTPUT_FRACTION
                + request.thinking_tokens * EXPECTED_THINKING_FRACTION
            ),
        )
        n_requests += 1
        upper_usd += price.max_usd(estimator.max_input_tokens(request), request.max_tokens, batch=batch)
        expected_usd += price.usd(expected_usage, batch=batch)
    return Estimate(n_requests, upper_usd, expected_usd)


def count_input_bytes(request: Request) -> int:
    """Return the length of a request's input as JSON, in bytes: a little more than its text."""
    payload: Any = [[dict(message) for message in request.messages], request.constraint.json_schema]
    if request.choices is not None:
        payload = asdict(request.choices)
    return len(json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass"))
