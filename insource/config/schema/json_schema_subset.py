"""Supported subset of JSON Schema in `task.json_schema`: an object with bounded values, so that decoding always ends.

    {"type": "object", "required": ["kind"], "properties": {
        "kind": {"enum": ["order", "invoice"]}, "total": {"type": "number", "description": "with tax"},
        "buyer": {"type": "string", "maxLength": 40}, "codes": {"type": "array", "maxItems": 5, "items": {...}},
        "lines": {"type": "array", "maxItems": 20, "items": {"type": "object", "properties": {...}}}}}

A keyword is allowed if the output constraint enforces it (`insource/tasks/extraction.py`): a keyword that is not
enforced would lower the score of the model. `ordered: true` means that the order of an array's entries counts.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

SCALAR_TYPES = ("string", "number", "integer", "boolean")
ANNOTATION_KEYS = ("title", "description")
LIMIT_KEYS = ("maxLength", "maxItems")
OBJECT_KEYS = (*ANNOTATION_KEYS, "type", "properties", "required", "additionalProperties")
ROOT_KEYS = (*OBJECT_KEYS, "$schema")
# Depth of nested objects, the record included.
MAX_DEPTH = 4


def check_schema(json_schema: Mapping[str, object]) -> None:
    """Raise ValueError with the unsupported part, if the output constraint cannot enforce this schema."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(json_schema)
    except SchemaError as error:
        location = ".".join(str(part) for part in error.absolute_path) or "this"
        raise ValueError(f"{location} is not JSON Schema: {error.message}") from None
    _check_keywords(json_schema, ROOT_KEYS, "at the top")
    if json_schema.get("type") != "object":
        raise ValueError("needs type: object and properties, the fields of the answer")
    _check_object(json_schema, "", 1)
    paths = list_paths(json_schema)
    if duplicates := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(
            f"properties: {', '.join(map(repr, duplicates))} names two fields, one of them inside an object"
        )


def list_paths(json_schema: Mapping[str, object]) -> list[str]:
    """Return the paths of all values of a record; nested ones as supplier.name and line_items.price."""
    return [path for path, _ in iterate_values(json_schema)]


