"""Files of lines that several processes append to: one line at a time, behind the end of one that a process was killed
at."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from insource.config.errors import StageError


@contextmanager
def open_locked(path: Path, what: str) -> Iterator[BinaryIO]:
    """Yields a file that nobody else reads or appends to meanwhile, made where it is not there. Raises StageError
    saying `what` cannot be written where it cannot be opened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise StageError(f"{path}: {what} cannot be written: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise StageError(f"{path}: {what} cannot be written: {error.strerror or error}") from None
        yield file


def restrict_to_owner(file: BinaryIO) -> None:
    """Has this user alone read and write a file, whatever the umask. Raises OSError where that is not ours to say."""
    if os.fstat(file.fileno()).st_mode & 0o077:
        os.fchmod(file.fileno(), 0o600)


def append_line(file: BinaryIO, line: Mapping[str, object], what: str, flush: bool = True) -> None:
    """Appends a line of JSON; `flush`: it is on the disk afterwards. Raises StageError where it cannot be written."""
    size = file.seek(0, os.SEEK_END)
    separator = b""
    if size:
        file.seek(size - 1)
        separator = b"" if file.read(1) == b"\n" else b"\n"
    try:
        remaining = memoryview(separator + json.dumps(line, ensure_ascii=False).encode() + b"\n")
        while remaining:
            remaining = remaining[file.write(remaining) :]
        if flush:
            os.fsync(file.fileno())
    except OSError as error:
        raise StageError(f"{file.name}: {what} cannot be written: {error.strerror or error}") from None


def read_lines(path: Path) -> Iterator[Any]:
    """Yields the objects of the lines of a file; a torn one is left out."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue
