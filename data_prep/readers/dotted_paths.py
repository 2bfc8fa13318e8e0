"""Columns inside of columns: what `order.customer.name` reaches in a row.

in   {"order": {"id": 7, "customer": {"name": "Ho Trading"}}, "tags": ["late"]}
out  order.customer.name: "Ho Trading", tags.0: "late"; order.customer.phone is missing

A column that bears the very name, dots and all, is meant before any that is reached. A text that holds a JSON object or
list is reached into as well, as tables have them.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

MISSING = object()


def list_roots(column: str) -> list[str]:
    """Returns the columns of a file that a dotted name may begin with: order and order.customer of the example."""
    return [column[:index] for index in _find_dots(column)]


def resolve_columns(values: Mapping[str, Any], columns: Collection[str]) -> dict[str, Any]:
    """Returns {dotted name: value} of those `columns` that a row has not by their very name, but reaches.

    A path that ends early, at null, reaches null; one that names a key or an entry that is not there reaches nothing.
    """
    resolved = {column: _resolve_column(values, column) for column in columns if column not in values}
    return {column: value for column, value in resolved.items() if value is not MISSING}


def list_paths(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the dotted names of what stands inside of the objects of a row, for messages."""
    for name, value in values.items():
        nested = parse_json_text(value)
        if isinstance(nested, dict):
            yield from (f"{name}.{nested_path}" for nested_path in [*nested, *list_paths(nested)])


def parse_json_text(value: Any) -> Any:
    """Returns a value, or what a text holds as JSON: an object, a list, or null where it is empty."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value) if value.lstrip()[0] in "{[" else value
    except (ValueError, RecursionError):
        return value


def _resolve_column(values: Mapping[str, Any], path: str) -> Any:
    """What stands at the end of a path, by the longest name that begins it."""
    if path in values:
        return values[path]
    for index in reversed(_find_dots(path)):
        if path[:index] in values:
            return resolve_path(parse_json_text(values[path[:index]]), path[index + 1 :])
    return MISSING


def resolve_path(value: Any, path: str) -> Any:
    """Returns what a path reaches in an object or a list, null where it ends early at null, MISSING where nothing."""
    if isinstance(value, list | tuple):
        value = {str(number): entry for number, entry in enumerate(value)}
    return _resolve_column(value, path) if isinstance(value, dict) else None if value is None else MISSING


def _find_dots(path: str) -> list[int]:
    return [index for index, character in enumerate(path) if character == "." and 0 < index < len(path) - 1]
