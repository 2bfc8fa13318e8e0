"""Several processes of one training: torch's or accelerate's own launcher, with exit codes and signals passed through.

    python -m train.distributed.launcher torch.distributed.run --standalone --nproc-per-node=2 -m train.worker
    runs/classifier/<run id>

The launchers answer a failed process with a traceback and exit 1, and a signal by killing everything 30 seconds later.
Here the exit code is that of the process that failed first, and a signal goes to each process once, which takes the
time that it needs to finish its update and to save.
"""

import importlib
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from insource.system import child_processes

# The process that a process of a training ends with, by its id.
PARENT_PID_ENV = "INSOURCE_LAUNCHER"


def die_with_parent() -> None:
    """Has the kernel end this process, at once, when the one that started it ends in whichever way, kill -9 included.

    Does nothing in a process that was not started by train/launch.py or by this module.
    """
    if (parent_pid := os.environ.get(PARENT_PID_ENV)) is not None:
        child_processes.set_parent_death_signal(int(parent_pid))


def main() -> int:
    """Returns the exit code of the process that failed first, 0 where none did; a killed one counts as 128 + signal."""
    die_with_parent()
    os.environ[PARENT_PID_ENV] = str(os.getpid())
    # Without this the launcher would put its own handlers in the place of these, and end everything after 30 seconds.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _forward_signal)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What the launchers log of a failure stands in words in what the process itself printed.
    logging.disable(logging.CRITICAL)
    sys.argv = sys.argv[1:]
    try:
        importlib.import_module(sys.argv[0]).main()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


def _forward_signal(number: int, _: FrameType | None) -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            # pid (name) state parent ...; the name may hold anything.
            if stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1] == str(os.getpid()):
                os.kill(int(stat.parent.name), number)


if __name__ == "__main__":
    sys.exit(main())
