"""Which rows of a source are meant, as `data.where` says.

where: {language: en, status: [closed, solved]}    rows whose language is en and whose status is one of two

A value is compared by what the recipe asks for: a number by its value (1 is "1", "1.0" and true), a truth value as
fields of type boolean read it (true is "True", "yes" and 1), null with an empty cell, text letter by letter but for
white space at its edges. A text that is a date is also that day's midnight.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from data_prep.rows.timestamps import parse_iso_seconds
from insource.tasks.labels import display_label
from insource.tasks.records.json_fields import BOOLEAN_WORDS, is_number
from insource.tasks.source_record import to_text

# Different values of a column that are kept for messages, and how many of them a message names.
MAX_VALUES_KEPT, MAX_VALUES_SHOWN = 1000, 5
_DAY = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].+)?")


class RowFilter:
    """The rows that a recipe asks for; which of the values that it names no row has, is known at the end."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self._where = {column: _as_list(expected) for column, expected in where.items()}
        self._unmatched = {column: list(expected) for column, expected in self._where.items()}
        self._there: dict[str, Counter[str]] = {column: Counter() for column in where}

    def takes(self, values: Mapping[str, Any]) -> bool:
        """Returns whether a source row has one of the values asked for in every column named."""
        accepted = True
        for column, expected in self._where.items():
            value, counts = values.get(column), self._there[column]
            match = next((candidate for candidate in expected if matches_value(value, candidate)), MISSING)
            if match is MISSING:
                accepted = False
            elif match in self._unmatched[column]:
                self._unmatched[column] = [
                    candidate for candidate in self._unmatched[column] if not matches_value(value, candidate)
                ]
            text = to_text(value).strip()
            if text in counts or len(counts) < MAX_VALUES_KEPT:
                counts[text] += 1
        return accepted

    def unmatched(self) -> list[str]:
        """Returns a line for each value asked for that no row has, with the nearest that is there."""
        return [
            f"data.where.{column}: no row has {_format_value(value)}{self._hint(column, value)}"
            for column, values in self._unmatched.items()
            for value in values
        ]

    def _hint(self, column: str, expected: Any) -> str:
        counts = self._there[column]
        if matches := get_close_matches(to_text(expected), [text for text in counts if text], 1):
            return f"; did you mean {display_label(matches[0])}?"
        listing = ", ".join(
            f"{_format_value(value or None)} {rows:,}" for value, rows in counts.most_common(MAX_VALUES_SHOWN)
        )
        return f"; there are {listing}" + (", ..." if len(counts) > MAX_VALUES_SHOWN else "") if listing else ""


MISSING = object()


def matches_value(value: Any, expected: Any) -> bool:
    """Returns whether the value of a row is the one that the recipe asks for."""
    if expected is None:
        return value is None or (isinstance(value, str) and not value.strip())
    actual = to_text(value).strip()
    if isinstance(expected, bool):
        return BOOLEAN_WORDS.get(actual.casefold()) is expected
    if isinstance(expected, int | float):
        return _parse_number(actual) == expected
    expected_text = expected.strip()
    if actual == expected_text or (is_number(value) and _parse_number(expected_text) == value):
        return True
    if isinstance(value, bool):
        return BOOLEAN_WORDS.get(expected_text.casefold()) is value
    return (
        bool(_DAY.fullmatch(expected_text) and _DAY.fullmatch(actual))
        and parse_iso_seconds(expected_text) == parse_iso_seconds(actual) is not None
    )


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _format_value(value: Any) -> str:
    return "an empty cell" if value is None else display_label(to_text(value))


def _parse_number(text: str) -> float | None:
    """The number that a text is, 1 and 0 for truth values; None where it is none, or nan."""
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
