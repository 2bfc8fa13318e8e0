"""Times as exports write them, in seconds since 1970.

parse_epoch_seconds("2026-05-01 12:00:00+02:00", "created")    1777629600.0
parse_epoch_seconds("1777629600000", "created")                1777629600.0: milliseconds, as in JavaScript
parse_epoch_seconds("20260501", "created")                     1777593600.0: a date, not seconds
parse_epoch_seconds("2026-05", "created")                      1777593600.0: the first of the month
parse_epoch_seconds("01.05.2026", "created", "%d.%m.%Y")       1777593600.0: format of data.formats.dates
"""

import math
import re
from datetime import UTC, datetime

from data_prep.rows.value_formats import parse_time
from insource.tasks.source_record import UnusableRowError

KNOWN_FORMATS = (
    "ISO 8601 (2026-05-01, 20260501, 2026-05-01T12:00:00Z), or seconds, milliseconds, microseconds since 1970, or "
    "another format that data.formats.dates names"
)
# Digits that are a year, a month or a date, with or without a time, from 1900 to 2099.
_DIGIT_DATE = re.compile(r"(?:19|20)\d{2}(?:-?\d{2}|\d{4}|\d{8}|\d{10})?")
_MIN_SECONDS, _END_SECONDS = (
    datetime(1, 1, 1, tzinfo=UTC).timestamp(),
    datetime(9999, 12, 31, tzinfo=UTC).timestamp() + 86400,
)
_DIGIT_DATE_FORMATS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
# From 1e11 on a number cannot be seconds: the time would be after the year 5138. Below -1e10 it would be before 1653.
_EPOCH_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9))


def parse_epoch_seconds(text: str, column: str, time_format: str | None = None) -> float:
    """Return seconds since 1970; a time without a zone is UTC.

    `time_format` is the strptime format of times that are not in ISO 8601.

    Raise UnusableRowError with the value if it cannot be parsed.
    """
    text = text.strip()
    if not text:
        raise UnusableRowError("no_time", f"column {column!r} is empty")
    if time_format is not None:
        time = parse_time(text, time_format)
        if time is None:
            raise UnusableRowError(
                "bad_time", f"column {column!r}: {text[:40]!r} is no time of the format {time_format}"
            )
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    seconds = _parse_digit_date(text)
    if seconds is None:
        seconds = _parse_number(text)
    if seconds is None:
        seconds = parse_iso_seconds(text)
    if seconds is None or not _MIN_SECONDS <= seconds < _END_SECONDS:
        raise UnusableRowError("bad_time", f"column {column!r}: {text[:40]!r} is no time; known: {KNOWN_FORMATS}")
    return seconds


def _parse_digit_date(text: str) -> float | None:
    """Return seconds since 1970 of a date in digits; None if it is not one."""
    if not _DIGIT_DATE.fullmatch(text):
        return None
    digits = text.replace("-", "")
    try:
        return datetime.strptime(digits, _DIGIT_DATE_FORMATS[len(digits)]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _parse_number(text: str) -> float | None:
    """Return seconds since 1970 of an epoch time in any unit; None if it is no number."""
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    size = number if number >= 0 else -10 * number
    return next((number / unit for limit, unit in _EPOCH_UNITS if size < limit), None)


def parse_iso_seconds(text: str) -> float | None:
    """Return seconds since 1970 of an ISO 8601 time; None if it is not one."""
    try:
        parsed = datetime.fromisoformat(re.sub(r" ?(?:UTC|GMT)$", "+00:00", text.strip()))
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
