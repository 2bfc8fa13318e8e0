"""Atomic writes of files and folders, and file hashes."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

CHECKSUMS = "SHA256SUMS"


def write_text(path: Path, text: str) -> None:
    """Write a temporary file, flush it to disk and rename it into place."""
    temp_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temp_path.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON as `write_text` does. Raise ValueError on NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the value of each line of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Return 16 hex digits of a JSON value's hash. Key order does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS: the hash of every file of a folder, in the format of `sha256sum --check`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    write_text(folder / CHECKSUMS, "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in paths))


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the content of SHA256SUMS: {file: hash}."""
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    return {name: file_hash for file_hash, _, name in (line.partition("  ") for line in lines)}


def find_changes(folder: Path) -> list[str]:
    """Return one line for each file that differs from SHA256SUMS: missing, changed, or not listed."""
    recorded = read_checksums(folder)
    files = {
        str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS
    }
    changes = [f"{name} is missing" for name in recorded if name not in files]
    changes += [f"{name} is not in {CHECKSUMS}" for name in sorted(files.keys() - recorded.keys())]
    return changes + [
        f"{name} was changed" for name in recorded if name in files and sha256(files[name]) != recorded[name]
    ]


@contextmanager
def atomic_folder(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, which replaces `path` if the block succeeds and is removed if not.

    With `keep_existing`, a folder that another process creates meanwhile is kept: for content that is the same in every
    process. Temporary folders of killed processes are removed first. A process holds a lock on a file beside its
    temporary folder. A process id would not do, because two containers may share the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale_path in path.parent.glob(f".{path.name}.*"):
        _remove_if_abandoned(stale_path)
    with _locked_temporary_folder(path) as temp_folder:
        yield temp_folder
        for file in temp_folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        if not (keep_existing and path.exists()):
            if path.exists():
                shutil.rmtree(path)
            _rename_into_place(temp_folder, path, keep_existing)


def _rename_into_place(temp_folder: Path, path: Path, keep_existing: bool) -> None:
    try:
        temp_folder.rename(path)
    except OSError as error:
        # Another process created `path` between the check and the rename.
        if not keep_existing or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextmanager
def _locked_temporary_folder(path: Path) -> Iterator[Path]:
    """Create a uniquely named folder beside `path` under a lock on `<folder>.lock`; remove both afterwards.

    The lock is on a file opened for writing, because NFS has no exclusive lock for others.
    """
    while True:
        temp_folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        lock_path = temp_folder.with_name(f"{temp_folder.name}.lock")
        with lock_path.open("w", encoding="utf-8") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                lock_path.unlink(missing_ok=True)
                raise
            # Before the lock was held, another process may have removed the file as abandoned.
            if not _is_same_file(lock_file, lock_path):
                continue
            try:
                temp_folder.mkdir()
                yield temp_folder
                return
            finally:
                shutil.rmtree(temp_folder, ignore_errors=True)
                lock_path.unlink(missing_ok=True)


def _remove_if_abandoned(path: Path) -> None:
    """Remove a temporary folder, or the lock file of one, that no process uses."""
    if path.suffix == ".lock":
        with suppress(FileNotFoundError, BlockingIOError), path.open("r+", encoding="utf-8") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(lock_file, path):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
    elif path.is_dir() and not path.with_name(f"{path.name}.lock").exists():
        shutil.rmtree(path, ignore_errors=True)


def _is_same_file(opened: IO[str], path: Path) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False
