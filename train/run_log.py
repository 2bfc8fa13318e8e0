"""The messages of a training run: lines on stderr of the main process, and fallbacks in the manifest."""

from collections.abc import Callable

from insource.system.console_log import log_line
from insource.tracking import run as runs
from insource.tracking.run import Run
from train.distributed import world


def log(*lines: str) -> None:
    """Print to stderr, in the main process only."""
    for line in lines if world.is_main_process() else ():
        log_line(line)


def fallback_logger(run: Run, stage: str = "train") -> Callable[[str], None]:
    """Return a function that prints a fallback and records it under a stage of the manifest, each message only once.

    A fallback is a deviation from the recipe's settings.
    """
    logged: set[str] = set()

    def log_fallback(message: str) -> None:
        if message in logged:
            return
        logged.add(message)
        log(f"fallback  {message}")
        if world.is_main_process():
            runs.record_fallback(run, stage, message)

    return log_fallback
