"""Whose runs are these? Two recipes of one file name, in two folders, never share runs, answers or deployed versions.

    runs/tickets/.recipe           /home/ann/acme/tickets.yaml: the recipe whose runs these are
    runs/tickets-3fa2c1/.recipe    /home/ann/globex/tickets.yaml came second

A recipe that was moved keeps its runs: the file that the owner names is not there any more.
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from recipes import command
from recipes.errors import RecipeError
from recipes.load import RECIPES, Loaded

OWNER = ".recipe"


def named(loaded: Loaded, parent: Path) -> Loaded:
    """Returns the recipe under the name that it has below `parent` (runs or registry): its own, or where that is
    another recipe's, its own with a hash of its path. Tells on stderr where they differ."""
    own = f"{loaded.name}-{hashlib.sha256(str(loaded.path).encode()).hexdigest()[:6]}"
    if (parent / own).is_dir():
        return replace(loaded, name=own)
    if other := _other_owner(parent / loaded.name, loaded):
        print(f"recipe    {own}: {parent / loaded.name} belongs to {other}", file=sys.stderr)
        return replace(loaded, name=own)
    old = parent / loaded.path.stem
    if loaded.name != loaded.path.stem and old.is_dir() and not (parent / loaded.name).exists():
        print(f"recipe    {old} holds runs under a name of before: rename it to {loaded.name}", file=sys.stderr)
    return loaded


def claimed(loaded: Loaded, parent: Path) -> Loaded:
    """Returns the recipe under its name below `parent`, and writes down that the folder of that name is its own.

    Raises RecipeError where nothing can be written there.
    """
    while True:
        found = named(loaded, parent)
        folder = parent / found.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if _owner(folder) == str(loaded.path) or _write(folder, str(loaded.path), _owner(folder)):
                return found
        except OSError as error:
            raise RecipeError(f"runs cannot be kept in {parent}: {command.in_words(error)}") from None


def _other_owner(folder: Path, loaded: Loaded) -> str | None:
    """Who owns a folder, if that is not this recipe; None where it is, or where nobody does."""
    owner = _owner(folder)
    if owner is not None:
        return owner if owner != str(loaded.path) and Path(owner).is_file() else None
    # Made before owners were written down: whose runs they are, their data tell.
    sources = list(_sources(folder)) if folder.is_dir() and loaded.path.parent != RECIPES else []
    mine = loaded.recipe.data.source.model_dump(mode="json", exclude_none=True)
    if not sources or mine in sources:
        return None
    return "a recipe with other data"


def _owner(folder: Path) -> str | None:
    try:
        return (folder / OWNER).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(folder: Path, owner: str, before: str | None) -> bool:
    """Writes the owner. Returns whether it was this process that did, where nobody owned the folder."""
    aside = folder / f"{OWNER}.{secrets.token_hex(4)}"
    aside.write_text(owner + "\n", encoding="utf-8")
    try:
        if before is not None:
            aside.replace(folder / OWNER)
        else:
            os.link(aside, folder / OWNER)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _sources(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields `data.source` of the recipe of each run and each deployed version in a folder, as far as it has one."""
    for path in (*folder.glob("*/recipe.yaml"), *folder.glob("versions/*/recipe.yaml")):
        try:
            source = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["data"]["source"]
        except (OSError, YAMLError, KeyError, TypeError):
            continue
        yield {name: value for name, value in source.items() if value is not None}
