"""Whose runs are these? Two recipes of one file name, in two folders, never share runs, answers or deployed versions.

    runs/tickets/.recipe           /home/ann/acme/tickets.yaml: the recipe whose runs these are, and its file's hash
    runs/tickets-3fa2c1/.recipe    /home/ann/globex/tickets.yaml came second

A recipe that was moved keeps its runs: the file that the owner names is not there any more, and the data that were
prepared, or where there are none the recipe itself, are the same. A path alone proves nothing: in another container, or
on another machine that shares the disk, it may be another file, or none.
"""

import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, LoadedRecipe
from insource.system import atomic_files

OWNER_FILE = ".recipe"
NO_HARD_LINK_ERRORS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def resolve_name(loaded: LoadedRecipe, parent: Path) -> LoadedRecipe:
    """Returns the recipe under the name that it has below `parent` (runs or registry): its own, or where that is
    another recipe's, its own with a hash of its path. Tells on stderr where they differ."""
    default_folder, *suffixed_folders = folders = [
        parent / loaded.name,
        *sorted(parent.glob(f"{loaded.name}-{'[0-9a-f]' * 6}")),
    ]
    path = str(loaded.path)
    for folder in folders:
        if (owner := _read_owner(folder)) is not None and owner[0] == path:
            return replace(loaded, name=folder.name)
    if (
        not default_folder.is_symlink()
        and not default_folder.exists()
        and (former := _find_former_folder(loaded, parent)) is not None
    ):
        _link_former_folder(default_folder, former)
    other_owner = _find_other_owner(default_folder, loaded)
    if other_owner is None:
        return loaded
    for folder in suffixed_folders:
        if _read_owner(folder) is not None and _find_other_owner(folder, loaded) is None:
            return replace(loaded, name=folder.name)
    name = _find_free_name(loaded, parent)
    print(f"recipe    {name}: {default_folder} belongs to {other_owner}", file=sys.stderr)
    return replace(loaded, name=name)


def claim_folder(loaded: LoadedRecipe, parent: Path) -> LoadedRecipe:
    """Returns the recipe under its name below `parent`, and writes down that the folder of that name is its own.

    Raises RecipeError where nothing can be written there.
    """
    expected_owner = (str(loaded.path), atomic_files.sha256(loaded.path))
    while True:
        resolved = resolve_name(loaded, parent)
        folder = parent / resolved.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            owner = _read_owner(folder)
            if owner == expected_owner or _write_owner(folder, expected_owner, is_first=owner is None):
                return resolved
        except OSError as error:
            raise RecipeError(f"runs cannot be kept in {parent}: {cli.describe_os_error(error)}") from None


def _find_other_owner(folder: Path, loaded: LoadedRecipe) -> str | None:
    """Who owns a folder, if that is not this recipe; None where it is, or where nobody does."""
    owner = _read_owner(folder)
    if owner is None:
        # Made before owners were written down: whose runs they are, their data tell.
        sources = list(_read_sources(folder)) if folder.is_dir() and loaded.path.parent != RECIPES else []
        recipe_source = loaded.recipe.data.source.model_dump(mode="json", exclude_none=True)
        return "a recipe with other data" if sources and recipe_source not in sources else None
    path, sha256 = owner
    if path == str(loaded.path):
        return None
    if Path(path).is_file():
        return path
    same_data = _has_same_data(folder, loaded)
    if same_data or (same_data is None and sha256 in ("", atomic_files.sha256(loaded.path))):
        return None
    return f"{path}, which is not there; if this recipe is that one, write its path into {folder / OWNER_FILE}"


def _has_same_data(folder: Path, loaded: LoadedRecipe) -> bool | None:
    """Whether data that were prepared here are those of the recipe; None where that cannot be told."""
    reports = (atomic_files.read_json(path) for path in folder.glob(".data/*/data.json"))
    # Plain files alone: what `datasets` saved has one hash for several.
    file_sources = (report["sources"] for report in reports if all("bytes" in source for source in report["sources"]))
    prepared_hashes = [{source["sha256"] for source in sources} for sources in file_sources]
    source_files = [
        path for paths in loaded.recipe.data.source.given.values() for pattern in paths for path in _list_files(pattern)
    ]
    if not prepared_hashes or not source_files:
        return None
    recipe_hashes = {atomic_files.sha256(path) for path in source_files}
    return any(hashes <= recipe_hashes for hashes in prepared_hashes)


