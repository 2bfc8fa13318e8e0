"""`python -m compare.models`: the closed models that the SDKs and genai-prices know, with prices and shutdown days.

    model             input  output  cached  in batches   long prompts               shut down    named in
    gpt-6-luna        0.1    0.5     0.01    0.05 / 0.25  from 272,000: 0.2 / 0.75   -            classifier, extractor
    claude-haiku-4-5  1      5       0.1     0.5 / 2.5    -                          -

Offline. Prices in USD a million tokens, as genai-prices lists them; days as the SDKs' own files announce them. A
provider may announce one later: a comparison asks it, and the report shows what it says.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from insource.backends import pricing
from insource.backends.pricing import TokenPrice
from insource.backends.wire.model_families import parse_fine_tune_base
from insource.config.load import RECIPES, load
from insource.config.schema.compare import Baseline

COLUMNS = ("model", "input", "output", "cached", "in batches", "long prompts", "shut down", "named in")
WIDTH = 180
# As anthropic/resources/messages/messages.py writes them.
_ANTHROPIC_DATE_FORMAT = "%B %d, %Y"
# Of the names in genai-prices: what hears, speaks, draws or embeds, and fine-tuned models, which are an account's own.
_NON_TEXT_MODELS = re.compile(
    r"audio|realtime|transcribe|tts|whisper|image|dall-e|sora|embed|moderation|\.?ft[-:]|search"
)
_SHUTDOWN_NOTICE = re.compile(
    r'^- ((?:"[\w.-]+"(?:,\s+)?)+):\s+Announced\s+shutdown\s+date:\s+(\d{4}-\d{2}-\d{2})', re.MULTILINE
)


@dataclass(frozen=True)
class KnownModel:
    """One closed model."""

    provider: str
    name: str
    price: TokenPrice | None
    shutdown: str | None
    """ISO 8601, None where none is announced."""
    named_in: Sequence[str]
    in_sdk: bool = True
    """Whether its SDK names it, which then announces when it is shut down; of others nothing is known here."""

    def cells(self) -> list[str]:
        """Returns the row of the table."""
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
            self.shutdown or ("-" if self.in_sdk else "not told"),
            ", ".join(self.named_in),
        ]


def list_models(today: str) -> list[KnownModel]:
    """Returns every model that the SDKs or genai-prices name and that is not shut down by `today` (ISO 8601), with its
    price. Of those that genai-prices alone names, models that do not write text are left out."""
    shutdown_dates, recipes_by_model = {**_openai_shutdown_dates(), **_anthropic_shutdown_dates()}, _recipes_by_model()
    models = []
    for provider, names in (("openai", [*_openai_names()]), ("anthropic", [*_anthropic_names()])):
        known_names = dict.fromkeys(
            [*names, *(model for named_provider, model in recipes_by_model if named_provider == provider)]
        )
        for name in dict.fromkeys([*known_names, *_listed_names(provider)]):
            if shutdown_dates.get(name, "9999") > today:
                price = pricing.price_from_list(name, {"provider_id": provider})
                if price or name in known_names:
                    recipes = recipes_by_model.get((provider, name), ())
                    models.append(KnownModel(provider, name, price, shutdown_dates.get(name), recipes, name in names))
    return models


def announced_shutdown(baseline: Baseline) -> str | None:
    """Returns the day (ISO 8601) when a closed model is shut down as its SDK announces it, None where it does not: also
    for other hosts and clouds, which have days of their own. A fine-tune goes with the model that it was made from."""
    if baseline.base_url is not None or baseline.provider not in ("openai", "anthropic"):
        return None
    model = parse_fine_tune_base(baseline.model or "") or baseline.model or ""
    return (_openai_shutdown_dates() if baseline.provider == "openai" else _anthropic_shutdown_dates()).get(model)


def dated_names(provider: str, name: str) -> list[str]:
    """Returns the names with a day in them that the SDK has for a model, [] where its provider does not date it."""
    names = _openai_names() if provider == "openai" else _anthropic_names()
    return [dated for dated in names if re.fullmatch(re.escape(name) + r"-\d{4}-?\d{2}-?\d{2}", dated)]


def main() -> None:
    """Prints the table; words after the command choose the models that have one of them in their name."""
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
    # Into a file or a pipe as wide as the table is.
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    sources = ", ".join(f"{package} {version(package)}" for package in ("genai-prices", "openai", "anthropic"))
    print(f"USD a million tokens; {sources}, offline. api: decisions has a price of its own: see docs/cost.md")


def _long_prompt_prices(price: TokenPrice) -> str:
    """What longer prompts cost, in and out: 'from 272,000: 0.2 / 0.75'."""
    steps = []
    while price.beyond is not None:
        start, price = price.longest_input_tokens or 0, price.beyond
        steps.append(
            f"from {start:,}: {_format_usd(price.input_usd_per_million)} / {_format_usd(price.output_usd_per_million)}"
        )
    return ", ".join(steps) or "-"


def _format_usd(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _recipes_by_model() -> Mapping[tuple[str, str], list[str]]:
    """Which recipes of the project name which model."""
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


def _listed_names(provider: str) -> Iterable[str]:
    from genai_prices.data_snapshot import get_snapshot

    provider_data = next(entry for entry in get_snapshot().providers if entry.id == provider)
    return [
        model.id for model in provider_data.models if not model.deprecated and not _NON_TEXT_MODELS.search(model.id)
    ]


@cache
def _openai_shutdown_dates() -> dict[str, str]:
    """The shutdown days in the text below the SDK's list of models, which no object holds."""
    spec = find_spec("openai")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "types" / "shared" / "chat_model.py").read_text(encoding="utf-8")
    return {name: day for names, day in _SHUTDOWN_NOTICE.findall(text) for name in re.findall(r'"([^"]+)"', names)}


@cache
def _anthropic_shutdown_dates() -> dict[str, str]:
    from anthropic.resources.messages.messages import DEPRECATED_MODELS

    dates = {name: re.sub(r"(\d)(st|nd|rd|th)", r"\1", day) for name, day in DEPRECATED_MODELS.items()}
    return {name: f"{datetime.strptime(day, _ANTHROPIC_DATE_FORMAT):%Y-%m-%d}" for name, day in dates.items()}


if __name__ == "__main__":
    main()
