"""`python -m compare.models`: the API models in the SDKs and in genai-prices, with prices and shutdown dates.

    model             input  output  cached  in batches   long prompts               shut down    named in
    gpt-6-luna        0.1    0.5     0.01    0.05 / 0.25  from 272,000: 0.2 / 0.75   -            classifier, extractor
    claude-haiku-4-5  1      5       0.1     0.5 / 2.5    -                          -

Works offline. Prices are in USD per million tokens, from genai-prices. Shutdown dates are from files of the SDKs. A
provider may announce a date later: a comparison queries the provider, and the report shows that date.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from insource.backends import pricing
from insource.backends.pricing import TokenPrice
from insource.backends.types import ApiFormat
from insource.backends.wire.model_families import parse_fine_tune_base
from insource.config.load import RECIPES, load
from insource.config.providers import PROVIDERS
from insource.config.schema.compare import Baseline

COLUMNS = ("model", "input", "output", "cached", "in batches", "long prompts", "shut down", "named in")
WIDTH = 180
# Format of the dates in anthropic/resources/messages/messages.py.
_ANTHROPIC_DATE_FORMAT = "%B %d, %Y"
# Names in genai-prices of models for audio, speech, images or embeddings, and of fine-tuned models of one account.
_NON_TEXT_MODELS = re.compile(
    r"audio|realtime|transcribe|tts|whisper|image|dall-e|sora|embed|moderation|\.?ft[-:]|search"
)
_SHUTDOWN_NOTICE = re.compile(
    r'^- ((?:"[\w.-]+"(?:,\s+)?)+):\s+Announced\s+shutdown\s+date:\s+(\d{4}-\d{2}-\d{2})', re.MULTILINE
)


@dataclass(frozen=True)
class KnownModel:
    """An API model."""

    provider: str
    name: str
    price: TokenPrice | None
    shutdown: str | None
    """ISO 8601, None if no date is announced."""
    recipes: Sequence[str]
    in_sdk: bool = True
    """Whether the provider's SDK lists it. The SDK then announces its shutdown date; for other models no date is
    known."""

    def cells(self) -> list[str]:
        """Return the cells of its table row."""
        price = self.price
        if price is None:
            price_cells = ["not listed", "", "", "", ""]
        else:
            batch = (price.batch_input_usd_per_million, price.batch_output_usd_per_million)
            price_cells = [
                _format_usd(price.input_usd_per_million),
                _format_usd(price.output_usd_per_million),
                _format_usd(price.cached_input_usd_per_million),
                " / ".join(map(_format_usd, batch)) if None not in batch else "-",
                _long_prompt_prices(price),
            ]
        return [
            f"{self.provider}:{self.name}",
            *price_cells,
            self.shutdown or ("-" if self.in_sdk else "unknown"),
            ", ".join(self.recipes),
        ]


def list_models(today: str) -> list[KnownModel]:
    """Return the models that the SDKs or genai-prices list, with prices, without those shut down by `today` (ISO 8601).

    Models that only genai-prices lists are omitted if they do not write text.
    """
    recipes_by_model, models = _recipes_by_model(), []
    for provider_name, provider in PROVIDERS.items():
        if (sdk := _find_sdk_models(provider_name)) is None:
            continue
        names, shutdown_dates, price_id = [*sdk.list_names()], sdk.read_shutdown_dates(), provider.genai_prices_id
        known_names = dict.fromkeys([*names, *(model for named, model in recipes_by_model if named == provider_name)])
        for name in dict.fromkeys([*known_names, *(_listed_names(price_id) if price_id else ())]):
            day = shutdown_dates.get(name)
            if (day or "9999") > today:
                price = pricing.price_from_list(name, {"provider_id": price_id}) if price_id else None
                if price or name in known_names:
                    recipes = recipes_by_model.get((provider_name, name), ())
                    models.append(KnownModel(provider_name, name, price, day, recipes, name in names))
    return models


def announced_shutdown(baseline: Baseline) -> str | None:
    """Return the shutdown date (ISO 8601) that the SDK announces for an API model, None if it announces none.

    Also None for other hosts and clouds, which have their own dates. A fine-tuned model has the date of its base model.
    """
    sdk = _find_sdk_models(baseline.provider)
    if baseline.base_url is not None or sdk is None:
        return None
    model = parse_fine_tune_base(baseline.model or "") or baseline.model or ""
    return sdk.read_shutdown_dates().get(model)


def main() -> None:
    """Print the table. Command-line words select the models whose names contain one of them."""
    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    words = sys.argv[1:]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in COLUMNS:
        table.add_column(heading, overflow="fold", no_wrap=heading not in COLUMNS[-1:])
    for model in list_models(f"{datetime.now(UTC):%Y-%m-%d}"):
        if not words or any(word in f"{model.provider}:{model.name}" for word in words):
            table.add_row(*model.cells())
    # Full width in a file or pipe.
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    sources = ", ".join(f"{package} {version(package)}" for package in ("genai-prices", "openai", "anthropic"))
    print(f"USD a million tokens; {sources}, offline. api: decisions has a price of its own: see docs/cost.md")


def _long_prompt_prices(price: TokenPrice) -> str:
    """Return the prices of longer prompts, input and output: 'from 272,000: 0.2 / 0.75'."""
    steps = []
    while price.next_tier is not None:
        start, price = price.max_input_tokens or 0, price.next_tier
        steps.append(
            f"from {start:,}: {_format_usd(price.input_usd_per_million)} / {_format_usd(price.output_usd_per_million)}"
        )
    return ", ".join(steps) or "-"


def _format_usd(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _recipes_by_model() -> Mapping[tuple[str, str], list[str]]:
    """Return {(provider, model): names of the recipes in recipes/ that use it}."""
    by_model: dict[tuple[str, str], list[str]] = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        for baseline in load(path.stem, (), "cpu").recipe.compare.baselines:
            recipes = by_model.setdefault((baseline.provider, baseline.model or ""), [])
            if path.stem not in recipes:
                recipes.append(path.stem)
    return by_model


def _openai_names() -> Iterable[str]:
    from openai.types import ChatModel

    return [str(name) for name in get_args(ChatModel)]


def _anthropic_names() -> Iterable[str]:
    from anthropic.types import Model

    return [str(name) for member in get_args(Model) for name in get_args(member)]


def _listed_names(genai_prices_id: str) -> Iterable[str]:
    from genai_prices.data_snapshot import get_snapshot

    provider_data = next(entry for entry in get_snapshot().providers if entry.id == genai_prices_id)
    return [
        model.id for model in provider_data.models if not model.deprecated and not _NON_TEXT_MODELS.search(model.id)
    ]


@cache
def _openai_shutdown_dates() -> dict[str, str]:
    """Read the shutdown dates from the text below the SDK's list of models. No object of the SDK contains them."""
    spec = find_spec("openai")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "types" / "shared" / "chat_model.py").read_text(encoding="utf-8")
    return {name: day for names, day in _SHUTDOWN_NOTICE.findall(text) for name in re.findall(r'"([^"]+)"', names)}


