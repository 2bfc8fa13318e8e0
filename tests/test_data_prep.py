"""Data preparation: what comes in comes out or is accounted for, and nothing of test is trained on."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import prepare
from data_prep.read import read
from recipes.errors import RecipeError
from recipes.load import load
from recipes.schema import Recipe
from recipes.schema_data import SPLITS
from tasks.text import duplicate_key
from tests.conftest import Command
from tracking import files

Rows = Iterable[tuple[str, str]]


def recipe_for(folder: Path, rows: Rows, more: str = "") -> Recipe:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "customer"])
        writer.writerows((text, label, f"c{number % 7}") for number, (text, label) in enumerate(rows))
    (folder / "r.yaml").write_text(
        "task: {kind: classification, instruction: Route the message to one queue.}\nmodel: {base: pocket}\n"
        f"data:\n  source: {{path: rows.csv}}\n{more}",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), (), "cpu").recipe


def many(count: int) -> list[tuple[str, str]]:
    return [
        (f"message number {number} about {'cats' if number % 2 else 'dogs'}", "ab"[number % 2])
        for number in range(count)
    ]


def prepared(recipe: Recipe, runs: Path) -> tuple[dict[str, list[Any]], Any]:
    folder, _ = prepare.main(recipe, runs)
    return {name: list(files.read_jsonl(folder / f"{name}.jsonl")) for name in SPLITS}, files.read_json(
        folder / "data.json"
    )


def refused(recipe: Recipe, runs: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        prepare.main(recipe, runs)
    assert not list(runs.rglob("*.json*")), "something half-written is left"
    return str(caught.value)


def test_banking77_is_read_whole_and_what_test_has_leaves_train(banking77: Path, tmp_path: Path) -> None:
    sources = [f"data.source.{name}={banking77 / name}.csv" for name in ("train", "test")]
    splits, report = prepared(load("banking77", sources, "cpu").recipe, tmp_path)
    assert [source["rows_read"] for source in report["sources"]] == [10003, 3080]
    assert report["rows"]["dropped"]["in_test"] == 25
    assert len(splits["test"]) == 3080
    assert len(report["labels"]) == 77
    test = {duplicate_key(row["input"]["text"]) for row in splits["test"]}
    assert not test & {duplicate_key(row["input"]["text"]) for name in SPLITS[:3] for row in splits[name]}


def test_the_demo_is_what_its_generator_writes_and_fits_its_purpose(tmp_path: Path, python: Command) -> None:
    committed = prepare.Path(__file__).parent.parent / "recipes" / "demo" / "support_tickets.csv"
    assert python("recipes.demo.support_tickets").stdout == committed.read_text(encoding="utf-8")
    splits, report = prepared(load("classifier", (), "cpu").recipe, tmp_path)
    assert report["rows"]["read"] == 8000
    assert 1900 <= len(splits["test"]) <= 2100
    assert len(report["labels"]) == 12


def test_a_linear_model_does_neither_well_enough_nor_badly_enough_on_the_demo_to_make_it_trivial(
    tmp_path: Path,
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    splits, _ = prepared(load("classifier", (), "cpu").recipe, tmp_path)
    texts = {name: [row["input"]["text"] for row in splits[name]] for name in ("train", "validation")}
    targets = {name: [row["target"] for row in splits[name]] for name in ("train", "validation")}
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=300)
    )
    accuracy = model.fit(texts["train"], targets["train"]).score(texts["validation"], targets["validation"])
    assert 0.80 < accuracy < 0.95


def test_every_row_is_accounted_for_and_same_seed_gives_same_bytes(tmp_path: Path) -> None:
    rows = [*many(200), ("message number 3 about cats!", "b"), ("", "a"), ("odd", "")]
    recipe = recipe_for(tmp_path, rows, "  max_rejected: 0.05\n")
    splits, report = prepared(recipe, tmp_path / "one")
    left = list(files.read_jsonl(next((tmp_path / "one").rglob("rejected.jsonl"))))
    assert sum(map(len, splits.values())) + len(left) == report["rows"]["read"] == 203
    assert {(row["reason"], row["line"]) for row in left if row["kind"] == "rejected"} == {
        ("no_text", 203),
        ("no_label", 204),
    }
    _, again = prepared(recipe, tmp_path / "two")
    assert again["sha256"] == report["sha256"]


def test_an_old_row_keeps_its_split_when_rows_are_added_or_reordered(tmp_path: Path) -> None:
    def where(rows: Rows, runs: str) -> dict[str, str]:
        splits, _ = prepared(recipe_for(tmp_path, rows), tmp_path / runs)
        return {row["input"]["text"]: name for name in SPLITS for row in splits[name]}

    old = where(many(300), "old")
    new = where(reversed(many(360)), "new")
    assert {text: new[text] for text in old} == old
    assert set(old.values()) == set(SPLITS)


def test_no_group_stands_in_two_splits(tmp_path: Path) -> None:
    splits, _ = prepared(
        recipe_for(tmp_path, many(300), "  split: {group: customer, test: 0.4, validation: 0.2}\n"), tmp_path / "runs"
    )
    groups = [{row["group"] for row in splits[name]} for name in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups))


@pytest.mark.parametrize(("conflicts", "kept"), [("drop", set()), ("majority", {"a"})])
def test_train_rows_with_one_text_and_two_labels(tmp_path: Path, conflicts: str, kept: set[str]) -> None:
    (tmp_path / "test.csv").write_text("text,label\nquite another thing,a\nand one more,b\n", encoding="utf-8")
    recipe = recipe_for(tmp_path, [*many(100), ("torn apart", "a"), ("Torn apart!", "a"), ("torn apart.", "b")])
    source = recipe.data.source.model_copy(
        update={"path": None, "train": str(tmp_path / "rows.csv"), "test": str(tmp_path / "test.csv")}
    )
    split = recipe.data.split.model_copy(update={"validation": 0.01, "calibration": 0.01})
    data = recipe.data.model_copy(update={"source": source, "conflicts": conflicts, "split": split})
    splits, report = prepared(recipe.model_copy(update={"data": data}), tmp_path / "runs")
    torn = [row for name in SPLITS for row in splits[name] if duplicate_key(row["input"]["text"]) == "torn apart"]
    assert {row["target"] for row in torn} == kept
    assert report["rows"]["dropped"]["conflict"] == (3 if conflicts == "drop" else 1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"text,label\n", "no rows below the header"),
        (b"text,lable\nhello there,a\n", "did you mean 'lable'?"),
        (b"text,label\nhello,a\nworld,a\nonce,b\n", "'b' occurs once"),
        (b"text,label\nhell\xff,a\n", "byte 0xff in line 2"),
        (b"text,text\na,b\n", "stands there twice"),
        (b'text,label\n"never closed,a\n', "not CSV"),
        (b"text,label\nhello,a\nworld\nagain,b\n", "1 of 3 rows cannot be used"),
        (b"text,label\nhe\x00llo,a\nworld,a\n", "NUL"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place_and_leaves_nothing(
    tmp_path: Path, content: bytes, told: str
) -> None:
    recipe = recipe_for(tmp_path, [])
    (tmp_path / "rows.csv").write_bytes(content)
    message = refused(recipe, tmp_path / "runs")
    assert told in message
    assert "rows.csv" in message or "label" in message


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("  split: {time: customer}\n", "splitting by time is not built yet"),
        ("privacy: {redact: [email]}\n", "redaction is not built yet"),
    ],
)
def test_what_is_not_built_is_refused_and_not_passed_over(tmp_path: Path, more: str, told: str) -> None:
    assert told in refused(recipe_for(tmp_path, many(50), more), tmp_path / "runs")


def test_a_label_that_the_recipe_does_not_list_is_named_with_the_nearest(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, [*many(50), ("what now", "delivry")])
    task = recipe.task.model_copy(update={"labels": ["a", "b", "delivery"]})
    assert "did you mean 'delivery'?" in refused(recipe.model_copy(update={"task": task}), tmp_path / "runs")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), st.text("ab", min_size=1)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    for terminator in ("\r\n", "\n"):
        path = tmp_path_factory.mktemp("csv") / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator=terminator, quoting=csv.QUOTE_ALL)
            writer.writerow(["text", "label"])
            writer.writerows(rows)
        assert [(row.values["text"], row.values["label"]) for row in read(path)] == rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1), min_size=1, max_size=8),
    st.booleans(),
)
def test_jsonl_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], escaped: bool
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8", "surrogatepass") if escaped else text.encode("utf-8", "replace"))
    if "?" not in text:
        assert [row.values for row in read(path)] == rows


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".jsonl"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"any{suffix}"
    path.write_bytes(content)
    try:
        for row in read(path):
            assert row.problem or row.values
    except RecipeError as error:
        assert "any" in str(error)


def test_the_command_prints_the_folder_and_says_unchanged_the_second_time(small_recipe: Path, python: Command) -> None:
    first, second = python("data_prep", small_recipe), python("data_prep", small_recipe)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    assert "prepared: 400 rows read" in first.stderr
    assert "unchanged: 400 rows read" in second.stderr
