"""Files that a person has labelled: their rows go to train, with their provenance, and nothing else changes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare
from data_prep.report import console
from data_prep.rows.labelled_rows import escape_cell, restore_cell
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.tracking.data_report import DataReport

HEADER = ("label_row_id", "text", "queue", "suggested_queue", "suggestion_confidence")
TOPICS = {"late": "my parcel is late again number", "lost": "I cannot find the item any more since day"}


def make_text(label: str, number: int) -> str:
    return f"{TOPICS[label]} {number} {'abcdefghij'[number % 10] * 9} {number * 7919}"


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([header, *rows])
    path.write_text(buffer.getvalue(), encoding="utf-8-sig", newline="")
    return path


def make_recipe(folder: Path, *settings: str, source: str = "{path: rows.csv}", data: str = "") -> Recipe:
    rows = [(make_text(label, number), label, f"c{number % 40}") for number in range(150) for label in TOPICS]
    write_rows(folder / "rows.csv", ("text", "queue", "customer"), rows)
    (folder / "r.yaml").write_text(
        "task: {kind: classification, instruction: Route the message., labels: [late, lost]}\nmodel: {base: pocket}\n"
        f"data:\n  source: {source}\n  columns: {{label: queue}}\n{data}",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), settings, "cpu").recipe


def prepare_data(recipe: Recipe, runs: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    folder, _ = prepare.main(recipe, runs)
    splits = {name: list(atomic_files.read_jsonl(folder / f"{name}.jsonl")) for name in SPLITS}
    return splits, atomic_files.read_json(folder / "data.json")


def new_rows(count: int, label: str = "late") -> list[list[str]]:
    return [
        [
            f"label-{number:x}",
            f"new text {number} {'klmnopqrst'[number % 10] * 8} {number * 104729}",
            label,
            "lost",
            "0.4",
        ]
        for number in range(count)
    ]


@given(st.text())
def test_every_text_survives_a_spreadsheet_cell_and_no_cell_is_a_formula(text: str) -> None:
    cell = escape_cell(text)
    assert restore_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_labelled_rows_go_to_train_and_empty_ones_are_skipped_and_counted(tmp_path: Path) -> None:
    before, _ = prepare_data(make_recipe(tmp_path), tmp_path / "runs")
    rows = new_rows(60)
    for row in rows[50:]:
        row[2] = " "
    write_rows(tmp_path / "round-1.csv", HEADER, rows)
    write_rows(
        tmp_path / "round-2.csv", HEADER[:3], [[f"label-b{n}", make_text("lost", 900 + n), "Lost"] for n in range(20)]
    )
    recipe = make_recipe(tmp_path, source="{path: rows.csv, labelled: [round-1.csv, round-2.csv]}")
    after, report = prepare_data(recipe, tmp_path / "runs")
    added = [row for row in after["train"] if "provenance" in row]
    assert {row["provenance"] for row in added} == {"human", "human_suggested"}
    suggested = [row for row in added if row["provenance"] == "human_suggested"]
    assert len(suggested) == 50 and {row["target"] for row in suggested} == {"late"}, "a suggestion is no label"
    assert suggested[0]["id"] == "round-1.csv:label-0"
    for name in SPLITS:
        assert [row for row in after[name] if "provenance" not in row] == before[name]
    counts = report["rows"]
    accounted = [counts[name].values() for name in ("written", "rejected", "dropped")]
    assert counts["read"] == sum(map(sum, accounted)) + counts["unlabelled"] + counts["filtered"]
    assert counts["unlabelled"] == 10
    assert report["provenance"]["human_suggested"] == {"train": 50, "validation": 0, "calibration": 0, "test": 0}
    assert report["provenance"]["human"]["train"] == len(added) - 50
    summary = console.format_summary(DataReport(**report), "prepared")
    assert "round-1.csv: 50 of 60 rows are labelled, 10 are empty and skipped" in summary
    assert "labelled with a suggestion in view 50" in summary


def test_a_labelled_file_adds_to_given_splits_too(tmp_path: Path) -> None:
    make_recipe(tmp_path)
    rows = [(make_text(label, number), label) for number in range(300, 340) for label in TOPICS]
    write_rows(tmp_path / "held.csv", ("text", "queue"), rows)
    write_rows(tmp_path / "round.csv", HEADER, new_rows(12))
    splits, report = prepare_data(
        make_recipe(tmp_path, source="{train: rows.csv, test: held.csv, labelled: [round.csv]}"), tmp_path / "runs"
    )
    assert len(splits["test"]) == 80 and report["provenance"]["human_suggested"]["train"] == 12


def test_the_dialect_of_the_recipes_own_file_is_not_that_of_a_labelled_one(tmp_path: Path) -> None:
    make_recipe(tmp_path)
    own = [(make_text(label, number), label) for number in range(150) for label in TOPICS]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="|").writerows(own)
    (tmp_path / "own.csv").write_text(buffer.getvalue(), encoding="utf-8")
    write_rows(tmp_path / "excel.csv", HEADER, new_rows(9), delimiter=";")
    book = openpyxl.Workbook()
    for row in [HEADER, *new_rows(20)[9:]]:
        book.active.append(row)
    book.save(tmp_path / "book.xlsx")
    source = '{path: own.csv, header: [text, queue], delimiter: "|", labelled: [excel.csv, book.xlsx]}'
    _, report = prepare_data(make_recipe(tmp_path, source=source), tmp_path / "runs")
    assert report["provenance"]["human_suggested"]["train"] == 20


def test_a_group_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    data = "  split: {group: customer}\n"
    splits, _ = prepare_data(make_recipe(tmp_path, data=data), tmp_path / "runs")
    held_out, trained = splits["test"][0]["group"], splits["train"][0]["group"]
    rows = [[*row, group] for row, group in zip(new_rows(3), [held_out, trained, ""], strict=True)]
    write_rows(tmp_path / "round.csv", [*HEADER, "customer"], rows)
    recipe = make_recipe(tmp_path, source="{path: rows.csv, labelled: [round.csv]}", data=data)
    splits, report = prepare_data(recipe, tmp_path / "runs")
    assert [row["group"] for row in splits["train"] if "provenance" in row] == [trained, None]
    assert report["rows"]["dropped"]["group_in_test"] == 1
    assert "1 rows of a group that is held out" in console.format_summary(DataReport(**report), "prepared")


def test_a_labelled_row_that_repeats_a_test_row_is_dropped(tmp_path: Path) -> None:
    splits, _ = prepare_data(make_recipe(tmp_path), tmp_path / "runs")
    rows = new_rows(2)
    rows[0][1] = f"{splits['test'][0]['input']['text']}!"
    write_rows(tmp_path / "round.csv", HEADER, rows)
    recipe = make_recipe(tmp_path, source="{path: rows.csv, labelled: [round.csv]}")
    after, report = prepare_data(recipe, tmp_path / "runs")
    assert after["test"] == splits["test"] and report["rows"]["dropped"]["in_test"] == 1


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("label_row_id", "text", "label", "suggested_queue"), "needs the column that a person filled in: queue"),
        (("label_row_id", "message", "queue", "suggested_queue"), "there is no column 'text'"),
    ],
)
def test_a_file_without_the_columns_is_refused_in_words(tmp_path: Path, header: tuple[str, ...], message: str) -> None:
    write_rows(tmp_path / "round.csv", header, [row[:4] for row in new_rows(5)])
    make_recipe(tmp_path)
    with pytest.raises(RecipeError, match=message):
        prepare_data(make_recipe(tmp_path, source="{path: rows.csv, labelled: [round.csv]}"), tmp_path / "runs")


def test_a_label_that_the_task_does_not_have_rejects_its_row(tmp_path: Path) -> None:
    rows = new_rows(3)
    rows[1][2] = "latee"
    write_rows(tmp_path / "round.csv", HEADER, rows)
    recipe = make_recipe(tmp_path, source="{path: rows.csv, labelled: [round.csv]}")
    splits, report = prepare_data(recipe, tmp_path / "runs")
    assert report["rows"]["rejected"] == {"unknown_label": 1}
    assert sum("provenance" in row for row in splits["train"]) == 2


def test_one_file_named_twice_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, source="{path: rows.csv, labelled: [rows.csv]}")
    with pytest.raises(RecipeError, match="are the same file"):
        prepare_data(recipe, tmp_path / "runs")
