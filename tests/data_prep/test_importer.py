"""An import: the rows of a fine-tune, or of a log, become a recipe that prepares without an edit; what does not fit is
counted or refused in words."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep.importer import import_rows as importer_rows
from data_prep.importer import survey, task_inference
from insource.system import atomic_files
from tests.conftest import ROOT
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


def test_rows_with_another_system_message_are_counted_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other_rows = [chat_row("Hello there, my friend", "Good day", 'Be "kind":\nalways ☺') for _ in range(9)]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", [*ticket_rows(90), *other_rows]))
    assert code == 0 and "left out  9 rows with 1 other system message" in capsys.readouterr().err
    recipe, report = prepare_recipe(recipe_path)
    assert report["rows"]["filtered"] == 9 and set(report["labels"]) == set(QUEUES)
    assert recipe.data.source.path == str(tmp_path / "train.jsonl"), "the file is read where it lies"


def test_several_tasks_in_one_file_are_refused_until_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second_instruction = 'Sort the "letter":\nby its kind ☺\u2028.'
    source = write_lines(tmp_path / "train.jsonl", [*ticket_rows(60), *ticket_rows(50, second_instruction)])
    assert run_import(monkeypatch, source)[0] == 2
    stderr = capsys.readouterr().err
    assert "110 rows have 2 different system messages" in stderr and "SYSTEM=2  50 rows" in stderr
    assert list(tmp_path.iterdir()) == [source], "nothing is written"
    many_tasks = write_lines(
        tmp_path / "own.jsonl",
        (chat_row(ticket_text(index), "refund", f"You speak with customer {index}.") for index in range(300)),
    )
    assert run_import(monkeypatch, many_tasks)[0] == 2
    assert "300 rows have more than 200 different system messages" in capsys.readouterr().err
    many_tasks.unlink()
    code, recipe_path = run_import(monkeypatch, source, "--system", 2)
    assert code == 0
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.instruction == second_instruction and report["rows"]["filtered"] == 60


def test_rows_that_cannot_be_used_are_counted_with_their_lines_and_the_recipe_allows_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    unusable: list[Any] = [
        '{"messages": [',
        "[]",
        chat_row("is it here?", ""),
        chat_row("look it up", None, tool_calls=[call]),
        {"messages": [{"role": "user", "content": "hello?"}]},
        chat_row([{"type": "image_url", "image_url": {"url": "x"}}], "refund"),
        chat_row("say nothing", "refund", weight=0),
        {"messages": "no list"},
    ]  # fmt: skip
    source = write_lines(tmp_path / "train.jsonl", [*unusable, *ticket_rows(90)])
    code, recipe_path = run_import(monkeypatch, source)
    stderr = capsys.readouterr().err
    assert code == 0 and "90 of 98 rows can be used" in stderr
    for reason in ("unreadable 2", "tool_call 1", "no_answer 2", "weight_0 1", "bad_messages 2"):
        assert reason in stderr, stderr
    assert (
        "train.jsonl:1  unreadable: not JSON" in stderr and "train.jsonl:4  tool_call: the answer is a call" in stderr
    )
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.data.max_rejected < 0.12
    # The row of weight 0 is no answer to learn: it is not read from the file, which is converted for that.
    assert report["rows"]["read"] - sum(report["rows"]["rejected"].values()) == 90


def test_a_file_of_tool_calls_or_of_nothing_that_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    calls = [chat_row(ticket_text(index), None, tool_calls=[call]) for index in range(50)]
    cases: list[tuple[list[Any], str, str]] = [
        (calls, "D036", "0 of 50 rows can be used (tool_call 50)"),
        ([{"prompt": "a ->", "completion": " b"}] * 50, "D035", "prompt and completion"),
        ([{"text": "a", "label": "b"}] * 50, "D035", "the first row has the keys text, label"),
        ([chat_row(ticket_text(index), "refund") for index in range(50)], "D025", "all 50 answers are 'refund'"),
        (ticket_rows(5), "D036", "5 rows can be used; a recipe needs at least 10"),
        (['{"messages": '] * 20, "D036", "unreadable 20"),
    ]
    for rows, code, reason in cases:
        source = write_lines(tmp_path / "train.jsonl", rows)
        assert run_import(monkeypatch, source)[0] == 2, reason
        stderr = capsys.readouterr().err
        assert reason in stderr and stderr.startswith(f"error[INS-{code}]: "), stderr
        assert list(tmp_path.iterdir()) == [source], "nothing is half written"


def test_a_line_beyond_the_limit_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importer_rows, "LOG_ROW_MIB", 1)
    source = write_lines(tmp_path / "train.jsonl", [*ticket_rows(30), chat_row("x" * (1100 << 10), "refund")])
    assert run_import(monkeypatch, source)[0] == 2
    stderr = capsys.readouterr().err
    assert "train.jsonl:31: a line of more than 1 MiB" in stderr and "max_row_mib" not in stderr


def test_an_answer_of_weight_1_is_a_row_and_one_conversation_stays_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conversation(index: int) -> dict[str, Any]:
        turns = [
            ("user", ticket_text(3 * index)),
            ("assistant", "refund"),
            ("user", ticket_text(3 * index + 1)),
            ("assistant", "delivery"),
        ]
        messages = [{"role": role, "content": content} for role, content in turns]
        unweighted: dict[str, Any] = {"role": "assistant", "content": "not learnt", "weight": 0}
        return {"messages": [*messages, {"role": "user", "content": "and now?"}, unweighted]}

    source = write_lines(tmp_path / "train.jsonl", map(conversation, range(60)))
    code, recipe_path = run_import(monkeypatch, source)
    assert code == 0
    rows = list(atomic_files.read_jsonl(tmp_path / "mine.rows.jsonl"))
    assert len(rows) == 120 and {row["answer"] for row in rows} == {"refund", "delivery"}
    assert rows[1]["text"].startswith("user: refund") and "\nassistant: refund\nuser: delivery" in rows[1]["text"]
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.data.split.group == "conversation" and report["rows"]["read"] == 120


def test_what_all_texts_begin_with_is_cut_off_and_the_fine_tune_is_asked_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, suffix = "Classify this message by its queue.\nMessage: ", "\n\nAnswer with the queue alone, in one word."
    rows = [chat_row(f"{prefix}{ticket_text(index)}{suffix}", QUEUES[index % 3], None) for index in range(90)]
    source = write_lines(tmp_path / "train.jsonl", [*rows, chat_row("something else", "refund", None)])
    code, recipe_path = run_import(monkeypatch, source, "--model", MODEL)
    stderr = capsys.readouterr().err
    assert code == 0 and "mine.rows.jsonl: the rows, converted" in stderr and "other_preamble 1" in stderr
    assert [row["text"] for row in atomic_files.read_jsonl(tmp_path / "mine.rows.jsonl")] == [
        ticket_text(index) for index in range(90)
    ]
    recipe, _ = prepare_recipe(recipe_path)
    assert "Classify this message by its queue." in recipe.task.instruction
    assert recipe.compare.baselines[0].build_messages("late")[0]["content"] == f"{prefix}late{suffix}"


def test_answers_that_do_not_fit_the_schema_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(index: int) -> str:
        kind, lines = (
            ("order", "invoice")[index % 2],
            [{"name": f"item {index}", "price": index + 0.5}] * (index % 3 + 1),
        )
        return json.dumps({"kind": kind, "number": f"N-{index}", "paid": index % 5 == 0, "lines": lines})

    rows = [chat_row(ticket_text(index), record(index), "Read the document.") for index in range(100)]
    rows += [
        chat_row(ticket_text(100), "I cannot read this."),
        chat_row(ticket_text(101), '{"kind": 7}', "Read the document."),
    ]
    rows[100]["messages"][0]["content"] = "Read the document."
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows))
    assert code == 0 and "bad_record 2; 100 of 102 rows can be used" in capsys.readouterr().err
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.json_schema == {
        "type": "object",
        "properties": {
            "kind": {"enum": ["invoice", "order"]},
            "number": {"type": "string", "maxLength": 8},
            "paid": {"type": "boolean"},
            "lines": {
                "type": "array",
                "maxItems": 5,
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "maxLength": 16}, "price": {"type": "number"}},
                    "required": ["name", "price"],
                },
            },
        },
        "required": ["kind"],
    }
    assert report["rows"]["rejected"] == {"bad_record": 2}


def test_answers_decide_the_task() -> None:
    def decide_kind(answers: Iterable[str]) -> task_inference.InferredTask:
        statistics = survey.AnswerStatistics()
        for answer in answers:
            statistics.add(answer)
        return task_inference.infer_task(statistics, 0)

    assert decide_kind(["yes", "No.", "no", "Yes"] * 20).kind == "classification"
    assert decide_kind(["Yes", "yes", "no"] * 20).labels == ("Yes", "no"), "spellings of one label are one"
    assert decide_kind(f"Answer number {index} is its own" for index in range(60)).kind == "generation"
    label_lists = decide_kind(json.dumps(item) for item in [["late", "lost"], [], ["late"]] * 20)
    assert (label_lists.kind, label_lists.variant) == ("classification", "multilabel")
    assert decide_kind(json.dumps({f"key {index}": index}) for index in range(60)).kind == "generation", (
        "no shape in common"
    )
    mixed = decide_kind(json.dumps({"total": index if index % 2 else str(index)}) for index in range(60))
    assert mixed.kind == "generation" and "field total has several types" in mixed.reason
    omitted = decide_kind(json.dumps({"a": "x y"} | ({"b": index} if index % 2 else {})) for index in range(60))
    assert omitted.kind == "extraction" and omitted.omits_absent
    empty = decide_kind(json.dumps({"a": index, "b": None, "c": [], "d": {"e": ""}}) for index in range(60))
    assert empty.json_schema and list(empty.json_schema["properties"]) == ["a", "b", "c", "d"]
    nested: Any = {"a": {"b": {"c": {"d": {"e": 1}}}}}
    assert "objects more than" in decide_kind([json.dumps(nested)] * 60).reason


def test_a_generation_says_what_its_answers_lack_of_labels_and_of_records() -> None:
    def explain(answers: Iterable[str]) -> str:
        statistics = survey.AnswerStatistics()
        for answer in answers:
            statistics.add(answer)
        task = task_inference.infer_task(statistics, 0)
        assert task.kind == "generation"
        return task.reason

    few = explain(["refund", "delivery", "account", "login"] * 3)
    assert "12 answers are 4 different short texts" in few and "a label needs 4 rows" in few
    records = [json.dumps({"total": index}) for index in range(80)]
    assert "80 are JSON objects, and for extraction 90% must be" in explain([*records, *["I do not know"] * 20])
    assert "80 are JSON in a code fence" in explain(f"```json\n{record}\n```" for record in records)
    assert "JSON" not in explain(f"Answer number {index} is its own" for index in range(60))


def test_the_most_frequent_spelling_of_a_label_is_the_label() -> None:
    statistics = survey.AnswerStatistics()
    for answer in ["REFUND", *["refund"] * 20, *["delivery"] * 20, "Delivery."]:
        statistics.add(answer)
    assert task_inference.infer_task(statistics, 0).labels == ("refund", "delivery")


@pytest.mark.parametrize("other", [0, 12])
def test_white_space_around_a_system_message_makes_no_other_task(
    other: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ticket_rows(60, f"{SYSTEM}\n"), *ticket_rows(90)[60:], *ticket_rows(90 + other, "Other task.")[90:]]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows), "--model", MODEL)
    stderr = capsys.readouterr().err
    assert code == 0 and ("left out  12 rows with 1 other system message" in stderr) is bool(other)
    recipe, report = prepare_recipe(recipe_path)
    assert report["rows"]["read"] == 90 and recipe.task.instruction == SYSTEM
    messages = recipe.compare.baselines[0].messages
    assert messages and messages[0].content == f"{SYSTEM}\n", "the model gets the spelling of most of its rows"


def test_the_command_is_a_make_target_and_says_what_is_missing(tmp_path: Path) -> None:
    argv = ["make", "-n", "import", "FROM=a b.jsonl", "SYSTEM=2"]
    completed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '-m data_prep.importer "a b.jsonl" --system 2' in completed.stdout
    incomplete_argv = [sys.executable, "-m", "data_prep.importer", ""]
    failed = subprocess.run(incomplete_argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and failed.stderr.startswith("error[INS-R012]: FROM: give the file")
