"""Handling of SIGTERM and Ctrl-C: training finishes its update and saves, other work stops; a second signal exits.

SIGTERM: finishing the running update, then saving; a second signal ends it immediately
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
# A terminal sends Ctrl-C to every process of a group, and launchers forward it. Signals within this time count as one.
DUPLICATE_SIGNAL_SECONDS = 1.0


@dataclass
class StopRequest:
    """A pending stop request."""

    signal_name: str | None = None
    """The signal that requested the stop."""
    requested_at: float = 0.0
    training: bool = False
    """Whether an update is to be finished and saved."""

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if a stop was requested and postponed until now."""
        self.training = False
        if self.signal_name is not None:
            raise KeyboardInterrupt(self.signal_name)


@contextmanager
def handle_signals(on_forced_exit: Callable[[str], None]) -> Iterator[StopRequest]:
    """Yield the stop request that signals set; restore the previous handlers afterwards.

    The first signal raises KeyboardInterrupt outside of training. A later signal calls `on_forced_exit` with its name,
    which records the end, and exits the process with code 130. Only the main thread may call this.
    """
    stop_request = StopRequest()

    def on_signal(number: int, _: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if stop_request.signal_name is None:
            stop_request.signal_name, stop_request.requested_at = name, now
            if not stop_request.training:
                raise KeyboardInterrupt(name)
            # print would fail if the signal arrived in the middle of another print.
            os.write(
                2, f"{name}: finishing the running update, then saving; a second signal ends it immediately\n".encode()
            )
        elif now - stop_request.requested_at > DUPLICATE_SIGNAL_SECONDS:
            try:
                on_forced_exit(name)
            finally:
                os._exit(cli.INTERRUPTED)

    # Ignored signals stay ignored: a background job gets no Ctrl-C.
    handled_signals = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    previous_handlers = {signum: signal.signal(signum, on_signal) for signum in handled_signals}
    try:
        yield stop_request
    finally:
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)
