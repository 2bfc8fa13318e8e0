"""What a recipe may say of its rows: which are meant, from which columns, what becomes of labels with few of them."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.report import console
from data_prep.rows.row_filter import RowFilter
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.source import SPLITS
from insource.tracking.data_report import DataReport
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import labelled_rows, prepare_data, write_rows


def test_several_columns_are_one_input_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    rows = [{"subject": f"about {text}" if n % 3 else "", "body": text, "label": "ab"[n % 2]}
            for n, text in enumerate(distinct_texts(90))]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    for separator, decoded in (("\\n\\n", "\n\n"), (" | ", " | ")):
        columns = f'{{text: [subject, body], separator: "{separator}"}}'
        splits, _ = prepare_data(tmp_path, f"{{source: {{path: rows.jsonl}}, columns: {columns}}}")
        input_texts = {row["input"]["text"] for name in SPLITS for row in splits[name]}
        assert input_texts == {
            f"{row['subject']}{decoded}{row['body']}" if row["subject"] else row["body"] for row in rows
        }


def test_each_column_of_several_must_be_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled_rows(40))
    with raises_error(
        RecipeError, "INS-D021", match=r"data.columns.text\[1\]: there is no column 'txt'; did you mean 'text'"
    ):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {text: [text, txt]}}")


def test_rows_that_are_not_asked_for_are_counted_and_are_otherwise_not_there(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "language", "status"])
        for n, row in enumerate(labelled_rows(160)):
            writer.writerow([row["text"], "" if n % 4 == 3 else row["label"], "en" if n % 4 < 3 else "de", "closed"])
    condition = "{language: en, status: [closed, solved]}"
    splits, report = prepare_data(tmp_path, f"{{source: {{path: rows.csv}}, where: {condition}}}")
    assert (report["rows"]["read"], report["rows"]["filtered"], report["rows"]["rejected"]) == (160, 40, {})
    assert sum(map(len, splits.values())) + sum(report["rows"]["dropped"].values()) == 120
    assert "40 rows do not match data.where" in console.format_summary(DataReport(**report), "prepared")


@pytest.mark.parametrize(
    ("values", "condition", "expected"),
    [
        ({"a": "1"}, {"a": 1}, True),
        ({"a": "1.0"}, {"a": 1}, True),
        ({"a": 1}, {"a": "1"}, True),
        ({"a": "True"}, {"a": True}, True),
        ({"a": False}, {"a": True}, False),
        ({"a": " en "}, {"a": "en"}, True),
        ({"a": "EN"}, {"a": "en"}, False),
        ({"a": ""}, {"a": None}, True),
        ({}, {"a": None}, True),
        ({"a": "x"}, {"a": [None, "x"]}, True),
        ({"a": "x", "b": "y"}, {"a": "x", "b": "z"}, False),
        ({"a": 1}, {"a": True}, True),
        ({"a": "0"}, {"a": False}, True),
        ({"a": "yes"}, {"a": True}, True),
        ({"a": 2}, {"a": True}, False),
        ({"a": None}, {"a": False}, False),
        ({"a": True}, {"a": 1}, True),
        ({"a": "True"}, {"a": 0}, False),
        ({"a": 1.0}, {"a": "1"}, True),
        ({"a": True}, {"a": "1"}, True),
        ({"a": True}, {"a": "True"}, True),
        ({"a": "1.0"}, {"a": "1"}, False),
        ({"a": "01234"}, {"a": 1234}, True),
        ({"a": "nan"}, {"a": 1}, False),
        ({"a": "2026-05-01T00:00:00"}, {"a": "2026-05-01"}, True),
        ({"a": "2026-05-01 00:00:00+00:00"}, {"a": "2026-05-01"}, True),
        ({"a": "2026-05-01T09:30:00"}, {"a": "2026-05-01"}, False),
        ({"a": "2026-05-01T12:00:00+02:00"}, {"a": "2026-05-01 10:00:00Z"}, True),
        ({"a": "2026-05-x"}, {"a": "2026-05-x"}, True),
    ],
)
def test_a_value_is_the_one_asked_for_however_a_table_writes_it(values: Any, condition: Any, expected: bool) -> None:
    assert RowFilter(condition).accepts(values) is expected


def test_a_filter_that_no_row_passes_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "language": "en"} for row in labelled_rows(40)])
    with raises_error(RecipeError, "INS-D023", match=r"data.where: none of 40 rows"):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, where: {language: fr}}")
    with raises_error(
        RecipeError, "INS-D021", match=r"data.where.langauge: there is no column 'langauge'; did you mean"
    ):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, where: {langauge: fr}}")


def test_a_value_that_no_row_has_is_told_with_the_nearest_that_is_there(tmp_path: Path) -> None:
    rows = [
        {**row, "status": ("closed", "solved", "open")[n % 3], "done": n % 2}
        for n, row in enumerate(labelled_rows(160))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    condition = "{status: [closed, sovled, null], done: [true, false]}"
    _, report = prepare_data(tmp_path, f"{{source: {{path: rows.jsonl}}, where: {condition}}}")
    summary = console.format_summary(DataReport(**report), "prepared")
    assert "data.where.status: no row has 'sovled'; did you mean 'solved'?" in summary
    assert "data.where.status: no row has an empty cell; there are 'closed' 54, 'solved' 53, 'open' 53" in summary
    assert "data.where.done" not in summary
    with raises_error(
        RecipeError, "INS-D023", match=r"none of 160 rows matches:\n  data.where.status: no row has 'Closed'; did"
    ):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, where: {status: Closed}}")
    with pytest.raises(RecipeError, match=r"none of 160 rows matches:\n  each value occurs, but not"):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, where: {label: a, done: 1}}")


def write_rare_labels(folder: Path) -> None:
    rows = labelled_rows(120)
    rng = random.Random(3)
    for index in rng.sample(range(120), 9):
        rows[index]["label"] = rng.choice(["fax", "Fax", "telex", "telex"])
    write_rows(folder / "rows.jsonl", rows)


@pytest.mark.parametrize(("action", "labels"), [("drop", {"a", "b"}), ("other", {"a", "b", "rest"})])
def test_rare_labels_leave_or_become_one(tmp_path: Path, action: str, labels: set[str]) -> None:
    write_rare_labels(tmp_path)
    settings = f"{{min_rows: 10, do: {action}, other: rest}}"
    splits, report = prepare_data(tmp_path, f"{{source: {{path: rows.jsonl}}, rare_labels: {settings}}}")
    assert set(report["labels"]) == labels
    assert {row["target"] for name in SPLITS for row in splits[name]} == labels
    assert "2 labels of fewer than 10 rows, 9 rows in all" in console.format_summary(DataReport(**report), "prepared")
    if action == "drop":
        assert report["rows"]["dropped"]["rare_label"] == 9
    else:
        assert sum(report["labels"]["rest"][name] for name in SPLITS) == 9
        assert sum(report["labels"]["rest"]["spellings"].values()) == 9
        assert {row["original_target"] for row in splits["train"] if row["target"] == "rest"} <= {"fax", "Fax", "telex"}


@pytest.mark.parametrize("common", ["other", "Other", "OTHER "])
def test_rare_labels_join_the_label_of_that_name_that_is_there_already(tmp_path: Path, common: str) -> None:
    write_rare_labels(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(
        tmp_path / "rows.jsonl", [{**row, "label": common if row["label"] == "b" else row["label"]} for row in rows]
    )
    splits, report = prepare_data(tmp_path, "{source: {path: rows.jsonl}, rare_labels: {min_rows: 10, do: other}}")
    assert set(report["labels"]) == {"a", common.strip()}
    assert {row["target"] for name in SPLITS for row in splits[name]} == {"a", common.strip()}
    assert sum(sum(counts[name] for name in SPLITS) for counts in report["labels"].values()) == 120


def test_rare_labels_are_refused_by_name_and_clash_with_a_list(tmp_path: Path) -> None:
    write_rare_labels(tmp_path)
    with raises_error(
        RecipeError, "INS-D026", match=r"data.rare_labels: 2 labels of fewer than 10 rows, 9 rows in all \('"
    ):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, rare_labels: {min_rows: 10, do: fail}}")
    with raises_error(RecipeError, "INS-R001", match=r"data.rare_labels: needs kind classification"):
        load("classifier", ["data.rare_labels.min_rows=10", "data.rare_labels.do=drop"], "cpu")
