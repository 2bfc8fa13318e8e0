"""Chats and pairs of conversations: shapes that are read, and faults."""

import json
from pathlib import Path
from typing import Any

import pytest

from insource.config.errors import RecipeError
from insource.config.schema.source import SPLITS
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import labelled_rows, prepare_data, write_rows

# Chats and pairs.


def test_tool_calls_are_read_where_they_are_asked_about_and_refused_where_they_are_the_answer(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "look_up", "arguments": '{"n": 1}'}}],
    }
    rows = [
        {"chat": [{"role": "user", "content": text}, call, {"role": "tool", "content": f"late {n}"},
                  {"role": "assistant", "content": f"It is late by {n * 7919} days."}]}
        for n, text in enumerate(distinct_texts(80))
    ]  # fmt: skip
    rows.append({"chat": [{"role": "user", "content": "and mine?"}, {**call, "content": "one moment"}]})
    write_rows(tmp_path / "rows.jsonl", rows)
    data = "{source: {path: rows.jsonl}, columns: {messages: chat}, split: {stratify: null}, max_rejected: 0.05}"
    splits, report = prepare_data(tmp_path, data, "generation")
    assert all('assistant: look_up({"n": 1})\ntool: late' in row["input"]["text"] for row in splits["train"])
    assert report["rows"]["rejected"] == {"tool_call": 1}


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "TEXT"}, {"from": "gpt", "value": "LABEL"}],
        [{"role": "user", "content": [{"type": "text", "text": "TEXT"}]}, {"role": "assistant", "content": "LABEL"}],
        [
            {"role": "user", "content": ["TEXT"]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "LABEL"}]},
        ],
    ],
)
def test_chats_of_other_shapes_are_read(tmp_path: Path, turns: Any) -> None:
    shape = json.dumps(turns)
    rows = [
        {"chat": json.loads(shape.replace("TEXT", row["text"]).replace("LABEL", row["label"]))}
        for row in labelled_rows(80)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    splits, _ = prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {messages: chat}}")
    assert {row["input"]["text"] for name in SPLITS for row in splits[name]} == set(distinct_texts(80))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "turn 1: a part of type image_url"),
        ([{"speaker": "ann", "text": "hi"}], "turn 1: no role; its keys are speaker, text"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": None}], "turn 2 (assistant): no content"),
        (["hello"], "turn 1: given hello, allowed: an object"),
        ([], "an empty list"),
    ],
)
def test_a_chat_that_cannot_be_read_names_the_turn_and_what_is_in_the_way(
    tmp_path: Path, turns: Any, message: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"chat": turns}] * 3)
    with raises_error(RecipeError, "INS-D022") as error:
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {messages: chat}}")
    assert message in str(error.value)


def preference_rows(count: int, chosen: str, rejected: str) -> list[dict[str, str]]:
    return [
        {"chosen": chosen.replace("N", text), "rejected": rejected.replace("N", text)}
        for text in (f"{text} {n * 104729}" for n, text in enumerate(distinct_texts(count)))
    ]


def test_pairs_of_whole_conversations_as_texts_are_split_at_their_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: why is N late?\n\nAssistant: "
    write_rows(tmp_path / "rows.jsonl", preference_rows(80, f"{start}Sorry about N.", f"{start}No idea of N."))
    data = "{source: {path: rows.jsonl}, columns: {text: chosen}, split: {stratify: null}}"
    splits, _ = prepare_data(tmp_path, data, "preference")
    row = splits["train"][0]
    assert row["input"]["text"].startswith("user: hello\nassistant: hi\nuser: why is ")
    assert row["input"]["text"].endswith("late?")
    assert row["target"]["chosen"].startswith("Sorry about")


@pytest.mark.parametrize(
    ("row", "text", "message"),
    [
        ({"chosen": "Sorry about it.", "rejected": "No idea."}, "chosen", "is no conversation"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "chosen", "differ before",
        ),
        (
            {"prompt": "why? Sorry about that, it is on its way.", "chosen": "Sorry about that, it is on its way.",
             "rejected": "no"}, "prompt", "the prompt ends in one of the answers",
        ),
        (
            {"prompt": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "So."}],
             "chosen": "So. ", "rejected": "no"}, "prompt", "the prompt ends in one of the answers",
        ),
    ],
)  # fmt: skip
def test_a_pair_whose_prompt_holds_the_answer_is_refused(tmp_path: Path, row: Any, text: str, message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [row] * 5)
    data = f"{{source: {{path: rows.jsonl}}, columns: {{text: {text}}}, split: {{stratify: null}}}}"
    with raises_error(RecipeError, "INS-D022") as error:
        prepare_data(tmp_path, data, "preference")
    assert message in str(error.value)
