"""The input of a source row with or without an answer, as data preparation reads it.

in   {"messages": [{"role": "user", "content": "where is my money?"}]}, or the same followed by an answer
out  "where is my money?"
"""

from collections.abc import Mapping

from data_prep.readers import dotted_paths
from data_prep.rows import slots
from insource.config.recipe import Recipe
from insource.tasks import preference
from insource.tasks.chat_messages import parse_messages, split_prompt
from insource.tasks.source_record import read_input


def extract_input(values: Mapping[str, object], recipe: Recipe) -> str:
    """Return the input of a row as written, neither cleaned nor redacted.

    A chat that ends in an answer of the assistant is used without that answer.

    Raise UnusableRowError if the row has no readable input.
    """
    columns = recipe.data.columns
    if nested_columns := [column for column in [*columns.texts, columns.messages] if column and "." in column]:
        values = {**values, **dotted_paths.resolve_columns(values, nested_columns)}
    if columns.messages is not None:
        messages = parse_messages(values.get(columns.messages), columns.messages)
        has_answer = len(messages) > 1 and messages[-1]["role"] == "assistant"
        return split_prompt(messages[:-1] if has_answer else messages)[1]
    if columns.slot_columns:
        return slots.extract_text(values, recipe)
    if recipe.task.task_name == "preference":
        return _extract_prompt(values, recipe)
    return read_input(values, columns)


def _extract_prompt(values: Mapping[str, object], recipe: Recipe) -> str:
    """Return the prompt of a pair of answers, or of a row without answers."""
    columns = recipe.data.columns
    if {columns.chosen, columns.rejected} <= values.keys():
        return preference.read_source_row(values, recipe).text
    (column, *_) = columns.texts
    if isinstance(values.get(column), list):
        return split_prompt(parse_messages(values[column], column))[1]
    return read_input(values, columns)
