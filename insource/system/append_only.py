"""Append-only files: complete writes, and the torn last line that a killed process leaves.

The definition of a torn line differs by file. The journal of `predict` cuts everything after the last newline. The
response cache keeps a last line that parses, and completes it with a newline. Files that several processes append to
(`shared_jsonl`) are never cut.
"""

import os
import sys
from pathlib import Path
from typing import BinaryIO


def append_bytes(file: BinaryIO, data: bytes, flush: bool = True) -> None:
    """Write all of `data` to an unbuffered file; with `flush` it is on disk afterwards. Raise OSError if that fails.

    The file must be unbuffered: closing a buffered file writes its buffer again, and on a full disk fails again.
    """
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]
    if flush:
        os.fsync(file.fileno())


def cut_torn_line(file: BinaryIO, path: Path, size: int, complete_bytes: int) -> None:
    """Cut a file of `size` bytes to its complete lines, and report it on stderr."""
    print(f"{path}: cut off a torn last line of {size - complete_bytes} bytes", file=sys.stderr)
    file.truncate(complete_bytes)
