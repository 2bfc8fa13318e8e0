"""The list of closed models: what the SDKs and genai-prices know, offline."""

from compare import models
from insource.config.load import RECIPES, load
from insource.config.schema.compare import Baseline


def test_models_have_prices_tiers_batches_shutdown_days_and_the_recipes_that_name_them() -> None:
    found = {f"{one.provider}:{one.name}": one for one in models.list_models("2026-11-29")}
    luna, haiku = found["openai:gpt-6-luna"], found["anthropic:claude-haiku-5-5"]
    assert luna.cells()[1:6] == ["0.1", "0.5", "0.01", "0.05 / 0.25", "from 272,000: 0.2 / 0.75"]
    assert haiku.cells()[5] == "from 100,000: 0.5 / 2.5" and "classifier" in haiku.named_in
    assert {"classifier", "banking77", "extractor", "sroie", "summarizer"} <= set(luna.named_in)
    assert found["openai:gpt-4o"].shutdown == "2027-01-14"
    assert found["anthropic:claude-sonnet-4-5"].shutdown == "2026-11-30"
    assert not {"openai:chatgpt-4o-latest", "openai:gpt-5.3-chat-latest", "anthropic:claude-opus-4-0"} & found.keys()
    assert "anthropic:claude-sonnet-4-5" not in {
        f"{one.provider}:{one.name}" for one in models.list_models("2026-12-01")
    }


def test_no_model_of_a_recipe_is_without_a_price_or_shut_down_within_three_months() -> None:
    named = [one for one in models.list_models("2026-11-29") if one.named_in]
    assert len(named) >= 2
    for one in named:
        assert one.price is not None and (one.shutdown is None or one.shutdown > "2027-02-28"), one.name


def test_recipes_name_a_dated_model_where_its_provider_dates_it() -> None:
    assert models.dated_names("openai", "gpt-5.4-mini") == ["gpt-5.4-mini-2026-03-17"]
    assert models.dated_names("anthropic", "claude-haiku-4-5") == ["claude-haiku-4-5-20251001"]
    seen = 0
    for path in RECIPES.glob("*.yaml"):
        for one in load(path.stem, (), "gpu").recipe.compare.baselines:
            assert not models.dated_names(one.provider, one.model or ""), f"{path.name}: {one.model} has a dated name"
            seen += 1
    assert seen >= 9


def test_what_genai_prices_lists_beside_the_sdks_is_listed_with_its_price() -> None:
    found = models.list_models("2026-11-29")
    named = {*models._openai_names(), *models._anthropic_names()}
    more = [one for one in found if one.name not in named]
    assert more and all(one.price is not None and one.cells()[6] == "not told" for one in more)
    assert all(one.cells()[6] != "not told" for one in found if one.name in named)
    assert len({(one.provider, one.name) for one in found}) == len(found)


def test_the_day_that_an_sdk_announces_is_that_of_the_providers_own_address_alone() -> None:
    there = Baseline(provider="openai", model="gpt-4o-mini")
    assert models.announced_shutdown(there) == "2027-01-14"
    assert models.announced_shutdown(Baseline(provider="anthropic", model="claude-sonnet-4-5")) == "2026-11-30"
    assert models.announced_shutdown(Baseline(provider="openai", model="gpt-6-luna")) is None
    assert (
        models.announced_shutdown(Baseline(provider="openai", model="ft:gpt-4.1-mini-2025-04-14:acme::x"))
        == "2027-01-14"
    )
    assert models.announced_shutdown(there.model_copy(update={"base_url": "https://gateway.example/v1"})) is None
