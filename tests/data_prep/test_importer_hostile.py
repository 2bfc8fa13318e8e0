"""Hostile fine-tuning files: each bad row is counted with its line and reason, or the file is refused; what is imported
prepares without an edit."""

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from insource.system import atomic_files
from tests.helpers.importing import (
    MODEL,
    QUEUES,
    SYSTEM,
    chat_row,
    prepare_recipe,
    run_import,
    ticket_rows,
    ticket_text,
    write_lines,
)

CALL = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"id": 7}'}}
USER = {"role": "user", "content": "look it up"}


def conversation(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": SYSTEM}, *messages]}


def answer(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def pair(index: int, *preferred: Any) -> dict[str, Any]:
    """A row of the DPO format."""
    outputs = preferred or (answer(f"gladly, in {index} days"),)
    return {
        "input": {
            "messages": [{"role": "user", "content": ticket_text(index)}],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": list(outputs),
        "non_preferred_output": [answer(f"no, not {index}")],
    }


COUNTED: dict[str, tuple[Any, str]] = {
    "an empty answer": (chat_row("is it here?", ""), "no_answer: the answer is empty"),
    "a blank answer": (chat_row("is it here?", " \n"), "no_answer: the answer is empty"),
    "no content": (chat_row("is it here?", None), "bad_messages: column 'messages', turn 3 (assistant): no content"),
    "a refusal": (chat_row("help", None, refusal="I cannot"), "bad_messages: column 'messages', turn 3 (assistant)"),
    "an answer that is an object": (chat_row("help", {"queue": "refund"}), "bad_messages: column 'messages', turn 3"),
    "weight 0 only": (chat_row("say nothing", "refund", weight=0), "weight_0: every answer has weight 0"),
    "weight 0.5": (chat_row("say half", "refund", weight=0.5), "bad_weight: turn 3: weight is 0.5, allowed: 0 or 1"),
    "a tool call": (
        conversation(USER, answer(None, tool_calls=[CALL])),
        'tool_call: the answer is a call of a tool, look_up({"id": 7})',
    ),
    "the legacy format of function calls": (
        conversation(USER, answer(None, function_call={"name": "look_up", "arguments": "{}"}))
        | {"functions": [{"name": "look_up"}]},
        "tool_call: the answer is a call of a tool, look_up({})",
    ),
    "an image": (
        chat_row([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}], "refund"),
        "bad_messages: column 'messages', turn 2: a part of type image_url",
    ),
    "a line of another format": (pair(1), "bad_messages: column 'messages': a list of messages is needed, given none"),
    "a key twice": (
        '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        "unreadable: key 'content' occurs twice",
    ),
    "half a surrogate pair": (chat_row("a \ud800 b", "refund"), "unreadable: half of a surrogate pair"),
    "a NUL byte": (chat_row("a\0b", "refund"), "nul_byte: the text holds a NUL byte"),
    "a cut line": (json.dumps(ticket_rows(1)[0])[:-30], "unreadable: not JSON"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_bad_row_is_counted_with_its_line_and_its_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row, problem = COUNTED[name]
    code, _ = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", [*ticket_rows(60), row]))
    stderr = capsys.readouterr().err
    assert code == 0 and "60 of 61 rows can be used" in stderr, stderr
    assert f"train.jsonl:61  {problem}" in stderr, stderr


def test_a_file_of_all_bad_rows_prepares_without_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_rows = [row for row, _ in COUNTED.values()]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", [*ticket_rows(90), *bad_rows]))
    assert code == 0
    _, report = prepare_recipe(recipe_path)
    assert report["rows"]["read"] == 90 and set(report["labels"]) == set(QUEUES)


def test_a_line_of_50_mb_is_counted_and_changes_no_limit_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "train.jsonl", [*ticket_rows(60), chat_row("word " * 10_000_000, "refund")])
    code, recipe_path = run_import(monkeypatch, source)
    stderr = capsys.readouterr().err
    assert code == 0 and "train.jsonl:61  too_long: 50,000,006 characters, allowed: 262,144" in stderr, stderr
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.train.max_length == 2048 and report["rows"]["read"] == 60


def test_an_image_larger_than_a_row_of_data_preparation_costs_only_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (9 << 20)}}]
    source = write_lines(tmp_path / "train.jsonl", [*ticket_rows(60), chat_row(picture, "refund")])
    code, recipe_path = run_import(monkeypatch, source)
    assert code == 0 and "a row is too large to be read in place" in capsys.readouterr().err
    assert prepare_recipe(recipe_path)[1]["rows"]["read"] == 60


def test_answers_of_weight_0_before_a_trained_one_are_part_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def corrected(index: int) -> dict[str, Any]:
        question = {"role": "user", "content": ticket_text(index)}
        no = {"role": "user", "content": "no, look again"}
        return conversation(question, answer("sorry", weight=0), no, answer(QUEUES[index % 3], weight=1))

    rows = [*ticket_rows(60), *map(corrected, range(60, 90))]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows))
    stderr = capsys.readouterr().err
    assert code == 0 and "30 rows with an answer of weight 0" in stderr, stderr
    _, report = prepare_recipe(recipe_path)
    assert report["rows"]["read"] == 90 and set(report["labels"]) == set(QUEUES)


