"""A run that looks trained, for tests of closed models: rows, prompt.json, and the SDKs' own addresses on loopback."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends import anthropic_wire, openai_wire
from compare import material
from compare.gathered import Place
from recipes.schema import Recipe
from recipes.schema_compare import Compare
from tasks import KINDS
from tracking import files, run
from train import adapter

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def place(
    folder: Path, recipe: Recipe, tokenizer: Any, rows: Rows, labels: Sequence[str] = (), **compare: Any
) -> Place:
    """Returns a comparison of these rows by split; the words change `compare:`."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, mine in rows.items():
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine), encoding="utf-8")
    told = recipe.model_copy(update={"compare": Compare.model_validate(recipe.compare.model_dump() | compare)})
    here = run.create(folder / "runs" / "mine", told, "digest", {}, data)
    (here.folder / "adapter").mkdir()
    given = recipe.task.labels if isinstance(recipe.task.labels, dict) else dict.fromkeys(labels, "")
    spec = KINDS[recipe.task.variant].specify(recipe.task, given)
    files.write_json(here.folder / "adapter" / "prompt.json", adapter.prompt(recipe, tokenizer, spec, 16))
    return Place(here, "mine", told, material.of(here))


def at_the_sdks_own_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Lets recipes that name no base_url reach a provider on loopback, with keys that are there."""
    monkeypatch.setattr(openai_wire, "ADDRESS", f"{address}/v1")
    monkeypatch.setattr(anthropic_wire, "ADDRESS", address)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "secret")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
