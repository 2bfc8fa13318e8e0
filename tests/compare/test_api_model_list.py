"""The list of closed models: what the SDKs and genai-prices know, offline."""

import re

import pytest

from compare import models
from insource.config.load import RECIPES, load
from insource.config.schema.compare import Baseline


@pytest.fixture(scope="module")
def listed() -> list[models.KnownModel]:
    """The models of 2026-11-29. Their prices take seconds to look up."""
    return models.list_models("2026-11-29")


def test_models_have_prices_tiers_batches_shutdown_days_and_the_recipes_that_name_them(
    listed: list[models.KnownModel],
) -> None:
    by_name = {f"{model.provider}:{model.name}": model for model in listed}
    luna, haiku = by_name["openai:gpt-6-luna"], by_name["anthropic:claude-haiku-5-5"]
    assert luna.cells()[1:6] == ["0.1", "0.5", "0.01", "0.05 / 0.25", "from 272,000: 0.2 / 0.75"]
    assert haiku.cells()[5] == "from 100,000: 0.5 / 2.5" and "classifier" in haiku.recipes
    assert {"classifier", "banking77", "extractor", "sroie", "summarizer"} <= set(luna.recipes)
    assert by_name["openai:gpt-4o"].shutdown == "2027-01-14"
    assert by_name["anthropic:claude-sonnet-4-5"].shutdown == "2026-11-30"
    assert not {"openai:chatgpt-4o-latest", "openai:gpt-5.3-chat-latest", "anthropic:claude-opus-4-0"} & by_name.keys()
    assert "anthropic:claude-sonnet-4-5" not in {
        f"{model.provider}:{model.name}" for model in models.list_models("2026-12-01")
    }


def test_no_model_of_a_recipe_is_without_a_price_or_shut_down_within_three_months(
    listed: list[models.KnownModel],
) -> None:
    recipe_models = [model for model in listed if model.recipes]
    assert len(recipe_models) >= 2
    for model in recipe_models:
        assert model.price is not None and (model.shutdown is None or model.shutdown > "2027-02-28"), model.name


def dated_names(listed: list[models.KnownModel], provider: str, name: str) -> list[str]:
    """Return the names with a date that the SDK lists for a model."""
    known = [model.name for model in listed if model.provider == provider]
    return [dated for dated in known if re.fullmatch(re.escape(name) + r"-\d{4}-?\d{2}-?\d{2}", dated)]


def test_recipes_name_a_dated_model_where_its_provider_dates_it(listed: list[models.KnownModel]) -> None:
    assert dated_names(listed, "openai", "gpt-5.4-mini") == ["gpt-5.4-mini-2026-03-17"]
    assert dated_names(listed, "anthropic", "claude-haiku-4-5") == ["claude-haiku-4-5-20251001"]
    n_baselines = 0
    for path in RECIPES.glob("*.yaml"):
        for baseline in load(path.stem, (), "gpu").recipe.compare.baselines:
            assert not dated_names(listed, baseline.provider, baseline.model or ""), (
                f"{path.name}: {baseline.model} has a dated name"
            )
            n_baselines += 1
    assert n_baselines >= 9


def test_what_genai_prices_lists_beside_the_sdks_is_listed_with_its_price(listed: list[models.KnownModel]) -> None:
    sdk_names = {*models._openai_names(), *models._anthropic_names()}
    only_priced = [model for model in listed if model.name not in sdk_names]
    assert only_priced and all(model.price is not None and model.cells()[6] == "unknown" for model in only_priced)
    assert all(model.cells()[6] != "unknown" for model in listed if model.name in sdk_names)
    assert len({(model.provider, model.name) for model in listed}) == len(listed)


def test_the_day_that_an_sdk_announces_is_that_of_the_providers_own_address_alone() -> None:
    baseline = Baseline(provider="openai", model="gpt-4o-mini")
    assert models.announced_shutdown(baseline) == "2027-01-14"
    assert models.announced_shutdown(Baseline(provider="anthropic", model="claude-sonnet-4-5")) == "2026-11-30"
    assert models.announced_shutdown(Baseline(provider="openai", model="gpt-6-luna")) is None
    assert (
        models.announced_shutdown(Baseline(provider="openai", model="ft:gpt-4.1-mini-2025-04-14:acme::x"))
        == "2027-01-14"
    )
    assert models.announced_shutdown(baseline.model_copy(update={"base_url": "https://gateway.example/v1"})) is None
