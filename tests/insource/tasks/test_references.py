"""Several right answers to one row: the nearest counts, and training learns the first."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.data import Task
from insource.config.schema.source import SPLITS, Columns
from insource.tasks import TASKS, extraction, generation, references
from insource.tasks.parsed_answer import ParsedAnswer
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import prepare_data, write_rows
from train.evaluate import validation
from train.packing import dataset

GENERATION = "{kind: generation, instruction: Answer in one line.}"
SPEC = generation.Spec("Answer in one line.")
ROW = {"id": "1", "input": {"text": "where is it?"}, "target": "It is late.", "references": ["We will look into it."]}
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}, "due": {"type": "string", "maxLength": 9}}}
EXTRACTION = {"kind": "extraction", "instruction": "Read the bill please.", "json_schema": SCHEMA}


def test_an_answer_is_scored_against_the_nearest_reference() -> None:
    rows = [ROW, {**ROW, "target": "No.", "references": []}, {"target": "Yes."}]
    answers = [ParsedAnswer("We will look into it."), ParsedAnswer("No."), ParsedAnswer("No.")]
    assert references.select_targets(generation, SPEC, rows, answers) == ["We will look into it.", "No.", "Yes."]
    score = validation.score_with_slices(generation, SPEC, rows, answers)
    assert score["exact_match"] == pytest.approx(2 / 3)
    for unmatched in (ParsedAnswer(None, "empty"), ParsedAnswer("xyz")):
        assert references.select_targets(generation, SPEC, [ROW], [unmatched]) == ["It is late."]


def test_of_records_the_one_with_the_most_right_values_counts() -> None:
    spec = extraction.make_spec(Task(**EXTRACTION), {})  # type: ignore[arg-type]
    row = {"target": {"total": 4, "due": None}, "references": [{"total": 5, "due": "May"}, {"total": 5, "due": None}]}
    for answer, nearest in (
        ({"total": 5, "due": None}, {"total": 5, "due": None}),
        ({"total": 5, "due": "May"}, {"total": 5, "due": "May"}),
        ({"total": 4, "due": "May"}, {"total": 4, "due": None}),
        ({"total": None, "due": None}, {"total": 4, "due": None}),
    ):
        assert references.select_targets(extraction, spec, [row], [ParsedAnswer(answer)]) == [nearest], answer


def test_training_learns_the_first(tokenizer: Any) -> None:
    (row,) = dataset.tokenize_rows(generation, SPEC, tokenizer, [ROW])
    assert [tokenizer.decode(completion, skip_special_tokens=True) for completion in row.completions] == ["It is late."]


def as_list(folder: Path, rows: list[tuple[str, list[str]]]) -> str:
    write_rows(folder / "rows.jsonl", [{"text": text, "answers": answers} for text, answers in rows])
    return "{source: {path: rows.jsonl}, columns: {targets: answers}, split: {stratify: null}}"


def as_json(folder: Path, rows: list[tuple[str, list[str]]]) -> str:
    write_rows(folder / "rows.jsonl", [{"text": text, "answers": json.dumps(answers)} for text, answers in rows])
    return "{source: {path: rows.jsonl}, columns: {targets: answers}, split: {stratify: null}}"


def as_columns(folder: Path, rows: list[tuple[str, list[str]]]) -> str:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "first", "second"])
        writer.writerows((text, *answers, *[""] * (2 - len(answers))) for text, answers in rows)
    return "{source: {path: rows.csv}, columns: {targets: [first, second]}, split: {stratify: null}}"


@pytest.mark.parametrize("write", [as_list, as_json, as_columns])
def test_references_come_as_a_list_as_json_or_in_columns(tmp_path: Path, write: Any) -> None:
    rows = [
        (text, [f"Answer {index}.", f"Or {index}."][: 1 + index % 2]) for index, text in enumerate(distinct_texts(80))
    ]
    splits, report = prepare_data(tmp_path, write(tmp_path, rows), GENERATION)
    assert report["rows"]["rejected"] == {}
    prepared_rows = {row["input"]["text"]: row for name in SPLITS for row in splits[name]}
    assert len(prepared_rows) == 80
    for text, (first, *others) in rows:
        assert prepared_rows[text]["target"] == first and prepared_rows[text].get("references", []) == others
    assert all("references" not in row or row["references"] for row in prepared_rows.values())


def test_references_are_cleaned_redacted_and_each_stands_once(tmp_path: Path) -> None:
    rows = [(f"{text} ho{index}@example.com", ["Write to us.", " Write to us. ", f"Write to ho{index}@example.com."])
            for index, text in enumerate(distinct_texts(80))]  # fmt: skip
    splits, _ = prepare_data(tmp_path, f"{as_list(tmp_path, rows)}\nprivacy: {{redact: [email]}}", GENERATION)
    for name in SPLITS:
        for row in splits[name]:
            assert row["references"] == ["Write to [EMAIL_1]."] and row["input"]["text"].endswith("[EMAIL_1]")


def test_records_may_have_references_and_the_same_ones_are_a_duplicate(tmp_path: Path) -> None:
    rows = [{"text": text, "answers": [{"total": index}, {"total": index + 1, "due": "May"}]}
            for index, text in enumerate(distinct_texts(120))]  # fmt: skip
    reversed_row = {"text": rows[0]["text"], "answers": rows[0]["answers"][::-1]}
    partial_row = {"text": rows[1]["text"], "answers": rows[1]["answers"][:1]}
    write_rows(tmp_path / "rows.jsonl", [*rows, reversed_row, partial_row])
    split = "split: {stratify: null, test: 0.1, validation: 0.05, calibration: 0.05, seed: 3}"
    data = f"{{source: {{path: rows.jsonl}}, columns: {{targets: answers}}, {split}}}"
    splits, report = prepare_data(tmp_path, data, json.dumps(EXTRACTION))
    assert report["rows"]["dropped"] == {"conflict": 2, "duplicate": 1}
    for row in splits["train"]:
        totals = sorted(record["total"] for record in (row["target"], *row["references"]))
        assert totals[1] == totals[0] + 1 and len(totals) == 2


@pytest.mark.parametrize(
    ("answers", "reason", "detail"),
    [
        ("No.", "bad_answer", "column 'answers' is text that is no JSON; a list of answers is needed"),
        ({"a": "No."}, "bad_answer", "a list of answers is needed, given {"),
        (None, "bad_answer", "a list of answers is needed, given nothing"),
        ([], "no_answer", "there is no answer in data.columns.targets"),
        ([" ", None], "no_answer", "there is no answer in data.columns.targets"),
        (["Yes.", 3], "bad_answer", "the answer is no text: 3"),
    ],
)
def test_what_is_no_list_of_answers_is_rejected_with_the_reason(
    tmp_path: Path, answers: Any, reason: str, detail: str
) -> None:
    rows = [{"text": text, "answers": ["Yes.", "Sure."]} for text in distinct_texts(120)]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"text": "one row more", "answers": answers}])
    data = "{source: {path: rows.jsonl}, columns: {targets: answers}, split: {stratify: null}}"
    _, report = prepare_data(tmp_path, data, GENERATION)
    assert report["rows"]["rejected"] == {reason: 1}
    (line, *_) = (tmp_path / "runs" / ".data" / report["digest"] / "rejected.jsonl").read_text().splitlines()
    assert detail in json.loads(line)["detail"]


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("{kind: classification, instruction: Choose the queue.}", "{targets: answers}",
         "data.columns.targets: holds several answers of a row, and kind is classification"),
        (GENERATION, "{targets: answers, target: answer}", "data.columns.target both name the answer; keep one"),
        (GENERATION, "{targets: answers, messages: chat}", "data.columns.messages both name the answer; keep one"),
        (GENERATION, "{targets: [answer]}", "data.columns.targets: given a list, allowed: text or at least 2 entries"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_several_answers_is_refused_with_its_line(
    tmp_path: Path, task: str, columns: str, message: str
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"task: {task}\nmodel: {{base: pocket}}\ndata:\n  source: {{path: rows.jsonl}}\n  columns: {columns}\n",
        encoding="utf-8",
    )
    with raises_error(RecipeError, "INS-R001") as error:
        load(str(tmp_path / "r.yaml"), (), "cpu")
    assert message in str(error.value) and "r.yaml:5" in str(error.value)


def test_a_column_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": text, "answers": ["Yes."]} for text in distinct_texts(20)])
    data = "{source: {path: rows.jsonl}, columns: {targets: [answers, answer]}}"
    with raises_error(
        RecipeError, "INS-D021", match=r"data.columns.targets\[1\]: there is no column 'answer'; did you mean"
    ):
        prepare_data(tmp_path, data, GENERATION)
    assert Columns(targets="a").target_columns == {"data.columns.targets": "a"} and "generation" in TASKS
