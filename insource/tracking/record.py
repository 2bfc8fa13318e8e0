"""The bases of all typed records of files: `Record` for scores.json, `StoredRecord` for the files of a run.

    Latency.model_validate({"n": 3080, "p50_seconds": 0.08, ...}).p50_seconds      0.08
    Latency(n=3080, p50_seconds=0.08, ...).to_json()                               {"n": 3080, "p50_seconds": 0.08, ...}

The fields are in the order of the file. A field whose name differs from its key in the file has `key("...")`.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from insource.config.errors import RecipeError


class Record(BaseModel):
    """A part of a file: immutable, without unknown keys, without implicit conversions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the record as the file contains it.

        A field that was not set is left out: a file of an older version keeps its bytes.
        """
        return self.model_dump(by_alias=True, exclude_unset=True)


class StoredRecord(Record):
    """A part of a file that several versions of insource write and read.

    Keys that this version does not know are kept. A field that an earlier version did not write has a default.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def parse(cls, payload: object, path: Path) -> Self:
        """Return the record of a JSON value. Raise RecipeError with the keys that this version cannot read."""
        try:
            return cls.model_validate(payload)
        except ValidationError as error:
            problems = {".".join(map(str, detail["loc"])) or "the file": detail["msg"] for detail in error.errors()}
            details = ", ".join(f"{name}: {message}" for name, message in sorted(problems.items()))
            raise RecipeError(
                f"{path}: this version of insource cannot read it ({details}); a newer version may have written it: "
                "update insource",
                code="INS-R014",
            ) from None


def key(name: str, **settings: Any) -> Any:
    """Return the field of a key that has another name in the file. `settings` are those of `pydantic.Field`."""
    return Field(validation_alias=name, serialization_alias=name, **settings)


def _check_number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"given {value!r}, a number is needed")
    return value


Number = Annotated[float, PlainValidator(_check_number)]
"""A number that stays as it is: 0 does not become 0.0, and the file keeps its bytes."""
