"""What columns mean that `datasets` describes: numbers that stand for names, and text that is JSON.

    description   {"label": {"names": ["card_arrival", "refund"], "_type": "ClassLabel"}, "chat": {"_type": "Json"}}
    in            {"label": 1, "chat": '[{"role": "user", "content": "hello"}]'}
    out           {"label": "refund", "chat": [{"role": "user", "content": "hello"}]}

A folder that `datasets` saved has the description, and so has the schema of a Parquet file that it or the hub wrote.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.readers.source_row import BadRowError

Decoder = Callable[[Any], Any]


def read_features(schema: Any) -> dict[str, Any]:
    """Returns the description in the metadata of an Arrow schema, columns of Arrow's own type JSON among it."""
    found: dict[str, Any] = {
        field.name: {"_type": "Json"} for field in schema if str(field.type).startswith("extension<arrow.json")
    }
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return found | dict(told["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return found


def make_decoders(description: Mapping[str, Any]) -> dict[str, Decoder]:
    """Returns {column: what turns its stored value into the one that is meant}, without those stored as meant."""
    found = {name: _make_decoder(feature) for name, feature in description.items()}
    return {name: meaning for name, meaning in found.items() if meaning is not None}


def find_class_labels(description: Mapping[str, Any]) -> list[str]:
    """Returns the columns whose numbers stand for names."""
    return sorted(
        name for name, one in description.items() if isinstance(one, dict) and one.get("_type") == "ClassLabel"
    )


def _make_decoder(feature: Any) -> Decoder | None:
    if isinstance(feature, list):  # how older versions write a list
        feature = {"_type": "List", "feature": feature[0] if feature else {}}
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel" and feature.get("names"):
        return _class_label_decoder(list(feature["names"]))
    if kind == "Json":
        return _decode_json
    if kind in ("List", "LargeList", "Sequence"):
        described = feature.get("feature")
        if kind == "Sequence" and isinstance(described, dict) and not isinstance(described.get("_type"), str):
            # Versions before 4 store a sequence of objects as columns: {"name": [...], "kind": [...]}.
            columns = {name: _list_decoder(one) for name, one in make_decoders(described).items()}
            return _sequence_decoder(columns, _struct_decoder(make_decoders(described))) if columns else None
        inside = _make_decoder(described)
        return None if inside is None else _list_decoder(inside)
    if kind is None or isinstance(kind, dict):
        parts = make_decoders(feature)
        return _struct_decoder(parts) if parts else None
    return None


def _class_label_decoder(names: list[str]) -> Decoder:
    def of(value: Any) -> Any:
        if value is None or value == -1:  # how `datasets` writes that a row has no label
            return None
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise BadRowError(f"{str(value)[:20]}, and its {len(names)} names are those of 0 to {len(names) - 1}")
        return names[value]

    return of


def _decode_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRowError("text that is no JSON, in a column of JSON") from None


def _list_decoder(inside: Decoder) -> Decoder:
    return lambda value: [inside(one) for one in value] if isinstance(value, list | tuple) else value


def _sequence_decoder(columns: Mapping[str, Decoder], one: Decoder) -> Decoder:
    of_columns, of_objects = _struct_decoder(columns), _list_decoder(one)
    return lambda value: of_columns(value) if isinstance(value, dict) else of_objects(value)


def _struct_decoder(parts: Mapping[str, Decoder]) -> Decoder:
    def of(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: parts[name](inside) if name in parts else inside for name, inside in value.items()}

    return of
