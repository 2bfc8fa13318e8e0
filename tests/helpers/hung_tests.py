"""What a test waits for that runs longer than HUNG_SECONDS: its processes, written to stderr.

pytest-timeout ends such a test later, with the stack of pytest alone.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

HUNG_SECONDS = 1000
"""Below `timeout` in pyproject.toml: at the timeout, child processes may be gone."""


@contextmanager
def report_if_hung(name: str, stderr_fd: int) -> Iterator[None]:
    """Write all descendants of this process to a file descriptor if the block takes longer than HUNG_SECONDS."""
    timer = threading.Timer(HUNG_SECONDS, _report, [name, stderr_fd])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _report(name: str, stderr_fd: int) -> None:
    lines = [f"{name} has run for {HUNG_SECONDS} s. Processes:"]
    for process in psutil.Process().children(recursive=True):
        try:
            age = time.time() - process.create_time()
            lines.append(f"  {process.pid} {process.status()} {age:.0f} s: {' '.join(process.cmdline())[:200]}")
        except psutil.Error:
            continue
    os.write(stderr_fd, "\n".join([*lines, ""]).encode())