def iterate_values(json_schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, type) of each value of a record; for a list of values, the type of its entries."""
    for name, field in json_schema["properties"].items():
        value_schema = field.get("items", field)
        if "properties" in value_schema:
            yield from iterate_values(value_schema, f"{prefix}{name}.")
        else:
            yield prefix + name, "string" if "enum" in value_schema else _list_types(value_schema)[0]


def limits_to_int(json_schema: object) -> Any:
    """Return the schema with integer maxLength and maxItems: JSON Schema allows 30.0 for 30, a grammar does not."""
    if isinstance(json_schema, list):
        return [limits_to_int(entry) for entry in json_schema]
    if not isinstance(json_schema, dict):
        return json_schema
    return {
        key: int(value) if key in LIMIT_KEYS and isinstance(value, float) else limits_to_int(value)
        for key, value in json_schema.items()
    }


def check_normalizers(normalizers: Collection[str], json_schema: Mapping[str, object]) -> None:
    """Raise ValueError with the unknown fields, if a normalizer names a field that does not exist."""
    fields = list_paths(json_schema)
    if unknown := [name for name in normalizers if name not in fields]:
        raise ValueError(f"there is no field {', '.join(map(repr, unknown))}; there are {', '.join(fields)}")


def _check_object(object_schema: Mapping[str, Any], path: str, depth: int) -> None:
    """Check an object and its fields; `path` is "" for the record. Raises ValueError."""
    prefix = f"{path}: " if path else ""
    if depth > MAX_DEPTH:
        raise ValueError(f"{prefix}objects more than {MAX_DEPTH} deep; flatten them")
    fields = object_schema.get("properties")
    if not fields:
        raise ValueError(f"{prefix}needs type: object and properties, the fields of the answer")
    if object_schema.get("additionalProperties", False) is not False:
        raise ValueError(f"{prefix}additionalProperties must be false or absent: an answer has only the named keys")
    if unknown := [name for name in object_schema.get("required", ()) if name not in fields]:
        raise ValueError(f"{prefix}required names {', '.join(map(repr, unknown))}, not among properties")
    for name, field in fields.items():
        if not name.strip() or not name.isprintable():
            raise ValueError(f"{prefix}properties: {name!r} is no name that can stand in one line of a prompt")
        _check_field(field, f"{path}.properties.{name}".removeprefix("."), depth)


def _check_field(field: Any, path: str, depth: int) -> None:
    if not isinstance(field, Mapping):
        raise ValueError(f"{path}: not supported: {field!r} instead of a type; give type or enum")
    types = _list_types(field)
    if types == ["object"]:
        _check_keywords(field, OBJECT_KEYS, path)
        _check_object(field, path, depth + 1)
    elif types == ["array"]:
        _check_keywords(field, (*ANNOTATION_KEYS, "type", "items", "maxItems", "ordered"), path)
        if not isinstance(field.get("ordered", False), bool):
            raise ValueError(f"{path}.ordered: given {field['ordered']!r}, allowed: true or false")
        if not field.get("maxItems"):
            raise ValueError(f"{path}: an array needs maxItems of at least 1, so that every answer ends")
        items = field.get("items")
        if not isinstance(items, Mapping) or is_nullable(items):
            raise ValueError(
                f"{path}.items: needs one type of {', '.join(SCALAR_TYPES)}, object, or enum, without null"
            )
        if _list_types(items) == ["object"]:
            _check_keywords(items, OBJECT_KEYS, f"{path}.items")
            _check_object(items, f"{path}.items", depth + 1)
        else:
            _check_scalar(items, f"{path}.items")
    else:
        _check_scalar(field, path)


def _check_scalar(field: Mapping[str, Any], path: str) -> None:
    types = _list_types(field)
    if "enum" in field:
        _check_keywords(field, (*ANNOTATION_KEYS, "type", "enum"), path)
        _check_choices(field["enum"], types, path)
        return
    if not types:
        unknown = [key for key in field if key not in ANNOTATION_KEYS]
        raise ValueError(f"{path}: not supported: {', '.join(unknown)}" if unknown else f"{path}: needs type or enum")
    if len(types) > 1 or types[0] not in SCALAR_TYPES:
        allowed = f"one of {', '.join(SCALAR_TYPES)}, array, object, or a list of one of these and 'null'"
        raise ValueError(f"{path}: not supported: type {field['type']!r}; give {allowed}")
    _check_keywords(
        field, (*ANNOTATION_KEYS, "type", "maxLength") if types == ["string"] else (*ANNOTATION_KEYS, "type"), path
    )
    if types == ["string"] and not field.get("maxLength"):
        raise ValueError(f"{path}: a string needs maxLength of at least 1 (or enum), so that every answer ends")


def _check_choices(choices: list[Any], types: list[str], path: str) -> None:
    texts = [choice for choice in choices if choice is not None]
    if types not in ([], ["string"]) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{path}: not supported: an enum of anything but texts (and null)")
    if not texts or len(set(texts)) < len(texts):
        raise ValueError(f"{path}: enum needs texts that differ")


def _list_types(field: Mapping[str, Any]) -> list[str]:
    """Return the types of a field without null. null only means that the field may be missing."""
    declared = field.get("type", [])
    types = [declared] if isinstance(declared, str) else list(declared)
    return [kind for kind in types if kind != "null"] or types


def is_nullable(field: Mapping[str, Any]) -> bool:
    """Return whether the field's own schema allows null."""
    return "null" in field.get("type", ()) or None in field.get("enum", ())


def _check_keywords(schema: Mapping[str, Any], allowed: Collection[str], location: str) -> None:
    if unknown := [key for key in schema if key not in allowed]:
        raise ValueError(f"{location}: not supported: {', '.join(unknown)}; allowed here: {', '.join(allowed)}")
