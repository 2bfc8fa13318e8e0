"""JSONL files that several processes append to, one line at a time. A torn last line of a killed process is skipped."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from insource.config.errors import StageError
from insource.system import append_only


@contextmanager
def open_locked(path: Path, content: str) -> Iterator[BinaryIO]:
    """Yield a file, created if missing, that is locked against other readers and writers.

    Raise StageError with `content` if it cannot be opened or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise write_error(path, content, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise write_error(path, content, error) from None
        yield file


def write_error(path: Path | str, content: str, error: OSError) -> StageError:
    """Return the error for a file that cannot be written. `content` names what it contains."""
    return StageError(f"{path}: {content} cannot be written: {error.strerror or error}", code="INS-X002")


def restrict_to_owner(file: BinaryIO, content: str) -> None:
    """Set a file's mode to 0600, regardless of the umask. Raise StageError if that is not permitted."""
    try:
        if os.fstat(file.fileno()).st_mode & 0o077:
            os.fchmod(file.fileno(), 0o600)
    except OSError as error:
        raise write_error(file.name, content, error) from None


def append_lines(file: BinaryIO, lines: Sequence[Mapping[str, object]], content: str, flush: bool = True) -> None:
    """Append JSON lines; with `flush` they are on disk afterwards. Raise StageError if one cannot be written."""
    for number, line in enumerate(lines, 1):
        append_line(file, line, content, flush and number == len(lines))


def append_line(file: BinaryIO, line: Mapping[str, object], content: str, flush: bool = True) -> None:
    """Append a JSON line; with `flush` it is on disk afterwards. Raise StageError if it cannot be written."""
    size = file.seek(0, os.SEEK_END)
    separator = b""
    if size:
        file.seek(size - 1)
        separator = b"" if file.read(1) == b"\n" else b"\n"
    try:
        data = separator + json.dumps(line, ensure_ascii=False).encode() + b"\n"
        append_only.append_bytes(file, data, flush)
    except OSError as error:
        raise write_error(file.name, content, error) from None


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the objects in the lines of a file; torn lines are skipped."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue
