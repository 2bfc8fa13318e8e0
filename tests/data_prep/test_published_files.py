"""Public data sets in the files that their authors publish, rebuilt in small by us, and how tables of databases lie
there: a recipe of at most 15 lines each."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers.sources import parse_split_name
from data_prep.report import console
from insource.config.errors import RecipeError
from insource.config.schema.source import SPLITS
from insource.tracking.data_report import DataReport
from tests.data_prep.test_public_data_sets import Splits, write_csv
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import write_rows
from tests.helpers.published_files import SUMMARY, prepare_files, text_label_pairs, texts_with_targets


def write_clinc150(folder: Path, rows: list[Any], **extra: Any) -> None:
    """CLINC150's data_full.json: six arrays of pairs under the names of their splits."""
    arrays = {"oos_val": rows[:4], "val": rows[4:40], "train": rows[40:140], "oos_train": rows[140:150]}
    arrays |= {"test": rows[150:190], "oos_test": rows[190:], **extra}
    (folder / "data_full.json").write_text(json.dumps(arrays), encoding="utf-8")


CLINC = "{source: {path: data_full.json, header: [text, label]}, split: {calibration: 0.1}, deduplicate: {near: 1}}"


def test_clinc150_splits_and_rows_as_arrays_of_one_file(tmp_path: Path) -> None:
    out_of_scope = {*range(4), *range(140, 150), *range(190, 210)}
    rows = [[text, "oos" if n in out_of_scope else label] for n, (text, label) in enumerate(text_label_pairs(210))]
    write_clinc150(tmp_path, rows, domains=[["a", "b"]])
    splits, report = prepare_files(tmp_path, CLINC)
    assert texts_with_targets(splits) == {(text, label) for text, label in rows}
    assert {row["input"]["text"] for row in splits["test"]} == {text for text, _ in rows[150:]}
    assert len(splits["validation"]) == 40
    assert report["left_out"] == ["data_full.json/domains"]
    summary = console.format_summary(DataReport(**report), "prepared")
    assert "data_full.json/oos_test is test" in summary
    assert "not read, as they are hidden or of no known kind or split: data_full.json/domains" in summary


def test_splits_of_one_file_are_mixed_where_the_recipe_says_so_and_objects_do_as_well(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in text_label_pairs(210)]
    write_clinc150(tmp_path, rows)
    splits, report = prepare_files(tmp_path, "{source: {paths: [data_full.json]}, deduplicate: {near: 1}}")
    assert report["rows"]["read"] == 210 == len(texts_with_targets(splits))
    assert {row["input"]["text"] for row in splits["test"]} != {row["text"] for row in rows[150:]}
    assert "are mixed, and split again" in console.format_summary(DataReport(**report), "prepared")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_splits_of_one_file_are_found_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    rows = [{"text": f"{text} \u00e9", "label": label} for text, label in text_label_pairs(120)]
    arrays = {"about": "\u00e9", "train": rows[:80], "test": rows[80:]}
    (tmp_path / "rows.json").write_bytes(json.dumps(arrays, ensure_ascii=False).encode(encoding))
    splits, _ = prepare_files(tmp_path, "{source: {path: rows.json}, deduplicate: {near: 1}}")
    assert {row["input"]["text"] for row in splits["test"]} == {row["text"] for row in rows[80:]}


def test_a_damaged_file_that_might_hold_splits_is_told_by_its_reader(tmp_path: Path) -> None:
    compressed = gzip.compress(json.dumps({"train": [["a", "b"]] * 9, "test": [["a", "b"]] * 9}).encode())
    for name, content in (
        ("cut.json.gz", compressed[:-20]),
        ("bad.json.gz", compressed[:12] + b"xxxx" + compressed[16:]),
    ):
        (tmp_path / name).write_bytes(content)
        with raises_error(
            RecipeError, "INS-D011", match=rf"{name}:1: the gz stream is cut off after line 0 or damaged there"
        ):
            prepare_files(tmp_path, f"{{source: {{path: {name}}}}}")


def test_arrays_without_names_are_refused_with_the_key_that_names_them(tmp_path: Path) -> None:
    write_clinc150(tmp_path, [list(pair) for pair in text_label_pairs(210)])
    with raises_error(RecipeError, "INS-D022", match=r"a JSON array where an object belongs; data.source.header names"):
        prepare_files(tmp_path, "{source: {path: data_full.json}}")
    with raises_error(RecipeError, "INS-D022", match=r"2 values where data.source.header has 3 names"):
        prepare_files(tmp_path, "{source: {path: data_full.json, header: [text, label, more]}}")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_that_are_arrays_are_read_by_the_names_that_the_recipe_gives(tmp_path: Path, name: str) -> None:
    rows = [[label, text] for text, label in text_label_pairs(90)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith("json") else lines, encoding="utf-8")
    splits, _ = prepare_files(
        tmp_path, f"{{source: {{path: {name}, header: [label, text]}}, deduplicate: {{near: 1}}}}"
    )
    assert texts_with_targets(splits) == {*text_label_pairs(90)}


def write_dialogsum(folder: Path) -> list[dict[str, Any]]:
    """DialogSum as it is published: one summary of a talk of train, three of one of test, no id of that name."""
    dialogues = [{"fname": f"d_{n}", "dialogue": f"#Person1#: {text}?"} for n, text in enumerate(distinct_texts(140))]
    for name, split_rows in (("train", dialogues[:100]), ("dev", dialogues[100:110])):
        write_rows(
            folder / "talks" / f"dialogsum.{name}.jsonl",
            [{**dialogue, "summary": f"{dialogue['fname']} asks."} for dialogue in split_rows],
        )
    summaries = {
        f"summary{reader}": f"{speaker} asks." for reader, speaker in ((1, "One"), (2, "Another"), (3, "Someone"))
    }
    write_rows(folder / "talks" / "dialogsum.test.jsonl", [{**dialogue, **summaries} for dialogue in dialogues[110:]])
    return dialogues


def test_dialogsum_one_summary_in_train_and_three_in_test(tmp_path: Path) -> None:
    dialogues = write_dialogsum(tmp_path)
    columns = "{text: dialogue, targets: [summary, summary1, summary2, summary3], id: fname}"
    settings = "split: {stratify: null}, deduplicate: {near: 1}"
    splits, report = prepare_files(tmp_path, f"{{source: {{path: talks}}, columns: {columns}, {settings}}}", SUMMARY)
    assert {row["input"]["text"] for row in splits["test"]} == {dialogue["dialogue"] for dialogue in dialogues[110:]}
    assert all((row["target"], row["references"]) == ("One asks.", ["Another asks.", "Someone asks."])
               for row in splits["test"])  # fmt: skip
    assert not any("references" in row for row in splits["train"])
    summary = console.format_summary(DataReport(**report), "prepared")
    assert (
        "dialogsum.train.jsonl has no column 'summary1' and 'summary2' and 'summary3': its answers are the" in summary
    )
    assert "dialogsum.test.jsonl has no column 'summary': its answers are the others" in summary
    misspelled = columns.replace("summary3", "sumary3")
    with raises_error(
        RecipeError, "INS-D021", match=r"targets\[3\]: there is no column 'sumary3'; did you mean 'summary3'"
    ):
        prepare_files(tmp_path, f"{{source: {{path: talks}}, columns: {misspelled}, {settings}}}", SUMMARY)
    with raises_error(RecipeError, "INS-D021", match=r"data.columns.targets\[0\]: there is no column 'a'"):
        prepare_files(
            tmp_path, f"{{source: {{path: talks}}, columns: {{text: dialogue, targets: [a, b]}}, {settings}}}", SUMMARY
        )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("dialogsum.train.jsonl", "train"),
        ("dialogsum.dev.jsonl.gz", "validation"),
        ("v2.test.csv", "test"),
        ("train-00000-of-00002.parquet", "train"),
        ("latest.csv", None),
        ("contest.results.csv", None),
        ("data_full.json/oos_test", "test"),
    ],
)
def test_a_part_of_a_name_between_dots_tells_the_split(name: str, split: str | None) -> None:
    assert parse_split_name(name) == split


MANY = "task: {kind: classification, labels_per_row: many, instruction: Choose all labels.}\nmodel: {base: pocket}\n"


def test_jigsaw_a_column_for_each_label(tmp_path: Path) -> None:
    marks = [(n % 2, int(n % 3 == 0), 0) for n in range(120)]
    rows = [
        [f"i{n}", text, *row_marks] for n, (text, row_marks) in enumerate(zip(distinct_texts(120), marks, strict=True))
    ]
    write_csv(tmp_path / "train.csv", [["id", "comment_text", "toxic", "severe toxic", "threat"], *rows])
    columns = "{text: comment_text, id: id, label_columns: [toxic, severe toxic, threat]}"
    splits, report = prepare_files(
        tmp_path, f"{{source: {{path: train.csv}}, columns: {columns}, deduplicate: {{near: 1}}}}", MANY
    )
    expected = {text: {name for name, mark in zip(("toxic", "severe toxic"), row_marks, strict=False) if mark}
              for text, row_marks in zip(distinct_texts(120), marks, strict=True)}  # fmt: skip
    assert {text: {*target} for text, target in _targets(splits)} == expected
    assert report["labels_per_row"]["may_be_empty"]
    assert "column 'threat' marks no row: it is no label" in console.format_summary(DataReport(**report), "prepared")


def _targets(splits: Splits) -> list[tuple[str, list[str]]]:
    return [(row["input"]["text"], row["target"]) for name in SPLITS for row in splits[name]]


@pytest.mark.parametrize(("mark", "message"), [("-1", "column 'b' holds -1; 1 or 0"), ("", "column 'b' holds nothing")])
def test_a_mark_that_is_neither_1_nor_0_is_told(tmp_path: Path, mark: str, message: str) -> None:
    write_csv(tmp_path / "rows.csv", [["text", "a", "b"], *([text, 1, mark] for text in distinct_texts(20))])
    with raises_error(RecipeError, "INS-D022", match=f"bad_labels: {message}"):
        prepare_files(tmp_path, "{source: {path: rows.csv}, columns: {label_columns: [a, b]}}", MANY)


@pytest.mark.parametrize("template", ["{}:what {}", "__label__{} {}"])
def test_trec_and_fasttext_a_label_and_the_rest_of_the_line(tmp_path: Path, template: str) -> None:
    rows = [(f'Where is "{text}  now', template.format(label, "").strip()) for text, label in text_label_pairs(90)]
    (tmp_path / "train.txt").write_text("".join(f"{label} {text}\n" for text, label in rows), encoding="utf-8")
    source = "{path: train.txt, delimiter: ' ', quotes: false, header: [label, text]}"
    splits, report = prepare_files(tmp_path, f"{{source: {source}, deduplicate: {{near: 1}}}}")
    assert texts_with_targets(splits) == {(" ".join(text.split()), label) for text, label in rows}
    assert report["rows"]["rejected"] == {}


def test_objects_may_leave_out_what_they_have_no_value_for(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label} | ({"who": f"c{n % 20}"} if n > 5 else {})
        for n, (text, label) in enumerate(text_label_pairs(80))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    _, report = prepare_files(tmp_path, "{source: {path: rows.jsonl}, split: {group: who}, deduplicate: {near: 1}}")
    assert report["rows"]["read"] == 80
    with raises_error(
        RecipeError, "INS-D021", match=r"data.split.group: there is no column 'whom'; did you mean 'who'"
    ):
        prepare_files(tmp_path, "{source: {path: rows.jsonl}, split: {group: whom}}")


def test_20_newsgroups_documents_that_are_named_by_a_number(tmp_path: Path) -> None:
    for n, (text, label) in enumerate(text_label_pairs(80)):
        folder = tmp_path / "20_newsgroups" / {"a": "sci.med", "b": "alt.atheism"}[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(51060 + n)).write_bytes(f"From: someone\nSubject: caf\u00e9\n\n{text}\n".encode("latin-1"))
    with raises_error(
        RecipeError, "INS-D020", match=r"has 80 .txt files. data.source.sample_by: document reads each as one"
    ):
        prepare_files(tmp_path, "{source: {path: 20_newsgroups}}")
    splits, report = prepare_files(
        tmp_path, "{source: {path: 20_newsgroups, sample_by: document}, deduplicate: {near: 1}}"
    )
    assert set(report["labels"]) == {"sci.med", "alt.atheism"}
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 80
    assert all("caf\u00e9" in row["input"]["text"] for row in splits["train"])


