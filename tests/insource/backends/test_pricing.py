"""What a closed model costs: as the recipe says, as genai-prices lists it, or nobody knows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from genai_prices import Usage as Asked
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st

from insource.backends import pricing
from insource.backends.pricing import TokenPrice
from insource.backends.types import Usage
from insource.config.schema.compare import Baseline, Price

DAY = datetime(2026, 11, 20, 12, tzinfo=UTC)
LUNA = {"provider": "openai", "model": "gpt-6-luna"}
HAIKU = {"provider": "anthropic", "model": "claude-haiku-5-5"}
GIVEN = Price(
    input_usd_per_million=2.0,
    output_usd_per_million=6.0,
    cached_input_usd_per_million=0.5,
    batch_discount=0.5,
    date="2026-11-01",
)
SONAR = {"provider": "openai", "model": "sonar", "base_url": "https://api.perplexity.ai"}
LISTED = {"openai": LUNA, "anthropic": HAIKU}


def priced(**baseline: Any) -> TokenPrice:
    price = pricing.lookup_price(Baseline(**baseline), DAY)
    assert price is not None
    return price


@pytest.fixture(scope="module")
def list_prices() -> dict[str, TokenPrice]:
    return {provider: priced(**baseline) for provider, baseline in LISTED.items()}


@given(
    st.sampled_from(sorted(LISTED)),
    st.one_of(st.integers(0, 1_000_000), st.integers(99_990, 100_010), st.integers(271_990, 272_010)),
    st.floats(0, 1),
    st.integers(0, 50_000),
    st.booleans(),
)
def test_a_request_costs_what_the_list_itself_says(
    list_prices: dict[str, TokenPrice], provider: str, tokens: int, fraction: float, output: int, batch: bool
) -> None:
    cached = round(tokens * fraction)
    expected = calc_price(
        Asked(input_tokens=tokens, cache_read_tokens=cached, output_tokens=output),
        LISTED[provider]["model"],
        provider_id=provider,
        genai_request_timestamp=DAY,
        price_context={"processing": "batch"} if batch else None,
    ).total_price
    usage = Usage(input_tokens=tokens, output_tokens=output, cached_tokens=cached)
    usd = list_prices[provider].usd(usage, batch)
    assert usd == pytest.approx(float(expected), rel=1e-9, abs=1e-15)
    assert list_prices[provider].max_usd(tokens, output, batch) >= usd * (1 - 1e-9)


def test_what_the_list_knows_is_told_with_it(list_prices: dict[str, TokenPrice]) -> None:
    payload = list_prices["openai"].to_json()
    assert set(payload) == {
        "input_usd_per_million", "output_usd_per_million", "cached_input_usd_per_million",
        "batch_input_usd_per_million", "batch_output_usd_per_million", "source", "date", "note",
    }  # fmt: skip
    assert payload["source"].startswith("genai-prices 0.2.") and payload["date"] is None
    assert "openai/gpt-6-luna on 2026-11-20" in payload["note"] and "prompts up to 272,000 tokens" in payload["note"]
    assert (
        0
        < payload["batch_input_usd_per_million"]
        < payload["input_usd_per_million"]
        < payload["output_usd_per_million"]
    )
    assert 0 < payload["cached_input_usd_per_million"] < payload["input_usd_per_million"]


def test_a_long_prompt_costs_more_in_every_token(list_prices: dict[str, TokenPrice]) -> None:
    haiku = list_prices["anthropic"]
    limit = haiku.max_input_tokens
    assert limit is not None
    short, long = (haiku.usd(Usage(input_tokens=tokens, output_tokens=0)) for tokens in (limit, limit + 1))
    assert long > 1.5 * short


def test_reasoning_is_output_and_is_not_paid_twice(list_prices: dict[str, TokenPrice]) -> None:
    plain_usage = Usage(input_tokens=100, output_tokens=500)
    assert list_prices["openai"].usd(plain_usage) == list_prices["openai"].usd(
        Usage(input_tokens=100, output_tokens=500, reasoning_tokens=490)
    )


def test_what_was_not_counted_costs_nothing_and_the_most_is_still_known(list_prices: dict[str, TokenPrice]) -> None:
    assert list_prices["openai"].usd(Usage()) == 0
    assert list_prices["openai"].usd(Usage(input_tokens=5, output_tokens=0, cached_tokens=9)) == pytest.approx(
        list_prices["openai"].usd(Usage(input_tokens=5, output_tokens=0, cached_tokens=5))
    )
    assert list_prices["openai"].max_usd(1000, 100) > 0


def test_what_is_written_to_a_cache_may_cost_more_than_input(list_prices: dict[str, TokenPrice]) -> None:
    price = list_prices["openai"]
    assert price.cache_write_factor > 1
    assert price.max_usd(1000, 0) == pytest.approx(price.cache_write_factor * price.usd(Usage(1000, 0)))


def test_a_private_cloud_has_its_own_price_and_no_batch_price() -> None:
    bedrock = priced(provider="bedrock", model="us.anthropic.claude-haiku-5-5-v1:0")
    vertex = priced(provider="vertex", model="claude-haiku-5-5")
    azure = priced(provider="azure", model="gpt-6-luna", base_url="https://ours.openai.azure.com")
    assert bedrock.note is not None and bedrock.note.startswith("aws/")
    assert vertex.note is not None and vertex.note.startswith("google/")
    assert azure.note is not None and azure.note.startswith("azure/")
    for price in (bedrock, azure):
        assert price.batch_input_usd_per_million is None
        assert price.usd(Usage(1000, 10), batch=True) == price.usd(Usage(1000, 10))


def test_an_address_is_known_by_its_host() -> None:
    price = priced(provider="openai", model="mistral-large-latest", base_url="https://api.mistral.ai/v1")
    assert price.note is not None and price.note.startswith("mistral/")
    assert priced(**LUNA, base_url="https://api.openai.com/v1") == priced(**LUNA)


def test_a_price_that_changes_with_the_hour_is_taken_at_the_dearest() -> None:
    baseline = {"provider": "openai", "model": "deepseek-chat", "base_url": "https://api.deepseek.com"}
    prices = {pricing.lookup_price(Baseline(**baseline), DAY.replace(hour=hour)) for hour in (0, 12, 23)}
    (price,) = prices
    assert price is not None and price.note is not None and "dearest time of the day" in price.note
    for hour in range(24):
        expected = calc_price(
            Asked(input_tokens=1000, output_tokens=100),
            "deepseek-chat",
            provider_id="deepseek",
            genai_request_timestamp=DAY.replace(hour=hour),
        )
        assert price.usd(Usage(1000, 100)) >= float(expected.total_price) * (1 - 1e-9)


def test_what_a_request_costs_besides_its_tokens_is_counted() -> None:
    price = priced(**SONAR)
    assert price.usd_per_request > 0 and price.usd(Usage(0, 0)) == price.max_usd(0, 0) == price.usd_per_request


@pytest.mark.parametrize(
    "baseline",
    [
        {"provider": "openai", "model": "no-such-model"},
        {"provider": "azure", "model": "our-deployment", "base_url": "https://ours.openai.azure.com"},
        {"provider": "openai", "model": "gpt-6-luna", "base_url": "https://llm.example.com/v1"},
        {"provider": "openai", "model": "gpt-6-luna", "base_url": "http://127.0.0.1:8000/v1"},
        {"provider": "anthropic", "model": "claude-haiku-5-5", "base_url": "http://localhost:8000"},
        {"provider": "file", "path": "answers.jsonl"},
    ],
)
def test_nobody_knows_the_price_unless_the_recipe_gives_it(baseline: dict[str, Any]) -> None:
    assert pricing.lookup_price(Baseline(**baseline), DAY) is None
    price = priced(**baseline, price=GIVEN)
    assert (price.source, price.date) == ("recipe", "2026-11-01")
    assert price.usd(Usage(1_000_000, 1_000_000)) == pytest.approx(8.0)


def test_the_recipes_price_goes_before_the_list_and_its_batch_saves_of_everything() -> None:
    price = priced(**LUNA, price=GIVEN)
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cached_tokens=400_000)
    assert price.usd(usage) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 6)
    assert price.usd(usage, batch=True) == pytest.approx(price.usd(usage) / 2)


def test_a_recipe_without_a_discount_has_no_batch_price() -> None:
    price = priced(**LUNA, price=Price(input_usd_per_million=1, output_usd_per_million=2))
    assert price.batch_input_usd_per_million is None and price.cached_input_usd_per_million is None
    assert price.usd(Usage(1_000_000, 0, cached_tokens=1_000_000), batch=True) == pytest.approx(1)
