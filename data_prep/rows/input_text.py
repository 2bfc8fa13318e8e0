"""The input of a source row that need not have an answer, as preparation takes it from one that has.

in   {"messages": [{"role": "user", "content": "where is my money?"}]}, or the same with an answer behind it
out  "where is my money?"
"""

from collections.abc import Mapping
from typing import Any

from data_prep.readers import dotted_paths
from data_prep.rows import slots
from insource.config.recipe import Recipe
from insource.tasks import preference
from insource.tasks.chat_messages import parse_messages, split_prompt
from insource.tasks.source_record import read_input


def extract_input(values: Mapping[str, Any], recipe: Recipe) -> str:
    """Returns the input of a row as it stands there: neither cleaned nor redacted. Of a chat that ends in an answer of
    the assistant, that answer is left out. Raises UnusableRowError where the row has none that can be read."""
    columns = recipe.data.columns
    if nested_columns := [column for column in [*columns.texts, columns.messages] if column and "." in column]:
        values = {**values, **dotted_paths.resolve_columns(values, nested_columns)}
    if columns.messages is not None:
        messages = parse_messages(values.get(columns.messages), columns.messages)
        has_answer = len(messages) > 1 and messages[-1]["role"] == "assistant"
        return split_prompt(messages[:-1] if has_answer else messages)[1]
    if columns.of_slots:
        return slots.extract_text(values, recipe)
    if recipe.task.variant == "preference":
        return _extract_prompt(values, recipe)
    return read_input(values, columns)


def _extract_prompt(values: Mapping[str, Any], recipe: Recipe) -> str:
    """The prompt of a pair of answers, or of a row that has none yet."""
    columns = recipe.data.columns
    if {columns.chosen, columns.rejected} <= values.keys():
        return preference.read_source_row(values, recipe).text
    (column, *_) = columns.texts
    if isinstance(values.get(column), list):
        return split_prompt(parse_messages(values[column], column))[1]
    return read_input(values, columns)
