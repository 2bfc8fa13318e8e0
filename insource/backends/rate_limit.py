"""Rate limits that a backend states in response headers and in rejections.

retry-after: 7   retry-after-ms: 250                     of a 429, 503 or 529: no request is sent until then
x-ratelimit-remaining-requests: 0                        OpenAI's and others'; -tokens likewise:
x-ratelimit-reset-requests: 6m0s                         no request is sent until then
anthropic-ratelimit-input-tokens-remaining: 0            Anthropic's; requests, tokens, output-tokens likewise
anthropic-ratelimit-input-tokens-reset: 2026-11-01T00:00:07Z

A rejection halves the number of concurrent attempts. As many successes as there are concurrent attempts raise it by one
(additive increase, multiplicative decrease: Chiu and Jain 1989, as in TCP).
"""

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

RATE_LIMIT_STATUS = (429, 503, 529)
# (remaining, reset) headers.
LIMIT_HEADERS = [
    *((f"x-ratelimit-remaining-{resource}", f"x-ratelimit-reset-{resource}") for resource in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{resource}-remaining", f"anthropic-ratelimit-{resource}-reset")
        for resource in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
]
# Duration format of Go, used in OpenAI's headers: 1s, 6m0s, 120ms, 1h2m3.5s.
UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
# A bare number this large is a Unix timestamp, not a duration.
_MIN_TIMESTAMP = 1e8


class RateLimiter:
    """Limits concurrency and start times of the attempts to a backend: one for all its requests, in one event loop."""

    def __init__(self, max_concurrency: int, max_wait_seconds: float) -> None:
        self.max_concurrency = max_concurrency
        self.max_wait_seconds = max_wait_seconds
        self.concurrency = float(max_concurrency)
        """Current limit of concurrent attempts."""
        self._in_flight = 0
        self._blocked_until = 0.0
        self._decreased_at = 0.0
        self._released = asyncio.Event()

    async def acquire(self) -> float:
        """Wait for a slot and return 0; the caller must `release` it.

        Return the requested wait in seconds instead if it exceeds `max_wait_seconds`.
        """
        while True:
            wait_seconds = self._blocked_until - time.monotonic()
            if wait_seconds > self.max_wait_seconds:
                return wait_seconds
            if wait_seconds > 0:
                await asyncio.sleep(wait_seconds)
            elif self._in_flight < int(self.concurrency):
                self._in_flight += 1
                return 0.0
            else:
                self._released.clear()
                await self._released.wait()

    def release(self) -> None:
        """Release a slot."""
        self._in_flight -= 1
        self._released.set()

    def on_response(self, status: int, headers: Mapping[str, str]) -> None:
        """Update the limits from the status and headers of any response."""
        wait_seconds = retry_after_seconds(headers) if status in RATE_LIMIT_STATUS else None
        if wait_seconds is None:
            # A used-up limit is a hint, not a rejection, so the wait is capped.
            wait_seconds = min(seconds_until_available(headers), self.max_wait_seconds)
        if wait_seconds > 0:
            self._blocked_until = max(self._blocked_until, time.monotonic() + wait_seconds)

    def on_rate_limited(self, started_at: float) -> None:
        """Record a rejection.

        Attempts that started before the last halving do not halve it again, so a burst of rejections halves once.
        `started_at` is the start of the attempt, by time.monotonic().
        """
        if started_at > self._decreased_at:
            self.concurrency, self._decreased_at = max(1.0, self.concurrency / 2), time.monotonic()

    def on_success(self) -> None:
        """Record a success."""
        self.concurrency = min(float(self.max_concurrency), self.concurrency + 1 / self.concurrency)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the wait that a server requests, in seconds, None if it requests none.

    Sources: retry-after-ms, or Retry-After in seconds or as a date.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None


def seconds_until_available(headers: Mapping[str, str]) -> float:
    """Return the seconds until no limit is used up; 0 if none is, or no limit is stated."""
    waits = [0.0]
    for remaining, reset in LIMIT_HEADERS:
        try:
            if float(headers[remaining]) <= 0:
                waits.append(parse_reset_seconds(headers[reset], headers.get("date")))
        except (KeyError, ValueError):
            continue
    return max(waits)


def parse_reset_seconds(value: str, date: str | None = None) -> float:
    """Return the seconds until a limit is reset, from a duration (6m0s), seconds or a timestamp.

    `date` is the server's own time, from which timestamps are counted. Raise ValueError for other formats.
    """
    parts = _DURATION_PART.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)
    try:
        seconds = float(value)
    except ValueError:
        seconds = datetime.fromisoformat(value).timestamp()
    return max(0.0, seconds - _parse_server_time(date) if seconds > _MIN_TIMESTAMP else seconds)


def _parse_server_time(date: str | None) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() if date else time.time()
    except ValueError:
        return time.time()
