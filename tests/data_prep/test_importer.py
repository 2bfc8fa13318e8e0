"""An import: the rows of a fine-tune, or of a log, become a recipe that prepares without an edit; what does not fit is
counted or refused in words."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from data_prep import prepare
from data_prep.importer import __main__ as command_line
from data_prep.importer import import_rows as importer_rows
from data_prep.importer import recipe_text, survey, task_inference
from data_prep.readers import encoding
from insource.config import cli
from insource.config.load import RECIPES, load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from tests.conftest import ROOT

MODEL = "ft:gpt-4o-mini-2024-07-18:acme:tickets:Bx1"
SYSTEM = "Route the customer's message to one queue."
QUEUES = ("refund", "delivery", "account")


def chat_row(text: Any, answer: Any, system: str | None = SYSTEM, **fields: Any) -> dict[str, Any]:
    system_turns = [{"role": "system", "content": system}] if system else []
    assistant_turn = {"role": "assistant", "content": answer, **fields}
    return {"messages": [*system_turns, {"role": "user", "content": text}, assistant_turn]}


def ticket_rows(count: int, system: str | None = SYSTEM) -> list[dict[str, Any]]:
    return [chat_row(ticket_text(index), QUEUES[index % 3], system) for index in range(count)]


def ticket_text(index: int) -> str:
    """Texts that no one takes for near-duplicates."""
    tokens = [f"word{(index * 7919 + position * 104729) % 9973}" for position in range(8)]
    return f"{QUEUES[index % 3]} {' '.join(tokens)}"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def run_import(monkeypatch: pytest.MonkeyPatch, source: Path, *args: object) -> tuple[int, Path]:
    """The exit code of the command, and the recipe that it writes beside the file."""
    recipe_path = source.with_name("mine.yaml")
    for name in ("TEST", "MODEL", "BASE_URL", "TO", "FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["import", str(source), "--to", str(recipe_path), *map(str, args)])
    umask = os.umask(0o077)
    try:
        with pytest.raises(SystemExit) as exit_error:
            cli.run_cli(command_line.main)
    finally:
        os.umask(umask)
    return int(exit_error.value.code or 0), recipe_path


def prepare_recipe(recipe_path: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe as it was written, and data.json of its preparation."""
    loaded = load(str(recipe_path), (), "cpu")
    folder, _ = prepare.main(loaded.recipe, recipe_path.parent / "runs")
    return loaded.recipe, atomic_files.read_json(folder / "data.json")


