"""Answers that one has as CSV, TSV, JSON and Parquet: read as data files are, and refused with their place."""

import csv
import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compare.systems.answer_file import ReadingRules
from insource.config.errors import RecipeError
from insource.config.schema.data import Formats
from insource.tasks import TASKS
from tests.compare.test_answer_file import TARGETS, gathered, material, right, written

FIGURES = {"input_tokens": 231, "output_tokens": 5, "cost_usd": 0.0004, "latency_seconds": 0.8, "confidence": 0.9}


def as_table(targets: dict[str, str], delimiter: str, **figures: Any) -> str:
    rows = [["id", "output", *figures], *([row_id, target, *figures.values()] for row_id, target in targets.items())]
    content = io.StringIO()
    csv.writer(content, delimiter=delimiter, lineterminator="\r\n").writerows(rows)
    return content.getvalue()


def in_format(folder: Path, name: str, targets: dict[str, Any], **figures: Any) -> Path:
    """The answers as a file of that name."""
    rows = [{"id": row_id, "output": target, **figures} for row_id, target in targets.items()]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
        return folder / name
    texts = {
        "csv": lambda: as_table(targets, ",", **figures),
        "semicolons.csv": lambda: as_table(targets, ";", **figures),
        "tsv": lambda: as_table(targets, "\t", **figures),
        "json": lambda: json.dumps(rows, indent=1),
        "wrapped.json": lambda: json.dumps({"made": "2026-11-01", "answers": rows}),
    }
    content = texts[name.removesuffix(".gz").removeprefix("answers.")]().encode()
    return written(folder, gzip.compress(content) if name.endswith(".gz") else content, name)


