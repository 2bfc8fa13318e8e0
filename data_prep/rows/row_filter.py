"""The row filter `data.where`.

where: {language: en, status: [closed, solved]}    rows with the language en and one of the two statuses

The type of the value in the recipe decides the comparison. Numbers compare by value (1 equals "1", "1.0" and true).
Booleans compare as in boolean fields (true equals "True", "yes" and 1). Null equals an empty cell. Texts compare
exactly except for surrounding white space. A date also equals midnight of that day.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from data_prep.rows.timestamps import parse_iso_seconds
from insource.tasks.records.json_fields import BOOLEAN_WORDS, is_number
from insource.tasks.source_record import to_text
from insource.text.labels import display_label

# Distinct values of a column that are kept for messages, and the number that a message names.
MAX_VALUES_KEPT, MAX_VALUES_SHOWN = 1000, 5
_DAY = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].+)?")


class RowFilter:
    """Filter on column values that also counts which expected values occur."""

    def __init__(self, where: Mapping[str, object]) -> None:
        self._where = {column: _as_list(expected) for column, expected in where.items()}
        self._unmatched = {column: list(expected) for column, expected in self._where.items()}
        self._value_counts: dict[str, Counter[str]] = {column: Counter() for column in where}

    def accepts(self, values: Mapping[str, Any]) -> bool:
        """Return whether a source row has an expected value in every filtered column."""
        accepted = True
        for column, expected in self._where.items():
            value, counts = values.get(column), self._value_counts[column]
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

    def list_unmatched(self) -> list[str]:
        """Return one line per expected value that no row has, with the most similar value that occurs."""
        return [
            f"data.where.{column}: no row has {_format_value(value)}{self._hint(column, value)}"
            for column, values in self._unmatched.items()
            for value in values
        ]

    def _hint(self, column: str, expected: object) -> str:
        """Return the most similar value of the column, or else its most frequent values."""
        counts = self._value_counts[column]
        if matches := get_close_matches(to_text(expected), [text for text in counts if text], 1):
            return f"; did you mean {display_label(matches[0])}?"
        listing = ", ".join(
            f"{_format_value(value or None)} {rows:,}" for value, rows in counts.most_common(MAX_VALUES_SHOWN)
        )
        return f"; there are {listing}" + (", ..." if len(counts) > MAX_VALUES_SHOWN else "") if listing else ""


MISSING = object()


def matches_value(value: Any, expected: Any) -> bool:
    """Return whether the value of a row equals the value in the recipe."""
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


def _as_list(value: object) -> Sequence[object]:
    """Return the value as a list."""
    return value if isinstance(value, list) else [value]


def _format_value(value: object) -> str:
    """Return the value for a message."""
    return "an empty cell" if value is None else display_label(to_text(value))


def _parse_number(text: str) -> float | None:
    """Return the number of a text, 1 or 0 for booleans; None if it is no number."""
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
