"""A JSON Schema inferred from JSON answers, with bounds from their values.

in   {"shop": "ABC Mart", "total": 12.5}, {"shop": "Kedai Ang", "total": null}, ...
out  {"type": "object", "properties": {"shop": {"type": "string", "maxLength": 16}, "total": {"type": "number"}},
      "required": ["shop"]}

A text field with a few repeated values becomes an enum. `insource/config/schema/json_schema_subset.py` defines the
keywords that a recipe allows.
"""

import math
from collections import Counter
from typing import Any

from insource.config.schema import json_schema_subset
from insource.tasks.pii import redaction

# Headroom for new documents, which may have longer texts or more lines.
HEADROOM = 1.5
LENGTH_STEPS = (8, 16, 24, 32, 40, 60, 80, 120, 160, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000, 4000)
# An enum has few values, each in many rows, without digits: dates and numbers are not choices.
MAX_CHOICES, MEAN_ROWS_PER_CHOICE, MIN_ROWS_PER_CHOICE = 12, 20, 3
MAX_CHOICE_CHARACTERS = 40
# Up to this fraction, values of another type are errors, and their rows are unusable.
MAX_OTHER_TYPE_FRACTION = 0.1
# The schema of a field without values: any short text.
EMPTY_FIELD_SCHEMA = {"type": "string", "maxLength": 40}
# Up to this fraction, omitted fields are errors too.
MAX_OMITTED_FRACTION = 0.01
# Minimum mean fraction of the fields that an object has; below it the objects have no common shape.
MIN_FIELD_FRACTION = 0.5
MAX_FIELDS, MAX_KEYS = 60, 1000


class NoShapeError(Exception):
    """The reason why no schema can be inferred from the objects."""


class Shape:
    """Statistics of the values at one place of the answers."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        """Values per JSON type; blank texts count as "null"."""
        self.rows = 0
        self.longest = 0
        """Maximum characters of a text, or items of a list."""
        self.choices: Counter[str] | None = Counter()
        """Rows per text; None if there are more than MAX_CHOICES texts."""
        self.fields: dict[str, Shape] = {}
        self.items: Shape | None = None

    def add(self, value: Any) -> None:
        """Count a value."""
        self.rows += 1
        kind = _json_type(value)
        self.kinds[kind] += 1
        if kind == "string":
            self.longest = max(self.longest, len(value))
            if self.choices is not None:
                self.choices[value] += 1
                if len(self.choices) > MAX_CHOICES:
                    self.choices = None
        elif kind == "array":
            self.longest = max(self.longest, len(value))
            self.items = self.items or Shape()
            for item in value:
                self.items.add(item)
        elif kind == "object":
            for name, item in value.items():
                if name in self.fields or len(self.fields) < MAX_KEYS:
                    self.fields.setdefault(name, Shape()).add(item)


def infer_schema(shape: Shape) -> dict[str, Any]:
    """Return the schema of the objects of a shape. Raise NoShapeError if a recipe does not allow it."""
    _check_fields(shape, "the objects")
    schema = {"type": "object", **_infer_object(shape, "")}
    try:
        json_schema_subset.check_schema(schema)
    except ValueError as error:
        raise NoShapeError(str(error)) from None
    return schema


def omits_absent_fields(shape: Shape) -> bool:
    """Return whether more than MAX_OMITTED_FRACTION of the answers omit a field that others have.

    With `absent: omit`, omitted and null fields are both read. With null, an omitted field is a wrong answer.
    """
    objects = shape.kinds["object"]
    return any(objects - field.rows > MAX_OMITTED_FRACTION * objects for field in shape.fields.values())


def _infer_object(shape: Shape, path: str) -> dict[str, Any]:
    """Return the properties and the required fields of an object."""
    objects = shape.kinds["object"]
    properties = {name: _infer_field(field, f"{path}{name}") for name, field in shape.fields.items()}
    required = [name for name, field in shape.fields.items() if field.rows == objects and not field.kinds["null"]]
    return {"properties": properties} | ({"required": required} if required else {})


def _infer_field(shape: Shape, path: str) -> dict[str, Any]:
    """Return the schema of a field."""
    if shape.kinds["null"] == shape.rows:
        return dict(EMPTY_FIELD_SCHEMA)
    kind = _find_main_type(shape, path)
    if kind == "string":
        if choices := _infer_choices(shape):
            return {"enum": choices}
        return {"type": "string", "maxLength": _round_up_length(shape.longest)}
    if kind == "object":
        _check_fields(shape, path)
        return {"type": "object", **_infer_object(shape, f"{path}.")}
    if kind == "array":
        items = _infer_field(shape.items, path) if shape.items and shape.items.rows else dict(EMPTY_FIELD_SCHEMA)
        return {"type": "array", "maxItems": max(1, math.ceil(shape.longest * HEADROOM)), "items": items}
    return {"type": kind}


def _find_main_type(shape: Shape, path: str) -> str:
    """Return the type of nearly all values. Raise NoShapeError if there is none."""
    kinds = Counter({kind: rows for kind, rows in shape.kinds.items() if kind != "null"})
    if kinds["integer"] and kinds["number"]:
        kinds["number"] += kinds.pop("integer")
    (kind, rows), total = kinds.most_common(1)[0], kinds.total()
    if rows < (1 - MAX_OTHER_TYPE_FRACTION) * total:
        listing = ", ".join(f"{name} in {count:,}" for name, count in kinds.most_common())
        raise NoShapeError(f"field {path} has several types: {listing}")
    return kind


def _infer_choices(shape: Shape) -> list[str]:
    """Return the values of an enum, sorted; [] if the field is no enum."""
    choices = shape.choices
    if not choices or shape.rows < MEAN_ROWS_PER_CHOICE * len(choices) or len(choices) < 2:
        return []
    # Personal data is redacted in rows, so that no row would match an enum of it.
    is_eligible = all(
        len(choice) <= MAX_CHOICE_CHARACTERS
        and choice == choice.strip()
        and not any(map(str.isdigit, choice))
        and not redaction.find_pii(choice)
        for choice in choices
    )
    return sorted(choices) if is_eligible and min(choices.values()) >= MIN_ROWS_PER_CHOICE else []


def _check_fields(shape: Shape, location: str) -> None:
    """Raise NoShapeError if the objects have no fields, too many, or too few in common."""
    names, objects = len(shape.fields), shape.kinds["object"]
    if not names:
        raise NoShapeError(f"{location} have no fields")
    fraction = sum(field.rows for field in shape.fields.values()) / (names * objects)
    if names > MAX_FIELDS or fraction < MIN_FIELD_FRACTION:
        raise NoShapeError(
            f"{location} have {names:,} different keys, of which one object has {fraction:.0%}: no one shape"
        )


def _round_up_length(longest: int) -> int:
    """Return a maxLength with headroom."""
    needed = math.ceil(longest * HEADROOM)
    return next((length for length in LENGTH_STEPS if length >= needed), math.ceil(needed / 1000) * 1000)


def _json_type(value: object) -> str:
    """Return the JSON type of a value; "null" for null and blank texts."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "null"
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (list, "array"), (dict, "object"))
    return next(name for kind, name in kinds if isinstance(value, kind))
