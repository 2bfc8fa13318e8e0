"""Nested columns: the values that a dotted name such as `order.customer.name` reaches in a row.

in   {"order": {"id": 7, "customer": {"name": "Ho Trading"}}, "tags": ["late"]}
out  order.customer.name: "Ho Trading", tags.0: "late"; order.customer.phone is missing

A column with exactly the dotted name has precedence over a nested value. A text with a JSON object or list is parsed
first, because table formats store nested values so.
"""

import json
from collections.abc import Collection, Iterator, Mapping

MISSING = object()


def list_roots(column: str) -> list[str]:
    """Return the columns that a dotted name may begin with: order and order.customer in the example."""
    return [column[:index] for index in _find_dots(column)]


def add_roots(columns: Collection[str]) -> list[str]:
    """Return the columns, and then those that their dotted names may begin with, each once."""
    return [*dict.fromkeys([*columns, *(root for column in columns for root in list_roots(column))])]


def resolve_columns(values: Mapping[str, object], columns: Collection[str]) -> dict[str, object]:
    """Return {dotted name: value} of the nested values among `columns`.

    A path through null reaches null. A path with a missing key or index is omitted.
    """
    resolved = {column: _resolve_column(values, column) for column in columns if column not in values}
    return {column: value for column, value in resolved.items() if value is not MISSING}


def list_paths(values: Mapping[str, object]) -> Iterator[str]:
    """Yield the dotted names of the values inside the objects of a row, for messages."""
    for name, value in values.items():
        nested = parse_json_text(value)
        if isinstance(nested, dict):
            yield from (f"{name}.{nested_path}" for nested_path in [*nested, *list_paths(nested)])


def parse_json_text(value: object) -> object:
    """Return the parsed value of a text with a JSON object or list, None for an empty text; else the value itself."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value) if value.lstrip()[0] in "{[" else value
    except (ValueError, RecursionError):
        return value


def _resolve_column(values: Mapping[str, object], path: str) -> object:
    """Return the value at the end of a path; the longest column name that begins the path decides."""
    if path in values:
        return values[path]
    for index in reversed(_find_dots(path)):
        if path[:index] in values:
            return resolve_path(parse_json_text(values[path[:index]]), path[index + 1 :])
    return MISSING


def resolve_path(value: object, path: str) -> object:
    """Return the value of a path in an object or a list.

    Return None if the path ends early at null, and MISSING if it reaches nothing.
    """
    if isinstance(value, list | tuple):
        value = {str(number): entry for number, entry in enumerate(value)}
    return _resolve_column(value, path) if isinstance(value, dict) else None if value is None else MISSING


def _find_dots(path: str) -> list[int]:
    """Return the indices of the dots inside a path."""
    return [index for index, character in enumerate(path) if character == "." and 0 < index < len(path) - 1]
