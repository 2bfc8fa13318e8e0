"""Timestamps of records on disk."""

from datetime import UTC, datetime


def utc_timestamp() -> str:
    """Return the current time in the format of all records: UTC, to the second, as 2026-11-21T10:00:00Z."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
