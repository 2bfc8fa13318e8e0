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
    found = pricing.lookup_price(Baseline(**baseline), DAY)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def listed() -> dict[str, TokenPrice]:
    return {provider: priced(**baseline) for provider, baseline in LISTED.items()}


@given(
    st.sampled_from(sorted(LISTED)),
    st.one_of(st.integers(0, 1_000_000), st.integers(99_990, 100_010), st.integers(271_990, 272_010)),
    st.floats(0, 1),
    st.integers(0, 50_000),
    st.booleans(),
)
def test_a_request_costs_what_the_list_itself_says(
    listed: dict[str, TokenPrice], provider: str, tokens: int, share: float, output: int, batch: bool
) -> None:
    cached = round(tokens * share)
    expected = calc_price(
        Asked(input_tokens=tokens, cache_read_tokens=cached, output_tokens=output),
        LISTED[provider]["model"],
        provider_id=provider,
        genai_request_timestamp=DAY,
        price_context={"processing": "batch"} if batch else None,
    ).total_price
    usage = Usage(input_tokens=tokens, output_tokens=output, cached_tokens=cached)
    found = listed[provider].usd(usage, batch)
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-15)
    assert listed[provider].most_usd(tokens, output, batch) >= found * (1 - 1e-9)


def test_what_the_list_knows_is_told_with_it(listed: dict[str, TokenPrice]) -> None:
    told = listed["openai"].json()
    assert set(told) == {
        "input_usd_per_million", "output_usd_per_million", "cached_input_usd_per_million",
        "batch_input_usd_per_million", "batch_output_usd_per_million", "source", "date", "note",
    }  # fmt: skip
    assert told["source"].startswith("genai-prices 0.2.") and told["date"] is None
    assert "openai/gpt-6-luna on 2026-11-20" in told["note"] and "prompts up to 272,000 tokens" in told["note"]
    assert 0 < told["batch_input_usd_per_million"] < told["input_usd_per_million"] < told["output_usd_per_million"]
    assert 0 < told["cached_input_usd_per_million"] < told["input_usd_per_million"]


def test_a_long_prompt_costs_more_in_every_token(listed: dict[str, TokenPrice]) -> None:
    haiku = listed["anthropic"]
    end = haiku.longest_input_tokens
    assert end is not None
    short, long = (haiku.usd(Usage(input_tokens=tokens, output_tokens=0)) for tokens in (end, end + 1))
    assert long > 1.5 * short


def test_reasoning_is_output_and_is_not_paid_twice(listed: dict[str, TokenPrice]) -> None:
    plain = Usage(input_tokens=100, output_tokens=500)
    assert listed["openai"].usd(plain) == listed["openai"].usd(
        Usage(input_tokens=100, output_tokens=500, reasoning_tokens=490)
    )


def test_what_was_not_counted_costs_nothing_and_the_most_is_still_known(listed: dict[str, TokenPrice]) -> None:
    assert listed["openai"].usd(Usage()) == 0
    assert listed["openai"].usd(Usage(input_tokens=5, output_tokens=0, cached_tokens=9)) == pytest.approx(
        listed["openai"].usd(Usage(input_tokens=5, output_tokens=0, cached_tokens=5))
    )
    assert listed["openai"].most_usd(1000, 100) > 0


def test_what_is_written_to_a_cache_may_cost_more_than_input(listed: dict[str, TokenPrice]) -> None:
    one = listed["openai"]
    assert one.cache_write_factor > 1
    assert one.most_usd(1000, 0) == pytest.approx(one.cache_write_factor * one.usd(Usage(1000, 0)))


def test_a_private_cloud_has_its_own_price_and_no_batch_price() -> None:
    bedrock = priced(provider="bedrock", model="us.anthropic.claude-haiku-5-5-v1:0")
    vertex = priced(provider="vertex", model="claude-haiku-5-5")
    azure = priced(provider="azure", model="gpt-6-luna", base_url="https://ours.openai.azure.com")
    assert bedrock.note is not None and bedrock.note.startswith("aws/")
    assert vertex.note is not None and vertex.note.startswith("google/")
    assert azure.note is not None and azure.note.startswith("azure/")
    for one in (bedrock, azure):
        assert one.batch_input_usd_per_million is None
        assert one.usd(Usage(1000, 10), batch=True) == one.usd(Usage(1000, 10))


def test_an_address_is_known_by_its_host() -> None:
    there = priced(provider="openai", model="mistral-large-latest", base_url="https://api.mistral.ai/v1")
    assert there.note is not None and there.note.startswith("mistral/")
    assert priced(**LUNA, base_url="https://api.openai.com/v1") == priced(**LUNA)


def test_a_price_that_changes_with_the_hour_is_taken_at_the_dearest() -> None:
    where = {"provider": "openai", "model": "deepseek-chat", "base_url": "https://api.deepseek.com"}
    found = {pricing.lookup_price(Baseline(**where), DAY.replace(hour=hour)) for hour in (0, 12, 23)}
    (one,) = found
    assert one is not None and one.note is not None and "dearest time of the day" in one.note
    for hour in range(24):
        now = calc_price(
            Asked(input_tokens=1000, output_tokens=100),
            "deepseek-chat",
            provider_id="deepseek",
            genai_request_timestamp=DAY.replace(hour=hour),
        )
        assert one.usd(Usage(1000, 100)) >= float(now.total_price) * (1 - 1e-9)


def test_what_a_request_costs_besides_its_tokens_is_counted() -> None:
    one = priced(**SONAR)
    assert one.usd_per_request > 0 and one.usd(Usage(0, 0)) == one.most_usd(0, 0) == one.usd_per_request


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
    one = priced(**baseline, price=GIVEN)
    assert (one.source, one.date) == ("recipe", "2026-11-01")
    assert one.usd(Usage(1_000_000, 1_000_000)) == pytest.approx(8.0)


def test_the_recipes_price_goes_before_the_list_and_its_batch_saves_of_everything() -> None:
    one = priced(**LUNA, price=GIVEN)
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cached_tokens=400_000)
    assert one.usd(usage) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 6)
    assert one.usd(usage, batch=True) == pytest.approx(one.usd(usage) / 2)


def test_a_recipe_without_a_discount_has_no_batch_price() -> None:
    one = priced(**LUNA, price=Price(input_usd_per_million=1, output_usd_per_million=2))
    assert one.batch_input_usd_per_million is None and one.cached_input_usd_per_million is None
    assert one.usd(Usage(1_000_000, 0, cached_tokens=1_000_000), batch=True) == pytest.approx(1)
