"""Rows of a JSON object that contains no array of objects.

{"text": "it is late", "label": "a"}                                 one row: a folder of one object per document
{"0": {"text": "it is late", "label": "a"}, "1": {...}}               objects by id (pandas: orient="index")
{"text": {"0": "it is late", ...}, "label": {"0": "a", ...}}          columns (pandas: df.to_json())
{"text": ["it is late", ...], "label": ["a", ...]}                    columns as lists
{"columns": ["text", "label"], "data": [["it is late", "a"], ...]}    pandas: orient="split"
"""

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

from insource.config.errors import RecipeError

RowValues = dict[str, Any]
MAX_KEYS_SHOWN = 5


def extract_rows(name: str, value: Mapping[str, Any], columns: Collection[str]) -> tuple[str, list[RowValues]]:
    """Return (layout, rows) of an object; `columns` are the columns that the recipe needs.

    Raise RecipeError with the contents of the object and an example of valid rows.
    """
    present = [column for column in columns if column in value]
    is_nested = any(column.startswith(f"{root}.") for root in present for column in columns)
    if present and not is_nested and all(isinstance(value[column], dict) for column in present):
        columnar = {key: dict(entry) for key, entry in value.items() if isinstance(entry, dict)}
        if len({tuple(columnar[column]) for column in present}) == 1:
            ids = list(columnar[present[0]])
            return "columns", [{key: entry.get(row_id) for key, entry in columnar.items()} for row_id in ids]
    lists = [value[column] for column in present if isinstance(value[column], list)]
    # Lists of nothing but objects are the messages or the line items of one row.
    if (
        present
        and len(lists) == len(present)
        and not all(isinstance(entry, dict) for entry in chain.from_iterable(lists))
    ):
        list_columns = {key: entry for key, entry in value.items() if isinstance(entry, list)}
        if len({len(entry) for entry in list_columns.values()}) == 1:
            return "columns", [
                dict(zip(list_columns, row, strict=True)) for row in zip(*list_columns.values(), strict=True)
            ]
    if present:
        return "one object", [dict(value)]
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return "objects by id", [dict(entry) for entry in value.values()]
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(_matches_header(row, names) for row in data):
        return "columns and data", [dict(zip(map(str, names), row, strict=True)) for row in data]
    example = ", ".join(f'"{column[:40]}": ...' for column in list(columns)[:2])
    raise RecipeError(
        f"{name}:1: an object without rows: it has {_describe_contents(value)}, but no array of objects; write "
        f"JSONL, one object a line, such as {{{example}}}",
        code="INS-D017",
    )


def _matches_header(row: Any, names: list[Any]) -> bool:
    """Return whether a row is a list with one item per name."""
    return isinstance(row, list) and len(row) == len(names)


def _describe_contents(value: Mapping[str, Any]) -> str:
    """Return the first keys of an object and the types of their values, as text."""
    kinds: dict[type, str] = {list: "an array", dict: "an object", str: "a text"}
    parts = [
        f"{key[:40]!r} ({_describe_nesting(entry) or kinds.get(type(entry), 'a value')})"
        for key, entry in value.items()
    ]
    return ", ".join(parts[:MAX_KEYS_SHOWN]) + (", ..." if len(parts) > MAX_KEYS_SHOWN else "") if parts else "nothing"


def _describe_nesting(value: object) -> str:
    """Return "an array of arrays" if the value is one, else ""."""
    return "an array of arrays" if isinstance(value, list) and value and isinstance(value[0], list) else ""
