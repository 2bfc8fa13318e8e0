"""The base of all records of scores.json.

    Latency.model_validate({"n": 3080, "p50_seconds": 0.08, ...}).p50_seconds      0.08
    Latency(n=3080, p50_seconds=0.08, ...).to_json()                               {"n": 3080, "p50_seconds": 0.08, ...}

The fields are in the order of the file. A field whose name differs from its key in the file has `key("...")`.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator


class Record(BaseModel):
    """A part of scores.json: immutable, without unknown keys, without implicit conversions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the record as scores.json contains it.

        A field that was not set is left out: a file of an older version keeps its bytes.
        """
        return self.model_dump(by_alias=True, exclude_unset=True)


def key(name: str, **settings: Any) -> Any:
    """Return the field of a key that has another name in the file. `settings` are those of `pydantic.Field`."""
    return Field(validation_alias=name, serialization_alias=name, **settings)


def _check_number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"given {value!r}, a number is needed")
    return value


Number = Annotated[float, PlainValidator(_check_number)]
"""A number that stays as it is: 0 does not become 0.0, and the file keeps its bytes."""