def test_two_system_messages_are_joined_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = {"role": "system", "content": "Be brief."}
    rows = [conversation(brief, *row["messages"][1:]) for row in ticket_rows(60)]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows), "--model", MODEL)
    assert code == 0 and "60 rows with several system messages, joined to one" in capsys.readouterr().err
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.instruction == f"{SYSTEM}\nBe brief." and report["rows"]["read"] == 60


FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "developer": lambda row: {"messages": [{**row["messages"][0], "role": "developer"}, *row["messages"][1:]]},
    "parts": lambda row: {
        "messages": [
            {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
            for message in row["messages"]
        ]
    },
    "azure": lambda row: {
        "messages": [*row["messages"][:2], {**row["messages"][2], "weight": 1}],
        "tools": [],
        "parallel_tool_calls": False,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_same_rows_become_the_same_recipe(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, recipe_path = run_import(
        monkeypatch, write_lines(tmp_path / "train.jsonl", map(FORMS[form], ticket_rows(60))), "--model", MODEL
    )
    assert code == 0
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.instruction == SYSTEM and report["rows"]["read"] == 60
    assert recipe.compare.baselines[0].build_messages("late")[0] == {"role": "system", "content": SYSTEM}


def test_a_json_array_is_imported_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "train.json"
    source.write_text(json.dumps(ticket_rows(60), indent=1), encoding="utf-8")
    code, recipe_path = run_import(monkeypatch, source)
    assert code == 0 and prepare_recipe(recipe_path)[1]["rows"]["read"] == 60


def encode_lines(rows: Iterable[Any], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + encode_lines(ticket_rows(60)).encode(),
        encode_lines(ticket_rows(60)).encode("utf-16"),
        encode_lines(ticket_rows(60), "\r\n").encode(),
        ("\n \n" + encode_lines(ticket_rows(60), "\n\n")).encode(),
    ],
    ids=["BOM", "UTF-16", "CRLF", "blank lines"],
)
def test_encodings_and_line_ends_change_no_row(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "train.jsonl"
    source.write_bytes(content)
    code, recipe_path = run_import(monkeypatch, source)
    assert code == 0 and prepare_recipe(recipe_path)[1]["rows"]["read"] == 60


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "D007", "train.jsonl: the file is empty"),
    "the error of an API": (
        json.dumps({"error": {"message": "Incorrect API key provided: sk-x"}}, indent=2).encode(),
        "D008",
        "train.jsonl: this is the error response of an API: 'Incorrect API key provided: sk-x'",
    ),
    "the description of a file": (
        json.dumps({"object": "file", "id": "file-abc123", "purpose": "fine-tune"}).encode(),
        "D008",
        "download /v1/files/<id>/content",
    ),
    "an HTML page": (b"<html><body>401 Unauthorized</body></html>", "D008", "the content is an HTML page"),
    "gzip": (gzip.compress(encode_lines(ticket_rows(60)).encode()), "D008", "the content is gzip data"),
    "one JSON array": (json.dumps(ticket_rows(60)).encode(), "D008", "rename it to train.json"),
    "two tasks": (
        encode_lines([*ticket_rows(60), *ticket_rows(40, "Sort the letter.")]).encode(),
        "D037",
        "SYSTEM=2  40 rows  Sort the letter.",
    ),
    "no answers, as in reinforcement fine-tuning": (
        encode_lines(conversation(USER) | {"reference_answer": {"a": 1}} for _ in range(20)).encode(),
        "D036",
        "train.jsonl:1  no_answer: the conversation does not end in an answer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_rows_of_one_task_is_refused_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, code, message = REFUSED[name]
    source = tmp_path / "train.jsonl"
    source.write_bytes(content)
    assert run_import(monkeypatch, source)[0] == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error[INS-{code}]: ") and message in stderr, stderr
    assert list(tmp_path.iterdir()) == [source], "nothing is written"


def test_preference_rows_with_several_outputs_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *map(pair, range(60)),
        pair(60, answer("yes"), answer("or no")),
        pair(61, answer(None, tool_calls=[CALL]), {"role": "tool", "content": "ok"}, answer("yes")),
        pair(62, answer(None, tool_calls=[CALL])),
        pair(63, {"role": "user", "content": "yes"}),
        pair(64) | {"preferred_output": []},
    ]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows))
    stderr = capsys.readouterr().err
    assert code == 0 and "60 of 65 rows can be used" in stderr
    for line, problem in (
        (61, "bad_pair: preferred_output has 2 messages, allowed: one answer"),
        (62, "bad_pair: preferred_output has 3 messages"),
        (63, "tool_call: the answer is a call of a tool"),
        (65, "bad_messages: column 'preferred_output': a list of messages is needed, an empty list"),
    ):
        assert f"train.jsonl:{line}  {problem}" in stderr, stderr
    _, report = prepare_recipe(recipe_path)
    assert report["rows"]["read"] - sum(report["rows"]["rejected"].values()) == 60


def test_texts_of_an_alphabet_with_a_token_per_character_get_a_larger_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat_row(f"{ticket_text(index)} {'字' * 3000}", QUEUES[index % 3]) for index in range(30)]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows))
    assert code == 0 and "max_length: 4096" in recipe_path.read_text(encoding="utf-8")


def test_a_converted_file_has_the_rows_that_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path / "train.jsonl", [*ticket_rows(60), chat_row("say half", "refund", weight=0.5)])
    code, _ = run_import(monkeypatch, source)
    assert code == 0 and len(list(atomic_files.read_jsonl(tmp_path / "mine.rows.jsonl"))) == 60
