"""Times as exports write them, in seconds since 1970.

seconds_of("2026-05-01 12:00:00+02:00", "created")    1777629600.0
seconds_of("1777629600000", "created")                1777629600.0: milliseconds, as JavaScript counts
seconds_of("20260501", "created")                     1777593600.0: a date, and no seconds of 1970
seconds_of("01.05.2026", "created", "%d.%m.%Y")       1777593600.0: as data.formats.dates says
"""

import math
import re
from datetime import UTC, datetime

from data_prep.formats import time_of
from tasks.given import UnusableRowError

KNOWN = (
    "ISO 8601 (2026-05-01, 20260501, 2026-05-01T12:00:00Z), or seconds, milliseconds, microseconds since 1970, or "
    "another format that data.formats.dates names"
)
# Digits alone that are a date, with hours, minutes and seconds or without, of the years 1900 to 2099.
_RUN = re.compile(r"((?:19|20)\d{6})(\d{4}|\d{6})?")
# A number of 1e11 and more is no count of seconds: it would lie after the year 5138.
_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9))
_FORMS = {0: "%Y%m%d", 4: "%Y%m%d%H%M", 6: "%Y%m%d%H%M%S"}


def seconds_of(text: str, column: str, form: str | None = None) -> float:
    """Returns seconds since 1970; a time without a zone is UTC. `form` is a strptime format, in which a time is written
    that is not in ISO 8601. Raises UnusableRowError saying what stands there."""
    text = text.strip()
    if not text:
        raise UnusableRowError("no_time", f"column {column!r} is empty")
    if form is not None:
        time = time_of(text, form)
        if time is None:
            raise UnusableRowError("bad_time", f"column {column!r}: {text[:40]!r} is no time of the format {form}")
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    found = _date_run(text)
    if found is None:
        found = _number(text)
    if found is None:
        found = _iso(text)
    if found is None:
        raise UnusableRowError("bad_time", f"column {column!r}: {text[:40]!r} is no time; known: {KNOWN}")
    return found


def iso(text: str) -> float | None:
    """Returns seconds since 1970 of an ISO 8601 time, None where it is none."""
    return _iso(text.strip())


def _date_run(text: str) -> float | None:
    found = _RUN.fullmatch(text)
    if found is None:
        return None
    try:
        return datetime.strptime(text, _FORMS[len(found[2] or "")]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return next((number / unit for limit, unit in _UNITS if abs(number) < limit), None)


def _iso(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(re.sub(r" ?(?:UTC|GMT)$", "+00:00", text))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
