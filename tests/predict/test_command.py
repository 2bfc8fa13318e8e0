"""Bulk prediction by the command, against a server on loopback that answers as a linear model does."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.answers import label_tree
from insource.backends import failures
from insource.config.errors import RecipeError, StageError
from insource.system import atomic_files
from insource.tasks import load_task_spec
from predict.rows import inputs, output
from predict.rows.column_types import ColumnTypes
from tests.helpers.errors import raises_error
from tests.helpers.gateway import task_gateway
from tests.helpers.gateway.stand_in_engine import StandInEngine, serve_engine
from tests.helpers.prediction_rows import TEXTS, linear_predictions, make_rows
from tests.helpers.prediction_run import PredictionRun, make_run, read_output, write_csv


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are small, and waits short."""
    monkeypatch.setattr(inputs, "SEGMENT_ROWS", 50)
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def prediction_run(tmp_path: Path) -> PredictionRun:
    return make_run(tmp_path)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine(lambda text: linear_predictions().get(text, ("late", 0.6)))


@pytest.fixture
def address(engine: StandInEngine) -> Iterator[str]:
    with serve_engine(engine) as address:
        yield address


@pytest.mark.parametrize("output", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_every_row_comes_out_in_its_place_with_its_columns_and_what_the_engine_says_of_it(
    prediction_run: PredictionRun, engine: StandInEngine, address: str, output: str
) -> None:
    texts = [*TEXTS, *reversed(TEXTS[:60])]
    output_rows = read_output(
        prediction_run.predict(write_csv(prediction_run.folder / "in.csv", make_rows(texts)), output, address)
    )
    assert [row["message"] for row in output_rows] == texts
    assert [row["number"] for row in output_rows] == [str(index) for index in range(300)]
    assert [row["answer"] for row in output_rows] == [linear_predictions()[text][0] for text in texts]
    for row in output_rows:
        assert float(row["confidence"]) == pytest.approx(linear_predictions()[row["message"]][1])
        assert row["answered_by"] == "local" and not row["refused"]
    assert list(output_rows[0]) == ["number", "message", "answer", "confidence", "answered_by", "abstain", "refused"]
    assert engine.max_in_flight <= 32 and not list(prediction_run.output_path(output).parent.glob(".*")), (
        "nothing is left beside it"
    )
    assert not list(prediction_run.run.folder.parent.glob(".predict/*"))


def test_whatever_preparation_reads_goes_in_and_the_answers_are_the_same(
    prediction_run: PredictionRun, address: str
) -> None:
    rows = make_rows(TEXTS[:90])
    folder = prediction_run.folder / "many" / "deep"
    folder.mkdir(parents=True)
    write_csv(prediction_run.folder / "many" / "1.csv", rows[:30])
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows[30:60]).encode())
    (prediction_run.folder / "many" / "2.jsonl.gz").write_bytes(packed)
    pq.write_table(pa.Table.from_pylist(rows[60:]), folder / "3.parquet")
    (prediction_run.folder / "many" / "notes.md").write_text("no data", encoding="utf-8")
    combined = read_output(prediction_run.predict(prediction_run.folder / "many", "whole.jsonl", address))
    assert [row["message"] for row in combined] == TEXTS[:90]
    assert [row["answer"] for row in combined] == [linear_predictions()[text][0] for text in TEXTS[:90]]
    assert [type(row["number"]) for row in combined[::30]] == [str, int, int], "values stay as their format has them"
    from_pattern = read_output(prediction_run.predict(prediction_run.folder / "many" / "*.*", "glob.parquet", address))
    assert [row["number"] for row in from_pattern] == [str(index) for index in range(60)], (
        "numbers and texts are texts in a table"
    )
    from_parquet = read_output(prediction_run.predict(folder / "3.parquet", "one.parquet", address))
    assert [row["number"] for row in from_parquet] == list(range(60, 90))


def test_a_row_that_cannot_be_asked_says_why_and_the_others_are_answered(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    engine.answer = lambda text: ("pear" if "fruit" in text else "late", 0.9)
    engine.refusal_status = lambda text, attempts: {"too long": 400, "poison": 500}.get(text, 0)
    lines = ['{"message": "fine"}', '{"message": "   "}', "{no json", '{"message": ["a", "list"]}', '{"other": 1}']
    lines += ['{"message": "nul \\u0000 byte"}', '{"message": "fruit"}', '{"message": "too long"}']
    lines += ['{"message": "poison"}', '{"message": "fine too"}', json.dumps({"message": "x" * 70_000})]
    (prediction_run.folder / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with raises_error(StageError, "INS-P006", match="1 rows got no answer"):
        prediction_run.predict(prediction_run.folder / "in.jsonl", "out.jsonl", address)
    assert not prediction_run.output_path("out.jsonl").exists()
    output_rows = read_output(prediction_run.predict(prediction_run.folder / "in.jsonl", "out.jsonl", address))
    assert engine.answer_counts["fine"] == 1 and engine.request_counts["poison"] == 12
    assert len(output_rows) == len(lines)
    codes = [row["refused"] and row["refused"].partition(":")[0] for row in output_rows]
    refused = ["unusable_input", "unreadable", "bad_text", "unusable_input", "unusable_input", "invalid_answer"]
    assert codes == [None, *refused, "refused_input", "no_answer", None, "unusable_input"]
    assert "in.jsonl:3: not JSON" in output_rows[2]["refused"] and "not_a_label" in output_rows[6]["refused"]
    assert all((row["answer"] is None) is (row["refused"] is not None) for row in output_rows)
    assert output_rows[4]["other"] == 1 and "message" not in output_rows[4]
    queried = {"fine", "fruit", "too long", "poison", "fine too"}
    assert set(engine.request_counts) == queried, "the rest never reached the engine"
    metadata = atomic_files.read_json(prediction_run.output_path("out.jsonl.about.json"))
    counts = {"invalid_answer": 1, "no_answer": 1, "refused_input": 1, "unreadable": 1, "bad_text": 1}
    assert metadata["rows"] == 11 and metadata["refused"] == counts | {"unusable_input": 4}
    assert metadata["run_id"] == prediction_run.run.id and metadata["input"][0]["rows"] == 11


def test_a_record_has_the_types_of_its_schema_and_json_in_a_table_of_texts(tmp_path: Path) -> None:
    schema = """{type: object, required: [number, paid], properties: {number: {type: string, maxLength: 9},
      paid: {type: boolean}, total: {type: number}, items: {type: array, maxItems: 3, items: {type: object,
      required: [sku], properties: {sku: {type: string, maxLength: 9}, pieces: {type: integer}}}}}}"""
    task = f"{{kind: extraction, instruction: Read the order as it stands., json_schema: {schema}}}"
    prediction_run = make_run(tmp_path, task=task, columns="{text: message}")
    record = {"number": "A7", "paid": True, "total": 12.5, "items": [{"sku": "x", "pieces": 2}]}
    engine = StandInEngine(lambda text: (json.dumps(record), 0.9))
    rows = write_csv(tmp_path / "in.csv", make_rows(["order A7", "again A7"]))
    with serve_engine(engine) as address:
        table = pq.read_table(prediction_run.predict(rows, "out.parquet", address))
        csv_rows = read_output(prediction_run.predict(rows, "out.csv", address))
    assert table.column("answer").to_pylist() == [record, record]
    assert table.schema.field("answer").type.field("items").type.value_type.field("pieces").type == pa.int64()
    assert [json.loads(row["answer"]) for row in csv_rows] == [record, record]


def test_the_probability_of_every_label_on_request(tmp_path: Path, tokenizer: Any, engine: StandInEngine) -> None:
    prediction_run = make_run(tmp_path, tokenizer)
    rows = write_csv(tmp_path / "in.csv", make_rows(TEXTS[:5]))
    with serve_engine(engine) as address:
        output_rows = read_output(prediction_run.predict(rows, "out.parquet", address, "--probabilities"))
        csv_rows = read_output(prediction_run.predict(rows, "out.csv", address, "--probabilities"))
    module, spec = load_task_spec(atomic_files.read_json(prediction_run.run.folder / "adapter" / "prompt.json")["task"])
    tokens = label_tree.TaskTokens(prediction_run.run.folder / "adapter", module, spec)
    for row, text in zip(output_rows, TEXTS, strict=False):
        ids, tree = tokens.encode(text)
        log_probabilities = {
            prefix: {token: task_gateway.fake_log_probability([*ids, *prefix], token) for token in choices}
            for prefix, choices in tree.choices.items()
        }
        assert row["probabilities"] == pytest.approx(tree.probabilities(log_probabilities))
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert json.loads(csv_rows[0]["probabilities"]) == pytest.approx(output_rows[0]["probabilities"])


def test_what_the_recipe_redacts_reaches_neither_engine_nor_output(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    mail = "ann.smith@example.org"
    rows = [{"id": mail, "message": f"write to {mail}", "note": f"from {mail}", "n": "7"}] * 2
    path = prediction_run.predict(write_csv(prediction_run.folder / "in.csv", rows), "out.csv", address)
    assert mail not in path.read_text(encoding="utf-8") and engine.inputs == ["write to [EMAIL_1]"]
    first, second = read_output(path)
    assert first["id"] == second["id"] != mail, "the same value has the same pseudonym, by which rows join"
    assert first["message"] == "write to [EMAIL_1]" and first["n"] == "7"


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", "out.parquet"])
def test_what_the_recipe_redacts_is_in_no_name_of_a_column_and_no_key(
    prediction_run: PredictionRun, address: str, output: str
) -> None:
    ann, bob = "ann.smith@example.org", "bob@example.org"
    rows = [{"message": TEXTS[0], f"told {ann}": "yes", "by": {ann: {"to": {bob: 2}}, bob: 1}}] * 2
    (prediction_run.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = prediction_run.predict(prediction_run.folder / "in.jsonl", output, address)
    assert not [mail for mail in (ann, bob) if mail.encode() in path.read_bytes()]
    first = read_output(path)[0]
    pseudonyms = first["by"] if isinstance(first["by"], dict) else json.loads(first["by"])
    (nested,) = (value for value in pseudonyms.values() if isinstance(value, dict))
    assert len(pseudonyms) == 2 and len(first) == 8 and set(nested["to"]) < set(pseudonyms), "one person, one pseudonym"
    assert ann not in path.with_name(f"{output}.about.json").read_text(encoding="utf-8")


def test_where_a_column_has_one_of_our_names_ours_are_prefixed(prediction_run: PredictionRun, address: str) -> None:
    rows = [{"message": text, "answer": "of a person"} for text in TEXTS[:3]]
    output_rows = read_output(
        prediction_run.predict(write_csv(prediction_run.folder / "in.csv", rows), "out.jsonl", address)
    )
    assert [row["answer"] for row in output_rows] == ["of a person"] * 3
    assert [row["predicted_answer"] for row in output_rows] == [linear_predictions()[text][0] for text in TEXTS[:3]]


def test_chats_are_asked_without_their_answer_and_one_row_keeps_its_messages(
    tmp_path: Path, engine: StandInEngine
) -> None:
    prediction_run = make_run(tmp_path, columns="{messages: talk}")
    user_turn, assistant_turn = {"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "late"}
    system_turn = {"role": "system", "content": "Route it."}
    rows = [{"talk": [system_turn, user_turn]}, {"talk": [user_turn, assistant_turn]}, {"talk": [system_turn]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with serve_engine(engine) as address:
        output_rows = read_output(prediction_run.predict(tmp_path / "in.jsonl", "out.parquet", address))
    assert engine.inputs == [TEXTS[0]], "one question for both"
    assert [row["answer"] for row in output_rows] == [linear_predictions()[TEXTS[0]][0]] * 2 + [None]
    assert output_rows[1]["talk"] == [user_turn, assistant_turn] and "no user turn" in output_rows[2]["refused"]


def test_a_table_of_texts_goes_into_a_recipe_of_chats(tmp_path: Path, address: str) -> None:
    prediction_run = make_run(tmp_path, columns="{messages: messages}")
    rows = write_csv(tmp_path / "in.csv", [{"body": text} for text in TEXTS[:9]])
    with raises_error(RecipeError, "INS-D021", match="data.columns.messages: there is no column 'messages'"):
        prediction_run.predict(rows, "out.csv", address, "data.columns.text=body")
    settings = ["data.columns.messages=null", "data.columns.text=body"]
    output_rows = read_output(prediction_run.predict(rows, "out.csv", address, *settings))
    assert [row["answer"] for row in output_rows] == [linear_predictions()[text][0] for text in TEXTS[:9]]


def test_binary_columns_are_left_out_and_named(
    prediction_run: PredictionRun, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"message": TEXTS[:3], "scan": [b"\x89PNG", None, b"\xff"], "number": [1, 2, 3]})
    pq.write_table(table, prediction_run.folder / "in.parquet")
    output_rows = read_output(prediction_run.predict(prediction_run.folder / "in.parquet", "out.parquet", address))
    assert [(row["message"], row["number"]) for row in output_rows] == [*zip(TEXTS[:3], [1, 2, 3], strict=True)]
    assert "scan" not in output_rows[0] and "in.parquet: not in the output" in capsys.readouterr().err
    about = atomic_files.read_json(prediction_run.output_path("out.parquet.about.json"))
    assert about["input"][0]["columns_not_read"] == ["scan"]


def test_called_again_it_asks_for_nothing_until_rows_or_wishes_change(
    prediction_run: PredictionRun,
    engine: StandInEngine,
    address: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:80]))
    path = prediction_run.predict(rows, "out.csv", address)
    content = path.read_bytes()
    monkeypatch.chdir(prediction_run.folder)
    prediction_run.predict("in.csv", "out.csv", address)
    assert engine.answer_counts.total() == 80 and path.read_bytes() == content
    assert "unchanged" in capsys.readouterr().err
    prediction_run.predict(rows, "out.csv", address, "--fresh")
    assert engine.answer_counts.total() == 160 and path.read_bytes() == content
    prediction_run.predict(write_csv(rows, make_rows(TEXTS[:70])), "out.csv", address)
    assert engine.answer_counts.total() == 230 and len(read_output(path)) == 70
    path.write_text("a,b\n", encoding="utf-8")
    with raises_error(RecipeError, "INS-R015", match="FORCE=1"):
        prediction_run.predict(rows, "out.csv", address)
    prediction_run.predict(rows, "out.csv", address, "--force")
    assert len(read_output(path)) == 70


def test_inputs_that_begin_alike_are_asked_together_and_never_more_at_once_than_the_recipe_says(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    mixed = [f"{'abc'[index % 3]} thread, part {index}" for index in range(50)]
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(mixed))
    prediction_run.predict(rows, "one.csv", address, "compare.concurrency=1")
    assert engine.inputs == sorted(mixed) and engine.max_in_flight == 1
    prediction_run.predict(rows, "four.csv", address, "compare.concurrency=4")
    assert engine.max_in_flight <= 4


def test_an_input_that_is_changed_while_it_is_read_gives_no_output(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS))
    original = rows.read_text(encoding="utf-8")

    def change(text: str, times: int) -> int:
        rows.write_text(original.replace("239,", "0,"), encoding="utf-8")
        return 0

    engine.refusal_status = change
    with raises_error(StageError, "INS-P005", match="INPUT was changed"):
        prediction_run.predict(rows, "out.csv", address)
    assert not prediction_run.output_path("out.csv").exists() and not list(
        prediction_run.run.folder.parent.glob(".predict/*")
    )


@pytest.mark.parametrize(
    ("paths", "args", "match"),
    [
        ({"input": "no-such.csv"}, [], r"INPUT: there is no file .*no-such.csv"),
        ({"output": "out.xlsx"}, [], r"OUTPUT: given out.xlsx.*\.parquet"),
        ({"output": "../rows/out.csv"}, [], "is a part of INPUT"),
        ({}, ["data.columns.text=body"], "no column 'body'"),
        ({}, ["--engine", "spark"], "given 'spark', allowed: vllm or gateway or ray"),
        ({}, ["data.columns.messages=talk", "--probabilities"], "no column 'talk'"),
    ],
)
def test_what_cannot_be_is_refused_in_words_before_anything_is_asked_or_written(
    prediction_run: PredictionRun,
    engine: StandInEngine,
    address: str,
    paths: dict[str, str],
    args: list[str],
    match: str,
) -> None:
    folder = prediction_run.folder / "rows"
    folder.mkdir()
    write_csv(folder / "in.csv", make_rows(TEXTS[:3]))
    rows = prediction_run.folder / paths["input"] if "input" in paths else folder
    with pytest.raises(RecipeError, match=match):
        prediction_run.predict(rows, paths.get("output", "out.csv"), address, *args)
    assert engine.request_counts == Counter() and not prediction_run.output_path("").exists()


@pytest.mark.parametrize(
    ("pattern", "output", "is_part"),
    [
        ("rows/*.csv", "rows/out.csv", True),
        ("r*/*.csv", "rows/out.csv", True),
        ("**/*.csv", "out.csv", True),
        ("**/*.csv", "rows/deep/out.csv", True),
        ("rows/in*.csv", "rows/out.csv", False),
        ("rows/*.csv", "rows/out.jsonl", False),
        ("rows/*.csv", "rows/deep/out.csv", False),
    ],
)
def test_an_output_that_the_pattern_of_the_input_would_name_is_refused_at_once(
    prediction_run: PredictionRun, address: str, pattern: str, output: str, is_part: bool
) -> None:
    folder = prediction_run.folder / "rows"
    folder.mkdir()
    write_csv(folder / "in.csv", make_rows(TEXTS[:3]))
    path = prediction_run.folder / output
    if is_part:
        with raises_error(RecipeError, "INS-P002", match="is a part of INPUT"):
            prediction_run.predict(prediction_run.folder / pattern, f"../{output}", address)
        assert not path.exists()
    else:
        prediction_run.predict(prediction_run.folder / pattern, f"../{output}", address)
        assert len(read_output(path)) == 3


def test_two_predictions_at_once_into_one_output_leave_one_of_them_whole(tmp_path: Path) -> None:
    texts = {"a" * 64: "first\n", "b" * 64: "second\n"}
    for digest, text in texts.items():
        (tmp_path / digest).write_text(text, encoding="utf-8")
    layout, path = output.make_layout("jsonl", ColumnTypes(), pa.string(), []), tmp_path / "out.jsonl"
    first, second = texts

    def replace_output(joined: Path) -> None:
        output.join_parts(iter([tmp_path / second]), layout, path, second)
        assert path.read_text(encoding="utf-8") == "second\n"

    output.join_parts(iter([tmp_path / first]), layout, path, first, replace_output)
    assert path.read_text(encoding="utf-8") == "first\n" and not list(tmp_path.glob(".*"))


def test_data_that_may_not_leave_goes_to_no_other_machine(tmp_path: Path) -> None:
    prediction_run = make_run(tmp_path, may_leave="false")
    rows = write_csv(tmp_path / "in.csv", make_rows(TEXTS[:3]))
    with raises_error(RecipeError, "INS-P008", match="data_may_leave is false"):
        prediction_run.predict(rows, "out.csv", "http://gateway.example.org")
