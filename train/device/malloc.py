"""The memory of a process on a CPU: what one pass has freed is kept for the next.

glibc takes every tensor of more than 32 MB from the system and gives it back when it is freed; the system then clears
each of its pages anew, at every layer of every update. On a pack of 6,600 tokens that was a third of the time.
"""

import ctypes
from contextlib import suppress

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DISABLED = -1


def disable_malloc_trim() -> None:
    """Has malloc keep, from here on, what this process frees; a C library without glibc's settings stays as it is."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, DISABLED)
