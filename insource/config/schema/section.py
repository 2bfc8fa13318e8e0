"""Base class of all recipe sections, and types that several sections use."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Mistake = tuple[tuple[str, ...], str]
"""(key below the section that finds the mistake, message)."""


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys, without implicit conversions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ConflictError(ValueError):
    """Values that are valid alone and conflict with each other: `mistakes`."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("; ".join(f"{'.'.join(key)}: {message}" for key, message in mistakes))
        self.mistakes = mistakes
