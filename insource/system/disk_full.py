"""One error message for a full disk, instead of the messages of the libraries.

runs/classifier/20261121T093000Z-x4fd/checkpoints/checkpoint-6 could not be written, the disk is full: File too large.
  8,130,560 bytes are free there without what was begun, which is removed; what was written before is untouched.
  Free some space, then run the same command: it goes on where it can.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from insource.config.errors import StageError

# No space, quota exceeded, file size limit exceeded.
FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Parts of torch.save's messages, which have a position in its C++ code and no reason.
TORCH_WRITE_ERRORS = ("inline_container", "PytorchStreamWriter", "iostream error")


@contextmanager
def raise_on_full_disk(path: Path) -> Iterator[None]:
    """Raise StageError if what the block writes to or below `path` does not fit on the disk."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = disk_full_reason(error)
        if reason is None:
            raise
        raise StageError(
            f"{os.path.relpath(path)} could not be written, the disk is full: {reason}.\n"
            f"  {free_bytes(path):,} bytes are free there after the incomplete file is removed; "
            "earlier files are unchanged.\n"
            "  Free some space, then run the same command: it resumes where it can.",
            code="INS-X001",
        ) from error


def disk_full_reason(error: Exception) -> str | None:
    """Return the system's message if an error means that a write did not fit, else None.

    Python errors have an errno, safetensors errors have it in their message, and PyTorch errors have none.
    """
    if isinstance(error, OSError):
        return error.strerror if error.errno in FULL_ERRNOS else None
    match = re.search(r"os error (\d+)", str(error))
    if match and int(match[1]) in FULL_ERRNOS:
        return os.strerror(int(match[1]))
    if isinstance(error, RuntimeError) and any(name in str(error) for name in TORCH_WRITE_ERRORS):
        return "PyTorch's file writer failed"
    return None


def free_bytes(path: Path) -> int:
    """Return the bytes that the user may still write at `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