def _list_files(pattern: str) -> list[Path]:
    """The files behind a path of a recipe: itself, those of a folder, or those of a pattern."""
    path = Path(pattern)
    paths: Iterable[Path] = [path] if path.exists() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    groups = (match.rglob("*") if match.is_dir() else [match] for match in paths)
    return [file for group in groups for file in group if file.is_file()]


def _find_free_name(loaded: LoadedRecipe, parent: Path) -> str:
    """The recipe's name with six digits of a hash of its path, such that no other recipe has it."""
    digits = hashlib.sha256(str(loaded.path).encode()).hexdigest()
    names = [f"{loaded.name}-{digits[start : start + 6]}" for start in range(0, len(digits) - 5, 6)]
    return next((name for name in names if _read_owner(parent / name) is None), names[-1])


def _find_former_folder(loaded: LoadedRecipe, parent: Path) -> Path | None:
    """The folder that holds this recipe's runs under another name: of before names were such that W&B and servers take
    them, or of the recipe's file before it was renamed: no file is there, and the recipe and its data are the same."""
    former = parent / loaded.path.stem
    if loaded.path.stem != loaded.name and former.is_dir() and _find_other_owner(former, loaded) is None:
        return former
    sha256 = atomic_files.sha256(loaded.path)
    for folder in sorted(path for path in parent.glob("*") if path.is_dir() and not path.is_symlink()):
        owner = _read_owner(folder)
        if owner is None or Path(owner[0]).exists():
            continue
        same_data = _has_same_data(folder, loaded)
        # A registry has no data; there it must be the same folder's.
        if owner[1] == sha256 and (same_data or (same_data is None and Path(owner[0]).parent == loaded.path.parent)):
            return folder
        if not same_data:
            continue
        message = f"{folder} holds runs of the same data, of {owner[0]}, which is not there"
        print(
            f"recipe    {message}; if this is that recipe: ln -s {folder.name} {parent / loaded.name}", file=sys.stderr
        )
    return None


def _link_former_folder(link: Path, target: Path) -> None:
    """Makes the name lead to the folder of before, where it can be: nothing is moved that a process may write to."""
    message = f"recipe    {target} holds this recipe's runs, under a name of before"
    try:
        link.symlink_to(target.name)
    except OSError as error:
        print(f"{message}: rename it to {link.name} ({error.strerror})", file=sys.stderr)
    else:
        print(f"{message}; {link.name} now leads there", file=sys.stderr)


def _read_owner(folder: Path) -> tuple[str, str] | None:
    """The path of the recipe that owns a folder and the hash of its file, "" where that was not written down."""
    try:
        path, _, sha256 = (folder / OWNER_FILE).read_text(encoding="utf-8").strip().partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return path, sha256


def _write_owner(folder: Path, owner: tuple[str, str], is_first: bool) -> bool:
    """Writes the owner. Returns whether it was this process that did, where it is the `is_first` owner."""
    temp_path = folder / f"{OWNER_FILE}.{secrets.token_hex(4)}"
    temp_path.write_text("\n".join(owner) + "\n", encoding="utf-8")
    try:
        if is_first:
            os.link(temp_path, folder / OWNER_FILE)
        else:
            temp_path.replace(folder / OWNER_FILE)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINK_ERRORS:
            raise
        temp_path.replace(folder / OWNER_FILE)  # a disk without hard links: the last of two at once has it
    finally:
        temp_path.unlink(missing_ok=True)
    return True


def _read_sources(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields `data.source` of the recipe of each run and each deployed version in a folder, as far as it has one."""
    for path in (*folder.glob("*/recipe.yaml"), *folder.glob("versions/*/recipe.yaml")):
        try:
            source = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["data"]["source"]
        except (OSError, YAMLError, KeyError, TypeError):
            continue
        yield {name: value for name, value in source.items() if value is not None}
