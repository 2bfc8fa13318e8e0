"""Column names and Parquet types of rows that arrive one by one.

in   {"id": 7, "tags": ["late"]}, {"id": 7.5, "note": "x"}, {"id": 8, "note": 3}
out  id: double, tags: list<string>, note: string ("x", "3": values without a common type are written as JSON)
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from insource.tasks.task_kind import TaskKind

MAX_FIELDS = 256
"""Maximum fields of an object. A larger one has data as keys, and is written as JSON."""
ARROW_TYPE_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError)


class ColumnTypes:
    """Column names in the order of first appearance, each with the narrowest type that fits all values."""

    def __init__(self) -> None:
        self._types: dict[str, object] = {}
        """{column: Arrow type}; None if the values have no common type."""

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._types)

    def add(self, rows: Sequence[Mapping[str, Any]], with_types: bool = True) -> None:
        """Add the columns of rows; infer their types too if `with_types`."""
        for name in dict.fromkeys(name for row in rows for name in row):
            previous = self._types.setdefault(name, pa.null())
            if with_types and previous is not None:
                self._types[name] = _merge_types(previous, [row.get(name) for row in rows])

    def arrow_type(self, name: str) -> pa.DataType:
        """Return the Arrow type of a column."""
        arrow_type = self._types[name]
        return pa.string() if arrow_type is None else _resolve_nulls(arrow_type)

    def to_column_value(self, name: str, value: object) -> object:
        """Return a value as its column stores it: as JSON if the column's values have no common type."""
        if self._types[name] is None and value is not None and not isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        return value


def _merge_types(previous: object, values: list[object]) -> object:
    """Return the common type of values and of the previous ones; None if there is none."""
    try:
        schemas = [pa.schema([("value", arrow_type)]) for arrow_type in (previous, pa.array(values).type)]
        merged = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except ARROW_TYPE_ERRORS:
        return None
    return merged if 0 <= _count_fields(merged) <= MAX_FIELDS else None


def _count_fields(arrow_type: pa.DataType) -> int:
    """Return the number of values that a type holds.

    It is negative for an object without fields, which Parquet cannot store.
    """
    child_counts = [_count_fields(arrow_type.field(index).type) for index in range(arrow_type.num_fields)]
    if pa.types.is_struct(arrow_type) and not child_counts:
        return -MAX_FIELDS * MAX_FIELDS
    return sum(child_counts) if child_counts else 1


def _resolve_nulls(arrow_type: pa.DataType) -> object:
    """Return the type with string in place of every null type, which means that no value was seen."""
    if pa.types.is_null(arrow_type):
        return pa.string()
    if pa.types.is_list(arrow_type):
        return pa.list_(_resolve_nulls(arrow_type.value_type))
    if pa.types.is_struct(arrow_type):
        fields = [arrow_type.field(index) for index in range(arrow_type.num_fields)]
        return pa.struct([(field.name, _resolve_nulls(field.type)) for field in fields])
    return arrow_type


def to_arrow_array(values: Sequence[object], arrow_type: pa.DataType) -> Any:
    """Return values as an Arrow array of a type that fits all of them."""
    try:
        return pa.array(values, arrow_type)
    except pa.ArrowInvalid:  # an integer that no double equals
        return pa.array([_convert_to_floats(value, arrow_type) for value in values], arrow_type)


def _convert_to_floats(value: Any, arrow_type: pa.DataType) -> object:
    if value is None:
        return None
    if pa.types.is_floating(arrow_type):
        return float(value)
    if pa.types.is_list(arrow_type):
        return [_convert_to_floats(item, arrow_type.value_type) for item in value]
    if pa.types.is_struct(arrow_type):
        fields = [arrow_type.field(index) for index in range(arrow_type.num_fields)]
        return {field.name: _convert_to_floats(value.get(field.name), field.type) for field in fields}
    return value


def answer_type(module: TaskKind, spec: object) -> object:
    """Return the Arrow type of a task's answers: string, list of strings, or a struct by the JSON schema."""
    if module.IS_MULTILABEL:
        return pa.list_(pa.string())
    fields = getattr(spec, "json_schema", None)
    return _field_type({"type": "object", **fields}) if fields else pa.string()


def _field_type(field: Mapping[str, Any]) -> object:
    declared = field.get("type", "string")
    declared_types = [declared] if isinstance(declared, str) else declared
    json_type = next((name for name in declared_types if name != "null"), "string")
    if json_type == "object":
        return pa.struct([(name, _field_type(child)) for name, child in field["properties"].items()])
    if json_type == "array":
        return pa.list_(_field_type(field["items"]))
    return {"number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}.get(json_type, pa.string())
