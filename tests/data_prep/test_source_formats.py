"""Formats of sources and names of columns: dotted columns, texts in files and folders, workbooks of several sheets."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.readers import dotted_paths
from data_prep.readers.read import read
from data_prep.readers.sources import find_files, find_ignored_files
from data_prep.report import console
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.source import SPLITS, Source
from insource.tracking.data_report import DataReport
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import labelled_rows, prepare_data, write_rows
from tests.helpers.source_files import read_rows


def write_file(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


# Dotted columns.


@pytest.mark.parametrize(
    ("values", "column", "value"),
    [
        ({"order": {"customer": {"name": "Ho"}}}, "order.customer.name", "Ho"),
        ({"order": {"customer.name": "Ho"}}, "order.customer.name", "Ho"),
        ({"order.customer": {"name": "Ho"}, "order": {"customer": {"name": "No"}}}, "order.customer.name", "Ho"),
        ({"order": '{"customer": {"name": "Ho"}}'}, "order.customer.name", "Ho"),
        ({"answers": {"text": ["a", "b"]}}, "answers.text.1", "b"),
        ({"order": None}, "order.customer.name", None),
        ({"order": ""}, "order.customer.name", None),
        ({"order": {"customer": None}}, "order.customer.name", None),
        ({"order": {"customer": {"name": {"first": "Ho"}}}}, "order.customer.name", {"first": "Ho"}),
    ],
)
def test_a_dot_reaches_inside(values: dict[str, Any], column: str, value: Any) -> None:
    assert dotted_paths.resolve_columns(values, [column]) == {column: value}


@pytest.mark.parametrize(
    "values",
    [
        {"order": {"customer": {"nme": "Ho"}}},
        {"order": {"customer": ["Ho"]}},
        {"order": "late"},
        {"order": "{late"},
        {"order": 7},
        {"orders": {}},
    ],
)
def test_what_is_not_there_is_reached_by_no_dot(values: dict[str, Any]) -> None:
    assert dotted_paths.resolve_columns(values, ["order.customer.name"]) == {}


def test_a_column_that_bears_the_very_name_is_meant(tmp_path: Path) -> None:
    rows = [{"m": {"text": "wrong"}, "m.text": row["text"], "label": row["label"]} for row in labelled_rows(60)]
    write_rows(tmp_path / "rows.jsonl", rows)
    splits, _ = prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {text: m.text}}")
    assert {row["input"]["text"] for name in SPLITS for row in splits[name]} == {row["m.text"] for row in rows}


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_dotted_columns_serve_wherever_a_recipe_names_a_column(tmp_path: Path, kind: str) -> None:
    nested = [
        {
            "no": f"T{n}",
            "mail": {"body": row["text"], "at": f"2026-05-{n % 28 + 1:02}"},
            "queue": {"name": row["label"], "lang": "en" if n % 4 else "de"},
            "customer": {"id": f"C{n % 30}"},
        }
        for n, row in enumerate(labelled_rows(120))
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_rows(path, nested)
    elif kind == "json":
        write_file(path, json.dumps(nested, indent=1))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(nested), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(nested[0])
            writer.writerows(
                [[json.dumps(value) if isinstance(value, dict) else value for value in row.values()] for row in nested]
            )
    data = (
        f"{{source: {{path: rows.{kind}}}, columns: {{text: mail.body, label: queue.name, id: no}}, "
        "where: {queue.lang: en}, split: {group: customer.id}, slices: {day: {by: mail.at}}}"
    )
    splits, report = prepare_data(tmp_path, data)
    written_rows = [row for name in SPLITS for row in splits[name]]
    assert report["rows"]["filtered"] == 30
    assert {row["input"]["text"] for row in written_rows} <= {row["mail"]["body"] for row in nested}
    assert {row["target"] for row in written_rows} == {"a", "b"}
    assert {row["group"] for row in written_rows} <= {f"C{n}" for n in range(30)}
    assert all(row["slices"]["day"].startswith("2026-05-") for row in written_rows)


def test_a_dotted_column_that_is_not_there_is_told_with_the_nearest_inside(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"mail": {"body": row["text"]}, "label": "a"} for row in labelled_rows(20)])
    with raises_error(
        RecipeError, "INS-D021", match=r"data.columns.text: there is no column 'mail.bdy'; did you mean 'mail.body'"
    ):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {text: mail.bdy}}")


def test_fields_of_a_record_may_stand_inside_a_dotted_column(tmp_path: Path) -> None:
    rows = [{"text": f"{text} {n}", "ocr": {"record": {"no": n}}} for n, text in enumerate(distinct_texts(60))]
    write_rows(tmp_path / "rows.jsonl", rows)
    schema = "{type: object, properties: {no: {type: integer}}}"
    task = f"{{kind: extraction, instruction: Read the number., json_schema: {schema}}}"
    splits, _ = prepare_data(tmp_path, "{source: {path: rows.jsonl}, columns: {target: ocr.record}}", task)
    assert {row["target"]["no"] for name in SPLITS for row in splits[name]} == set(range(60))


@pytest.mark.parametrize(("escape", "reason"), [("\\ud83d", "lone_surrogate"), ("\\u0000", "nul_byte")])
@pytest.mark.parametrize(
    ("message", "data"),
    [
        ("text", "columns: {text: meta.odd}"),
        ("answer", "columns: {label: meta.odd}"),
        ("id", "columns: {id: meta.odd}"),
        ("group", "split: {group: meta.odd}"),
        ("slice kind", "slices: {kind: {by: meta.odd}}"),
    ],
)
def test_what_no_file_can_hold_is_told_where_json_in_a_cell_brings_it(
    tmp_path: Path, message: str, data: str, escape: str, reason: str
) -> None:
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "meta"])
        for n, row in enumerate(labelled_rows(60)):
            key = row["label"] if "label:" in data else f"{row['text']} {n}"
            writer.writerow([row["text"], row["label"], f'{{"odd": "{key}{escape if n == 7 else ""}"}}'])
    prepare_data(tmp_path, f"{{source: {{path: rows.csv}}, max_rejected: 0.1, {data}}}")
    (path,) = (tmp_path / "runs").rglob("rejected.jsonl")
    (rejected,) = [
        entry for entry in map(json.loads, path.read_text("utf-8").splitlines()) if entry["kind"] == "rejected"
    ]
    assert (rejected["line"], rejected["reason"]) == (9, reason)
    assert rejected["detail"].startswith(f"the {message} holds ")


# Objects of JSON.


@pytest.mark.parametrize(
    ("value", "columns", "rows"),
    [
        ({"text": "a bill", "total": 5, "items": [{"total": 2}, {"total": 3}]}, ("text", "total", "items"), 1),
        ({"text": "a bill", "label": "b", "items": [{"no": 1}], "payments": [{"no": 1}]}, ("text", "label"), 1),
        ({"text": "a bill", "label": "b", "items": []}, ("text", "label"), 1),
        ({"id": 7, "messages": [{"role": "user"}, {"role": "assistant"}]}, ("messages",), 1),
        ({"mail": {"body": "hello"}, "queue": "a", "tags": [{"no": 1}]}, ("mail.body", "queue", "mail"), 1),
        ({"mails": [{"body": "hello"}, {"body": "again"}], "queue": "a"}, ("mails.0.body", "queue", "mails"), 1),
        ({"id": 1, "text": "of May", "data": [{"id": 1, "text": "x", "label": "a"}]}, ("id", "text", "label"), "data"),
        ({"id": 1, "answers": [{"id": 1, "output": "x"}, {"id": 2, "output": "y"}]}, ("id", "output"), "answers"),
        ({"version": 1, "data": [{"text": "x"}]}, ("text", "label"), "data"),
        ({"text": ["x", "y"], "items": [{"no": 1}, {"no": 2}]}, ("text", "items"), 2),
    ],
)
def test_an_object_with_the_columns_is_one_row_whatever_lists_it_has(
    tmp_path: Path, value: Any, columns: tuple[str, ...], rows: Any
) -> None:
    source = Source(path=str(write_file(tmp_path / "one.json", json.dumps(value, indent=1))))
    values = [row.values for row in read_rows(source, *columns)]
    if rows == 2:
        assert values == [{"text": "x", "items": {"no": 1}}, {"text": "y", "items": {"no": 2}}]
    else:
        assert values == ([value] if rows == 1 else value[rows])


def test_a_folder_of_records_with_lists_of_objects_is_a_row_a_file(tmp_path: Path) -> None:
    for n, text in enumerate(distinct_texts(60)):
        record = {"text": f"{text} {n}", "lines": [{"no": n, "text": "x"}, {"no": n + 1}]}
        write_file(tmp_path / "in" / f"{n}.json", json.dumps(record, indent=1))
    line = "{type: object, properties: {no: {type: integer}, text: {type: string, maxLength: 5}}}"
    schema = f"{{type: object, properties: {{lines: {{type: array, maxItems: 3, items: {line}}}}}}}"
    task = f"{{kind: extraction, instruction: Read the lines., json_schema: {schema}}}"
    splits, report = prepare_data(tmp_path, "{source: {path: in}}", task)
    assert report["rows"]["read"] == 60
    assert {row["target"]["lines"][0]["no"] for name in SPLITS for row in splits[name]} == set(range(60))


# Texts in files and folders.


def write_reviews(folder: Path, count: int = 60) -> list[str]:
    """A folder of a text a file in pos/ and neg/, with what else lies there."""
    review_texts = distinct_texts(count)
    for n, text in enumerate(review_texts):
        write_file(folder / ("pos" if n % 2 else "neg") / f"{n}_{n % 10}.txt", f"{text}\n")
    write_file(folder / "README.txt", "how they were gathered")
    return review_texts


def test_a_folder_of_documents_is_labelled_by_its_folders(tmp_path: Path) -> None:
    review_texts = write_reviews(tmp_path / "in")
    splits, report = prepare_data(tmp_path, "{source: {path: in, sample_by: document}}")
    rows = [row for name in SPLITS for row in splits[name]]
    assert {row["input"]["text"] for row in rows} == set(review_texts)
    assert {row["id"].split("/")[0]: row["target"] for row in rows} == {"pos": "pos", "neg": "neg"}
    assert report["left_out"] == ["README.txt"]
    assert "README.txt" in console.format_summary(DataReport(**report), "prepared")
    assert [(entry["file"], entry["rows_read"]) for entry in report["sources"]] == [("neg", 30), ("pos", 30)]


@pytest.mark.parametrize(
    "source", ["path: in, sample_by: document", "train: in/train, test: in/test, sample_by: document"]
)
def test_documents_below_train_and_test_keep_their_splits(tmp_path: Path, source: str) -> None:
    write_reviews(tmp_path / "in" / "train")
    for n, text in enumerate(distinct_texts(90)[60:]):
        write_file(tmp_path / "in" / "test" / ("pos" if n % 2 else "neg") / f"{n}.txt", text)
    splits, report = prepare_data(tmp_path, f"{{source: {{{source}}}}}")
    assert len(splits["test"]) == 30
    assert {row["target"] for row in splits["test"]} == {"pos", "neg"}
    assert sum(report["rows"]["written"].values()) + sum(report["rows"]["dropped"].values()) == 90


def test_messages_and_files_name_the_document_that_is_meant(tmp_path: Path) -> None:
    review_texts = write_reviews(tmp_path / "in")
    write_file(tmp_path / "in" / "pos" / "copy.txt", review_texts[3])
    write_file(tmp_path / "in" / "neg" / "other.txt", review_texts[5])
    data = "{source: {path: in, sample_by: document}, split: {test: 0.1, validation: 0.05, calibration: 0.05, seed: 3}"
    prepare_data(tmp_path, f"{data}}}")
    (path,) = (tmp_path / "runs").rglob("rejected.jsonl")
    dropped = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert {entry["id"] for entry in dropped} == {f"{entry['file']}:{entry['line']}" for entry in dropped}
    assert {entry["file"] for entry in dropped} >= {"neg/other.txt", "pos/5_5.txt"}
    with raises_error(RecipeError, "INS-D029", match=r"neg/other.txt:1, pos/5_5.txt:1: 1 texts have several answers"):
        prepare_data(tmp_path, f"{data}, conflicts: fail}}")
    write_file(tmp_path / "in" / "pos" / "long.txt", "parcel " * 3000)
    with pytest.raises(RecipeError, match=r"pos/long.txt:1: 1 train rows are longer than train.max_length"):
        prepare_data(tmp_path, f"{data}, too_long: fail}}")


def test_documents_are_read_whole_or_told_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, content in {
        "1.txt": "one\r\ntwo".encode("utf-16"),
        "2.txt": b"",
        "3.txt": b"hell\xff and \xfe",
        "4.txt.gz": gzip.compress(b"three"),
        "5.txt": b"x\xed\xa0\xbd",
        "6.txt": "na\u00efve caf\u00e9".encode("latin-1"),
    }.items():
        (tmp_path / "a" / name).write_bytes(content)
    source = Source(path=str(tmp_path / "a"), sample_by="document")
    info, rows = read(find_files(source)[0], source, ("text", "label"))
    valid = {row.file: row.values for row in rows if not row.problem}
    problems = {row.file: row.problem for row in read_rows(source) if row.problem}
    assert {name: values["text"] for name, values in valid.items()} == {
        "a/1.txt": "one\r\ntwo", "a/2.txt": "", "a/4.txt.gz": "three", "a/6.txt": "na\u00efve caf\u00e9",
    }  # fmt: skip
    assert {values["label"] for values in valid.values()} == {"a"}
    assert set(problems) == {"a/3.txt", "a/5.txt"}
    assert "data.source.encoding" in (problems["a/3.txt"] or "")
    assert info["encodings"] == {"utf-16-le": 1, "utf-8": 1, "cesu-8": 1, "latin-1": 1}
    assert info["encoding_guessed"]


def test_a_document_that_is_named_outright_has_the_label_of_its_folder(tmp_path: Path) -> None:
    path = write_file(tmp_path / "late" / "train" / "1.txt", "hello\nworld\n")
    (row,) = read_rows(Source(path=str(path), sample_by="document"))
    assert (row.line, row.values) == (1, {"text": "hello\nworld\n", "label": "late", "file": "1.txt"})


def test_lines_are_labelled_by_their_files(tmp_path: Path) -> None:
    lines = distinct_texts(80)
    for n, name in enumerate(("late", "broken")):
        write_file(tmp_path / "in" / f"{name}.txt", "\n".join(lines[n * 40 : n * 40 + 40]))
    for source in ("path: in, sample_by: line", "paths: [in/late.txt, in/broken.txt]"):
        splits, _ = prepare_data(tmp_path, f"{{source: {{{source}}}}}")
        rows = [row for name in SPLITS for row in splits[name]]
        assert {row["input"]["text"]: row["target"] for row in rows} == {
            text: "late" if n < 40 else "broken" for n, text in enumerate(lines)
        }


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (["train/late.txt", "test/late.txt"], {"late"}),
        (["late/train.txt", "late/test.txt"], {"late"}),
        (["late_train.txt", "late_test.txt"], {"late"}),
        (["late/1.txt.gz"], {"1"}),
        (["training.txt"], {"training"}),
    ],
)
def test_a_name_of_a_split_is_no_label(tmp_path: Path, files: list[str], labels: set[str]) -> None:
    for name in files:
        write_file(tmp_path / name, "hello")
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress(b"hello"))
    assert {row.values["label"] for row in read_rows(Source(path=str(tmp_path), sample_by="line"))} == labels


def test_several_text_files_are_refused_until_the_recipe_says_what_they_hold(tmp_path: Path) -> None:
    write_reviews(tmp_path)
    with raises_error(
        RecipeError, "INS-D020", match=r"61 .txt files. data.source.sample_by: document .* sample_by: line"
    ):
        find_files(Source(path=str(tmp_path)))


def test_text_files_beside_other_data_are_notes(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled_rows(4))
    write_file(tmp_path / "LICENSE.txt", "all rights")
    source = Source(path=str(tmp_path))
    assert [file.name for file in find_files(source)] == ["rows.jsonl"]
    assert find_ignored_files(source) == ["LICENSE.txt"]


def test_text_files_that_the_recipe_describes_are_tables(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "spam\twin, now\nham\tsee you\n")
    write_file(tmp_path / "b.txt", "ham\tok\n")
    (tmp_path / "~$rows.xlsx").write_bytes(b"left by Excel")
    source = Source(path=str(tmp_path), header=["label", "text"])
    assert [(row.line, row.values) for row in read_rows(source)] == [
        (1, {"label": "spam", "text": "win, now"}), (2, {"label": "ham", "text": "see you"}),
        (1, {"label": "ham", "text": "ok"}),
    ]  # fmt: skip
    assert find_ignored_files(source) == ["~$rows.xlsx"]
    write_file(tmp_path / "c" / "c.txt", "label::text\nham::hello\n")
    source = Source(path=str(tmp_path / "c" / "c.txt"), delimiter="::", quotes=False)
    assert [row.values for row in read_rows(source)] == [{"label": "ham", "text": "hello"}]


def test_documents_of_one_folder_are_named_once(tmp_path: Path) -> None:
    write_reviews(tmp_path)
    paths = [str(tmp_path / "pos" / "*1.txt"), str(tmp_path / "pos" / "*3.txt")]
    with raises_error(RecipeError, "INS-D005", match="are the same folder"):
        find_files(Source(paths=paths, sample_by="document"))


@pytest.mark.parametrize("setting", ["quotes: ',', delimiter: ','", "delimiter: '::'", "quotes: ab", "sample_by: word"])
def test_dialects_that_cannot_be_are_refused_with_their_key(tmp_path: Path, setting: str) -> None:
    task = "task: {kind: classification, instruction: Say what it is about.}\nmodel: {base: pocket}"
    write_file(tmp_path / "r.yaml", f"{task}\ndata: {{source: {{path: rows.csv, {setting}}}}}\n")
    with raises_error(RecipeError, "INS-R001", match=r"data.source"):
        load(str(tmp_path / "r.yaml"), (), "cpu")
