"""torch's or accelerate's launcher for several processes, with exit codes and signals passed through.

    python -m train.distributed.launcher torch.distributed.run --standalone --nproc-per-node=2 -m train.worker
    runs/classifier/<run id>

By themselves the launchers report a failed process by a traceback and exit code 1. After a signal they kill all
processes within 30 seconds. This module returns the exit code of the process that failed first. It forwards a signal to
each process once, and a process has the time that it needs to finish its update and to save.
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

# The id of the parent process. This process ends when the parent ends.
PARENT_PID_ENV = "INSOURCE_LAUNCHER"


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends in any way, kill -9 included.

    Do nothing in a process that was not started by train/launch.py or by this module.
    """
    if (parent_pid := os.environ.get(PARENT_PID_ENV)) is not None:
        child_processes.set_parent_death_signal(int(parent_pid))


def main() -> int:
    """Run the launcher. Return the exit code of the process that failed first (128 + signal if it was killed), or 0."""
    die_with_parent()
    os.environ[PARENT_PID_ENV] = str(os.getpid())
    # Without this the launcher would replace these handlers by its own and kill all processes after 30 seconds.
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _forward_signal)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The launchers log failures. The processes have already printed the reason.
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
        with suppress(OSError):  # the process has ended meanwhile
            # Format: pid (name) state parent ...; the name may contain any character.
            if stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1] == str(os.getpid()):
                os.kill(int(stat.parent.name), number)


if __name__ == "__main__":
    sys.exit(main())
