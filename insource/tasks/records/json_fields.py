"""Fields of a record: description for the prompt, canonical values, checks. field_grammar.py has their grammar.

field            {"type": ["string", "null"], "maxLength": 20, "description": "as printed"}
describe_field   "text of at most 20 characters, or null"
canonicalize     " 20417 " -> "20417", "" -> null; for a number, "12.50" -> 12.5

A field may be an object of fields, and an array may have such objects as items. A path names a nested value:
line_items.price.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from insource.config.schema.json_schema_subset import is_nullable
from insource.tasks.source_record import columns_to_rows
from insource.text.text_keys import clean

FieldSchema = Mapping[str, Any]

MAX_INTEGER = 10**18 - 1
MIN_NUMBER, MAX_NUMBER = 1e-99, 1e100
BOOLEAN_WORDS = {
    **dict.fromkeys(("true", "yes", "y", "t", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0", "0.0"), False),
}
TYPE_LABELS = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "an object of the fields below",
}


class UnknownKeyError(ValueError):
    """An object has a key that its schema lacks."""


def resolve_field(field: FieldSchema, may_be_missing: bool) -> dict[str, Any]:
    """Return the field's schema with null among its types if it may be missing, and with clean choices."""
    resolved = dict(field)
    kind = "string" if "enum" in field else field_type(field)
    resolved["type"] = [kind, "null"] if may_be_missing else kind
    if "enum" in field:
        resolved["enum"] = [
            *dict.fromkeys(clean(choice) for choice in field["enum"] if choice is not None),
            *[None] * may_be_missing,
        ]
    if "items" in field:
        resolved["items"] = resolve_field(field["items"], may_be_missing=False)
    if "properties" in field:
        resolved |= resolve_object(field)
    return resolved


def resolve_object(schema: FieldSchema) -> dict[str, Any]:
    """Return properties, required and additionalProperties of a canonical object.

    All fields are required; an optional field is nullable.
    """
    required = schema.get("required", ())
    fields = {
        name: resolve_field(field, is_nullable(field) or name not in required)
        for name, field in schema["properties"].items()
    }
    return {"properties": fields, "required": list(fields), "additionalProperties": False}


def allow_omission(schema: FieldSchema) -> dict[str, Any]:
    """Return the schema of an object whose nullable fields may be omitted."""
    relaxed = dict(schema)
    if "items" in schema:
        relaxed["items"] = allow_omission(schema["items"])
    if "properties" in schema:
        relaxed["properties"] = {name: allow_omission(field) for name, field in schema["properties"].items()}
        relaxed["required"] = [name for name, field in schema["properties"].items() if not is_nullable(field)]
    return relaxed


def drop_nulls(value: object) -> Any:
    """Return a value without null fields, in objects at any depth."""
    if isinstance(value, dict):
        return {name: drop_nulls(entry) for name, entry in value.items() if entry is not None}
    return [drop_nulls(entry) for entry in value] if isinstance(value, list) else value


def fill_nulls(field: FieldSchema, value: object) -> Any:
    """Return a value with null for omitted nullable fields, in objects at any depth."""
    if isinstance(value, list) and "items" in field:
        return [fill_nulls(field["items"], entry) for entry in value]
    if not isinstance(value, dict) or "properties" not in field:
        return value
    missing = {name: None for name, schema in field["properties"].items() if is_nullable(schema) and name not in value}
    filled = {name: fill_nulls(field["properties"].get(name, {}), entry) for name, entry in value.items()}
    return filled | missing


