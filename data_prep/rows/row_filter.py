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

from data_prep.rows.timestamps import iso
from insource.tasks.labels import shown
from insource.tasks.records.json_fields import TRUTHS, is_number
from insource.tasks.source_record import cell

# Different values of a column that are kept for messages, and how many of them a message names.
MOST_KEPT, MOST = 1000, 5
_DAY = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].+)?")


class Filter:
    """The rows that a recipe asks for; which of the values that it names no row has, is known at the end."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self._where = {column: _several(asked) for column, asked in where.items()}
        self._unmatched = {column: list(asked) for column, asked in self._where.items()}
        self._there: dict[str, Counter[str]] = {column: Counter() for column in where}

    def takes(self, values: Mapping[str, Any]) -> bool:
        """Returns whether a source row has one of the values asked for in every column named."""
        taken = True
        for column, asked in self._where.items():
            value, there = values.get(column), self._there[column]
            found = next((one for one in asked if same(value, one)), MISSING)
            if found is MISSING:
                taken = False
            elif found in self._unmatched[column]:
                self._unmatched[column] = [one for one in self._unmatched[column] if not same(value, one)]
            text = cell(value).strip()
            if text in there or len(there) < MOST_KEPT:
                there[text] += 1
        return taken

    def unmatched(self) -> list[str]:
        """Returns a line for each value asked for that no row has, with the nearest that is there."""
        return [
            f"data.where.{column}: no row has {_named(one)}{self._hint(column, one)}"
            for column, values in self._unmatched.items()
            for one in values
        ]

    def _hint(self, column: str, asked: Any) -> str:
        there = self._there[column]
        if near := get_close_matches(cell(asked), [one for one in there if one], 1):
            return f"; did you mean {shown(near[0])}?"
        named = ", ".join(f"{_named(value or None)} {rows:,}" for value, rows in there.most_common(MOST))
        return f"; there are {named}" + (", ..." if len(there) > MOST else "") if named else ""


MISSING = object()


def same(value: Any, asked: Any) -> bool:
    """Returns whether the value of a row is the one that the recipe asks for."""
    if asked is None:
        return value is None or (isinstance(value, str) and not value.strip())
    given = cell(value).strip()
    if isinstance(asked, bool):
        return TRUTHS.get(given.casefold()) is asked
    if isinstance(asked, int | float):
        return _number(given) == asked
    wanted = asked.strip()
    if given == wanted or (is_number(value) and _number(wanted) == value):
        return True
    if isinstance(value, bool):
        return TRUTHS.get(wanted.casefold()) is value
    return bool(_DAY.fullmatch(wanted) and _DAY.fullmatch(given)) and iso(wanted) == iso(given) is not None


def _several(asked: Any) -> Sequence[Any]:
    return asked if isinstance(asked, list) else [asked]


def _named(asked: Any) -> str:
    return "an empty cell" if asked is None else shown(cell(asked))


def _number(text: str) -> float | None:
    """The number that a text is, 1 and 0 for truth values; None where it is none, or nan."""
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
