"""Token prices of API models: from the recipe, or from genai-prices, offline.

lookup_price(Baseline(provider="openai", model="gpt-6-luna"))
TokenPrice(input_usd_per_million=0.1, output_usd_per_million=0.5, cached_input_usd_per_million=0.01,
           batch_input_usd_per_million=0.05, batch_output_usd_per_million=0.25, source="genai-prices 0.2.3", date=None,
           note="openai/gpt-6-luna on 2026-11-20; prompts up to 272,000 tokens, longer ones 0.2 in and 0.75 out", ...)

The price list has no date of its own; its version dates it. `note` has the day of the lookup.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, NamedTuple

from insource.backends.types import Usage
from insource.config.providers import PROVIDERS
from insource.config.schema.compare import Baseline, Price

# Not service_tier: with that key the list returns the full price without an error.
BATCH_CONTEXT = {"processing": "batch"}
MILLION = 1_000_000


class TokenRates(NamedTuple):
    """USD a token."""

    input: float
    cached_input: float
    output: float


@dataclass(frozen=True)
class TokenPrice:
    """The price of one model. None means that no such price is known."""

    input_usd_per_million: float
    output_usd_per_million: float
    """Reasoning tokens included."""
    cached_input_usd_per_million: float | None
    batch_input_usd_per_million: float | None
    batch_output_usd_per_million: float | None
    source: str
    """genai-prices with its version, or recipe."""
    date: str | None
    """The day of the price, as the recipe gives it."""
    batch_cached_input_usd_per_million: float | None = None
    cache_write_factor: float = 1.0
    """Price of a token that is written to the provider's cache, in input tokens."""
    usd_per_request: float = 0.0
    """Price of a request besides its tokens."""
    note: str | None = None
    """The model's name in the list, the day of the lookup, and which of several prices this is."""
    max_input_tokens: int | None = None
    """Longer prompts have the price `next_tier`. None: this price is for any length."""
    next_tier: "TokenPrice | None" = None

    def usd(self, usage: Usage, batch: bool = False) -> float:
        """Return the cost of a request in USD.

        Tokens that the provider did not count cost 0 here; a budget takes `max_usd` for them.
        """
        input_tokens, output_tokens = usage.input_tokens or 0, usage.output_tokens or 0
        cached_tokens = min(usage.cached_tokens or 0, input_tokens)
        price = self.for_prompt_length(input_tokens)
        rates = price.rates(batch)
        tokens_usd = (
            (input_tokens - cached_tokens) * rates.input
            + cached_tokens * rates.cached_input
            + output_tokens * rates.output
        )
        return tokens_usd + price.usd_per_request

    def max_usd(self, input_tokens: int, max_output_tokens: int, batch: bool = False) -> float:
        """Return the upper bound of a request's cost in USD: no input read from the cache, all of it written there."""
        price = self.for_prompt_length(input_tokens)
        rates = price.rates(batch)
        input_usd = input_tokens * rates.input * price.cache_write_factor
        return input_usd + max_output_tokens * rates.output + price.usd_per_request

    def for_prompt_length(self, input_tokens: int) -> "TokenPrice":
        """Return the price for a prompt length.

        A long prompt costs more for every token, not only for the last ones.
        """
        if self.next_tier is None or self.max_input_tokens is None or input_tokens <= self.max_input_tokens:
            return self
        return self.next_tier.for_prompt_length(input_tokens)

    def rates(self, batch: bool = False) -> TokenRates:
        """Return the rates in USD a token.

        A batch without a batch price has the list price. Cached input without a price of its own costs as much as other
        input.
        """
        input_price, cached_price = self.input_usd_per_million, self.cached_input_usd_per_million
        output_price = self.output_usd_per_million
        if batch and self.batch_input_usd_per_million is not None and self.batch_output_usd_per_million is not None:
            input_price, cached_price = self.batch_input_usd_per_million, self.batch_cached_input_usd_per_million
            output_price = self.batch_output_usd_per_million
        return TokenRates(
            input_price / MILLION,
            (input_price if cached_price is None else cached_price) / MILLION,
            output_price / MILLION,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the price as scores.json has it."""
        return {
            "input_usd_per_million": self.input_usd_per_million,
            "output_usd_per_million": self.output_usd_per_million,
            "cached_input_usd_per_million": self.cached_input_usd_per_million,
            "batch_input_usd_per_million": self.batch_input_usd_per_million,
            "batch_output_usd_per_million": self.batch_output_usd_per_million,
            "source": self.source,
            "date": self.date,
            "note": self.note,
        }


def lookup_price(baseline: Baseline, moment: datetime | None = None) -> TokenPrice | None:
    """Return the price of an API model, None if it is unknown.

    Unknown without a price in the recipe are: models, providers and addresses that the list lacks, local stand-ins, and
    answers from a file. `moment` is the day of the lookup, by default today. genai-prices 0.2.3 lists the price of chat
    completions, and none of OpenAI's decisions: they need a price in the recipe.
    """
    if baseline.price is not None:
        return price_from_recipe(baseline.price)
    if baseline.model is None or baseline.is_loopback or baseline.api == "decisions":
        return None
    provider = PROVIDERS[baseline.provider]
    if baseline.base_url is not None and provider.address != "resource":
        provider_args = {"provider_api_url": baseline.base_url}
        return price_from_list(baseline.model, provider_args, moment, has_output=not baseline.uses_decision_api)
    if provider.genai_prices_id is None:
        return None
    return price_from_list(baseline.model, {"provider_id": provider.genai_prices_id}, moment)


def find_unknown_prices(baselines: Iterable[Baseline]) -> list[str]:
    """Return a message for each API model without a known price, for which compare.budget_usd could not be enforced.

    A local stand-in needs no price.
    """
    return [
        f"compare.baselines: the price of {baseline.display_name} is unknown, so compare.budget_usd cannot be "
        "enforced; set its price: {input_usd_per_million: ..., output_usd_per_million: ...}"
        for baseline in baselines
        if not baseline.is_loopback and lookup_price(baseline) is None
    ]


def price_from_recipe(price: Price) -> TokenPrice:
    """Return the price that a recipe gives. A batch discount applies to all rates."""
    batch_factor, cached_price = 1 - price.batch_discount, price.cached_input_usd_per_million
    has_batch_price = price.batch_discount > 0
    return TokenPrice(
        input_usd_per_million=price.input_usd_per_million,
        output_usd_per_million=price.output_usd_per_million,
        cached_input_usd_per_million=cached_price,
        batch_input_usd_per_million=batch_factor * price.input_usd_per_million if has_batch_price else None,
        batch_output_usd_per_million=batch_factor * price.output_usd_per_million if has_batch_price else None,
        batch_cached_input_usd_per_million=(
            batch_factor * cached_price if has_batch_price and cached_price is not None else None
        ),
        source="recipe",
        date=price.date,
    )


def price_from_list(
    model: str, provider_args: Mapping[str, str], moment: datetime | None = None, has_output: bool = True
) -> TokenPrice | None:
    """Return the price in genai-prices, None if it has none.

    Of a price that changes with the time of day, the highest is taken, because a budget must hold at any hour.
    `has_output` is False for a model that decides instead of generating text; it is listed without an output price.
    """
    from genai_prices import Usage as GenaiUsage
    from genai_prices import calc_price

    now = (moment or datetime.now(UTC)).astimezone(UTC)
    try:
        calculation = calc_price(
            GenaiUsage(input_tokens=1, output_tokens=1), model, genai_request_timestamp=now, **provider_args
        )
    except LookupError:
        return None
    if calculation.model_price.input_mtok is None or (has_output and calculation.model_price.output_mtok is None):
        return None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    day_prices = {_build_price(calculation, midnight + timedelta(minutes=minutes)) for minutes in range(0, 24 * 60, 30)}
    highest = max(day_prices, key=lambda price: price.input_usd_per_million + price.output_usd_per_million)
    note = f"{calculation.provider.id}/{calculation.model.id} on {now:%Y-%m-%d}"
    if calculation.model_price.output_mtok is None:
        note += "; no price of output is listed"
    if len(day_prices) > 1:
        note += "; at the dearest time of the day"
    if highest.next_tier is not None:
        next_tier = highest.next_tier
        note += (
            f"; prompts up to {highest.max_input_tokens:,} tokens, longer ones "
            f"{next_tier.input_usd_per_million:g} in and {next_tier.output_usd_per_million:g} out"
        )
    return replace(highest, note=note)


def _build_price(calculation: Any, moment: datetime) -> TokenPrice:
    """Return the price of the shortest prompts, linked to the tiers of longer ones."""
    from genai_prices.types import TieredPrices

    prices = [
        tiered for tiered in vars(calculation.model.get_prices(moment)).values() if isinstance(tiered, TieredPrices)
    ]
    return _build_tiers(calculation, moment, sorted({0, *(tier.start for tiered in prices for tier in tiered.tiers)}))


def _build_tiers(calculation: Any, moment: datetime, starts: Sequence[int]) -> TokenPrice:
    start, *later = starts
    next_tier = _build_tiers(calculation, moment, later) if later else None
    return _build_tier(calculation, moment, start + 1, later[0] if later else None, next_tier)


def _build_tier(
    calculation: Any, moment: datetime, prompt_tokens: int, end: int | None, next_tier: TokenPrice | None
) -> TokenPrice:
    """Return the price of prompts of this length.

    It is computed for a request of exactly that length, because the list charges a complete request by the length of
    its prompt: a request of a million tokens would get the price of long prompts.
    """
    from genai_prices import Usage as GenaiUsage

    def calculate(context: Mapping[str, str] | None, **usage: int) -> Any:
        if calculation.model_price.output_mtok is None:
            usage.pop("output_tokens", None)
        request = GenaiUsage(input_tokens=prompt_tokens, **usage)
        return calculation.model.calc_price(
            request, calculation.provider, genai_request_timestamp=moment, price_context=context
        )

    def per_million(price: Any) -> float:
        return float(price * MILLION / prompt_tokens)

    plain, batch = calculate(None, output_tokens=1), calculate(BATCH_CONTEXT, output_tokens=1)
    cache_read = calculate(None, cache_read_tokens=prompt_tokens)
    cache_write = calculate(None, cache_write_tokens=prompt_tokens)
    # A model without batch support is listed with the same price for batches.
    has_cache, has_batch = plain.model_price.cache_read_mtok is not None, batch.model_price != plain.model_price
    batch_cache_read = calculate(BATCH_CONTEXT, cache_read_tokens=prompt_tokens) if has_cache and has_batch else None
    return TokenPrice(
        input_usd_per_million=per_million(plain.input_price),
        output_usd_per_million=float(plain.output_price * MILLION),
        cached_input_usd_per_million=per_million(cache_read.input_price) if has_cache else None,
        batch_input_usd_per_million=per_million(batch.input_price) if has_batch else None,
        batch_output_usd_per_million=float(batch.output_price * MILLION) if has_batch else None,
        batch_cached_input_usd_per_million=per_million(batch_cache_read.input_price) if batch_cache_read else None,
        cache_write_factor=max(1.0, float(cache_write.input_price / plain.input_price)) if plain.input_price else 1.0,
        usd_per_request=float(plain.total_price - plain.input_price - plain.output_price),
        source=f"genai-prices {version('genai-prices')}",
        date=None,
        max_input_tokens=end,
        next_tier=next_tier,
    )