FORMATS = ["csv", "semicolons.csv", "tsv", "json", "wrapped.json", "csv.gz", "json.gz", "parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_that_data_may_have_is_read_with_its_figures(tmp_path: Path, name: str) -> None:
    targets = TARGETS | {"r0": 'I cannot say;\nit is, \u2028 "late"'}
    path = in_format(tmp_path, f"answers.{name}", targets, **FIGURES)
    responses = gathered(path, price={"input_usd_per_million": 1, "output_usd_per_million": 10})
    assert (
        responses.complete
        and right(responses) == pytest.approx(8 / 9)
        and responses.test_answers[0].output == targets["r0"]
    )
    answer = responses.test_answers[1]
    assert {figure: getattr(answer, figure) for figure in FIGURES} == FIGURES and type(answer.input_tokens) is int
    assert not responses.notes


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_table_is_decoded_as_its_bytes_say(tmp_path: Path, encoding: str) -> None:
    responses = gathered(written(tmp_path, as_table(TARGETS, ";").encode(encoding), "answers.csv"))
    assert right(responses) == 1 and bool(responses.notes) is (encoding == "cp1252")


def test_what_a_table_has_for_no_value(tmp_path: Path) -> None:
    """An empty cell is no figure, and as an answer an empty one; null of Parquet and JSON is a refusal."""
    path = written(tmp_path, as_table(TARGETS | {"r0": ""}, ",", cost_usd="", model_id=""), "answers.csv")
    responses = gathered(path)
    assert responses.test_answers[1].cost_usd is None and responses.test_answers[1].model_id == "today"
    assert (responses.test_answers[0].output, responses.test_answers[0].finish_reason) == ("", "stop")
    for name in ("answers.json", "answers.parquet"):
        responses = gathered(in_format(tmp_path, name, TARGETS | {"r0": None}, cost_usd=None))
        assert (responses.test_answers[0].output, responses.test_answers[0].finish_reason) == (
            "",
            "refusal",
        ) and responses.complete
    frame = pa.table({"id": [*TARGETS], "output": [*TARGETS.values()], "cost_usd": [float("nan")] * 9})
    pq.write_table(frame, tmp_path / "pandas.parquet")
    assert gathered(tmp_path / "pandas.parquet").test_answers[0].cost_usd is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,output\nr0,a\nr1,b\nr0,c\n", "a.csv:4: id 'r0' is in line 2 already"),
        ("a.csv", "id,answer\nr0,a\n", "a.csv:2: needs id and output, but has no output: id, answer"),
        ("a.csv", "id,output\nr0,a,b\n", "a.csv:2: 3 fields where the header has 2"),
        ("a.csv", 'id,output\nr0,"a\n', "a.csv:2: not CSV: a quote that opens in this row is never closed"),
        ("a.csv", "id,output,cost_usd\nr0,a,NaN\n", "a.csv:2: id 'r0': cost_usd is nan; give a number"),
        ("a.csv", "id,output,cost_usd\nr0,a,1_000\n", "a.csv:2: id 'r0': cost_usd is 1_000; give a number"),
        ("a.csv", "id,output,input_tokens\nr0,a,1.5\n", "a.csv:2: id 'r0': input_tokens is 1.5; give a whole number"),
        ("a.csv", "id,output\n,a\n", "a.csv:2: id is ''; give the id of a test row"),
        ("a.json", '[{"id": "r0", "output": "a"}, {"id": "r0", "output": "b"}]', "a.json:2: id 'r0' is in row 1"),
        ("a.json", '[{"id": "r0", "output": "a", "cost_usd": NaN}]', "a.json:1: NaN, which is not JSON; write null"),
        ("a.json", '{"r0": "a"}', "a.json:1: an object without rows: it has 'r0' (a text)"),
        ("a.json", '[{"id": "r0", "output": "\\ud800"}]', "a.json:1: half of a surrogate pair"),
        ("a.parquet", "id,output\nr0,a\n", "a.parquet: not Parquet, or a damaged one"),
    ],
)
def test_what_a_table_or_a_json_file_cannot_have_is_told_with_its_place(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        gathered(written(tmp_path, content, name))
    assert message in str(error.value) and "data.source" not in str(error.value)


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.json", "answers.csv", "answers.tsv"])
def test_records_are_read_by_the_formats_of_the_data(tmp_path: Path, name: str) -> None:
    """What one pays for today writes numbers and dates as the data do; a text in JSON lines is what a model said."""
    schema = {
        "type": "object",
        "properties": {
            "total": {"type": "number"},
            "currency": {"type": "string", "maxLength": 5},
            "issued": {"type": "string", "maxLength": 10},
        },
    }
    task: Any = SimpleNamespace(instruction="Read.", json_schema=schema, normalizers={}, absent="null")
    spec = TASKS["extraction"].make_spec(task, {})
    dataset = material({"a": {"total": 1234, "currency": "EUR", "issued": "2026-05-01"},
                   "b": {"total": 0.5, "currency": None, "issued": None}}, "extraction", spec)  # fmt: skip
    formats = Formats(decimal=",", amounts={"total": "currency"}, dates={"issued": "%d.%m.%Y"})
    rules = ReadingRules(formats=formats, json_schema=schema)
    # Without the format 1.234 would be a little more than one.
    rows = {"a": {"total": "EUR 1.234", "issued": "01.05.2026"}, "b": {"total": "0,5"}}
    if name.endswith("json"):
        content = json.dumps([{"id": key, "output": row} for key, row in rows.items()])
    elif name.endswith("jsonl"):
        content = "".join(json.dumps({"id": key, "output": row}) + "\n" for key, row in rows.items())
    else:
        content = as_table({key: json.dumps(row) for key, row in rows.items()}, "\t" if name.endswith("tsv") else ",")
    responses = gathered(written(tmp_path, content, name), rules, dataset)
    assert right(responses, dataset) == 1
    assert responses.notes == ["today: numbers or dates of 2 answers are read as data.formats says"]
    assert right(gathered(tmp_path / name, ReadingRules(json_schema=schema), dataset), dataset) == 0
    model_output = "".join(json.dumps({"id": key, "output": json.dumps(row)}) + "\n" for key, row in rows.items())
    responses = gathered(written(tmp_path, model_output), rules, dataset)
    assert right(responses, dataset) == 0 and not responses.notes


def test_a_record_that_its_format_does_not_fit_is_a_wrong_answer_and_no_error(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "number"}}}
    task: Any = SimpleNamespace(instruction="Read.", json_schema=schema, normalizers={}, absent="null")
    spec = TASKS["extraction"].make_spec(task, {})
    dataset = material({"a": {"total": 12.5}}, "extraction", spec)
    rules = ReadingRules(formats=Formats(decimal=","), json_schema=schema)
    responses = gathered(written(tmp_path, '{"id": "a", "output": {"total": "12.5"}}\n'), rules, dataset)
    assert responses.complete and right(responses, dataset) == 0 and not responses.notes
