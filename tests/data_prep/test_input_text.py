"""The input of a row without an answer is what preparation takes from the same row with one."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.readers import dotted_paths
from data_prep.readers.source_row import SourceRow
from data_prep.rows import input_text
from data_prep.rows.columns import columns_to_read, input_columns
from data_prep.rows.data_row import Row, make_row
from insource.config.recipe import Recipe
from insource.tasks.pii import inputs
from insource.tasks.source_record import UnusableRowError
from tests.helpers.gateway import task_gateway

SLOTS = "slots: {column: labels, name: slot, start: span.start, end: span.end}"
PIECES = "{text: said, slots: {column: said, name: entity, value: text}}"
RECORD = """{kind: extraction, instruction: Read what is asked for., json_schema: {type: object, properties: {
  time: {type: string, maxLength: 20}, artist: {type: string, maxLength: 20}}}}"""
PAIRS = "{kind: preference, instruction: Answer the customer well.}"
TALK = [{"role": "user", "content": "where  is it?"}, {"role": "assistant", "content": "late"}]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, TALK[0], TALK[1]]
HH = "\n\nHuman: where is it?\n\nAssistant: {}"


@pytest.mark.parametrize(
    ("task", "columns", "values", "answers"),
    [
        (
            task_gateway.ROUTER_TASK,
            "{text: mail.body, label: queue}",
            {"mail": {"body": " it is\r\nlate"}},
            {"queue": "late"},
        ),
        (
            task_gateway.ROUTER_TASK,
            "{text: [a, b], label: queue}",
            {"a": "subject", "b": "it is late"},
            {"queue": "late"},
        ),
        (task_gateway.ROUTER_TASK, "{text: a, label: queue}", {"a": "write to ann@example.org"}, {"queue": "lost"}),
        (task_gateway.ROUTER_TASK, "{messages: talk}", {"talk": TALK}, {}),
        (task_gateway.ROUTER_TASK, "{messages: talk}", {"talk": TURNS}, {}),
        (RECORD, f"{{text: said, {SLOTS}}}", {"said": "for 2 at 8 pm"}, {"labels": []}),
        (RECORD, PIECES, {"said": [{"text": "at "}, {"text": "8 pm", "entity": "time"}]}, {}),
        (RECORD, "{text: tokens, tags: tags}", {"tokens": ["play", "nina"]}, {"tags": ["O", "B-artist"]}),
        (RECORD, "{text: tokens, tags: tags}", {"tokens": "play nina"}, {"tags": "O B-artist"}),
        (PAIRS, "{text: prompt}", {"prompt": "where is it?"}, {"chosen": "here", "rejected": "no"}),
        (PAIRS, "{text: prompt}", {"prompt": TURNS[:3]}, {"chosen": "here", "rejected": "no"}),
        (PAIRS, "{text: chosen}", {"chosen": HH.format("here"), "rejected": HH.format("no")}, {}),
    ],
)
def test_the_input_is_that_of_the_row_with_its_answer(
    tmp_path: Path, task: str, columns: str, values: dict[str, Any], answers: dict[str, Any]
) -> None:
    recipe = task_gateway.make_recipe(tmp_path, task=task, columns=columns)
    all_values = {**values, **answers}
    dotted = [column for column in columns_to_read(recipe, "all") if "." in column]
    prepared = make_row(
        SourceRow("in.csv", 2, {**all_values, **dotted_paths.resolve_columns(all_values, dotted)}), recipe
    )
    assert isinstance(prepared, Row), prepared
    for source_values in (values, all_values):
        assert prepare_text(source_values, recipe) == prepared.text


def prepare_text(values: dict[str, Any], recipe: Recipe) -> str:
    return inputs.prepare_input(input_text.extract_input(values, recipe), recipe.privacy.redact).text


def test_a_chat_that_nobody_has_answered_yet_is_asked_to_its_end(tmp_path: Path) -> None:
    recipe = task_gateway.make_recipe(tmp_path, columns="{messages: talk}")
    assert input_text.extract_input({"talk": TURNS[:3]}, recipe) == input_text.extract_input({"talk": TURNS}, recipe)
    with pytest.raises(UnusableRowError):
        input_text.extract_input({"talk": TALK[1:]}, recipe)


def test_columns_of_answers_are_not_among_those_that_an_input_needs(tmp_path: Path) -> None:
    recipe = task_gateway.make_recipe(tmp_path, columns="{text: [subject, body], label: queue, id: number}")
    assert input_columns(recipe) == {"data.columns.text[0]": "subject", "data.columns.text[1]": "body"}
