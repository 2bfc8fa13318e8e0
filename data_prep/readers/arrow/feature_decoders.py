"""Decoders of columns that `datasets` describes: class label numbers, and JSON texts.

    description   {"label": {"names": ["card_arrival", "refund"], "_type": "ClassLabel"}, "chat": {"_type": "Json"}}
    in            {"label": 1, "chat": '[{"role": "user", "content": "hello"}]'}
    out           {"label": "refund", "chat": [{"role": "user", "content": "hello"}]}

The description is in folders that `datasets` saved, and in the schema of Parquet files written by it or by the hub.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.readers.source_row import BadRowError

Decoder = Callable[[Any], Any]


def read_features(schema: Any) -> dict[str, object]:
    """Return the description in the metadata of an Arrow schema, with columns of Arrow's JSON type."""
    features: dict[str, Any] = {
        field.name: {"_type": "Json"} for field in schema if str(field.type).startswith("extension<arrow.json")
    }
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return features | dict(metadata["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return features


def make_decoders(description: Mapping[str, object]) -> dict[str, Decoder]:
    """Return {column: decoder} for the columns whose stored values must be converted."""
    decoders = {name: _make_decoder(feature) for name, feature in description.items()}
    return {name: decoder for name, decoder in decoders.items() if decoder is not None}


def find_class_labels(description: Mapping[str, object]) -> list[str]:
    """Return the columns with class label numbers."""
    return sorted(
        name
        for name, feature in description.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    )


def _make_decoder(feature: object) -> Decoder | None:
    """Return the decoder of a feature; None if its values are stored as they are."""
    if isinstance(feature, list):  # the list form of older versions
        feature = {"_type": "List", "feature": feature[0] if feature else {}}
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel" and feature.get("names"):
        return _class_label_decoder(list(feature["names"]))
    if kind == "Json":
        return _decode_json
    if kind in ("List", "LargeList", "Sequence"):
        inner = feature.get("feature")
        if kind == "Sequence" and isinstance(inner, dict) and not isinstance(inner.get("_type"), str):
            # Versions before 4 store a sequence of objects as columns: {"name": [...], "kind": [...]}.
            columns = {name: _list_decoder(decoder) for name, decoder in make_decoders(inner).items()}
            return _sequence_decoder(columns, _struct_decoder(make_decoders(inner))) if columns else None
        item_decoder = _make_decoder(inner)
        return None if item_decoder is None else _list_decoder(item_decoder)
    if kind is None or isinstance(kind, dict):
        parts = make_decoders(feature)
        return _struct_decoder(parts) if parts else None
    return None


def _class_label_decoder(names: list[str]) -> Decoder:
    """Return a decoder from class numbers to names."""

    def decode(value: Any) -> Any:
        if value is None or value == -1:  # `datasets` writes a missing label as -1
            return None
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise BadRowError(f"{str(value)[:20]}, and its {len(names)} names are those of 0 to {len(names) - 1}")
        return names[value]

    return decode


def _decode_json(value: object) -> object:
    """Return the value of a JSON text. Raise BadRowError if it is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRowError("text that is no JSON, in a column of JSON") from None


def _list_decoder(decoder: Decoder) -> Decoder:
    """Return a decoder that decodes each item of a list."""
    return lambda value: [decoder(item) for item in value] if isinstance(value, list | tuple) else value


def _sequence_decoder(columns: Mapping[str, Decoder], item_decoder: Decoder) -> Decoder:
    """Return a decoder for a sequence of objects, stored as columns or as a list."""
    decode_columns, decode_items = _struct_decoder(columns), _list_decoder(item_decoder)
    return lambda value: decode_columns(value) if isinstance(value, dict) else decode_items(value)


def _struct_decoder(decoders: Mapping[str, Decoder]) -> Decoder:
    """Return a decoder that decodes the fields of an object."""

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: decoders[name](item) if name in decoders else item for name, item in value.items()}

    return decode
