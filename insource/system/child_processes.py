"""Child processes that end with their parent, however that ends, kill -9 included."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def set_parent_death_signal(parent: int) -> None:
    """Make the kernel kill this process when its parent process `parent` ends.

    Precisely, when the parent's thread that started this process ends. Linux only (prctl(2)).
    """
    _set_parent_death_signal(ctypes.CDLL(None, use_errno=True).prctl, parent, signal.SIGKILL)


def _set_parent_death_signal(prctl: Callable[[int, int], int], parent: int, number: int) -> None:
    prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent ended before prctl
        os.kill(os.getpid(), number)


def make_parent_death_preexec(number: int = signal.SIGTERM) -> Callable[[], None]:
    """Return a preexec_fn for subprocess.Popen that makes the child end with this process."""
    # Looked up before the fork: between fork and exec, another thread's lock of the dynamic loader would never be
    # released.
    parent, prctl = os.getpid(), ctypes.CDLL(None, use_errno=True).prctl
    return lambda: _set_parent_death_signal(prctl, parent, number)
