"""Failed attempts: their fields, and how HTTP errors and unreadable answers become one."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from insource.backends import api_errors
from insource.backends.api_errors import ApiError
from insource.backends.rate_limit import RATE_LIMIT_STATUS, retry_after_seconds

RETRY_STATUS = (408, 409, 429)
BACKOFF_BASE_SECONDS, BACKOFF_MAX_SECONDS = 0.5, 8.0
MAX_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class AttemptFailure:
    """An attempt that brought no answer."""

    error: str
    again: bool
    """Whether it is fair to ask again at once."""
    another_day: bool
    """Whether it is fair to ask again later."""
    unsure: bool = False
    """Whether it may have been paid for all the same."""
    wait_seconds: float | None = None
    """What the server asks to wait before it is asked again."""
    busy: bool = False
    """Whether it was refused because too much is asked."""
    refused: bool = False
    """Whether it was refused for how it was asked: by key, account, model or parameters, and not by what it says."""


NOT_SENT = AttemptFailure("not sent", again=False, another_day=True)


def failure_from_malformed_response(error: Exception) -> AttemptFailure:
    """Returns what it means that an answer is none. The SDKs build answers without checking: it shows when it is
    read."""
    message = f"the answer cannot be read: {error}"[:MAX_MESSAGE_CHARACTERS]
    return AttemptFailure(message, again=True, another_day=True, unsure=True)


def failure_from_status(status: int, error: ApiError, headers: Mapping[str, str] | None = None) -> AttemptFailure:
    """Returns what an HTTP error means for the request."""
    retry_now, misconfigured = status in RETRY_STATUS or status >= 500, api_errors.is_configuration_error(status, error)
    suffix = f" ({error.param})" if error.param and error.param not in error.message else ""
    return AttemptFailure(
        error=f"HTTP {status}: {error.message}"[:MAX_MESSAGE_CHARACTERS] + suffix,
        again=retry_now,
        another_day=retry_now or misconfigured,
        wait_seconds=retry_after_seconds(headers or {}),
        busy=status in RATE_LIMIT_STATUS,
        refused=misconfigured,
    )


def backoff_seconds(failures: int) -> float:
    """Returns how long to wait after so many failures in succession: doubles with each, and differs from caller to
    caller, so that they do not all come back at once."""
    max_seconds: float = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2 ** (failures - 1))
    return max_seconds * random.uniform(0.5, 1.0)
