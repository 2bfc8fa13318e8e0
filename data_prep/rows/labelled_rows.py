"""Rows of a file that `make label` wrote and a person filled in (data.source.labelled).

in   label_row_id,message,queue,suggested_queue,suggestion_confidence
     label-3f2a90c17b5e01d4,'=5 parcels late,delivery_delay,refund_status,0.41
out  SourceRow("round-1.csv", 2, {"message": "=5 parcels late", "queue": "delivery_delay"},
               id="round-1.csv:label-3f2a90c17b5e01d4", provenance="human_suggested")

For a recipe of chats (data.columns.messages) the messages are a JSON cell, and `label_text` is their text for people.
The label that was filled in becomes the last message.

The file is read with default options of data.source, because the recipe's own options describe other files. Rows whose
answer columns are all empty are not labelled; data preparation counts them. Suggestions are never read as labels.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from data_prep.readers.dotted_paths import parse_json_text, resolve_columns
from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.rows.columns import field_names
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.source import Source
from insource.tasks import TASKS
from insource.tasks.source_record import to_text

ROW_ID_COLUMN = "label_row_id"
SUGGESTION_PREFIX = "suggested_"
CONFIDENCE_COLUMN = "suggestion_confidence"
CHAT_TEXT_COLUMN = "label_text"
"""The column with the text of a chat. Nothing reads it."""

# OWASP, CSV injection: the first characters that make a cell a formula.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


def escape_cell(text: str) -> str:
    """Return the text with a leading quote if a spreadsheet would take it for a formula.

    A text that is quoted so already gets one more quote, so that `restore_cell` returns every text unchanged.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def restore_cell(text: str) -> str:
    """Return the text that `escape_cell` was given. A formula character that a person typed stays as it is."""
    return text[1:] if _ESCAPED.match(text) else text


def restore_values(values: Mapping[str, object]) -> dict[str, object]:
    """Return the columns of a row with all names and texts restored."""
    return {
        restore_cell(name): restore_cell(value) if isinstance(value, str) else value for name, value in values.items()
    }


def make_labelled_source(source: Source) -> Source:
    """Return the options that a labelled file is read with: the defaults, and the recipe's limits."""
    limits = source.model_dump(include={"max_row_mib", "max_unpacked_mib"})
    return Source(paths=source.labelled or ["labelled"], **limits)


def list_answer_columns(recipe: Recipe) -> list[str]:
    """Return the columns that a person fills in: the label, the record, or each field of the record."""
    columns = [*TASKS[recipe.task.task_name].answer_columns(recipe).values()]
    return columns or field_names(recipe)


def list_suggestion_columns(recipe: Recipe) -> list[str]:
    """Return the columns of the suggestion for each answer column, and of its confidence."""
    return [*(f"{SUGGESTION_PREFIX}{name}" for name in list_answer_columns(recipe)), CONFIDENCE_COLUMN]


def list_text_columns(recipe: Recipe) -> list[str]:
    """Return the column with the text of a chat; [] if a column of the row is the text."""
    return [] if recipe.data.columns.messages is None else [CHAT_TEXT_COLUMN]


def find_messages(values: Mapping[str, object], recipe: Recipe) -> list[object]:
    """Return the messages of a row of chats, a list or its JSON; [] if the row has none."""
    column = recipe.data.columns.messages
    if column is None:
        return []
    messages = parse_json_text({**values, **resolve_columns(values, [column])}.get(column))
    return messages if isinstance(messages, list) else []


def ends_in_answer(messages: list[object]) -> bool:
    """Return whether the last of several messages is one of the assistant."""
    last = messages[-1] if len(messages) > 1 else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def iter_labelled(rows: Iterator[SourceRow], file: SourceFile, recipe: Recipe) -> Iterator[SourceRow | None]:
    """Yield the rows of a labelled file, restored; None for a row that nobody has labelled.

    Raise RecipeError if the first readable row has no answer column: all rows would seem to be empty.
    """
    answers, suggestions = list_answer_columns(recipe), list_suggestion_columns(recipe)
    is_checked = False
    for row in rows:
        if row.problem:
            yield row
            continue
        values = restore_values(row.values)
        if not is_checked and not any(name in values for name in answers):
            raise RecipeError(
                f"{file.path}: data.source.labelled needs the column that a person filled in: "
                f"{' or '.join(answers)}; it has {', '.join(values)}",
                code="INS-D021",
            )
        is_checked = True
        is_labelled = any(to_text(values.get(name)).strip() for name in answers)
        if is_labelled and (messages := find_messages(values, recipe)):
            _append_answer(values, messages, recipe)
        yield _make_row(row, values, suggestions) if is_labelled else None


def _append_answer(values: dict[str, object], messages: list[object], recipe: Recipe) -> None:
    """Put the messages of a chat and the label after them into the column of the messages."""
    (answer_column,) = list_answer_columns(recipe)
    answer = {"role": "assistant", "content": to_text(values.get(answer_column))}
    prompt = messages[:-1] if ends_in_answer(messages) else messages
    values[str(recipe.data.columns.messages)] = [*prompt, answer]


def _make_row(row: SourceRow, values: Mapping[str, object], suggestions: list[str]) -> SourceRow:
    """Return a labelled row without the columns that `make label` added, with its id and its provenance.

    Without a column `label_row_id`, the row keeps an id of file and line.
    """
    row_id = to_text(values.get(ROW_ID_COLUMN)).strip()
    return replace(
        row,
        values={
            name: value for name, value in values.items() if name not in (ROW_ID_COLUMN, CHAT_TEXT_COLUMN, *suggestions)
        },
        id=f"{row.file}:{row_id}" if row_id else None,
        provenance="human_suggested" if any(name in values for name in suggestions) else "human",
    )
