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

    def most_usd(self, input_tokens: int, max_output_tokens: int, batch: bool = False) -> float:
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
        self._set_aside = 0.0

    def take(self, usd: float, force: bool = False) -> bool:
        """Reserve an amount. Return False if less is left, unless `force` is set."""
        if usd > self.left_usd and not force:
            return False
        self._set_aside += usd
        return True

    def give_back(self, usd: float, spent_usd: float) -> None:
        """Replace a reserved amount with the amount that was spent."""
        self._set_aside = max(0.0, self._set_aside - usd)
        self.spent_usd += spent_usd

    @property
    def left_usd(self) -> float:
        """The amount that is neither spent nor reserved."""
        return self.limit_usd - self.spent_usd - self._set_aside


class TokenEstimator:
    """An upper bound of a request's input tokens, tighter with every response that reports its tokens."""

    def __init__(self) -> None:
        self._seen = 0
        self._densest = 0.0

    def most_tokens(self, request: Request) -> int:
        """Return a number of input tokens that the request will not exceed."""
        observed = SAFETY_FACTOR * self._densest
        density = observed if self._seen >= MIN_OBSERVATIONS else max(1.0, observed)
        overhead_tokens = TEMPLATE_OVERHEAD_TOKENS + (
            SCHEMA_OVERHEAD_TOKENS if request.constraint.json_schema is not None else 0
        )
        return math.ceil(density * count_input_bytes(request)) + overhead_tokens

    def learn(self, request: Request, usage: Usage) -> None:
        """Record the input tokens of a response."""
        if usage.input_tokens is not None:
            self._seen += 1
            self._densest = max(self._densest, usage.input_tokens / count_input_bytes(request))


class SystemBudget:
    """The share of one system in a budget (None: no limit), and its spending. Requests differ in their id.

    The upper bound counts as spent if the provider does not report the tokens of a response. So it does if an attempt
    without a response may have been charged: a timeout, a broken connection, an unreadable response.
    """

    def __init__(self, budget: Budget | None, price: Pricing, batch: bool = False) -> None:
        self.spent_usd = 0.0
        self.empty = False
        """Whether an attempt was refused while nothing in flight could release budget."""
        self.unsure_usd: dict[str, float] = {}
        """Possible charges that are not confirmed, in USD, by request id."""
        self._budget, self._price, self._batch = budget, price, batch
        self._reckoning = TokenEstimator()
        self._set_aside: dict[str, float] = {}
        self._settled = asyncio.Event()

    async def reserve(self, request: Request) -> bool:
        """Return whether an attempt may be made; wait for attempts in flight that may release enough."""
        while not self.empty:
            if self.set_aside(request):
                return True
            if not self._set_aside:
                self.empty = True
            else:
                self._settled.clear()
                await self._settled.wait()
        return False

    def set_aside(self, request: Request, force: bool = False) -> bool:
        """Reserve the upper bound of a request's cost. Return False if less is left.

        `force` reserves it in any case, for a request that was sent before.
        """
        max_usd = self.most_usd(request)
        if self._budget is not None and not self._budget.take(max_usd, force):
            return False
        self._set_aside[request.id] = max_usd
        return True

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Replace the amount reserved for an attempt with its real cost."""
        max_usd, spent_usd = self._set_aside.pop(request.id), 0.0
        if completion is not None:
            self._reckoning.learn(request, completion.usage)
            usd = self.usd(completion)
            spent_usd, possibly_charged = (max_usd, True) if usd is None else (usd, False)
        elif possibly_charged:
            spent_usd = max_usd
        if possibly_charged:
            self.unsure_usd[request.id] = self.unsure_usd.get(request.id, 0.0) + max_usd
        self.spent_usd += spent_usd
        if self._budget is not None:
            self._budget.give_back(max_usd, spent_usd)
        self._settled.set()

    def usd(self, completion: Completion) -> float | None:
        """Return the cost of a response in USD, None if its tokens are unknown."""
        if completion.usage.input_tokens is None or completion.usage.output_tokens is None:
            return None
        return self._price.usd(completion.usage, batch=self._batch)

    def most_usd(self, request: Request) -> float:
        """Return the upper bound of an attempt's cost in USD."""
        tokens = self._reckoning.most_tokens(request)
        return self._price.most_usd(tokens, request.max_tokens, batch=self._batch)

    def pay(self, usd: float) -> None:
        """Charge a cost for which nothing was reserved."""
        self.spent_usd += usd
        if self._budget is not None:
            self._budget.give_back(0.0, usd)


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
        upper_usd += price.most_usd(estimator.most_tokens(request), request.max_tokens, batch=batch)
        expected_usd += price.usd(expected_usage, batch=batch)
    return Estimate(n_requests, upper_usd, expected_usd)


def count_input_bytes(request: Request) -> int:
    """Return the length of a request's input as JSON, in bytes: a little more than its text."""
    payload: Any = [[dict(message) for message in request.messages], request.constraint.json_schema]
    if request.choices is not None:
        payload = asdict(request.choices)
    return len(json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass"))
