"""A JSON object that is no wrapper of an array of objects, to the rows that it means.

{"text": "it is late", "label": "a"}                                 one row: a folder of one object a document
{"0": {"text": "it is late", "label": "a"}, "1": {...}}               objects by their id (pandas: orient="index")
{"text": {"0": "it is late", ...}, "label": {"0": "a", ...}}          columns (pandas' df.to_json())
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
    """Returns (layout, rows) of an object; `columns` are those that the recipe needs.

    Raises RecipeError saying what the object holds and what would do.
    """
    there = [column for column in columns if column in value]
    reached_into = any(column.startswith(f"{root}.") for root in there for column in columns)
    if there and not reached_into and all(isinstance(value[column], dict) for column in there):
        columnar = {key: dict(one) for key, one in value.items() if isinstance(one, dict)}
        if len({tuple(columnar[column]) for column in there}) == 1:
            ids = list(columnar[there[0]])
            return "columns", [{key: one.get(at) for key, one in columnar.items()} for at in ids]
    lists = [value[column] for column in there if isinstance(value[column], list)]
    # Objects alone are the messages or the line items of one row.
    if there and len(lists) == len(there) and not all(isinstance(one, dict) for one in chain.from_iterable(lists)):
        listed = {key: one for key, one in value.items() if isinstance(one, list)}
        if len({len(one) for one in listed.values()}) == 1:
            return "columns", [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]
    if there:
        return "one object", [dict(value)]
    if value and all(isinstance(one, dict) for one in value.values()):
        return "objects by id", [dict(one) for one in value.values()]
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(_matches_header(row, names) for row in data):
        return "columns and data", [dict(zip(map(str, names), row, strict=True)) for row in data]
    example = ", ".join(f'"{column[:40]}": ...' for column in list(columns)[:2])
    raise RecipeError(
        f"{name}:1: an object without rows: it holds {_describe_contents(value)}, and no array of objects; write "
        "JSONL, an object a "
        f"line, such as {{{example}}}"
    )


def _matches_header(row: Any, names: list[Any]) -> bool:
    return isinstance(row, list) and len(row) == len(names)


def _describe_contents(value: Mapping[str, Any]) -> str:
    """The first keys of an object and what they hold, in words."""
    kinds: dict[type, str] = {list: "an array", dict: "an object", str: "a text"}
    told = [f"{key[:40]!r} ({_describe_nesting(one) or kinds.get(type(one), 'a value')})" for key, one in value.items()]
    return ", ".join(told[:MAX_KEYS_SHOWN]) + (", ..." if len(told) > MAX_KEYS_SHOWN else "") if told else "nothing"


def _describe_nesting(value: Any) -> str:
    return "an array of arrays" if isinstance(value, list) and value and isinstance(value[0], list) else ""
