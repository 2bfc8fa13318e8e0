"""Files and recipes that cannot be used, or not all of them: the true reason, what was given, what would do, in a few
lines."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep import data_checks, prepare
from data_prep.report import console
from data_prep.rows.timestamps import parse_epoch_seconds
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.tasks.source_record import UnusableRowError
from insource.tracking.data_report import DataReport
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import labelled_rows, prepare_data, write_rows

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0123456789abcdef" * 4 + b"\nsize 875191\n"
MAY = 1777593600.0  # 2026-05-01, in seconds since 1970


def preparation_error(folder: Path, data: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        prepare_data(folder, data, "classification", *overrides)
    lines = str(error.value).splitlines()
    assert len(lines) <= 10, "a message is a few lines"
    assert max(map(len, lines)) <= 400, "a message never shows a whole row"
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-05-01", MAY),
        ("20260501", MAY),
        ("202605010130", MAY + 5400),
        ("20260501013000", MAY + 5400),
        ("2026-05-01T02:00:00+02:00", MAY),
        ("2026-05-01 00:00:00 UTC", MAY),
        ("2026-05-01T00:00:00Z", MAY),
        ("1777593600", MAY),
        ("1777593600.5", MAY + 0.5),
        ("1777593600000", MAY),
        ("1777593600000000", MAY),
        ("1777593600000000000", MAY),
        ("-86400", -86400.0),
        ("20261301", 20261301.0),
        ("2026-05", MAY),
        ("202605", MAY),
        ("2026", MAY - 120 * 86400),
        ("-90000000000", -90000000.0),
    ],
)
def test_times_are_read_as_exports_write_them(text: str, seconds: float) -> None:
    assert parse_epoch_seconds(text, "at") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'at' is empty"),
        ("  ", "'at' is empty"),
        ("soon", "'soon' is no time"),
        ("nan", "no time"),
        ("1e300", "no time"),
        ("9999-12-31T23:59:59-05:00", "no time"),
    ],
)
def test_a_time_that_is_none_says_what_stands_there(text: str, message: str) -> None:
    with pytest.raises(UnusableRowError) as error:
        parse_epoch_seconds(text, "at")
    assert message in error.value.detail


@pytest.mark.parametrize("unit", [1, 1000, 1_000_000])
def test_a_column_of_times_in_any_unit_splits_by_time(tmp_path: Path, unit: int) -> None:
    write_rows(
        tmp_path / "rows.jsonl",
        [{**row, "at": (1777593600 + n * 86400) * unit} for n, row in enumerate(labelled_rows(80))],
    )
    splits, report = prepare_data(tmp_path, "{source: {path: rows.jsonl}, split: {time: at}}")
    assert report["split"]["cut"].startswith("2026-07-04")
    assert {row["input"]["text"] for row in splits["test"]} == set(distinct_texts(80)[64:])


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.jsonl", "rows.json", "rows.parquet", "rows.csv.gz", "rows.jsonl.zst"]
)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    assert f"{name}: this is a pointer of Git LFS" in preparation_error(tmp_path, f"{{source: {{path: {name}}}}}")


def test_a_page_that_was_saved_in_place_of_a_file_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\n<!DOCTYPE html><html><body>Please log in</body></html>", encoding="utf-8")
    assert "an HTML page" in preparation_error(tmp_path, "{source: {path: rows.csv}}")


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("gb18030", "\u8bf7\u95ee\u6211\u7684\u4fe1\u7528\u5361\u51fa\u4e86\u95ee\u9898"),
        ("cp932", "\u8377\u7269\u304c\u5c4a\u304b\u306a\u3044\u306e\u3067\u3059\u304c"),
        ("cp949", "\ud0dd\ubc30\uac00 \ub3c4\ucc29\ud558\uc9c0 \uc54a\uc558\ub294\ub370"),
    ],
)
def test_an_east_asian_file_is_refused_with_the_encoding_that_fits_and_read_with_it(
    tmp_path: Path, codec: str, text: str
) -> None:
    rows = "".join(f"{text} {n * 7919},{'ab'[n % 2]}\n" for n in range(100))
    (tmp_path / "rows.csv").write_bytes(f"text,label\n{rows}".encode(codec))
    message = preparation_error(tmp_path, "{source: {path: rows.csv}}")
    assert "the rest is UTF-8" not in message
    assert codec in message
    _, report = prepare_data(tmp_path, f"{{source: {{path: rows.csv, encoding: {codec}}}}}")
    assert report["rows"]["read"] == 100


def test_a_few_bytes_in_a_file_of_utf8_are_still_called_so(tmp_path: Path) -> None:
    rows = "".join(f"Gr\u00fc\u00dfe aus K\u00f6ln {n},a\n" for n in range(50)).encode()
    (tmp_path / "rows.csv").write_bytes(b"text,label\n" + rows + b"caf\xe9,b\n")
    assert "though the rest is UTF-8" in preparation_error(tmp_path, "{source: {path: rows.csv}}")


ROWS = labelled_rows(60)
LAYOUTS = {
    "columns": {key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ("text", "label")},
    "lists": {key: [row[key] for row in ROWS] for key in ("text", "label")},
    "index": {str(n): row for n, row in enumerate(ROWS)},
    "split": {
        "columns": ["text", "label"],
        "index": [*range(60)],
        "data": [[row["text"], row["label"]] for row in ROWS],
    },
    "wrapped": {"version": 1, "rows": ROWS},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_object_of_rows_is_read_whatever_its_layout(tmp_path: Path, layout: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(LAYOUTS[layout]), encoding="utf-8")
    splits, report = prepare_data(tmp_path, "{source: {path: rows.json}}")
    assert report["rows"]["read"] == 60
    assert {(row["input"]["text"], row["target"]) for split in splits.values() for row in split} <= {
        (row["text"], row["label"]) for row in ROWS
    }


def test_a_folder_of_one_object_a_document_and_lines_of_json_in_a_json_file_are_read(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write_rows(tmp_path / "documents" / f"{number:03}.json", [row])
    assert prepare_data(tmp_path, "{source: {path: documents}}")[1]["rows"]["read"] == 60
    write_rows(tmp_path / "lines.json", ROWS)
    assert prepare_data(tmp_path, "{source: {path: lines.json}}")[1]["rows"]["read"] == 60


@pytest.mark.parametrize("value", [{"train": [["hello", "a"]]}, {"a": 1}, {}])
def test_an_object_without_rows_says_what_it_holds_and_what_to_write(tmp_path: Path, value: Any) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(value), encoding="utf-8")
    message = preparation_error(tmp_path, "{source: {path: rows.json}}")
    assert "write JSONL" in message
    assert all(repr(key) in message for key in value)


def test_a_file_without_a_header_is_called_so_and_read_with_the_names_of_the_recipe(tmp_path: Path) -> None:
    lines = [f'"{n % 2 + 1}","{"word " * 200}{text}"' for n, text in enumerate(distinct_texts(80))]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    message = preparation_error(tmp_path, "{source: {path: rows.csv}}")
    assert "data.source.header" in message
    assert len(message) < 1000
    _, report = prepare_data(tmp_path, "{source: {path: rows.csv, header: [label, text]}}")
    assert report["rows"]["read"] == 80
    assert set(report["labels"]) == {"1", "2"}


def test_a_misspelt_column_of_a_file_with_a_header_is_not_called_a_missing_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,lable\nhello,a\n", encoding="utf-8")
    message = preparation_error(tmp_path, "{source: {path: rows.csv}}")
    assert "did you mean 'lable'?" in message
    assert "header" not in message.replace("lacks columns", "")


@pytest.mark.parametrize("labels", [["only"], ["only", "Only ", "only"]])
def test_a_single_label_is_no_choice(tmp_path: Path, labels: list[str]) -> None:
    write_rows(
        tmp_path / "rows.jsonl", [{**row, "label": labels[n % len(labels)]} for n, row in enumerate(labelled_rows(60))]
    )
    assert "all 60 rows have the label 'only'" in preparation_error(tmp_path, "{source: {path: rows.jsonl}}")


def test_a_label_that_left_says_why(tmp_path: Path) -> None:
    long_rows = [{"text": f"{text} " * 40, "label": "long"} for text in distinct_texts(12)]
    write_rows(tmp_path / "rows.jsonl", [*labelled_rows(90), *long_rows])
    message = preparation_error(
        tmp_path, "{source: {path: rows.jsonl}, deduplicate: {near: 1}}", "train.max_length=200"
    )
    assert "'long': 12 rows, none left in train (too_long " in message
    assert "train.max_length is 200" in message
    assert "does not occur" not in message


def test_a_label_of_the_given_test_file_alone_says_where_it_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", labelled_rows(90))
    write_rows(tmp_path / "test.jsonl", [{**row, "label": "c"} for row in labelled_rows(110)[90:]])
    message = preparation_error(tmp_path, "{source: {train: train.jsonl, test: test.jsonl}}")
    assert "'c': 20 rows, none left in train (test 20)" in message


def test_of_many_missing_columns_some_are_shown(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled_rows(40))
    slices = ", ".join(f"s{n}: {{by: column_{n}}}" for n in range(30))
    message = preparation_error(tmp_path, f"{{source: {{path: rows.jsonl}}, slices: {{{slices}}}}}")
    assert "and 24 more" in message


def test_labels_that_fill_the_prompt_by_themselves_are_the_reason_told(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": f"{'a genre of films and ' * 8}{n // 2}"} for n, text in enumerate(distinct_texts(240))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    message = preparation_error(tmp_path, "{source: {path: rows.jsonl}}")
    assert "(its instruction and 120 labels)" in message
    assert "train.max_length" in message


def test_of_many_labels_with_too_few_rows_ten_are_shown(tmp_path: Path) -> None:
    rows = [{"text": text, "label": f"label {n}"} for n, text in enumerate(distinct_texts(40))]
    write_rows(tmp_path / "rows.jsonl", rows)
    message = preparation_error(tmp_path, "{source: {path: rows.jsonl}}")
    assert "labels with too few rows (the first 5 of 40)" in message
    assert message.count("occurs once") == data_checks.MAX_LABELS_SHOWN


def test_what_the_hardware_file_replaces_is_told_and_named_where_rows_left_by_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "text": f"{row['text']} " * 400} for row in labelled_rows(60)])
    (tmp_path / "r.yaml").write_text(
        "task: {kind: classification, instruction: Say what it is about.}\nmodel: {base: pocket}\n"
        "train: {max_length: 8192}\ndata: {source: {path: rows.jsonl}, deduplicate: {near: 1}}\n",
        encoding="utf-8",
    )
    loaded = load(str(tmp_path / "r.yaml"), (), "cpu")
    with raises_error(
        RecipeError, "INS-D026", match=r"train.max_length is 2048 \(train.max_length: 2048 by .*cpu.yaml, not 8192\)"
    ):
        prepare.main(loaded.recipe, tmp_path / "runs", loaded.overridden)


def test_rows_that_no_served_model_could_be_asked_leave_and_those_of_test_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']} " * (40 if n % 4 == 0 else 1)} for n, row in enumerate(labelled_rows(200))]
    write_rows(tmp_path / "rows.jsonl", rows)
    data = "{source: {path: rows.jsonl}, deduplicate: {near: 1}, split: {validation: 0.2, calibration: 0.2}}"
    splits, report = prepare_data(tmp_path, data, "classification", "serve.max_model_len=300")
    max_lengths = {name: max(len(row["input"]["text"]) for row in splits[name]) for name in splits}
    assert max_lengths["validation"] < 100 > max_lengths["calibration"]
    assert max_lengths["train"] > 1000 < max_lengths["test"]
    served = report["tokens"]["served"]
    assert served["test_rows_that_do_not_fit"] == sum(len(row["input"]["text"]) > 1000 for row in splits["test"])
    summary = console.format_summary(DataReport(**report), "prepared")
    assert "too_long_to_serve: more than serve.max_model_len (300 tokens, 64 of them for the answer)" in summary
    assert f"{served['test_rows_that_do_not_fit']} test rows are more than serve.max_model_len" in summary
    n_long = sum(len(row["input"]["text"]) > 1000 for row in splits["train"])
    assert (
        f"{n_long} train rows are more than serve.max_model_len" in summary
        and "trained on, but not servable" in summary
    )


@pytest.mark.parametrize("extra", ["", ", split: {time: at}"])
def test_a_source_of_which_no_row_can_be_used_is_refused_however_many_may_be_rejected(
    tmp_path: Path, extra: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "label": "", "at": "2026-01-01"} for row in labelled_rows(30)])
    message = preparation_error(tmp_path, f"{{source: {{path: rows.jsonl}}, max_rejected: 0.99{extra}}}")
    assert "30 of 30 rows cannot be used (no_label 30)" in message


def test_what_the_base_can_look_at_is_a_limit_too(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(POCKET, base, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 300}), encoding="utf-8")
    rows = [{**row, "text": f"{row['text']} " * (40 if n % 4 == 0 else 1)} for n, row in enumerate(labelled_rows(200))]
    write_rows(tmp_path / "rows.jsonl", rows)
    data = "{source: {path: rows.jsonl}, deduplicate: {near: 1}, split: {validation: 0.2, calibration: 0.2}}"
    splits, report = prepare_data(tmp_path, data, "classification", f"model.base={base}")
    assert max(len(row["input"]["text"]) for row in splits["validation"]) < 100
    assert "too_long_to_serve: more than what model.base can process (300 tokens" in console.format_summary(
        DataReport(**report), "x"
    )
    # train.max_length is more, and yet nothing can be learnt of what is not looked at.
    assert max(len(row["input"]["text"]) for row in splits["train"]) < 100
    assert report["rows"]["dropped"]["too_long_for_base"] > 10 and report["tokens"]["max_length"] > 1000
    assert "too_long_for_base: more than model.base can process, though train.max_length is" in console.format_summary(
        DataReport(**report), "x"
    )
    with raises_error(
        RecipeError, "INS-D031", match=r"train rows are longer than what model.base can process \(300 tokens\)"
    ):
        prepare_data(tmp_path, f"{data[:-1]}, too_long: fail}}", "classification", f"model.base={base}")


def test_limits_of_a_schema_may_be_written_as_json_schema_takes_them() -> None:
    from insource.config.schema.data import Task

    fields = {"who": {"type": "array", "maxItems": 3.0, "items": {"type": "string", "maxLength": 30.0}}}
    schema = {"type": "object", "properties": fields}
    task = Task.model_validate({"kind": "extraction", "instruction": "Read the fields.", "json_schema": schema})
    assert json.dumps(task.json_schema) == json.dumps(schema).replace("30.0", "30").replace("3.0", "3")
    with pytest.raises(ValueError, match="not JSON Schema"):
        Task.model_validate(
            {"kind": "extraction", "instruction": "Read it, please.",
             "json_schema": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 2.5}}}}
        )  # fmt: skip


@pytest.mark.parametrize(
    "merged", ["{<<: *shared, model: large}", "{model: large, <<: *shared}", "{<<: [*shared], model: large}"]
)
def test_settings_that_a_recipe_shares_by_a_merge_key_are_merged(tmp_path: Path, merged: str) -> None:
    write_rows(tmp_path / "rows.jsonl", labelled_rows(10))
    (tmp_path / "r.yaml").write_text(
        "task: {kind: classification, instruction: Say what it is about.}\nmodel: {base: pocket}\n"
        "data: {source: {path: rows.jsonl}}\ncompare:\n  baselines:\n"
        '    - &shared {provider: openai, model: small, base_url: "https://models.example.com/v1", api_key_env: KEY}\n'
        f"    - {merged}\n",
        encoding="utf-8",
    )
    small, large = load(str(tmp_path / "r.yaml"), (), "cpu").recipe.compare.baselines
    assert (small.model, large.model) == ("small", "large")
    assert small.base_url == large.base_url
