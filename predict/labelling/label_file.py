"""The CSV file that a person fills in.

label_row_id,number,message,queue,suggested_queue,suggestion_confidence
label-3f2a90c17b5e01d4,7,my parcel is late,,delivery_delay,0.41

UTF-8 with a byte order mark, by which spreadsheets detect the encoding. A text that a spreadsheet would take for a
formula gets a leading quote, which data preparation removes again (`data_prep/rows/labelled_rows.py`).
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.rows.labelled_rows import (
    CONFIDENCE_COLUMN,
    ROW_ID_COLUMN,
    SUGGESTION_PREFIX,
    escape_cell,
    list_answer_columns,
    list_suggestion_columns,
    list_text_columns,
)
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from predict.labelling.scored_rows import ScoredRow
from predict.rows.output import csv_cell

BYTE_ORDER_MARK = "\ufeff"


def format_label_file(rows: Sequence[ScoredRow], recipe: Recipe, with_suggestions: bool) -> str:
    """Return the file as text: the row's own columns, empty answer columns, and suggestions if requested.

    Raise RecipeError if a column of INPUT has the name of a column that is added.
    """
    answers, suggestions, texts = (
        list_answer_columns(recipe),
        list_suggestion_columns(recipe),
        list_text_columns(recipe),
    )
    input_columns = [
        name for name in dict.fromkeys(name for row in rows for name in row.columns) if name not in answers
    ]
    added = [ROW_ID_COLUMN, *texts, *suggestions]
    if clash := [name for name in input_columns if name in added]:
        raise RecipeError(
            f"INPUT: it has columns {', '.join(clash)}, which the file to label has too; rename them", code="INS-P003"
        )
    id_column = recipe.data.columns.id
    if id_column is not None and id_column not in input_columns:
        input_columns.insert(0, id_column)
    header = [ROW_ID_COLUMN, *input_columns, *texts, *answers, *(suggestions if with_suggestions else [])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([escape_cell(name) for name in header])
    for row in rows:
        row_id = make_row_id(row.text)
        values: dict[str, Any] = {
            **dict.fromkeys(input_columns),
            **row.columns,
            **dict.fromkeys(texts, row.text),
            **dict.fromkeys(answers),
            ROW_ID_COLUMN: row_id,
        }
        if id_column is not None and not csv_cell(values.get(id_column)).strip():
            values[id_column] = row_id
        values |= _format_suggestion(row, recipe, answers) if with_suggestions else {}
        writer.writerow([escape_cell(csv_cell(values.get(name))) for name in header])
    return BYTE_ORDER_MARK + buffer.getvalue()


def make_row_id(text: str) -> str:
    """Return the id of a row: a hash of its input, so that it is the same in every call and every order of rows."""
    return f"label-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _format_suggestion(row: ScoredRow, recipe: Recipe, answers: Sequence[str]) -> dict[str, Any]:
    """Return {suggestion column: value} of a row."""
    confidence = None if row.confidence is None else f"{row.confidence:.4f}"
    return {**_suggest_answers(row.answer, recipe, answers), CONFIDENCE_COLUMN: confidence}


def _suggest_answers(answer: Any, recipe: Recipe, answers: Sequence[str]) -> dict[str, Any]:
    if answer is None:
        return {}
    if recipe.task.kind != "extraction" or recipe.data.columns.target is not None:
        return {f"{SUGGESTION_PREFIX}{answers[0]}": answer}
    record: Mapping[str, Any] = answer
    return {f"{SUGGESTION_PREFIX}{name}": _format_field(record.get(name), recipe) for name in answers}


def _format_field(value: Any, recipe: Recipe) -> Any:
    """Return a field as the recipe's own files write it, so that a copied suggestion is read as the same number."""
    is_number = isinstance(value, float) and not isinstance(value, bool)
    return str(value).replace(".", ",") if is_number and recipe.data.formats.decimal == "," else value