def strip_extensions(schema: object) -> Any:
    """Return a schema without `ordered`, this project's extension of JSON Schema for the comparison of lists."""
    if isinstance(schema, list):
        return [strip_extensions(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    # A field may have the name "ordered"; its schema then is an object, not a boolean.
    return {
        key: strip_extensions(entry) for key, entry in schema.items() if key != "ordered" or not isinstance(entry, bool)
    }


def field_type(field: FieldSchema) -> str:
    """Return the field's type without null."""
    types = [field["type"]] if isinstance(field["type"], str) else field["type"]
    return next(str(kind) for kind in types if kind != "null")


def describe_fields(fields: Mapping[str, FieldSchema], absent: str = "null", indent: str = "") -> list[str]:
    """Return the lines that describe fields in the prompt, with nested fields indented.

    `absent` is the form of a missing field: null, or omit to leave it out.
    """
    lines = []
    for name, field in fields.items():
        description = f": {field['description']}" if "description" in field else ""
        lines.append(f"{indent}- {name} ({describe_field(field, absent)}){description}")
        nested = field.get("items", field).get("properties", {})
        lines += describe_fields(nested, absent, indent + "  ")
    return lines


def describe_field(field: FieldSchema, absent: str = "null") -> str:
    """Return the description of a field's values for the prompt."""
    if "enum" in field:
        words = "one of " + ", ".join(canonical_json(choice) for choice in field["enum"] if choice is not None)
    elif field_type(field) == "array":
        kind = "an ordered list" if field.get("ordered") else "a list"
        words = f"{kind} of at most {field['maxItems']}, each {describe_field(field['items'])}"
    else:
        words = TYPE_LABELS[field_type(field)]
        words += f" of at most {field['maxLength']} characters" if "maxLength" in field else ""
    return words + ((", or left out" if absent == "omit" else ", or null") if is_nullable(field) else "")


def canonicalize(field: FieldSchema, value: Any) -> Any:
    """Return the canonical value: clean text, table text converted to the field's type, null for blank values.

    A value that cannot be converted stays unchanged; check_value reports it.
    """
    kind = field_type(field)
    if kind == "boolean" and is_number(value):
        value = BOOLEAN_WORDS.get(str(value), value)
    if isinstance(value, str):
        value = clean(value)
        value = _parse_cell(value, kind) if value and kind != "string" else value
    if isinstance(value, dict) and kind == "array" and "properties" in field["items"]:
        rows = columns_to_rows(value)
        value = value if rows is None else rows
    if isinstance(value, list) and kind == "array":
        value = [entry for entry in (canonicalize(field["items"], raw) for raw in value) if not _is_blank(entry)]
    if isinstance(value, dict) and kind == "object":
        canonical = {name: canonicalize(nested, value.get(name)) for name, nested in field["properties"].items()}
        value = canonical | {name: entry for name, entry in value.items() if name not in canonical}
    is_whole = isinstance(value, float) and value.is_integer()
    if is_whole and (kind == "integer" or (kind == "number" and _is_exact(value))):
        value = int(value)
    if is_number(value) and isinstance(value, int) and kind == "number" and not _is_exact(value):
        value = float(value) if abs(value) < MAX_NUMBER else math.inf
    return None if (value == [] or _is_blank(value)) and is_nullable(field) else value


def check_value(field: FieldSchema, value: Any) -> None:
    """Raise ValueError, with the value given and the values allowed, if a value does not fit its field."""
    if value is None and is_nullable(field):
        return
    if value is None:
        raise ValueError("is missing, and it is required")
    kind = field_type(field)
    if not TYPE_CHECKS[kind](value) or ("enum" in field and value not in field["enum"]):
        raise ValueError(f"given {_abbreviate(value)}, allowed: {describe_field(field)}{_format_hint(kind, value)}")
    if kind == "string" and len(value) > field.get("maxLength", math.inf):
        raise ValueError(
            f"given {len(value)} characters, allowed: {field['maxLength']} (maxLength): {_abbreviate(value)}"
        )
    if kind == "number" and value and not MIN_NUMBER <= abs(value) <= MAX_NUMBER:
        raise ValueError(f"given {_abbreviate(value)}, which is too large or too small a number")
    if kind == "integer" and abs(value) > MAX_INTEGER:
        raise ValueError(f"given {_abbreviate(value)}, which is too large a number")
    if kind == "array":
        if len(value) > field["maxItems"]:
            raise ValueError(f"given {len(value)} entries, allowed: {field['maxItems']} (maxItems)")
        for index, entry in enumerate(value, start=1):
            _check_nested(field["items"], entry, f"entry {index}" if "properties" in field["items"] else "")
    if kind == "object":
        check_keys(field["properties"], value)
        for name, nested in field["properties"].items():
            _check_nested(nested, value[name], name)


def check_keys(fields: Mapping[str, FieldSchema], value: Mapping[str, Any]) -> None:
    """Raise UnknownKeyError for keys that are not among `fields`, and ValueError for missing ones."""
    if unknown := [name for name in value if name not in fields]:
        raise UnknownKeyError(f"there is no field {', '.join(map(repr, unknown))}; there are {', '.join(fields)}")
    if missing := [name for name in fields if name not in value]:
        raise ValueError(f"{', '.join(missing)} is missing")


def _check_nested(field: FieldSchema, value: Any, location: str) -> None:
    try:
        check_value(field, value)
    except ValueError as error:
        raise type(error)(f"{location}: {error}" if location else str(error)) from None


def blank_to_null(value: object) -> Any:
    """Return a value with null for blank texts, in objects at any depth."""
    return map_scalars(value, lambda scalar: None if scalar == "" else scalar)


def map_scalars(value: object, function: Callable[[Any], Any]) -> Any:
    """Return a value with the function applied to every text, number and null in it, at any depth."""
    if isinstance(value, dict):
        return {name: map_scalars(entry, function) for name, entry in value.items()}
    return [map_scalars(entry, function) for entry in value] if isinstance(value, list) else function(value)


def is_number(value: object) -> bool:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def canonical_json(value: object) -> str:
    """Return a value as JSON in the spelling of answers."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _parse_cell(text: str, kind: str) -> Any:
    """Return table text converted to the type; the text itself if it cannot be converted."""
    if kind == "boolean":
        return BOOLEAN_WORDS.get(text.casefold(), text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _format_hint(kind: str, value: object) -> str:
    digits = isinstance(value, str) and any("0" <= character <= "9" for character in value)
    return "; data.formats tells how numbers are written" if digits and kind in ("number", "integer") else ""


def _is_exact(value: float) -> bool:
    return abs(value) < 1e15


def _is_text(value: object) -> bool:
    # A lone surrogate cannot be encoded as UTF-8.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_integer(value: Any) -> bool:
    return is_number(value) and (isinstance(value, int) or value.is_integer())


def _is_blank(value: object) -> bool:
    """Return whether a value is a blank text, or an object of only blank or null values."""
    return value == "" or (isinstance(value, dict) and all(entry in (None, "") for entry in value.values()))


TYPE_CHECKS: dict[str, Callable[[Any], bool]] = {
    "string": _is_text,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "number": is_number,
    "integer": _is_integer,
    "object": lambda value: isinstance(value, dict),
}


def _abbreviate(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
