"""The list of closed models: what the SDKs and genai-prices know, offline."""

from compare import models


def test_models_have_prices_tiers_batches_shutdown_days_and_the_recipes_that_name_them() -> None:
    found = {f"{one.provider}:{one.name}": one for one in models.known("2026-11-29")}
    luna, haiku = found["openai:gpt-6-luna"], found["anthropic:claude-haiku-5-5"]
    assert luna.cells()[1:6] == ["0.1", "0.5", "0.01", "0.05 / 0.25", "from 272,000: 0.2"]
    assert haiku.cells()[5] == "from 100,000: 0.5" and "classifier" in haiku.named_in
    assert {"classifier", "banking77", "extractor", "sroie", "summarizer"} <= set(luna.named_in)
    assert found["openai:gpt-4o"].shutdown == "2027-01-14"
    assert found["anthropic:claude-sonnet-4-5"].shutdown == "2026-11-30"
    assert not {"openai:chatgpt-4o-latest", "openai:gpt-5.3-chat-latest", "anthropic:claude-opus-4-0"} & found.keys()
    assert "anthropic:claude-sonnet-4-5" not in {f"{one.provider}:{one.name}" for one in models.known("2026-12-01")}


def test_no_model_of_a_recipe_is_without_a_price_or_shut_down_within_three_months() -> None:
    named = [one for one in models.known("2026-11-29") if one.named_in]
    assert len(named) >= 2
    for one in named:
        assert one.price is not None and (one.shutdown is None or one.shutdown > "2027-02-28"), one.name
