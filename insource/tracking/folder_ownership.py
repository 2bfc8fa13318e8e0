"""Ownership of run folders: two recipes with one file name never share runs, answers or deployed versions.

    runs/tickets/.recipe           /home/ann/acme/tickets.yaml: the recipe that owns the runs, and its file's hash
    runs/tickets-3fa2c1/.recipe    /home/ann/globex/tickets.yaml, the second recipe of that name

A recipe that was moved keeps its runs, on two conditions. The file that the owner record names no longer exists. The
prepared data are the same, or without any the recipe itself. A path is no proof: in another container, or on another
machine that shares the disk, it may be another file, or none.
"""

import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, LoadedRecipe
from insource.system import atomic_files

OWNER_FILE = ".recipe"
NO_HARD_LINK_ERRORS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def resolve_name(loaded: LoadedRecipe, parent: Path) -> LoadedRecipe:
    """Return the recipe under the name of its folder below `parent` (runs or registry).

    The name is the recipe's own. If another recipe owns that folder, a hash of the recipe's path is appended, which is
    printed on stderr.
    """
    default_folder = parent / loaded.name
    suffixed_folders = sorted(parent.glob(f"{loaded.name}-{'[0-9a-f]' * 6}"))
    for folder in (default_folder, *suffixed_folders):
        if (owner := _read_owner(folder)) is not None and owner[0] == str(loaded.path):
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
    """Return the recipe under its name below `parent`, and record it as the owner of that folder.

    Raise RecipeError if the folder is not writable.
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
            raise RecipeError(
                f"runs cannot be kept in {parent}: {cli.describe_os_error(error)}", code="INS-X002"
            ) from None


def _find_other_owner(folder: Path, loaded: LoadedRecipe) -> str | None:
    """Return the owner of a folder if it is another recipe; None if it is this one, or if there is none."""
    owner = _read_owner(folder)
    if owner is None:
        # The folder is older than owner records: its data identify the recipe.
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
    """Return whether the prepared data of a folder are those of the recipe; None if that is unknown."""
    reports = (atomic_files.read_json(path) for path in folder.glob(".data/*/data.json"))
    # Plain files only: what `datasets` saved has one hash for several files.
    file_sources = (report["sources"] for report in reports if all("bytes" in source for source in report["sources"]))
    prepared_hashes = [{source["sha256"] for source in sources} for sources in file_sources]
    source = loaded.recipe.data.source
    source_files = [
        path
        for paths in [*source.paths_by_split.values(), source.labelled or []]
        for pattern in paths
        for path in _list_files(pattern)
    ]
    if not prepared_hashes or not source_files:
        return None
    recipe_hashes = {atomic_files.sha256(path) for path in source_files}
    return any(hashes <= recipe_hashes for hashes in prepared_hashes)


def _list_files(pattern: str) -> list[Path]:
    """Return the files of a path in a recipe: a file, a folder or a pattern."""
    path = Path(pattern)
    paths: Iterable[Path] = [path] if path.exists() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    groups = (match.rglob("*") if match.is_dir() else [match] for match in paths)
    return [file for group in groups for file in group if file.is_file()]


def _find_free_name(loaded: LoadedRecipe, parent: Path) -> str:
    """Return the recipe's name with six digits of a hash of its path, not used by another recipe."""
    digits = hashlib.sha256(str(loaded.path).encode()).hexdigest()
    names = [f"{loaded.name}-{digits[start : start + 6]}" for start in range(0, len(digits) - 5, 6)]
    return next((name for name in names if _read_owner(parent / name) is None), names[-1])


def _find_former_folder(loaded: LoadedRecipe, parent: Path) -> Path | None:
    """Return the folder that holds this recipe's runs under a former name.

    Former names come from earlier versions, which did not adapt names to W&B and servers, or from a renamed recipe
    file. A renamed file no longer exists, and the recipe and its data are the same.
    """
    former = parent / loaded.path.stem
    if loaded.path.stem != loaded.name and former.is_dir() and _find_other_owner(former, loaded) is None:
        return former
    sha256 = atomic_files.sha256(loaded.path)
    for folder in sorted(path for path in parent.glob("*") if path.is_dir() and not path.is_symlink()):
        owner = _read_owner(folder)
        if owner is None or Path(owner[0]).exists():
            continue
        same_data = _has_same_data(folder, loaded)
        # A registry has no data, so there the recipe must be in the same folder as before.
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
    """Link the name to the former folder if possible. Nothing is moved, because a process may be writing there."""
    message = f"recipe    {target} holds this recipe's runs, under a name of before"
    try:
        link.symlink_to(target.name)
    except OSError as error:
        print(f"{message}: rename it to {link.name} ({error.strerror})", file=sys.stderr)
    else:
        print(f"{message}; {link.name} now leads there", file=sys.stderr)


def _read_owner(folder: Path) -> tuple[str, str] | None:
    """Return the path of the recipe that owns a folder and the hash of its file, "" if no hash was recorded."""
    try:
        path, _, sha256 = (folder / OWNER_FILE).read_text(encoding="utf-8").strip().partition("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return path, sha256


def _write_owner(folder: Path, owner: tuple[str, str], is_first: bool) -> bool:
    """Write the owner record. Return False if another process wrote the `is_first` record earlier."""
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
        temp_path.replace(folder / OWNER_FILE)  # a disk without hard links: of two concurrent writers the last wins
    finally:
        temp_path.unlink(missing_ok=True)
    return True


def _read_sources(folder: Path) -> Iterator[dict[str, object]]:
    """Yield `data.source` of the recipes of all runs and deployed versions in a folder, if they have one."""
    for path in (*folder.glob("*/recipe.yaml"), *folder.glob("versions/*/recipe.yaml")):
        try:
            source = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["data"]["source"]
        except (OSError, YAMLError, KeyError, TypeError):
            continue
        yield {name: value for name, value in source.items() if value is not None}
