"""The registry of deployed versions: a folder per model with its versions, one of them current.

registry/classifier/versions/3f2a90c17b5e44d0/adapter/     as training wrote it; the version is the digest of its bytes
                                              reference.jsonl  rows and reference answers that the gateway checks
                                              recipe.yaml  the recipe of its run
                                              version.json {"run_id": ..., "recipe": ..., "promoted": ...}
registry/classifier/current -> versions/3f2a90c17b5e44d0   replaced atomically
registry/classifier/history.jsonl  {"at", "action": "deploy", "from", "to", "run_id", "forced", "overridden": [...],
                                    "sha256": {"adapter/SHA256SUMS": ..., "recipe.yaml": ...}, "routing": {...}}
registry/.bases/9f2c41a07be6d835/  the base that versions were trained on
                                  (insource/tracking/base_models/base_store.py), named by its digest

A version is complete if three conditions hold. Its name is the digest of its checksum file, its files match the
checksums, and checksum file and recipe match the hashes in the history. Several machines may share the folder on one
disk; REGISTRY sets its path.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from insource.config.errors import RecipeError, StageError
from insource.system import append_only, atomic_files, shared_jsonl
from insource.system.timestamps import utc_timestamp
from insource.tracking.base_models import base_store
from insource.tracking.prompt_spec import PromptSpec, read_trained_base
from insource.tracking.run import REFERENCES_FILE, Run

CURRENT = "current"


def registry_root(folder: str | None) -> Path:
    """Return the folder of deployed versions: `folder`, else REGISTRY, else `registry` in the current folder."""
    return Path(folder or os.environ.get("REGISTRY") or "registry").absolute()


def compute_version(adapter: Path) -> str:
    """Return the version of an adapter folder: a digest of the hashes of all its files."""
    return atomic_files.sha256(adapter / atomic_files.CHECKSUMS)[:16]


def current_version(registry_dir: Path) -> str | None:
    """Return the deployed version in registry/<name>, None if there is none."""
    try:
        return (registry_dir / CURRENT).readlink().name
    except OSError:
        return None


def deployed_at(registry_dir: Path) -> int:
    """Return when the current version was set, in nanoseconds since 1970; 0 if there is none."""
    try:
        return (registry_dir / CURRENT).lstat().st_mtime_ns
    except OSError:
        return 0


def read_history(registry_dir: Path) -> list[dict[str, Any]]:
    """Return the deployments and rollbacks, oldest first.

    A line truncated by a full disk or a kill is skipped: its version was never made current.
    """
    path = registry_dir / "history.jsonl"
    entries = shared_jsonl.read_lines(path) if path.exists() else ()
    return [entry for entry in entries if isinstance(entry, dict) and {"action", "to"} <= entry.keys()]


def promote(registry_dir: Path, run: Run, overridden: list[str], routing: Mapping[str, object] | None = None) -> str:
    """Make the adapter of a run the current version. Return the version.

    `overridden` are the failed checks that were forced, `routing` is the routing record (deploy/routing.py). Raise
    StageError if the adapter or the copy is not as training wrote it.
    """
    if not (run.folder / "adapter" / atomic_files.CHECKSUMS).is_file():
        raise StageError(
            f"run {run.id} has no adapter to deploy; `make train RECIPE={run.recipe_name}` makes one", code="INS-E014"
        )
    version = compute_version(run.folder / "adapter")
    with lock_model(registry_dir):
        target = registry_dir / "versions" / version
        if not is_complete(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_files.atomic_folder(target) as temp_path:
                shutil.copytree(run.folder / "adapter", temp_path / "adapter")
                shutil.copyfile(run.folder / "recipe.yaml", temp_path / "recipe.yaml")
                if run.references_path.parent == run.folder:
                    shutil.copyfile(run.references_path, temp_path / REFERENCES_FILE)
                base = copy_base(registry_dir, run)
                metadata = {"run_id": run.id, "recipe": run.recipe_name, "promoted": utc_timestamp(), "base": base}
                atomic_files.write_json(temp_path / "version.json", metadata)
                if problems := atomic_files.find_changes(temp_path / "adapter"):
                    raise StageError(
                        f"the adapter of run {run.id} was changed after training: {'; '.join(problems)}",
                        code="INS-E014",
                    )
                Run(temp_path).check_references(PromptSpec.read(temp_path / "adapter"))
        details = {"action": "deploy", "run_id": run.id, "forced": bool(overridden), "overridden": overridden}
        set_current(registry_dir, version, details | ({"routing": dict(routing)} if routing else {}))
    return version


def copy_base(registry_dir: Path, run: Run) -> dict[str, object] | None:
    """Copy the base that a run was trained on into the registry and return its record; None for a published base.

    Raise StageError if the base is missing or incomplete.
    """
    record = read_trained_base(run.folder / "adapter")
    if record is None:
        return None
    target = registry_dir.parent / base_store.BASES_FOLDER / record.digest
    if not (target / atomic_files.CHECKSUMS).is_file():
        source = base_store.find(run.folder, record.digest)
        problems = atomic_files.find_changes(source) if source else ["it is missing"]
        if source is None or problems:
            raise StageError(
                f"the base that run {run.id} was trained on, {base_store.store_path(run.folder) / record.digest}, "
                f"was changed or removed: {'; '.join(problems)}; `make export RECIPE={run.recipe_name}` writes "
                "it again",
                code="INS-E003",
            )
        base_store.copy_base(source, target)
    return record.to_json()


def roll_back(registry_dir: Path, requested: str | None) -> tuple[str, str]:
    """Make an earlier version current: `requested`, by default the previous one. Return (old, new).

    Raise RecipeError if there is no such version.
    """
    with lock_model(registry_dir):
        current = current_version(registry_dir)
        if current is None:
            raise RecipeError(
                f"nothing is deployed below {registry_dir}; `make deploy RECIPE={registry_dir.name}` deploys",
                code="INS-G001",
            )
        version = requested or previous_version(registry_dir, current)
        if version is None:
            raise RecipeError(f"{current} is the only version deployed below {registry_dir}", code="INS-G002")
        versions_dir = registry_dir / "versions"
        if version not in {entry["to"] for entry in read_history(registry_dir)} or not is_complete(
            versions_dir / version
        ):
            available = ", ".join(sorted(path.name for path in versions_dir.iterdir() if is_complete(path)))
            raise RecipeError(
                f"there is no complete version {version} below {registry_dir}; there are {available or 'none'}",
                code="INS-G002",
            )
        run_id = atomic_files.read_json(versions_dir / version / "version.json")["run_id"]
        details = {"action": "rollback", "run_id": run_id, "forced": False, "overridden": []}
        set_current(registry_dir, version, details)
    return current, version


def previous_version(registry_dir: Path, version: str) -> str | None:
    """Return the version that was current before `version`. A second rollback thus goes further back."""
    order: list[str] = []
    for entry in read_history(registry_dir):
        # A version that was rolled back is not a target for a rollback.
        if entry["action"] == "rollback" and entry["to"] in order:
            order = order[: _last_index(order, entry["to"]) + 1]
        elif not order or order[-1] != entry["to"]:
            order.append(entry["to"])
    earlier = order[: _last_index(order, version)] if version in order else order
    return next((candidate for candidate in reversed(earlier) if candidate != version), None)


def _last_index(order: list[str], version: str) -> int:
    """Return the last index of a version in a list."""
    return len(order) - 1 - order[::-1].index(version)


def is_complete(version: Path) -> bool:
    """Return whether a version is as it was deployed: its files and their checksums are unchanged."""
    adapter, registry_dir = version / "adapter", version.parent.parent
    if not (version / "version.json").is_file() or not (adapter / atomic_files.CHECKSUMS).is_file():
        return False
    entries = [entry for entry in read_history(registry_dir) if entry["to"] == version.name]
    if not entries or compute_version(adapter) != version.name or atomic_files.find_changes(adapter):
        return False
    # Entries of older versions of insource have no hashes.
    expected: dict[str, str] = entries[-1].get("sha256", {})
    return expected.items() <= compute_hashes(version).items()


def compute_hashes(version: Path) -> dict[str, str]:
    """Return the hashes of a version for the history: of its checksum file, its recipe and its reference answers."""
    names = (f"adapter/{atomic_files.CHECKSUMS}", "recipe.yaml", REFERENCES_FILE)
    return {name: atomic_files.sha256(version / name) for name in names if (version / name).is_file()}


def set_current(registry_dir: Path, version: str, details: Mapping[str, object]) -> None:
    """Record the change in the history and make `version` current atomically. Raise StageError if the disk is full."""
    line = {"at": utc_timestamp(), "from": current_version(registry_dir), "to": version, **details}
    line["sha256"] = compute_hashes(registry_dir / "versions" / version)
    # Unbuffered: closing a file flushes its buffer again, which fails again on a full disk.
    with (registry_dir / "history.jsonl").open("ab+", buffering=0) as file:
        _append_line(file, json.dumps(line, ensure_ascii=False).encode() + b"\n")
        os.fsync(file.fileno())
    temp_path = registry_dir / f".{CURRENT}.{secrets.token_hex(4)}"
    temp_path.unlink(missing_ok=True)
    temp_path.symlink_to(Path("versions") / version)
    temp_path.replace(registry_dir / CURRENT)


@contextmanager
def lock_model(registry_dir: Path) -> Iterator[None]:
    """Lock registry/<name> for this process. Raise StageError if another process holds the lock."""
    registry_dir.mkdir(parents=True, exist_ok=True)
    with (registry_dir / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{registry_dir} is in use by another process; wait for it", code="INS-X003") from None
        yield


def _append_line(file: BinaryIO, line: bytes) -> None:
    """Append a line after the last complete one.

    Raise StageError if the disk is full; the file then has no part of the line.
    """
    file.seek(0)
    end = file.read().rfind(b"\n") + 1
    try:
        file.truncate(end)
        append_only.append_bytes(file, line, flush=False)
    except OSError as error:
        with suppress(OSError):
            file.truncate(end)
        raise StageError(
            f"{file.name} cannot be written, and nothing was deployed: {error.strerror}", code="INS-X002"
        ) from None
