"""The type of a prepared row: one line of train.jsonl, validation.jsonl, calibration.jsonl or test.jsonl.

{"id": "T000017", "input": {"text": "My parcel is late"}, "target": "delivery_delay", "group": "C01294"}

A row stays the JSON object that it is on disk: there are millions of them, and a typed dict costs nothing.
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict


class RowInput(TypedDict):
    """The input of a row."""

    text: str


class InputRow(TypedDict):
    """A row without its answer, as a system gets it."""

    id: str
    input: RowInput


class DataRow(InputRow):
    """A prepared row."""

    target: Any
    """The answer: a label, a list of labels, a record, a text or a pair of texts, see `TaskKind`."""
    references: NotRequired[list[Any]]
    """Further right answers."""
    group: NotRequired[str | None]
    slices: NotRequired[dict[str, str | bool]]
    original_target: NotRequired[Any]
    """The answer with its label as written in the source, if the canonical label is another."""
    provenance: NotRequired[str]
    """Origin of the label; left out for the source's own rows."""
    labelled_by: NotRequired[str]
    """The teacher: provider, model and API."""
    probabilities: NotRequired[dict[str, float]]
    """{label: probability} by the teacher."""


class TimedInput(TypedDict):
    """A row as `python -m train.head.predict` reads it."""

    key: str
    """Split and row id."""
    input: RowInput
    timed: bool
    """Whether the row is answered once more by itself, to time it."""


Rows = Sequence[DataRow]
InputRows = Sequence[InputRow]
