"""The spend cap: what calls may cost is set aside before each of them, and what they did cost is taken off after it.

Budget(limit_usd=5, spent_usd=1.2)    shared by all systems of a comparison
Purse(budget, price)                  of one system: asked before every attempt (insource/backends/client.py)
estimate(questions, price)            Estimate(requests=3080, upper_usd=4.1, expected_usd=0.6), before anything is asked

The most that a call can cost: its input, of which nobody knows the tokens before it is read, and max_tokens of output.
No tokenizer in use makes more tokens of a text than it has bytes, so that many are reckoned at first; once some
answers have told their real number, half more than the densest of them.
"""

import asyncio
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from insource.backends.types import Completion, Request, RowRequest, Usage

# What a chat template, and what a provider writes around a schema, adds to the text.
TEMPLATE_OVERHEAD_TOKENS, SCHEMA_OVERHEAD_TOKENS = 64, 512
MIN_OBSERVATIONS = 20
SAFETY_FACTOR = 1.5
# For the expected cost alone: of English text, and of answers where the limit is four times the longest known one.
BYTES_PER_TOKEN = 4.0
EXPECTED_OUTPUT_FRACTION = 0.25
# Of the room for thinking. A guess: no provider publishes how much a model thinks about a short question.
EXPECTED_THINKING_FRACTION = 0.05


class Pricing(Protocol):
    """What a model takes (insource/backends/pricing.py)."""

    def usd(self, usage: Usage, batch: bool = False) -> float:
        """Returns what a request cost."""

    def most_usd(self, input_tokens: int, max_output_tokens: int, batch: bool = False) -> float:
        """Returns the most that a request can cost."""


@dataclass(frozen=True)
class Estimate:
    """What requests may cost."""

    requests: int
    upper_usd: float
    """They cannot cost more, each asked once."""
    expected_usd: float
    """By the usual length of tokens and answers."""


class Budget:
    """What may be spent and what was. One thread: systems are asked one after the other."""

    def __init__(self, limit_usd: float, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self._set_aside = 0.0

    def take(self, usd: float, force: bool = False) -> bool:
        """Returns whether so much is left, and sets it aside; `force`: also where it is not left."""
        if usd > self.left_usd and not force:
            return False
        self._set_aside += usd
        return True

    def give_back(self, usd: float, spent_usd: float) -> None:
        """Replaces what was set aside by what was spent of it."""
        self._set_aside = max(0.0, self._set_aside - usd)
        self.spent_usd += spent_usd

    @property
    def left_usd(self) -> float:
        """Returns what is neither spent nor set aside."""
        return self.limit_usd - self.spent_usd - self._set_aside


class TokenEstimator:
    """How many tokens the input of a request may have, the better known the more answers told theirs."""

    def __init__(self) -> None:
        self._seen = 0
        self._densest = 0.0

    def most_tokens(self, request: Request) -> int:
        """Returns a number of input tokens that the request will not exceed."""
        observed = SAFETY_FACTOR * self._densest
        density = observed if self._seen >= MIN_OBSERVATIONS else max(1.0, observed)
        overhead_tokens = TEMPLATE_OVERHEAD_TOKENS + (
            SCHEMA_OVERHEAD_TOKENS if request.constraint.json_schema is not None else 0
        )
        return math.ceil(density * count_input_bytes(request)) + overhead_tokens

    def learn(self, request: Request, usage: Usage) -> None:
        """Takes what an answer told of its input."""
        if usage.input_tokens is not None:
            self._seen += 1
            self._densest = max(self._densest, usage.input_tokens / count_input_bytes(request))


class SystemBudget:
    """What one system may spend of a budget (None: as much as it likes), and what it did. Requests differ in their id.

    Where the provider does not tell the tokens of an answer, and where an attempt brought nothing but may have been
    paid for (no answer in time, cut off, unreadable), the most that it can have cost is taken as spent.
    """

    def __init__(self, budget: Budget | None, price: Pricing, batch: bool = False) -> None:
        self.spent_usd = 0.0
        self.empty = False
        """Whether an attempt was refused, with nothing on its way that could give something back."""
        self.unsure_usd: dict[str, float] = {}
        """Of each request, what may have been paid without being known."""
        self._budget, self._price, self._batch = budget, price, batch
        self._reckoning = TokenEstimator()
        self._set_aside: dict[str, float] = {}
        self._settled = asyncio.Event()

    async def reserve(self, request: Request) -> bool:
        """Returns whether an attempt may be made; waits for those on their way where they may leave enough."""
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
        """Returns whether the most that a request can cost is left, and sets it aside; `force`: also where it is not
        left, because it was sent before."""
        max_usd = self.most_usd(request)
        if self._budget is not None and not self._budget.take(max_usd, force):
            return False
        self._set_aside[request.id] = max_usd
        return True

    def settle(self, request: Request, completion: Completion | None, possibly_charged: bool) -> None:
        """Replaces what was set aside for an attempt by what it cost."""
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
        """Returns what an answer cost, None where its tokens are not told."""
        if completion.usage.input_tokens is None or completion.usage.output_tokens is None:
            return None
        return self._price.usd(completion.usage, batch=self._batch)

    def most_usd(self, request: Request) -> float:
        """Returns the most that an attempt can cost."""
        tokens = self._reckoning.most_tokens(request)
        return self._price.most_usd(tokens, request.max_tokens, batch=self._batch)

    def pay(self, usd: float) -> None:
        """Takes a cost for which nothing was set aside."""
        self.spent_usd += usd
        if self._budget is not None:
            self._budget.give_back(0.0, usd)


def estimate_cost(questions: Iterable[RowRequest], price: Pricing, batch: bool = False) -> Estimate:
    """Returns what questions may cost that have no answer yet (`answers.missing`)."""
    estimator, n_requests, upper_usd, expected_usd = TokenEstimator(), 0, 0.0, 0.0
    for question in questions:
        request = question.request
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
    """Returns the length of what the provider reads of a request, as JSON: a little longer than the text in it."""
    payload: Any = [[dict(message) for message in request.messages], request.constraint.json_schema]
    if request.choices is not None:
        payload = asdict(request.choices)
    return len(json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass"))
