"""Processes that end with the one that started them, in whichever way that ends, kill -9 included."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def set_parent_death_signal(parent: int, number: int = signal.SIGKILL) -> None:
    """Has the kernel send this process a signal when the process `parent`, which started it, ends.

    To be precise, when the thread of it ends that started this one. Linux alone (prctl(2)).
    """
    _set_parent_death_signal(ctypes.CDLL(None, use_errno=True).prctl, parent, number)


def _set_parent_death_signal(prctl: Callable[[int, int], int], parent: int, number: int) -> None:
    prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it was gone before it could be watched
        os.kill(os.getpid(), number)


def make_parent_death_preexec(number: int = signal.SIGTERM) -> Callable[[], None]:
    """Returns what subprocess.Popen takes as preexec_fn, so that the child ends with this process."""
    # Looked up here: between fork and exec another thread's lock of the loader would be held for ever.
    parent, prctl = os.getpid(), ctypes.CDLL(None, use_errno=True).prctl
    return lambda: _set_parent_death_signal(prctl, parent, number)
