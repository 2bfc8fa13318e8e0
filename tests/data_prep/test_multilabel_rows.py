"""Preparation of rows with several labels."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.report import console
from insource.config.errors import RecipeError
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.tracking.data_report import DataReport
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.multilabel_rows import TASK, rows
from tests.helpers.prepared_rows import prepare_data, write_rows

# The rows.


def as_lists(folder: Path, source_rows: list[dict[str, Any]]) -> str:
    write_rows(folder / "rows.jsonl", source_rows)
    return "{source: {path: rows.jsonl}}"


def as_json(folder: Path, source_rows: list[dict[str, Any]]) -> str:
    write_rows(folder / "rows.jsonl", [{**row, "label": json.dumps(row["label"])} for row in source_rows])
    return "{source: {path: rows.jsonl}}"


def as_separated(folder: Path, source_rows: list[dict[str, Any]]) -> str:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((row["text"], " | ".join(row["label"])) for row in source_rows)
    return '{source: {path: rows.csv}, columns: {label_separator: "|"}}'


def as_tables_write_lists(folder: Path, source_rows: list[dict[str, Any]]) -> str:
    write_rows(folder / "rows.jsonl", [{**row, "label": repr(row["label"])} for row in source_rows])
    return "{source: {path: rows.jsonl}}"


@pytest.mark.parametrize("write", [as_lists, as_json, as_separated, as_tables_write_lists])
def test_labels_come_as_lists_as_json_or_with_a_separator(tmp_path: Path, write: Any) -> None:
    source_rows = rows()
    splits, report = prepare_data(tmp_path, write(tmp_path, source_rows), TASK)
    expected = {row["text"]: sorted(row["label"]) for row in source_rows}
    prepared_rows = [row for name in SPLITS for row in splits[name]]
    assert len(prepared_rows) + sum(report["rows"]["dropped"].values()) == len(source_rows)
    assert all(row["target"] == expected[row["input"]["text"]] for row in prepared_rows)
    for label in ("late", "torn", "refund"):
        for name in SPLITS:
            assert report["labels"][label][name] == sum(label in row["target"] for row in splits[name])
    sizes = {str(size): sum(len(row["target"]) == size for row in prepared_rows) for size in range(4)}
    assert report["labels_per_row"] == {"may_be_empty": True, "rows": sizes}
    summary = console.format_summary(DataReport(**report), "prepared")
    assert f"labels a row: 0: {sizes['0']} rows" in summary and "label errors are not searched for" in summary
    assert report["suspects"]["found"] == 0 and "several labels" in report["suspects"]["why_none"]
    html = next((tmp_path / "runs" / ".data").glob("*/data.html")).read_text(encoding="utf-8")
    assert "Classification with several labels a row" in html and "How many labels a row has" in html
    assert report["split"]["shares"]["test"]["worst_label_deviation"] > 0


def test_the_order_is_the_recipes_and_spellings_are_one_label(tmp_path: Path) -> None:
    source_rows = [{**row, "label": [label.upper() if index % 9 == 0 else label for label in row["label"]]}
             for index, row in enumerate(rows())]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", source_rows)
    data = "{source: {path: rows.jsonl}}"
    splits, report = prepare_data(tmp_path, data, TASK[:-1] + ", labels: [torn, refund, late]}")
    order = ["torn", "refund", "late"]
    for name in SPLITS:
        assert all(row["target"] == [label for label in order if label in row["target"]] for row in splits[name])
    assert set(report["labels"]["torn"]["spellings"]) == {"torn", "TORN"}
    assert any(row.get("original_target") for row in splits["train"])
    _, report = prepare_data(tmp_path, data, TASK)
    assert list(report["labels"]) == ["late", "refund", "torn"]


@pytest.mark.parametrize(
    ("label", "reason", "detail"),
    [
        ("late; torn", "bad_labels", "needed: a list of labels, its JSON, or data.columns.label_separator"),
        ("[late, torn]", "bad_labels", "the labels are [late, torn]; needed"),
        ("['late' 'torn']", "bad_list", "['late' 'torn'] is not a list: commas are missing between its entries"),
        ("['late'\n 'torn']", "bad_list", "commas are missing"),
        ("['late', 'to' \"rn\"]", "bad_list", "commas are missing"),
        (None, "bad_labels", "the labels are missing"),
        ({"late": 1}, "bad_labels", "needed: a list"),
        (["late", None], "bad_labels", "a label is null, and a label is a text"),
        (["late", ["torn"]], "bad_labels", 'a label is ["torn"]'),
        (["late", " "], "no_label", "the label is empty"),
        ('["\\ud83d", "late"]', "unknown_label", "'\\ud83d' is not among task.labels"),
        ('["late", ["\\ud83d"]]', "bad_labels", 'a label is ["\\ud83d"]'),
        (["late", "tron"], "unknown_label", "'tron' is not among task.labels; did you mean 'torn'?"),
    ],
)
def test_a_row_whose_labels_cannot_be_read_is_rejected_with_the_reason(
    tmp_path: Path, label: Any, reason: str, detail: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [*rows(), {"text": "one row more", "label": label}])
    prepare_data(tmp_path, "{source: {path: rows.jsonl}}", TASK[:-1] + ", labels: [torn, refund, late]}")
    (line,) = [
        rejected
        for path in (tmp_path / "runs" / ".data").glob("*/rejected.jsonl")
        for rejected in atomic_files.read_jsonl(path)
        if rejected["kind"] == "rejected"
    ]
    assert line["reason"] == reason and detail in line["detail"] and line["line"] == 241


@pytest.mark.parametrize(("escape", "reason"), [("\\ud83d", "lone_surrogate"), ("\\u0000", "nul_byte")])
def test_a_label_that_no_file_can_hold_is_told(tmp_path: Path, escape: str, reason: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [*rows(), {"text": "one row more", "label": f'["late", "{escape}"]'}])
    _, report = prepare_data(tmp_path, "{source: {path: rows.jsonl}}", TASK)
    assert report["rows"]["rejected"] == {reason: 1}


def test_numbers_are_labels_and_an_empty_cell_with_a_separator_is_no_label(tmp_path: Path) -> None:
    source_rows = [
        {"text": text, "label": [1, 2] if index % 3 else []} for index, text in enumerate(distinct_texts(120))
    ]
    splits, _ = prepare_data(tmp_path, as_lists(tmp_path, source_rows), TASK)
    assert {json.dumps(row["target"]) for row in splits["train"]} == {'["1", "2"]', "[]"}
    source_rows = [
        {"text": text, "label": [["1"], ["1", "2"], []][index % 3]} for index, text in enumerate(distinct_texts(120))
    ]
    splits, _ = prepare_data(tmp_path, as_separated(tmp_path, source_rows), TASK)
    assert {json.dumps(row["target"]) for row in splits["train"]} == {'["1"]', '["1", "2"]', "[]"}


def test_without_empty_rows_an_answer_names_a_label(tmp_path: Path) -> None:
    _, report = prepare_data(tmp_path, as_lists(tmp_path, [row for row in rows() if row["label"]]), TASK)
    assert report["labels_per_row"]["may_be_empty"] is False and "0" not in report["labels_per_row"]["rows"]


def test_the_same_set_is_a_duplicate_and_another_set_a_conflict(tmp_path: Path) -> None:
    source_rows = rows()
    source_rows[0]["label"], source_rows[1]["label"] = ["late", "torn"], ["late"]
    repeated = [
        {"text": source_rows[0]["text"].upper(), "label": ["Torn", "late"]},
        {**source_rows[1], "label": ["late", "refund"]},
    ]
    settings = ", split: {test: 0.1, validation: 0.05, calibration: 0.05, seed: 3}"
    data = as_lists(tmp_path, [*source_rows, *repeated])[:-1] + settings
    splits, report = prepare_data(tmp_path, data + "}", TASK)
    in_train = {row["input"]["text"] for row in splits["train"]}
    assert report["rows"]["dropped"] == {"conflict": 2, "duplicate": 1}
    assert source_rows[1]["text"] not in in_train
    with raises_error(RecipeError, "INS-D029", match="1 texts have several answers"):
        prepare_data(tmp_path, data + ", conflicts: fail}", TASK)


@pytest.mark.parametrize("action", ["drop", "other", "fail"])
def test_rare_labels_take_their_rows_along_or_become_one(tmp_path: Path, action: str) -> None:
    source_rows = rows()
    for index in range(0, 12):
        source_rows[index * 20]["label"] = [*source_rows[index * 20]["label"], ["Fax", "fax", "telex"][index % 3]]
    data = as_lists(tmp_path, source_rows)[:-1] + f", rare_labels: {{min_rows: 10, do: {action}}}}}"
    if action == "fail":
        with raises_error(
            RecipeError, "INS-D026", match=r"2 labels of fewer than 10 rows, 12 rows in all \('Fax' 8, 'telex' 4\)"
        ):
            prepare_data(tmp_path, data, TASK)
        return
    splits, report = prepare_data(tmp_path, data, TASK)
    prepared_rows = [row for name in SPLITS for row in splits[name]]
    if action == "drop":
        assert report["rows"]["dropped"]["rare_label"] == 12 and set(report["labels"]) == {"late", "torn", "refund"}
        assert not any({"fax", "telex"} & {*row["target"]} for row in prepared_rows)
    else:
        assert set(report["labels"]) == {"late", "torn", "refund", "other"} and len(prepared_rows) == len(source_rows)
        assert sum("other" in row["target"] for row in prepared_rows) == 12
        assert sum(report["labels"]["other"][name] for name in SPLITS) == 12


def test_a_label_that_cannot_be_learnt_is_named(tmp_path: Path) -> None:
    source_rows = rows()
    source_rows[5]["label"] = ["late", "lost"]
    with raises_error(RecipeError, "INS-D026", match=r"'lost' occurs once"):
        prepare_data(tmp_path, as_lists(tmp_path, source_rows), TASK)
    unlabeled = [{**row, "label": []} for row in rows()]
    with raises_error(RecipeError, "INS-D025", match=r"240 rows have fewer than two different labels: none"):
        prepare_data(tmp_path, as_lists(tmp_path, unlabeled), TASK)
