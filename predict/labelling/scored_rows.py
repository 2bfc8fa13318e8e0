"""Rows of INPUT with the answer of a model and its uncertainty, one by one.

in   {"message": "my parcel is late", "channel": "chat"}
out  ScoredRow({"message": "my parcel is late", "channel": "chat"}, "my parcel is late", "delivery_delay", 0.71, 0.29)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.rows import input_text
from data_prep.selection.linear_model import LinearModel
from insource.config.recipe import Recipe
from insource.config.schema.source import Source
from insource.system import atomic_files
from insource.tasks.pii.inputs import prepare_input
from insource.tasks.source_record import UnusableRowError
from predict.rows import inputs

UNPARSED_CODES = ("invalid_answer",)
"""Codes of refused rows that the model could read but not answer. A person can label them."""


@dataclass(frozen=True)
class ScoredRow:
    """A row of INPUT with a model's answer, or the reason why it cannot be labelled."""

    columns: Mapping[str, Any]
    """The row's own columns, redacted by privacy.redact."""
    text: str = ""
    """Its input, as data preparation would write it."""
    answer: Any = None
    confidence: float | None = None
    uncertainty: float = 1.0
    """In [0, 1]; 1 without a confidence."""
    problem: str | None = None
    """The code of the reason; None if the row can be labelled."""


def iter_predicted(predictions: Path, column_names: Mapping[str, str], recipe: Recipe) -> Iterator[ScoredRow]:
    """Yield the rows of an output of `make predict` in JSONL, with uncertainty 1 - confidence.

    `column_names` is {prediction column: its name in the output}.
    """
    for columns in atomic_files.read_jsonl(predictions):
        prediction = {column: columns.pop(name, None) for column, name in column_names.items()}
        code = (prediction["refused"] or "").partition(":")[0]
        if code and code not in UNPARSED_CODES:
            yield ScoredRow(columns, problem=code)
            continue
        confidence = prediction["confidence"]
        uncertainty = 1.0 if confidence is None else min(max(1.0 - confidence, 0.0), 1.0)
        yield _make_row(columns, recipe, prediction["answer"], confidence, uncertainty)


def iter_linear(files: list[SourceFile], source: Source, recipe: Recipe, model: LinearModel) -> Iterator[ScoredRow]:
    """Yield the rows of INPUT with the predictions of a linear model, with uncertainty 1 - margin."""
    for file in files:
        for chunk in inputs.iter_chunks(file, source, recipe):
            yield from _predict_chunk(chunk, recipe, model)


def _predict_chunk(chunk: Sequence[SourceRow], recipe: Recipe, model: LinearModel) -> Iterator[ScoredRow]:
    rows = [_read_row(row, recipe) for row in chunk]
    predictions = iter(model.predict([row.text for row in rows if row.problem is None]))
    for row in rows:
        if row.problem is not None:
            yield row
            continue
        prediction = next(predictions)
        uncertainty = min(max(1.0 - prediction.margin, 0.0), 1.0)
        yield ScoredRow(row.columns, row.text, prediction.label, prediction.confidence, uncertainty)


def _read_row(row: SourceRow, recipe: Recipe) -> ScoredRow:
    """Return a source row without an answer."""
    columns = inputs.output_columns(row.values, recipe)
    return ScoredRow(columns, problem="unreadable") if row.problem else _make_row(columns, recipe)


def _make_row(
    columns: Mapping[str, Any],
    recipe: Recipe,
    answer: Any = None,
    confidence: float | None = None,
    uncertainty: float = 1.0,
) -> ScoredRow:
    """Return a row with its input, or with the reason why it has none."""
    try:
        text = prepare_input(input_text.extract_input(columns, recipe), recipe.privacy.redact).text
    except UnusableRowError as error:
        return ScoredRow(columns, problem=error.reason)
    return ScoredRow(columns, text, answer, confidence, uncertainty)
