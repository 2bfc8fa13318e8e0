"""Label identity: one rule for listed labels, labels of rows, conflicts, answers and scores."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare
from data_prep.report import console
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.tasks import classification
from insource.text import labels
from insource.text.labels import clean_label, find_label, label_identity, map_spellings
from insource.text.text_keys import label_key
from insource.tracking.data_report import DataReport
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error


def make_recipe(folder: Path, rows: list[tuple[str, Any]], labels: Any = "auto", extra: str = "") -> Recipe:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "r.yaml").write_text(
        f"task: {{kind: classification, instruction: Choose the queue of it., labels: {json.dumps(labels)}}}\n"
        f"model: {{base: pocket}}\ndata:\n  source: {{path: rows.jsonl}}\n{extra}",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), (), "cpu").recipe


def prepare_data(recipe: Recipe, runs: Path) -> tuple[dict[str, list[Any]], Any]:
    folder, _ = prepare.main(recipe, runs)
    splits = {name: list(atomic_files.read_jsonl(folder / f"{name}.jsonl")) for name in SPLITS}
    return splits, atomic_files.read_json(folder / "data.json")


@pytest.mark.parametrize(
    "labels",
    [
        ["-1", "0", "1"],
        ["\u22121", "1"],
        ["A+", "A", "A-"],
        ["<5", "5", ">5"],
        ["score -1", "score 1"],
        ["sentiment_-1", "sentiment_1"],
        ["C", "C++", "C#"],
        ["\U0001f44d", "\U0001f44e"],
        ["10\u00b2", "102"],
        ["\u092e\u093e\u0932", "\u092e\u0940\u0932"],
        ["_private", "private"],
        ["10\u2082", "102"],
        ["1.5", "15", "1,5"],
    ],
)
def test_labels_that_a_mark_tells_apart_stay_apart(tmp_path: Path, labels: list[str]) -> None:
    rows = [(text, labels[n % len(labels)]) for n, text in enumerate(distinct_texts(40 * len(labels)))]
    splits, report = prepare_data(make_recipe(tmp_path, rows), tmp_path / "runs")
    assert set(report["labels"]) == set(labels)
    assert {row["target"] for name in SPLITS for row in splits[name]} == set(labels)
    assert not any("spellings" in entry for entry in report["labels"].values())


@pytest.mark.parametrize(
    "spellings",
    [
        ["Refund-Status", "refund_status", "REFUND STATUS", "refund - status", "refund\u2011status"],
        ["billing", "billing\u200b", "\ufeffBilling", " billing ", "bill\u00ading"],
        ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
        ["-1", "\u22121", "\uff0d1"],
        ["can't log in", "can\u2019t log in", "Can\u2018t_log-in"],
        ["a - b", "a_-_b", "a - - b", "a b"],
        ["late", "late\u3164", "\u2800late"],
    ],
)
def test_spellings_of_one_label_are_one_label(spellings: list[str]) -> None:
    assert len({label_identity(spelling, None, fold=True) for spelling in spellings}) == 1
    assert {find_label(spelling, [spellings[0], "other"]) for spelling in spellings} == {spellings[0]}


def test_each_label_of_a_list_is_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names, fold_counts = [f"queue_{n}" for n in range(300)], Counter[str]()

    def counted(label: str) -> str:
        fold_counts[label] += 1
        return label_key(label)

    monkeypatch.setattr(labels, "_cached_label_key", counted)
    assert [find_label(f"Queue {n}", names) for n in range(300)] == names
    assert find_label("queue 300", dict.fromkeys(names)) is None
    assert set(fold_counts.values()) == {1}
    assert (
        find_label("Us", ["US", "us"]) is None
        and find_label("Us", ["US"]) == "US"
        and find_label("Us", ["US"], fold=False) is None
    )


@given(st.text(min_size=1))
def test_the_key_of_a_label_settles_at_once(label: str) -> None:
    assert label_key(label_key(label)) == label_key(label)
    assert clean_label(clean_label(label)) == clean_label(label)


def test_what_is_merged_is_shown_with_every_spelling_and_its_rows(tmp_path: Path) -> None:
    spellings = ["late", "late", "late", "Late\u200b", "LATE"]
    rows = [(text, spellings[n % 5] if n % 2 else "other") for n, text in enumerate(distinct_texts(200))]
    splits, report = prepare_data(make_recipe(tmp_path, rows), tmp_path / "runs")
    assert set(report["labels"]) == {"late", "other"}
    summary = console.format_summary(DataReport(**report), "prepared")
    assert "label 'late' in 3 spellings: 'late' 60, 'LATE' 20, 'Late<U+200B>' 20" in summary
    assert "data.normalize_labels=false" in summary
    assert {row["original_target"] for row in splits["train"] if "original_target" in row} == {"LATE", "Late\u200b"}


def test_a_label_that_is_always_written_with_an_invisible_character_can_be_answered(tmp_path: Path) -> None:
    rows = [(text, "late\u200b" if n % 2 else "other") for n, text in enumerate(distinct_texts(120))]
    for number, settings in enumerate(("", "  normalize_labels: false\n")):
        splits, report = prepare_data(make_recipe(tmp_path, rows, "auto", settings), tmp_path / str(number))
        spec = classification.Spec("x", dict.fromkeys(report["labels"], ""))
        assert {row["target"] for row in splits["train"]} == {"late", "other"}
        assert classification.parse(spec, "late").value == "late"


def test_opposite_labels_of_one_text_are_a_conflict_and_the_counts_add_up(tmp_path: Path) -> None:
    rows = [(text, str(n % 3 - 1)) for n, text in enumerate(distinct_texts(90))]
    rows += [(text, "-1") for text, label in rows if label == "1"]
    _, report = prepare_data(make_recipe(tmp_path, rows, ["-1", "0", "1"]), tmp_path / "listed")
    assert report["rows"]["dropped"]["conflict"] > 20
    assert "duplicate" not in report["rows"]["dropped"]
    for name in SPLITS:
        assert sum(counts[name] for counts in report["labels"].values()) == report["rows"]["written"][name]
    # Every row of this label is contradicted: a listed one is told of, one that was found is refused.
    assert "label '1': 30 rows, none left in train" in console.format_summary(DataReport(**report), "x")
    with raises_error(RecipeError, "INS-D026", match=r"'1': 30 rows, none left in train \(.*conflict"):
        prepare_data(make_recipe(tmp_path, rows), tmp_path / "found")


def test_listed_labels_that_differ_in_case_alone_are_two(tmp_path: Path) -> None:
    rows = [(text, ("US", "us", "other")[n % 3]) for n, text in enumerate(distinct_texts(150))]
    _, report = prepare_data(make_recipe(tmp_path, rows, ["US", "us", "other"]), tmp_path / "runs")
    assert all(report["labels"][label]["train"] > 20 for label in ("US", "us", "other"))
    rows[0] = (rows[0][0], "Us")
    with raises_error(RecipeError, "INS-D022", match=r"'Us' is not among task\.labels"):
        prepare.main(make_recipe(tmp_path, rows, ["US", "us", "other"], "  max_rejected: 0\n"), tmp_path / "two")


@pytest.mark.parametrize("label", [" billing", "billing ", "bill\u200bing", "two\nlines\n", "a  b"])
def test_a_listed_label_that_no_answer_could_equal_is_refused(tmp_path: Path, label: str) -> None:
    with raises_error(RecipeError, "INS-R001", match=r"r.yaml:1 +task.labels: labels with white space .*write "):
        make_recipe(tmp_path, [], [label, "refund"])


def test_labels_that_yaml_reads_as_numbers_are_the_text_that_a_source_has() -> None:
    task = {"instruction": "Say what it is about."}
    assert Task.model_validate({**task, "labels": [0, 1, 2.5, True]}).labels == ["0", "1", "2.5", "true"]
    assert Task.model_validate({**task, "labels": {0: "sad", 1: "happy"}}).labels == {"0": "sad", "1": "happy"}
    with pytest.raises(ValueError, match="given None, allowed: text"):
        Task.model_validate({**task, "labels": ["a", None]})


def test_answers_are_read_by_the_rule_of_the_data() -> None:
    labels = {"refund_status": "", "-1": "", "1": "", "US": "", "us": ""}
    spec = classification.Spec("x", labels, normalize_labels=True)
    outputs = ["Refund-Status", "REFUND STATUS", "\u22121", "1", "us", "Us", "refund status."]
    values = [classification.parse(spec, output).value for output in outputs]
    assert values == ["refund_status", "refund_status", "-1", "1", "us", None, None]
    unfolded_spec = classification.Spec("x", labels)
    values = [classification.parse(unfolded_spec, output).value for output in outputs]
    assert values == [None, None, None, "1", "us", None, None]


def test_the_most_frequent_spelling_is_the_label() -> None:
    assert map_spellings({"Late": 2, "late": 5, "other": 1}, fold=True) == {
        "late": "late",
        "Late": "late",
        "other": "other",
    }
    assert map_spellings({"Late": 2, "late": 5}, fold=False) == {"late": "late", "Late": "Late"}
