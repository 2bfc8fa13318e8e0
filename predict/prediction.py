"""The prediction for a row, in memory and as a line of the journal.

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
    """The label, list of labels, record or text, typed by the task's schema; None without an answer."""
    confidence: float | None = None
    """Confidence on the scale of routing.json; None if it is unknown."""
    answered_by: str | None = None
    """`local` for the trained model; from a gateway also the name of the API model that answered."""
    abstain: bool | None = None
    """Whether the confidence is below the threshold of routing.json; None without an answer or a threshold."""
    refused: str | None = None
    """`<code>: <reason>` if there is no answer."""
    probabilities: Mapping[str, float] | None = None
    """{label: probability} for every label, if requested."""
    final: bool = True
    """False if the engine failed and the row may not be the cause; the next call retries the row."""


PREDICTION_COLUMNS = tuple(column.name for column in fields(Prediction) if column.name != "final")
"""Columns of the output, after those of the input."""


def to_journal_line(key: str, prediction: Prediction) -> dict[str, object]:
    """Return a prediction as a line of the journal."""
    values = asdict(prediction)
    del values["final"]
    return {"key": key, **values}


def from_journal_line(line: Mapping[str, Any]) -> tuple[str, Prediction]:
    """Return key and prediction of a journal line. Raise TypeError or KeyError for any other value."""
    return line["key"], Prediction(**{name: value for name, value in line.items() if name != "key"})