@cache
def _anthropic_shutdown_dates() -> dict[str, str]:
    from anthropic.resources.messages.messages import DEPRECATED_MODELS

    dates = {name: re.sub(r"(\d)(st|nd|rd|th)", r"\1", day) for name, day in DEPRECATED_MODELS.items()}
    return {name: f"{datetime.strptime(day, _ANTHROPIC_DATE_FORMAT):%Y-%m-%d}" for name, day in dates.items()}


@dataclass(frozen=True)
class SdkModels:
    """What an SDK knows about the models of its provider."""

    list_names: Callable[[], Iterable[str]]
    read_shutdown_dates: Callable[[], Mapping[str, str]]
    """{model: ISO 8601}."""


SDK_MODELS: Mapping[ApiFormat, SdkModels] = {
    "openai": SdkModels(_openai_names, _openai_shutdown_dates),
    "anthropic": SdkModels(_anthropic_names, _anthropic_shutdown_dates),
}


def _find_sdk_models(provider_name: str) -> SdkModels | None:
    """Return what the provider's SDK lists, None if it lists no models of this provider, or for a file."""
    provider = PROVIDERS.get(provider_name)
    return SDK_MODELS[provider.api_format] if provider and provider.sdk_lists_models else None


if __name__ == "__main__":
    main()