def test_banking77_becomes_a_classification_of_77_labels(
    banking77: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        with (banking77 / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            write_lines(
                tmp_path / f"{split}.jsonl", (chat_row(row["text"], row["category"]) for row in csv.DictReader(file))
            )
    source = tmp_path / "train.jsonl"
    code, recipe_path = run_import(monkeypatch, source, "--test", tmp_path / "test.jsonl", "--model", MODEL)
    assert code == 0
    assert len(recipe_path.read_text(encoding="utf-8").splitlines()) <= 40
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.kind == "classification" and len(report["labels"]) == 77
    assert (
        report["rows"]["read"] == 13083 and not report["rows"]["rejected"] and report["rows"]["written"]["test"] == 3080
    )
    assert recipe.task.instruction == SYSTEM
    primary = recipe.compare.primary
    assert primary and primary.baseline == f"openai:{MODEL}" == recipe.compare.baselines[0].display_name
    assert recipe.compare.baselines[0].build_messages("Where is my card?") == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Where is my card?"},
    ]
    assert "classification: 13,083 of 13,083 answers are one of 77 short texts" in capsys.readouterr().err


def test_sroie_becomes_an_extraction_with_a_bounded_schema(
    sroie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        rows = atomic_files.read_jsonl(sroie / f"{split}.jsonl")
        write_lines(
            tmp_path / f"{split}.jsonl", (chat_row(row["text"], json.dumps(row["target"]), "Read it.") for row in rows)
        )
    code, recipe_path = run_import(monkeypatch, tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl")
    assert code == 0
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.kind == "extraction" and recipe.task.json_schema
    fields: Any = recipe.task.json_schema["properties"]
    assert list(fields) == ["company", "date", "address", "total"]
    assert all(field["type"] == "string" and field["maxLength"] < 400 for field in fields.values())
    assert report["rows"]["read"] == 987 and not report["rows"]["rejected"]


def test_the_summaries_become_a_generation_and_the_pairs_a_preference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = atomic_files.read_jsonl(RECIPES.parent / "demo_data" / "support_chats.jsonl")
    source = write_lines(
        tmp_path / "chats.jsonl", (chat_row(row["text"], row["summary"], "Sum it up.") for row in chats)
    )
    assert run_import(monkeypatch, source, "--model", MODEL)[0] == 0
    recipe, report = prepare_recipe(tmp_path / "mine.yaml")
    assert recipe.task.kind == "generation" and report["rows"]["read"] == 1200 and not report["rows"]["rejected"]
    assert f"{MODEL} was trained on these rows: give rows that it was not trained on" in capsys.readouterr().err
    assert f"# {MODEL} was trained on these rows" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    pairs = (
        {
            "input": {"messages": [{"role": "user", "content": row["message"]}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": row["chosen"]}],
            "non_preferred_output": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in atomic_files.read_jsonl(RECIPES.parent / "demo_data" / "reply_pairs.jsonl")
    )
    assert run_import(monkeypatch, write_lines(tmp_path / "pairs.jsonl", pairs), "--model", MODEL, "--force")[0] == 0
    recipe, report = prepare_recipe(tmp_path / "mine.yaml")
    assert recipe.task.kind == "preference" and report["rows"]["read"] == 800 and not report["rows"]["rejected"]
    assert recipe.compare.primary and recipe.compare.primary.baseline == "base"
    assert "is no baseline: preferences are compared by the probability" in capsys.readouterr().err


def test_a_recipe_that_is_there_is_not_written_over_unless_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "train.jsonl", ticket_rows(60))
    (tmp_path / "mine.yaml").write_text("mine\n", encoding="utf-8")
    assert run_import(monkeypatch, source)[0] == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == "mine\n"
    assert run_import(monkeypatch, source, "--force")[0] == 0
    assert load(str(tmp_path / "mine.yaml"), (), "gpu").recipe.task.labels == dict.fromkeys(QUEUES, "")


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


def test_what_rows_say_stands_in_the_recipe_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = "Classify: {input}?\n\n  - yes: #1 \u2028 'q' \"w\"\t\\n\x85☺\U0001f600 \n" * 2
    labels = ("yes", "null", "-1", "true: x # y", "☺ {a}", "'[")
    source = write_lines(
        tmp_path / "train.jsonl", (chat_row(ticket_text(index), labels[index % 6], system) for index in range(120))
    )
    code, recipe_path = run_import(monkeypatch, source, "--model", MODEL)
    assert code == 0
    recipe, report = prepare_recipe(recipe_path)
    assert recipe.task.instruction == system.strip() and set(report["labels"]) == set(labels)
    assert recipe.compare.baselines[0].build_messages("a {input}") == [
        {"role": "system", "content": system},
        {"role": "user", "content": "a {input}"},
    ]


def test_a_deployment_on_azure_is_the_plan_at_its_own_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, address = write_lines(tmp_path / "train.jsonl", ticket_rows(60)), "https://me.openai.azure.com"
    code, recipe_path = run_import(monkeypatch, source, "--model", "tickets-4o", "--base-url", address)
    assert code == 0
    recipe = load(str(recipe_path), (), "gpu").recipe
    baseline = recipe.compare.baselines[0]
    assert (baseline.provider, baseline.base_url, baseline.key_env) == ("azure", address, "AZURE_OPENAI_API_KEY")
    assert recipe.compare.primary and recipe.compare.primary.baseline == "azure:tickets-4o"
    assert run_import(monkeypatch, source, "--base-url", address, "--force")[0] == 2
    assert "BASE_URL goes with MODEL" in capsys.readouterr().err


def test_long_documents_get_limits_that_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n_words, limit in ((20, 2048), (2500, 8192), (8000, 16384)):
        rows = (chat_row(f"{ticket_text(index)} {'word ' * n_words}", QUEUES[index % 3]) for index in range(30))
        code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "train.jsonl", rows), "--force")
        recipe = load(str(recipe_path), (), "gpu").recipe
        assert code == 0 and recipe.train.max_length == recipe.serve.max_model_len == limit


@given(st.text(max_size=40).filter(lambda value: not encoding.has_lone_surrogate(value)))
def test_any_text_is_read_back_from_the_recipe(value: str) -> None:
    assert YAML().load(f"one: {{two: {recipe_text._quote(value)}}}")["one"]["two"] == value


def test_the_command_is_a_make_target_and_says_what_is_missing(tmp_path: Path) -> None:
    argv = ["make", "-n", "import", "FROM=a b.jsonl", "SYSTEM=2"]
    completed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '-m data_prep.importer "a b.jsonl" --system 2' in completed.stdout
    incomplete_argv = [sys.executable, "-m", "data_prep.importer", ""]
    failed = subprocess.run(incomplete_argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and failed.stderr.startswith("error[INS-R012]: FROM: give the file")


def logged_call(sdk: str, index: int) -> dict[str, Any]:
    """A call as its SDK dumps it; every second text is nearly that of the call before it."""
    base_index = index - index % 2
    message_text = (
        f"{ticket_text(base_index)}{' ann@example.org' if base_index % 10 == 0 else ''}{' now' * (index % 2)}"
    )
    answer = QUEUES[base_index % 3]
    user_turn = {"role": "user", "content": message_text}
    if sdk == "chat":
        request: dict[str, Any] = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "system", "content": SYSTEM}, user_turn],
        }
        message = {"role": "assistant", "content": answer, "refusal": None, "tool_calls": None}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"request": request, "response": {"object": "chat.completion", "choices": [choice]}}
    if sdk == "responses":
        request = {"model": "gpt-6-luna", "instructions": SYSTEM, "input": [user_turn]}
        content = [{"type": "output_text", "text": answer, "annotations": []}]
        output = [{"type": "reasoning", "summary": []}, {"type": "message", "role": "assistant", "content": content}]
        return {"request": request, "response": json.dumps({"object": "response", "output": output})}
    request = {"model": "claude-haiku-4-5", "max_tokens": 64, "system": [{"type": "text", "text": SYSTEM}]}
    content = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": answer}]
    response = {"type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"}
    return {"request": {**request, "messages": [user_turn]}, "response": response}


