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
from insource.backends.pricing import Priced
from insource.backends.wire.model_families import base_of_fine_tune
from insource.config.load import RECIPES, load
from insource.config.schema.compare import Baseline

HEADINGS = ("model", "input", "output", "cached", "in batches", "long prompts", "shut down", "named in")
WIDTH = 180
# As anthropic/resources/messages/messages.py writes them.
_DAY_IN_WORDS = "%B %d, %Y"
# Of the names in genai-prices: what hears, speaks, draws or embeds, and fine-tuned models, which are an account's own.
_NO_TEXT = re.compile(r"audio|realtime|transcribe|tts|whisper|image|dall-e|sora|embed|moderation|\.?ft[-:]|search")
_SHUTDOWN = re.compile(
    r'^- ((?:"[\w.-]+"(?:,\s+)?)+):\s+Announced\s+shutdown\s+date:\s+(\d{4}-\d{2}-\d{2})', re.MULTILINE
)


@dataclass(frozen=True)
class Known:
    """One closed model."""

    provider: str
    name: str
    price: Priced | None
    shutdown: str | None
    """ISO 8601, None where none is announced."""
    named_in: Sequence[str]
    in_sdk: bool = True
    """Whether its SDK names it, which then announces when it is shut down; of others nothing is known here."""

    def cells(self) -> list[str]:
        """Returns the row of the table."""
        one = self.price
        if one is None:
            figures = ["not listed", "", "", "", ""]
        else:
            batch = (one.batch_input_usd_per_million, one.batch_output_usd_per_million)
            figures = [
                _usd(one.input_usd_per_million),
                _usd(one.output_usd_per_million),
                _usd(one.cached_input_usd_per_million),
                " / ".join(map(_usd, batch)) if None not in batch else "-",
                _longer(one),
            ]
        return [
            f"{self.provider}:{self.name}",
            *figures,
            self.shutdown or ("-" if self.in_sdk else "not told"),
            ", ".join(self.named_in),
        ]


def known(today: str) -> list[Known]:
    """Returns every model that the SDKs or genai-prices name and that is not shut down by `today` (ISO 8601), with its
    price. Of those that genai-prices alone names, models that do not write text are left out."""
    days, named = {**_openai_days(), **_anthropic_days()}, _named()
    found = []
    for provider, names in (("openai", [*_openai_names()]), ("anthropic", [*_anthropic_names()])):
        sure = dict.fromkeys([*names, *(model for one, model in named if one == provider)])
        for name in dict.fromkeys([*sure, *_listed_names(provider)]):
            if days.get(name, "9999") > today:
                price = pricing.listed(name, {"provider_id": provider})
                if price or name in sure:
                    used = named.get((provider, name), ())
                    found.append(Known(provider, name, price, days.get(name), used, name in names))
    return found


def announced(baseline: Baseline) -> str | None:
    """Returns the day (ISO 8601) when a closed model is shut down as its SDK announces it, None where it does not: also
    for other hosts and clouds, which have days of their own. A fine-tune goes with the model that it was made from."""
    if baseline.base_url is not None or baseline.provider not in ("openai", "anthropic"):
        return None
    model = base_of_fine_tune(baseline.model or "") or baseline.model or ""
    return (_openai_days() if baseline.provider == "openai" else _anthropic_days()).get(model)


def dated(provider: str, name: str) -> list[str]:
    """Returns the names with a day in them that the SDK has for a model, [] where its provider does not date it."""
    names = _openai_names() if provider == "openai" else _anthropic_names()
    return [one for one in names if re.fullmatch(re.escape(name) + r"-\d{4}-?\d{2}-?\d{2}", one)]


def main() -> None:
    """Prints the table; words after the command choose the models that have one of them in their name."""
    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    asked = sys.argv[1:]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading not in HEADINGS[-1:])
    for one in known(f"{datetime.now(UTC):%Y-%m-%d}"):
        if not asked or any(word in f"{one.provider}:{one.name}" for word in asked):
            table.add_row(*one.cells())
    # Into a file or a pipe as wide as the table is.
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    sources = ", ".join(f"{package} {version(package)}" for package in ("genai-prices", "openai", "anthropic"))
    print(f"USD a million tokens; {sources}, offline. api: decisions has a price of its own: see docs/cost.md")


def _longer(price: Priced) -> str:
    """What longer prompts cost, in and out: 'from 272,000: 0.2 / 0.75'."""
    steps = []
    while price.beyond is not None:
        start, price = price.longest_input_tokens or 0, price.beyond
        steps.append(f"from {start:,}: {_usd(price.input_usd_per_million)} / {_usd(price.output_usd_per_million)}")
    return ", ".join(steps) or "-"


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _named() -> Mapping[tuple[str, str], list[str]]:
    """Which recipes of the project name which model."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        for one in load(path.stem, (), "cpu").recipe.compare.baselines:
            recipes = found.setdefault((one.provider, one.model or ""), [])
            if path.stem not in recipes:
                recipes.append(path.stem)
    return found


def _openai_names() -> Iterable[str]:
    from openai.types import ChatModel

    return [str(name) for name in get_args(ChatModel)]


def _anthropic_names() -> Iterable[str]:
    from anthropic.types import Model

    return [str(name) for one in get_args(Model) for name in get_args(one)]


def _listed_names(provider: str) -> Iterable[str]:
    from genai_prices.data_snapshot import get_snapshot

    chosen = next(one for one in get_snapshot().providers if one.id == provider)
    return [model.id for model in chosen.models if not model.deprecated and not _NO_TEXT.search(model.id)]


@cache
def _openai_days() -> dict[str, str]:
    """The shutdown days in the text below the SDK's list of models, which no object holds."""
    spec = find_spec("openai")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "types" / "shared" / "chat_model.py").read_text(encoding="utf-8")
    return {name: day for names, day in _SHUTDOWN.findall(text) for name in re.findall(r'"([^"]+)"', names)}


@cache
def _anthropic_days() -> dict[str, str]:
    from anthropic.resources.messages.messages import DEPRECATED_MODELS

    told = {name: re.sub(r"(\d)(st|nd|rd|th)", r"\1", day) for name, day in DEPRECATED_MODELS.items()}
    return {name: f"{datetime.strptime(day, _DAY_IN_WORDS):%Y-%m-%d}" for name, day in told.items()}


if __name__ == "__main__":
    main()
