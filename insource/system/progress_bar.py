"""Progress of long work: a bar on a terminal, occasional lines in a log file.

terminal    answered  ━━━━━━━━━━━╸━━━━━  1200/1840  merged, 31 requests/s  0:00:38 eta 0:00:20
log file    answered  92/1,840    3 s so far, about 57 s left
            answered  920/1,840  merged, 31 requests/s  30 s so far, about 29 s left
            untuned   0/66  64 rows at token 12 of at most 336  61 s so far
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from insource.system.console_log import log_line

ProgressUpdate = Callable[..., None]
"""The type of `advance(completed, note="")`."""

# Lines in a log file: an estimate after MIN_UNITS_FOR_ETA units or MIN_SECONDS_FOR_ETA seconds, unless less than
# MIN_SECONDS_LEFT remain; then one a quarter, and one after KEEPALIVE_SECONDS of silence. If no unit is complete after
# MIN_SECONDS_FOR_ETA seconds, a line without an estimate.
MIN_UNITS_FOR_ETA = 5
MIN_SECONDS_FOR_ETA = 60
MIN_SECONDS_LEFT = 20
KEEPALIVE_SECONDS = 600

# A terminal has one live display: nested work (an evaluation during training) is another line of it.
_outer_bar: ContextVar["Progress | _LogProgress | None"] = ContextVar("outer bar", default=None)


@contextmanager
def show_progress(label: str, total: int, done: int = 0, visible: bool = True) -> Iterator[ProgressUpdate]:
    """Yield `advance(completed, note)`: a bar with its ETA on a terminal, occasional lines otherwise.

    `done` of `total` units were completed by an earlier run that this one resumes. Without `visible` nothing is
    printed.
    """
    console, outer = Console(stderr=True), _outer_bar.get()
    if not visible:
        yield lambda completed, note="": None
    elif isinstance(outer, Progress):
        task = outer.add_task(label, total=total, completed=done, note="")
        try:
            yield lambda completed, note="": outer.update(task, completed=completed, note=note)
        finally:
            outer.remove_task(task)
    elif not console.is_terminal:
        lines = _LogProgress(label, total, done, nested=outer is not None)
        with _nest_in(lines):
            yield lines.advance
    else:
        columns = (TextColumn("{task.description:<9}"), BarColumn(None), MofNCompleteColumn(),
                   TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("eta"),
                   TimeRemainingColumn())  # fmt: skip
        # The rate of the last 5 minutes, so that an evaluation in between does not distort the ETA.
        with Progress(*columns, console=console, speed_estimate_period=300) as progress, _nest_in(progress):
            task = progress.add_task(label, total=total, completed=done, note="")
            yield lambda completed, note="": progress.update(task, completed=completed, note=note)


@contextmanager
def _nest_in(bar: "Progress | _LogProgress") -> Iterator[None]:
    token = _outer_bar.set(bar)
    try:
        yield
    finally:
        _outer_bar.reset(token)


class _LogProgress:
    """Progress in a log file. Nested work prints no quarters, because its result is printed anyway."""

    def __init__(self, label: str, total: int, done: int, nested: bool) -> None:
        self.label, self.total, self.done, self.nested = label, max(1, total), done, nested
        self.quarter = 4 * done // self.total
        self.started_at = self.last_logged_at = time.monotonic()
        self.first_update: tuple[int, float] | None = None
        self.estimated = self.logged = False

    def advance(self, completed: int, note: str = "") -> None:
        """Record progress, and print a line if one is due."""
        now = time.monotonic()
        # The first unit includes warm-up and is not measured.
        if self.first_update is None and completed > self.done:
            self.first_update = (completed, now)
        first_completed, first_at = self.first_update or (completed, now)
        units, seconds = completed - first_completed, now - first_at
        remaining_seconds = seconds / units * (self.total - completed) if units else None
        quarter = 4 * completed // self.total
        if self._is_due(quarter, units + 1, now, remaining_seconds):
            self.quarter, self.last_logged_at, self.logged = quarter, now, True
            parts = [f"{self.label:<9} {completed:,}/{self.total:,}", note, format_duration(now - self.started_at)]
            if completed < self.total:
                self.estimated = remaining_seconds is not None
                left = "" if remaining_seconds is None else f", about {format_duration(remaining_seconds)} left"
                parts[-1] += f" so far{left}"
            log_line("  ".join(filter(None, parts)))

    def _is_due(self, quarter: int, units: int, now: float, remaining_seconds: float | None) -> bool:
        has_estimate = units >= MIN_UNITS_FOR_ETA or now - self.started_at >= MIN_SECONDS_FOR_ETA
        is_first_estimate = (
            not self.estimated
            and has_estimate
            and remaining_seconds is not None
            and remaining_seconds >= MIN_SECONDS_LEFT
        )
        max_silence = KEEPALIVE_SECONDS if self.logged or self.nested else MIN_SECONDS_FOR_ETA
        is_keepalive = now - self.last_logged_at >= max_silence
        return is_first_estimate or is_keepalive or (quarter > self.quarter and not self.nested)


def format_duration(seconds: float) -> str:
    """Return a duration as text: 48 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
