"""The recipe that the importer writes, and what its preparation yields."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from data_prep.importer import recipe_text
from data_prep.readers import encoding
from insource.config.load import RECIPES, load
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
