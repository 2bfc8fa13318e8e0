"""Failed attempts, and how HTTP errors and unreadable responses become one."""

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
    """An attempt without a response."""

    error: str
    retry_now: bool
    """Whether to retry within this invocation."""
    retry_later: bool
    """Whether a later invocation should retry."""
    possibly_charged: bool = False
    """Whether the provider may have charged for it."""
    wait_seconds: float | None = None
    """The wait that the server requests before a retry."""
    rate_limited: bool = False
    """Whether it was rejected by a rate limit or for overload."""
    refused: bool = False
    """Whether it was refused because of key, account, model or parameters, not because of the input."""


NOT_SENT = AttemptFailure("not sent", retry_now=False, retry_later=True)


def failure_from_malformed_response(error: Exception) -> AttemptFailure:
    """Return the failure of a response that cannot be parsed.

    The SDKs build responses without validation, so a malformed one raises only when it is read.
    """
    message = f"the answer cannot be read: {error}"[:MAX_MESSAGE_CHARACTERS]
    return AttemptFailure(message, retry_now=True, retry_later=True, possibly_charged=True)


def failure_from_status(status: int, error: ApiError, headers: Mapping[str, str] | None = None) -> AttemptFailure:
    """Return the failure of an HTTP error status."""
    retry_now, misconfigured = status in RETRY_STATUS or status >= 500, api_errors.is_configuration_error(status, error)
    suffix = f" ({error.param})" if error.param and error.param not in error.message else ""
    return AttemptFailure(
        error=f"HTTP {status}: {error.message}"[:MAX_MESSAGE_CHARACTERS] + suffix,
        retry_now=retry_now,
        retry_later=retry_now or misconfigured,
        wait_seconds=retry_after_seconds(headers or {}),
        rate_limited=status in RATE_LIMIT_STATUS,
        refused=misconfigured,
    )


def backoff_seconds(failures: int) -> float:
    """Return the wait after so many consecutive failures, in seconds: exponential with a jitter of 0.5 to 1."""
    max_seconds: float = min(BACKOFF_MAX_SECONDS, BACKOFF_BASE_SECONDS * 2 ** (failures - 1))
    return max_seconds * random.uniform(0.5, 1.0)