@pytest.mark.parametrize(
    ("sdk", "model"),
    [("chat", "openai:gpt-4o-mini"), ("responses", "openai:gpt-6-luna"), ("messages", "anthropic:claude-haiku-4-5")],
)
def test_a_log_of_calls_becomes_a_recipe_without_personal_data_and_with_its_model_as_the_plan(
    sdk: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = logged_call(sdk, 0) | {"response": {"error": {"message": "rate limit"}}}
    streamed = logged_call(sdk, 0) | {"response": [{"delta": "a"}]}
    malformed = logged_call(sdk, 0) | {"response": {"choices": ["x"], "content": "y", "output": 3}}
    rows = [logged_call(sdk, index) for index in range(120)]
    code, recipe_path = run_import(
        monkeypatch, write_lines(tmp_path / "log.jsonl", [failed, *rows, streamed, malformed])
    )
    stderr = capsys.readouterr().err
    assert (
        code == 0 and "120 of 123 rows can be used" in stderr and "failed_call 1" in stderr and "streamed 1" in stderr
    )
    assert "email in 24 rows, replaced by placeholders" in stderr
    assert "same      0 duplicates and 60 near-duplicates of another row" in stderr
    rows_text = (tmp_path / "mine.rows.jsonl").read_text(encoding="utf-8")
    files_before = sorted(tmp_path.iterdir())
    assert run_import(monkeypatch, tmp_path / "log.jsonl", "--dry-run")[0] == 0
    captured = capsys.readouterr()
    assert captured.out == recipe_path.read_text(encoding="utf-8") and sorted(tmp_path.iterdir()) == files_before
    assert "ann@example.org" not in rows_text and rows_text.count("[EMAIL_1]") == 24
    assert "answers of" in recipe_path.read_text(encoding="utf-8"), "the targets are a model's, which is said"
    recipe, report = prepare_recipe(recipe_path)
    assert (
        recipe.compare.primary and recipe.compare.primary.baseline == model == recipe.compare.baselines[0].display_name
    )
    assert recipe.task.instruction == SYSTEM and not report["rows"]["rejected"]
    assert recipe.privacy.redact


def span(index: int, structured: bool) -> dict[str, Any]:
    """Attributes of a call by the semantic conventions; on spans they may be JSON texts."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.system_instructions": [{"type": "text", "content": SYSTEM}],
        "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": ticket_text(index)}]}],
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": [{"type": "text", "content": QUEUES[index % 3]}], "finish_reason": "stop"}
        ],
    }
    return {
        name: value if structured or isinstance(value, str) else json.dumps(value) for name, value in attributes.items()
    }


def otlp_value(value: Any) -> dict[str, Any]:
    """A value as OTLP's JSON has it."""
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": name, "value": otlp_value(item)} for name, item in value.items()]}}
    return {"stringValue": value}


@pytest.mark.parametrize("format_name", ["flat", "texts", "otlp", "event"])
def test_spans_become_a_recipe_however_their_attributes_are_written(
    format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "chat", "attributes": span(index, format_name != "texts")} for index in range(60)
    ]
    unrelated: dict[str, Any] = {"name": "GET", "attributes": {"http.method": "GET"}}
    if format_name == "event":
        name = "gen_ai.client.inference.operation.details"
        rows = [{"attributes": {}, "events": [{"name": name, "attributes": row["attributes"]}]} for row in rows]
    if format_name == "otlp":
        spans = [
            {
                "name": row["name"],
                "attributes": [{"key": key, "value": otlp_value(value)} for key, value in row["attributes"].items()],
            }
            for row in [*rows, unrelated]
        ]
        rows = [
            {"resourceMetrics": []},
            {"resourceSpans": [{"scopeSpans": [{"spans": spans[:30]}, {"spans": spans[30:]}]}]},
        ]
    else:
        rows.append(unrelated)
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "spans.jsonl", rows))
    stderr = capsys.readouterr().err
    assert code == 0 and "OpenTelemetry spans" in stderr and "unusable" not in stderr
    recipe, report = prepare_recipe(recipe_path)
    assert (recipe.task.instruction, report["rows"]["read"]) == (SYSTEM, 60)
    assert recipe.compare.primary and recipe.compare.primary.baseline == "openai:gpt-4o-mini"


def test_a_broken_span_costs_none_of_those_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attribute_sets = [span(index, True) for index in range(60)]
    attribute_sets[25]["gen_ai.output.messages"] = ["a text"]
    spans = [
        {"name": "chat", "attributes": [{"key": key, "value": otlp_value(value)} for key, value in attributes.items()]}
        for attributes in attribute_sets
    ]
    rows = [{"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}]
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "spans.jsonl", rows))
    stderr = capsys.readouterr().err
    assert code == 0 and "59 of 59 answers" in stderr and "bad_log 1" in stderr, stderr
    assert prepare_recipe(recipe_path)[1]["rows"]["read"] == 59


def test_spans_without_content_say_what_was_not_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = {"gen_ai.request.model": "gpt-4o-mini", "gen_ai.usage.input_tokens": 3}
    source = write_lines(tmp_path / "spans.jsonl", [{"name": "chat", "attributes": attributes}] * 20)
    assert run_import(monkeypatch, source)[0] == 2
    assert "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT" in capsys.readouterr().err
