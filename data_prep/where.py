"""Which rows of a source are meant, as `data.where` says.

where: {language: en, status: [closed, solved]}    rows whose language is en and whose status is one of two
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.given import cell


def matches(values: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Returns whether a source row has one of the values asked for in every column named."""
    return all(any(_same(values.get(column), one) for one in _several(asked)) for column, asked in where.items())


def _several(asked: Any) -> Sequence[Any]:
    return asked if isinstance(asked, list) else [asked]


def _same(value: Any, asked: Any) -> bool:
    """Whether a value is the one asked for; a table has numbers and truth values as text (1.0, True), null as empty."""
    if asked is None:
        return value is None or (isinstance(value, str) and not value.strip())
    given, wanted = cell(value).strip(), cell(asked).strip()
    if isinstance(asked, bool):
        return given.casefold() == wanted
    if given == wanted or not isinstance(asked, int | float):
        return given == wanted
    try:
        return float(given) == asked
    except ValueError:
        return False
