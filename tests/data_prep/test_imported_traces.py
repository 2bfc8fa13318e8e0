"""Import of logged API calls and OpenTelemetry spans."""

import json
from pathlib import Path
from typing import Any

import pytest

from insource.config.load import load
from tests.helpers.importing import QUEUES, SYSTEM, prepare_recipe, run_import, ticket_text, write_lines


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


def test_raw_bodies_answers_that_the_request_begins_and_turns_that_the_log_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = [
        {
            "request": {"body": json.dumps(call["request"])},
            "response": {"status": 200, "body": json.dumps(call["response"])},
        }
        for call in (logged_call("chat", index) for index in range(0, 80, 2))
    ]
    begun = [logged_call("messages", index) for index in range(80, 120, 2)]
    for index, call in enumerate(begun):
        answer = call["response"]["content"][1]
        prefix = answer["text"][:3]
        content = prefix if index % 2 else [{"type": "text", "text": prefix}]
        call["request"]["messages"].append({"role": "assistant", "content": content})
        answer["text"] = answer["text"][3:]
    incomplete = [logged_call("responses", index) for index in range(4)]
    for call, key in zip(incomplete, ["previous_response_id", "conversation"] * 2, strict=True):
        call["request"][key] = "resp_1"
    unanswered = logged_call("chat", 1) | {"response": None}
    code, _ = run_import(monkeypatch, write_lines(tmp_path / "log.jsonl", [*raw, *begun, *incomplete, unanswered]))
    stderr = capsys.readouterr().err
    assert code == 0 and "earlier_turns 4, failed_call 1; 60 of 65 rows can be used" in stderr
    assert "previous_response_id: its earlier turns are not in the log" in stderr
    rows = [json.loads(line) for line in (tmp_path / "mine.rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in rows] == [QUEUES[index % 3] for index in range(0, 120, 2)]
    assert not any(row["text"].startswith("user:") for row in rows), "a begun answer is no turn of the text"


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


def test_numbered_attributes_of_earlier_versions_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for index in range(60):
        parts = json.dumps([{"type": "text", "text": ticket_text(index)}])
        attributes = {
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": SYSTEM,
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": parts if index % 2 else ticket_text(index),
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": json.dumps([QUEUES[index % 3], "late"]),
            "gen_ai.completion.0.finish_reason": "length" if index == 7 else "stop",
        }
        if index == 8:
            attributes["gen_ai.completion.0.tool_calls.0.name"] = "look_up"
        rows.append({"name": "openai.chat", "attributes": attributes})
    code, recipe_path = run_import(monkeypatch, write_lines(tmp_path / "spans.jsonl", rows))
    stderr = capsys.readouterr().err
    assert code == 0 and "cut 1, tool_call 1; 58 of 60 rows can be used" in stderr, stderr
    assert "58 of 58 answers are JSON arrays of 4 labels" in stderr
    first = json.loads((tmp_path / "mine.rows.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert (first["text"], sorted(first["answer"])) == (ticket_text(1), sorted([QUEUES[1], "late"]))
    assert load(str(recipe_path), (), "cpu").recipe.task.instruction == SYSTEM


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
