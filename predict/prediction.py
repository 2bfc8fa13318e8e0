"""What the output says of a row, in memory and as a line of the journal.

{"key": "9f2c...", "answer": "refund_status", "confidence": 0.97, "answered_by": "local", "abstain": false,
 "refused": null, "probabilities": null}
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

ANSWERED_LOCALLY = "local"
NO_ANSWER_CODE = "no_answer"


@dataclass(frozen=True)
class Prediction:
    """The answer to a row, or the reason why there is none."""

    answer: Any = None
    """The label, the labels, the record or the text, as the task's schema types it; None without an answer."""
    confidence: float | None = None
    """On the scale of routing.json; None where it is unknown."""
    answered_by: str | None = None
    """local: the trained model. Behind a gateway also the name of the API model that answered."""
    abstain: bool | None = None
    """Whether the confidence is below the threshold of routing.json; None without an answer, or without a threshold."""
    refused: str | None = None
    """`<code>: <words>` where there is no answer."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, where they were asked for."""
    final: bool = True
    """False: the engine failed, and the row is not known to be the cause; it is asked again by the next call."""


PREDICTION_COLUMNS = tuple(column.name for column in fields(Prediction) if column.name != "final")
"""Columns of the output, behind those of the input."""


def to_journal_line(key: str, prediction: Prediction) -> dict[str, Any]:
    """Returns a prediction as its line of the journal."""
    values = asdict(prediction)
    del values["final"]
    return {"key": key, **values}


def from_journal_line(line: Mapping[str, Any]) -> tuple[str, Prediction]:
    """Returns the key and the prediction of a line of the journal. Raises TypeError or KeyError for any other value."""
    return line["key"], Prediction(**{name: value for name, value in line.items() if name != "key"})
