"""A full disk, told in one message and not in a library's words.

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

# No space, over the quota, over the limit of one file.
FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch.save says where in its C++ it stood, and not why the write failed.
TORCH_WRITE_ERRORS = ("inline_container", "PytorchStreamWriter", "iostream error")


@contextmanager
def raise_on_full_disk(path: Path) -> Iterator[None]:
    """Raises StageError where what the block writes to `path`, or below it, does not fit on the disk."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = disk_full_reason(error)
        if reason is None:
            raise
        raise StageError(
            f"{os.path.relpath(path)} could not be written, the disk is full: {reason}.\n"
            f"  {free_bytes(path):,} bytes are free there without what was begun, which is removed; "
            "what was written before is untouched.\n"
            "  Free some space, then run the same command: it goes on where it can."
        ) from error


def disk_full_reason(error: Exception) -> str | None:
    """Returns what the system said where an error means that a write did not fit, else None.

    Python gives the number of the system's error, safetensors writes it into its message, PyTorch keeps it to itself.
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
    """Returns how much a user may still write where `path` is or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
