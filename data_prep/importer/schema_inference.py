"""A JSON Schema of the objects that rows have as answers, bounded by what is in them.

in   {"shop": "ABC Mart", "total": 12.5}, {"shop": "Kedai Ang", "total": null}, ...
out  {"type": "object", "properties": {"shop": {"type": "string", "maxLength": 16}, "total": {"type": "number"}},
      "required": ["shop"]}

A text of a few values that come again and again becomes an enum. What a recipe may say is
insource/config/schema/json_schema_subset.py's.
"""

import math
from collections import Counter
from typing import Any

from insource.config.schema import json_schema_subset
from insource.tasks.pii import redaction

# A new document may have a longer text, or more lines, than any that was seen.
HEADROOM = 1.5
LENGTH_STEPS = (8, 16, 24, 32, 40, 60, 80, 120, 160, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000, 4000)
# An enum has few values, each of them in many rows, and no digits: dates and numbers are no choice.
MAX_CHOICES, MEAN_ROWS_PER_CHOICE, MIN_ROWS_PER_CHOICE = 12, 20, 3
MAX_CHOICE_CHARACTERS = 40
# Below this share of its values, a type is a slip: these rows do not fit.
MAX_OTHER_TYPE_FRACTION = 0.1
# A field that never has a value may be any short text.
EMPTY_FIELD_SCHEMA = {"type": "string", "maxLength": 40}
# Fields that fewer answers lack are slips too.
MAX_OMITTED_FRACTION = 0.01
# Of its fields an object has so many on average, or the objects have no shape in common.
MIN_FIELD_FRACTION = 0.5
MAX_FIELDS, MAX_KEYS = 60, 1000


class NoShapeError(Exception):
    """Why no schema can be made of the objects."""


class Shape:
    """What the values at one place of the answers are."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        """By type, blank texts and null as "null"."""
        self.rows = 0
        self.longest = 0
        """Characters of a text, entries of a list."""
        self.choices: Counter[str] | None = Counter()
        """Texts with how often they occur; None once they are too many."""
        self.fields: dict[str, Shape] = {}
        self.items: Shape | None = None

    def add(self, value: Any) -> None:
        """Takes one more value."""
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
    """Returns the schema of the objects in a shape. Raises NoShapeError where they have none that a recipe may say."""
    _check_fields(shape, "the objects")
    schema = {"type": "object", **_infer_object(shape, "")}
    try:
        json_schema_subset.check_schema(schema)
    except ValueError as error:
        raise NoShapeError(str(error)) from None
    return schema


def omits_absent_fields(shape: Shape) -> bool:
    """Returns whether answers leave out what a document does not give, where others have null, and more than by a slip:
    under `absent: omit` both are read, under null a field that is left out is a wrong answer."""
    objects = shape.kinds["object"]
    return any(objects - field.rows > MAX_OMITTED_FRACTION * objects for field in shape.fields.values())


def _infer_object(shape: Shape, path: str) -> dict[str, Any]:
    objects = shape.kinds["object"]
    properties = {name: _infer_field(field, f"{path}{name}") for name, field in shape.fields.items()}
    required = [name for name, field in shape.fields.items() if field.rows == objects and not field.kinds["null"]]
    return {"properties": properties} | ({"required": required} if required else {})


def _infer_field(shape: Shape, path: str) -> dict[str, Any]:
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
    """The type that all values have but for slips. Raises NoShapeError where there is none."""
    kinds = Counter({kind: rows for kind, rows in shape.kinds.items() if kind != "null"})
    if kinds["integer"] and kinds["number"]:
        kinds["number"] += kinds.pop("integer")
    (kind, rows), total = kinds.most_common(1)[0], kinds.total()
    if rows < (1 - MAX_OTHER_TYPE_FRACTION) * total:
        listing = ", ".join(f"{name} in {count:,}" for name, count in kinds.most_common())
        raise NoShapeError(f"field {path} has several types: {listing}")
    return kind


def _infer_choices(shape: Shape) -> list[str]:
    choices = shape.choices
    if not choices or shape.rows < MEAN_ROWS_PER_CHOICE * len(choices) or len(choices) < 2:
        return []
    # Personal data is replaced in rows, so that a list of it would fit none of them.
    is_eligible = all(
        len(choice) <= MAX_CHOICE_CHARACTERS
        and choice == choice.strip()
        and not _has_digit(choice)
        and not redaction.find_pii(choice)
        for choice in choices
    )
    return sorted(choices) if is_eligible and min(choices.values()) >= MIN_ROWS_PER_CHOICE else []


def _check_fields(shape: Shape, location: str) -> None:
    names, objects = len(shape.fields), shape.kinds["object"]
    if not names:
        raise NoShapeError(f"{location} have no fields")
    fraction = sum(field.rows for field in shape.fields.values()) / (names * objects)
    if names > MAX_FIELDS or fraction < MIN_FIELD_FRACTION:
        raise NoShapeError(
            f"{location} have {names:,} different keys, of which one object has {fraction:.0%}: no one shape"
        )


def _round_up_length(longest: int) -> int:
    needed = math.ceil(longest * HEADROOM)
    return next((length for length in LENGTH_STEPS if length >= needed), math.ceil(needed / 1000) * 1000)


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)


def _json_type(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "null"
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (list, "array"), (dict, "object"))
    return next(name for kind, name in kinds if isinstance(value, kind))
