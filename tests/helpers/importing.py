"""Fine-tuning files for the importer, and the call of `make import`."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from data_prep.importer import __main__ as command_line
from insource.config import cli
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.system import atomic_files

MODEL = "ft:gpt-4o-mini-2024-07-18:acme:tickets:Bx1"
SYSTEM = "Route the customer's message to one queue."
QUEUES = ("refund", "delivery", "account")


def chat_row(text: Any, answer: Any, system: str | None = SYSTEM, **fields: Any) -> dict[str, Any]:
    system_turns = [{"role": "system", "content": system}] if system else []
    assistant_turn = {"role": "assistant", "content": answer, **fields}
    return {"messages": [*system_turns, {"role": "user", "content": text}, assistant_turn]}


def ticket_rows(count: int, system: str | None = SYSTEM) -> list[dict[str, Any]]:
    return [chat_row(ticket_text(index), QUEUES[index % 3], system) for index in range(count)]


def ticket_text(index: int) -> str:
    """Texts that no one takes for near-duplicates."""
    tokens = [f"word{(index * 7919 + position * 104729) % 9973}" for position in range(8)]
    return f"{QUEUES[index % 3]} {' '.join(tokens)}"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def run_import(monkeypatch: pytest.MonkeyPatch, source: Path, *args: object) -> tuple[int, Path]:
    """The exit code of the command, and the recipe that it writes beside the file."""
    recipe_path = source.with_name("mine.yaml")
    for name in ("TEST", "MODEL", "BASE_URL", "TO", "FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["import", str(source), "--to", str(recipe_path), *map(str, args)])
    umask = os.umask(0o077)
    try:
        with pytest.raises(SystemExit) as exit_error:
            cli.run_cli(command_line.main)
    finally:
        os.umask(umask)
    return int(exit_error.value.code or 0), recipe_path


def prepare_recipe(recipe_path: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe as it was written, and data.json of its preparation."""
    loaded = load(str(recipe_path), (), "cpu")
    folder, _ = prepare.main(loaded.recipe, recipe_path.parent / "runs")
    return loaded.recipe, atomic_files.read_json(folder / "data.json")
