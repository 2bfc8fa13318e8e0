"""SIGTERM and Ctrl-C: training finishes its update and saves, anything else ends at once, and a second one always does.

SIGTERM: finishing the running update, then saving; once more ends it at once
interrupted after update 5: the same command goes on from checkpoint-5
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from insource.config import cli

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal sends Ctrl-C to every process of a group, and launchers send it on: within this time it is the same one.
DUPLICATE_SIGNAL_SECONDS = 1.0


@dataclass
class StopRequest:
    """What the person has asked for while this runs."""

    signal_name: str | None = None
    """The signal that asked to stop."""
    asked_at: float = 0.0
    training: bool = False
    """Whether there is an update to finish and something to save."""

    def heed(self) -> None:
        """Raises KeyboardInterrupt where a stop was asked for and has been put off until now."""
        self.training = False
        if self.signal_name is not None:
            raise KeyboardInterrupt(self.signal_name)


@contextmanager
def handle_signals(on_forced_exit: Callable[[str], None]) -> Iterator[StopRequest]:
    """Yields the wish that signals write to; the handlers from before are put back afterwards.

    The first signal raises KeyboardInterrupt where nothing is being trained. A later one calls `on_forced_exit` with
    its name, which records the end, and leaves with exit code 130 on the spot. Only the main thread may call this.
    """
    stop_request = StopRequest()

    def on_signal(number: int, _: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if stop_request.signal_name is None:
            stop_request.signal_name, stop_request.asked_at = name, now
            if not stop_request.training:
                raise KeyboardInterrupt(name)
            # print would fail where the signal came in the middle of another print.
            os.write(2, f"{name}: finishing the running update, then saving; once more ends it at once\n".encode())
        elif now - stop_request.asked_at > DUPLICATE_SIGNAL_SECONDS:
            try:
                on_forced_exit(name)
            finally:
                os._exit(cli.INTERRUPTED)

    # What was ignored at the start stays ignored: a job in the background has no Ctrl-C.
    handled_signals = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    previous_handlers = {signum: signal.signal(signum, on_signal) for signum in handled_signals}
    try:
        yield stop_request
    finally:
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)
