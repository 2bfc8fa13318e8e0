"""Data as it really lies: what went wrong in silence, each kind on small inputs of its own."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.report import console
from insource.config.errors import RecipeError
from insource.config.schema.source import SPLITS
from insource.tasks import classification
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tracking.data_report import DataReport
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import labelled_rows, prepare_data, write_rows
from train.evaluate import validation

# Given splits, hidden copies, groups and times.


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("reviews_train.jsonl", "reviews_test.jsonl"),
        ("train/part-0.jsonl", "test/part-0.jsonl"),
        ("training.1600000.jsonl", "testing.jsonl"),
    ],
)
def test_a_folder_of_train_and_test_keeps_its_splits_and_says_so(tmp_path: Path, train: str, test: str) -> None:
    rows = labelled_rows(160)
    write_rows(tmp_path / "in" / train, rows[:120])
    write_rows(tmp_path / "in" / test, rows[120:])
    for path in ("in", "in/**/*.jsonl"):
        splits, report = prepare_data(tmp_path, f'{{source: {{path: "{path}"}}}}')
        assert {row["input"]["text"] for row in splits["test"]} == {row["text"] for row in rows[120:]}
        assert "given splits are kept" in console.format_summary(DataReport(**report), "prepared")


def test_files_of_which_it_is_not_plain_whether_they_are_test_are_refused_with_both_choices(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "tickets.jsonl", labelled_rows(100))
    write_rows(tmp_path / "in" / "test.jsonl", labelled_rows(120)[100:])
    with raises_error(
        RecipeError, "INS-D004", match=r"test.jsonl \(test\).*\n.*\{train: \.\.\., test: \.\.\.\}.*\{paths: \["
    ) as error:
        prepare_data(tmp_path, "{source: {path: in}}")
    assert "data.source.path" in str(error.value)
    _, report = prepare_data(tmp_path, "{source: {paths: [in/tickets.jsonl, in/test.jsonl]}}")
    assert report["rows"]["read"] == 120


def test_a_held_out_file_of_unclear_use_is_refused_and_what_is_mixed_is_told(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "train.jsonl", labelled_rows(100))
    write_rows(tmp_path / "in" / "eval.jsonl", labelled_rows(120)[100:])
    with raises_error(RecipeError, "INS-D004", match=r"train.jsonl \(train\).*\n.*\{paths: \[") as error:
        prepare_data(tmp_path, "{source: {path: in}}")
    assert "eval.jsonl (held out)" in str(error.value)
    (tmp_path / "in" / "eval.jsonl").rename(tmp_path / "in" / "validation.jsonl")
    _, report = prepare_data(tmp_path, "{source: {path: in}}")
    assert "train.jsonl, validation.jsonl are mixed, and split again" in console.format_summary(
        DataReport(**report), "prepared"
    )


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git/objects", "__MACOSX", "_delta_log"])
def test_copies_in_hidden_folders_are_not_read_and_named(tmp_path: Path, hidden: str) -> None:
    write_rows(tmp_path / "in" / "tickets.jsonl", labelled_rows(80))
    write_rows(tmp_path / "in" / hidden / "tickets-checkpoint.jsonl", labelled_rows(80))
    for path in ("in", "in/**/*.jsonl"):
        _, report = prepare_data(tmp_path, f'{{source: {{path: "{path}"}}}}')
        assert report["rows"]["read"] == 80
        assert hidden.split("/")[0] in " ".join(report["left_out"])
        assert hidden.split("/")[0] in console.format_summary(DataReport(**report), "prepared")


def test_groups_that_straddle_given_splits_are_counted_told_and_by_choice_left_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{**row, "who": f"c{n % 20}"} for n, row in enumerate(labelled_rows(160))])
    write_rows(tmp_path / "test.jsonl", [{**row, "who": f"c{n % 5}"} for n, row in enumerate(labelled_rows(200)[160:])])
    data = "{source: {train: train.jsonl, test: test.jsonl}, split: {group: who}}"
    splits, report = prepare_data(tmp_path, data)
    shared_rows = [row for row in splits["train"] if row["group"] in {"c0", "c1", "c2", "c3", "c4"}]
    assert report["straddling"] == {"group_in_test": len(shared_rows)}
    assert len(shared_rows) > 10
    assert f"{len(shared_rows)} train rows share their group with given test rows (kept" in console.format_summary(
        DataReport(**report), "x"
    )
    splits, report = prepare_data(tmp_path, data, "classification", "data.split.straddling=drop")
    assert report["rows"]["dropped"]["group_in_test"] == len(shared_rows)
    assert not {row["group"] for row in splits["train"]} & {row["group"] for row in splits["test"]}


def test_a_given_file_without_groups_is_told_of(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{**row, "who": f"c{n % 20}"} for n, row in enumerate(labelled_rows(160))])
    write_rows(tmp_path / "test.jsonl", labelled_rows(200)[160:])
    _, report = prepare_data(tmp_path, "{source: {train: train.jsonl, test: test.jsonl}, split: {group: who}}")
    assert "test.jsonl has no column 'who': whether train rows straddle it is not known" in console.format_summary(
        DataReport(**report), "x"
    )


def test_train_rows_that_are_not_older_than_a_given_test_are_counted_and_by_choice_left_out(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "train.jsonl",
        [{**row, "at": f"2026-01-{1 + n // 8:02d}"} for n, row in enumerate(labelled_rows(160))],
    )
    write_rows(tmp_path / "test.jsonl", [{**row, "at": "2026-01-15"} for row in labelled_rows(180)[160:]])
    data = "{source: {train: train.jsonl, test: test.jsonl}, split: {time: at, straddling: drop}}"
    splits, report = prepare_data(tmp_path, data)
    assert report["straddling"]["not_before_test"] == report["rows"]["dropped"]["not_before_test"] > 20
    late_texts = {row["text"] for n, row in enumerate(labelled_rows(160)) if n // 8 >= 14}
    assert not late_texts & {row["input"]["text"] for row in splits["train"]}


@pytest.mark.parametrize("extra", [0, 1, 7])
def test_newer_rows_move_no_old_one_where_time_cuts(tmp_path: Path, extra: int) -> None:
    old_rows = [{**row, "at": f"2026-03-{1 + n // 8:02d}"} for n, row in enumerate(labelled_rows(160))]
    new_rows = [{**row, "at": "2026-05-01"} for row in labelled_rows(160 + 60 * extra)[160:]]
    data = "{source: {path: rows.jsonl}, split: {time: at, cut: 2026-03-15, test: 0.3, validation: 0.2}}"
    write_rows(tmp_path / "rows.jsonl", old_rows)
    previous, _ = prepare_data(tmp_path, data)
    write_rows(tmp_path / "rows.jsonl", [*new_rows, *old_rows])
    current, _ = prepare_data(tmp_path, data)
    for name in SPLITS:
        split_texts = {row["input"]["text"] for row in previous[name]}
        assert split_texts & {row["input"]["text"] for row in current[name]} == split_texts


# What a value means.


def test_class_names_of_parquet_are_the_labels(tmp_path: Path) -> None:
    features = {"label": {"names": ["arrival", "refund"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {"text": distinct_texts(100), "label": [n % 2 for n in range(99)] + [-1]}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "rows.parquet")
    _, report = prepare_data(tmp_path, "{source: {path: rows.parquet}, max_rejected: 0.05}")
    assert list(report["labels"]) == ["arrival", "refund"]
    assert report["rows"]["rejected"] == {"no_label": 1}
    assert report["sources"][0]["detected"]["class_labels"] == ["label"]


def test_class_names_inside_of_sequences_of_objects_are_the_values(tmp_path: Path) -> None:
    """As versions of `datasets` before 4 store them: columns of equal length, numbers for names among them."""
    class_label = {"names": ["good", "service"], "_type": "ClassLabel"}
    features = {
        "lines": {"feature": {"name": {"dtype": "string", "_type": "Value"}, "kind": class_label}, "_type": "Sequence"}
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    lines = [{"name": ["nail", "work"], "kind": [0, 1]} if n % 3 else {"name": [], "kind": []} for n in range(90)]
    table = pa.table({"text": distinct_texts(90), "lines": lines}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    string_schema = {"type": "string", "maxLength": 20}
    entry = {"type": "object", "properties": {"name": string_schema, "kind": string_schema}}
    schema = {"type": "object", "properties": {"lines": {"type": "array", "maxItems": 5, "items": entry}}}
    task = json.dumps({"kind": "extraction", "instruction": "Read the lines of the bill.", "json_schema": schema})
    data = "{source: {path: rows.parquet}, split: {stratify: null}, deduplicate: {near: 1}}"
    splits, report = prepare_data(tmp_path, data, task)
    values = [row["target"]["lines"] for name in splits for row in splits[name]]
    entries = [{"name": "nail", "kind": "good"}, {"name": "work", "kind": "service"}]
    assert values.count(None) == 30 and values.count(entries) == 60
    assert report["rows"]["rejected"] == {}


def test_an_object_names_what_could_be_reached_in_it(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "rows.jsonl",
        [{"text": {"body": text}, "label": {"id": 1, "name": "a"}} for text in distinct_texts(9)],
    )
    with raises_error(
        RecipeError, "INS-D022", match=r"a label is a text; one inside of it has a name such as label.name"
    ):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {text: text.body}}")
    with raises_error(RecipeError, "INS-D022", match=r"that holds text; one inside of it has a name such as text.body"):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {label: label.name}}")


def test_a_number_without_a_name_is_called_so(tmp_path: Path) -> None:
    metadata = {
        b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}})
    }
    table = pa.table({"text": distinct_texts(10), "label": [0, 1] * 4 + [2, 7]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    with raises_error(RecipeError, "INS-D022", match=r"column 'label' holds 2, and its 2 names are those of 0 to 1"):
        prepare_data(tmp_path, "{source: {path: rows.parquet}}")


def test_a_label_in_brackets_is_a_label(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "label": f"[{row['label']}]"} for row in labelled_rows(60)])
    assert set(prepare_data(tmp_path, "{source: {path: rows.jsonl}}")[1]["labels"]) == {"[a]", "[b]"}


def test_json_columns_of_parquet_are_what_they_hold(tmp_path: Path) -> None:
    chats = [
        json.dumps([{"role": "user", "content": text}, {"role": "assistant", "content": "ab"[n % 2]}])
        for n, text in enumerate(distinct_texts(100))
    ]
    chat_metadata = {b"huggingface": json.dumps({"info": {"features": {"chat": {"_type": "Json"}}}}).encode()}
    pq.write_table(pa.table({"chat": chats}).replace_schema_metadata(chat_metadata), tmp_path / "rows.parquet")
    splits, _ = prepare_data(tmp_path, "{source: {path: rows.parquet}, columns: {messages: chat}}")
    assert {row["target"] for row in splits["train"]} == {"a", "b"}
    label_metadata = {b"huggingface": json.dumps({"info": {"features": {"label": {"_type": "Json"}}}}).encode()}
    columns = {"text": distinct_texts(120), "label": [json.dumps((404, "timeout")[n % 2]) for n in range(120)]}
    pq.write_table(pa.table(columns).replace_schema_metadata(label_metadata), tmp_path / "rows.parquet")
    assert set(prepare_data(tmp_path, "{source: {path: rows.parquet}}")[1]["labels"]) == {"404", "timeout"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello", "label": ["a", "b"]}, "bad_label: column 'label' holds a list, and a row has one label"),
        ({"text": "\u200b\ufeff", "label": "a"}, "no_text: the text is empty, but for invisible characters"),
        ({"text": "hello", "label": {"name": "a"}}, "bad_label: column 'label' holds an object"),
        ({"text": "hello", "label": "['a', 'b']"}, "bad_label: column 'label' holds a list"),
        ({"text": "hello", "label": '["a"]'}, "bad_label: column 'label' holds a list"),
        ({"text": {"body": "hello"}, "label": "a"}, "bad_text: column 'text' holds an object"),
        ({"text": ["hello", "again"], "label": "a"}, "bad_text: column 'text' holds a list"),
        ({"text": [{"role": "user", "content": "hi"}], "label": "a"}, "data.columns.messages reads chats"),
    ],
)
def test_a_list_or_an_object_is_no_label_and_no_text(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [*labelled_rows(50), row, row])
    with raises_error(RecipeError, "INS-D022") as error:
        prepare_data(tmp_path, "{source: {path: rows.jsonl}}")
    assert message in str(error.value)


def test_values_of_lists_and_numbers_stand_in_the_text_as_they_are_written(tmp_path: Path) -> None:
    schema = "{type: array, maxItems: 3, items: {type: string, maxLength: 30}}"
    task = (
        "{kind: extraction, instruction: Read the fields., json_schema: {type: object, properties: "
        f"{{who: {schema}, sum: {{type: number}}}}}}}}"
    )
    values = [(["Nina Simone", "Daft Punk"], "12.50"), (["Nina  Simone"], 7), (["Nobody Here", "Daft Punk"], 8)]
    rows = [
        {
            "text": f"{text}: play Nina\nSimone, Nina Simone, Daft Punk for 12.50 or 7",
            "target": {"who": names, "sum": amount},
        }
        for n, text in enumerate(distinct_texts(90))
        for names, amount in [values[n % 3]]
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    _, report = prepare_data(
        tmp_path, "{source: {path: rows.jsonl}, columns: {target: target}, split: {stratify: null}}", task
    )
    assert report["fields"]["who"]["all"] == {"verbatim": 60, "elsewhere": 30}
    assert report["fields"]["sum"]["all"]["verbatim"] >= 60


def test_values_of_slices_are_counted_as_they_are_written(tmp_path: Path) -> None:
    regions = ["EU", "US", "us"]
    write_rows(tmp_path / "rows.jsonl", [{**row, "region": regions[n % 3]} for n, row in enumerate(labelled_rows(90))])
    splits, report = prepare_data(tmp_path, "{source: {path: rows.jsonl}, slices: {region: {by: region}}}")
    assert set(report["slices"]["region"]["values"]) == set(regions)
    n_us = sum(row["slices"]["region"] == "us" for name in SPLITS for row in splits[name])
    assert sum(report["slices"]["region"]["values"]["us"].values()) == n_us
    spec = classification.Spec("x", {"a": "", "b": ""})
    scores = validation.score_with_slices(
        classification, spec, splits["train"], [ParsedAnswer(row["target"]) for row in splits["train"]]
    )
    assert set(scores["slices"]["region"]) == set(regions)


@pytest.mark.parametrize(
    ("pair", "conflicts"),
    [
        (({"when": "On Monday"}, {"when": "on monday."}), 0),
        (({"codes": ["a1", "b2"]}, {"codes": ["b2", "a1"]}), 0),
        (({"when": "on Monday"}, {"when": "at noon"}), 2),
        (({"codes": ["a1"]}, {"codes": ["a1", "b2"]}), 2),
        (({"steps": ["a1", "b2"]}, {"steps": ["b2", "a1"]}), 2),
        (({"steps": ["a1", "b2"]}, {"steps": ["a1 ", "b2"]}), 0),
    ],
)
def test_records_that_score_as_equal_are_no_conflict(tmp_path: Path, pair: Any, conflicts: int) -> None:
    items = "type: array, maxItems: 3, items: {type: string, maxLength: 9}"
    schema = f"{{when: {{type: string, maxLength: 40}}, codes: {{{items}}}, steps: {{{items}, ordered: true}}}}"
    task = (
        f"{{kind: extraction, instruction: Read the fields., json_schema: {{type: object, properties: {schema}}}, "
        "normalizers: {when: [whitespace, case, punctuation]}}"
    )
    write_rows(tmp_path / "test.jsonl", [{"text": text, "target": {"when": "now"}} for text in distinct_texts(20)])
    rows = [{"text": text, "target": {"when": "now"}} for text in distinct_texts(90)[20:]]
    rows += [{"text": text, "target": target} for text, target in zip(("Come then!", "come, then"), pair, strict=True)]
    write_rows(tmp_path / "train.jsonl", rows)
    split = "{stratify: null, validation: 0.05, calibration: 0}"
    data = f"{{source: {{train: train.jsonl, test: test.jsonl}}, columns: {{target: target}}, split: {split}}}"
    _, report = prepare_data(tmp_path, data, task, "data.split.seed=3")
    assert report["rows"]["dropped"].get("conflict", 0) == conflicts


# Doubts.


def test_doubts_are_kept_back_where_the_model_itself_knows_nothing(tmp_path: Path) -> None:
    noise = [{"text": text, "label": "ab"[hash_text(text) % 2]} for text in distinct_texts(400)]
    write_rows(tmp_path / "rows.jsonl", noise)
    _, report = prepare_data(tmp_path, "{source: {path: rows.jsonl}}")
    assert report["suspects"]["found"] == 0
    assert "no better than chance" in report["suspects"]["why_none"]
    assert "no better than chance" in console.format_summary(DataReport(**report), "x")


def test_plain_labels_of_chinese_texts_are_not_doubted(tmp_path: Path) -> None:
    topics = {"\u9000\u6b3e": "payment", "\u5bc4\u9001": "delivery", "\u767b\u5f55": "account"}
    openings = [
        "\u8bf7\u95ee\u6211\u7684",
        "\u9ebb\u70e6\u67e5\u4e00\u4e0b",
        "\u6628\u5929\u6536\u5230\u7684",
        "\u6211\u60f3\u4e86\u89e3",
    ]
    endings = [
        "\u51fa\u4e86\u95ee\u9898",
        "\u600e\u4e48\u5904\u7406",
        "\u4e00\u76f4\u6ca1\u6709\u6d88\u606f",
        "\u4ec0\u4e48\u65f6\u5019\u597d",
        "\u5df2\u7ecf\u4e09\u5929\u4e86",
    ]
    rows = [
        {"text": a + topic + b, "label": label} for topic, label in topics.items() for a in openings for b in endings
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    _, report = prepare_data(tmp_path, "{source: {path: rows.jsonl}, deduplicate: {near: 1}}")
    assert report["suspects"]["accuracy"] > 0.9
    assert report["suspects"]["found"] <= 3


def hash_text(text: str) -> int:
    import hashlib

    return hashlib.sha256(text.encode()).digest()[0]