def test_of_several_arrays_the_one_whose_objects_have_the_columns_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the data set server of the hub answers: the features in one array, the rows in another."""
    payload = {
        "features": [{"feature_idx": 0, "name": "text"}, {"feature_idx": 1, "name": "label"}],
        "rows": [
            {"row_idx": n, "row": {"text": text, "label": label}}
            for n, (text, label) in enumerate(text_label_pairs(80))
        ],
    }
    (tmp_path / "rows.json").write_text(json.dumps(payload), encoding="utf-8")
    columns = "columns: {text: row.text, label: row.label}"
    splits, _ = prepare_files(tmp_path, f"{{source: {{path: rows.json}}, {columns}, deduplicate: {{near: 1}}}}")
    assert texts_with_targets(splits) == {*text_label_pairs(80)}
    assert "rows.json: the rows are those of 'rows'; not read: features" in capsys.readouterr().err
    arrays = {"may": payload["rows"][:40], "june": payload["rows"][40:]}
    (tmp_path / "rows.json").write_text(json.dumps(arrays), encoding="utf-8")
    with raises_error(RecipeError, "INS-D017", match=r"has several, 'may', 'june'; keep one"):
        prepare_files(tmp_path, f"{{source: {{path: rows.json}}, {columns}}}")


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp874", "วันนี้ฟุตบอลเริ่มแล้ว"),
        ("cp1251", "сегодня начался матч, все рады"),
        ("koi8-r", "сегодня начался матч, все рады"),
        ("cp1253", "σήμερα άρχισε ο αγώνας"),
        ("cp1255", "היום התחיל המשחק"),
        ("cp1256", "بدأت المباراة اليوم"),
    ],
)
def test_a_text_of_another_alphabet_is_refused_with_its_encoding_among_those_named(
    tmp_path: Path, codec: str, text: str
) -> None:
    lines = "".join(f"{text} {n},{'ab'[n % 2]}\n" for n in range(40))
    (tmp_path / "rows.csv").write_bytes(f"text,label\n{lines}".encode(codec))
    with raises_error(RecipeError, "INS-D010", match=rf"not UTF-8, and not surely anything else; set .*\b{codec}\b"):
        prepare_files(tmp_path, "{source: {path: rows.csv}}")


def test_spellings_that_differ_in_white_space_are_merged_and_shown(tmp_path: Path) -> None:
    spellings = ["new york", "new\u00a0york", "new  york", " new york", "paris"]
    write_rows(
        tmp_path / "rows.jsonl",
        [{"text": text, "label": spellings[n % 5]} for n, text in enumerate(distinct_texts(150))],
    )
    _, report = prepare_files(tmp_path, "{source: {path: rows.jsonl}, deduplicate: {near: 1}}")
    assert set(report["labels"]) == {"new york", "paris"}
    assert report["labels"]["new york"]["spellings"] == dict.fromkeys(spellings[:4], 30)
    summary = console.format_summary(DataReport(**report), "prepared")
    assert r"in 4 spellings: ' new york' 30, 'new  york' 30, 'new york' 30, 'new\xa0york' 30" in summary
    # What all rows have at their edges is no other spelling.
    write_rows(
        tmp_path / "rows.jsonl",
        [{"text": text, "label": f"{'ab'[n % 2]} "} for n, text in enumerate(distinct_texts(150))],
    )
    _, report = prepare_files(tmp_path, "{source: {path: rows.jsonl}, deduplicate: {near: 1}}")
    assert set(report["labels"]) == {"a", "b"} and "spellings" not in console.format_summary(
        DataReport(**report), "prepared"
    )


def test_times_of_another_form_with_a_zone_are_read_by_their_format(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label, "at": f"Fri May {n % 28 + 1:02d} 12:00:00 +0200 2026"}
        for n, (text, label) in enumerate(text_label_pairs(90))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    formats = "formats: {dates: {at: '%a %b %d %H:%M:%S %z %Y'}}"
    _, report = prepare_files(
        tmp_path, f"{{source: {{path: rows.jsonl}}, split: {{time: at}}, {formats}, deduplicate: {{near: 1}}}}"
    )
    assert report["split"]["cut"].endswith("T10:00:00Z")


INVOICE = """task:
  kind: extraction
  instruction: Read the invoice.
  json_schema: {type: object, properties: {invoice_no: {type: string, maxLength: 9}, total: {type: number}}}
model: {base: pocket}
"""


def test_a_field_that_no_row_has_is_told_and_records_without_any_value_are_refused(tmp_path: Path) -> None:
    rows = [(f"{text} 17", f"N{n}", 17) for n, text in enumerate(distinct_texts(90))]
    write_csv(tmp_path / "rows.csv", [("text", "Invoice No", "total"), *rows])
    settings = "split: {stratify: null}, deduplicate: {near: 1}"
    _, report = prepare_files(tmp_path, f"{{source: {{path: rows.csv}}, {settings}}}", INVOICE)
    summary = console.format_summary(DataReport(**report), "prepared")
    assert "field invoice_no: no row has a value of it; did you mean the column 'Invoice No'?" in summary
    assert "field total" not in summary
    write_csv(tmp_path / "rows.csv", [("text", "Invoice No", "Sum"), *rows])
    with raises_error(
        RecipeError, "INS-D024", match=r"no row has a value of any field .*; the columns are text, Invoice No, Sum"
    ):
        prepare_files(tmp_path, f"{{source: {{path: rows.csv}}, {settings}}}", INVOICE)
    write_rows(tmp_path / "rows.jsonl", [{"text": text, "record": {"total": 17}} for text, *_ in rows])
    with raises_error(
        RecipeError, "INS-D024", match=r"no row has a value of any field .*; set data.columns.target to the column with"
    ):
        prepare_files(tmp_path, f"{{source: {{path: rows.jsonl}}, {settings}}}", INVOICE)
