"""Extraction: what a schema may ask, what a record is, what an answer may be, and how it is scored."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from demo_data import purchase_documents
from insource.config.load import RECIPES, load
from insource.config.metric_names import select_metrics
from insource.config.schema.data import Task
from insource.system import atomic_files
from insource.tasks import extraction
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tasks.records.normalizers import normalize
from insource.tasks.rendering import chat_template
from insource.tracking import run as runs
from insource.tracking.prompt_spec import ReferenceFile
from tests.conftest import Command
from tests.helpers.grammars import check_spelling, matches, sample_text
from tests.helpers.property_tests import examples
from train import launch, run_data, worker
from train.export import adapter
from train.packing.packing_plan import TokenizedRow

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["order", "bill"], "description": "what it is"},
        "seller": {"type": "string", "maxLength": 12},
        "total": {"type": "number"},
        "pages": {"type": ["integer", "null"]},
        "paid": {"type": "boolean"},
        "codes": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 4}},
    },
    "required": ["kind", "seller", "pages"],
}
EMPTY = {"kind": "bill", "seller": "Ho", "total": None, "pages": None, "paid": None, "codes": None}


def task(schema: dict[str, Any] = SCHEMA, **kwargs: Any) -> Task:
    return Task(kind="extraction", instruction="Read the document.", json_schema=schema, **kwargs)


SPEC = extraction.make_spec(task(), {})


def field_schema(**field: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": field}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {}}, "needs type: object and properties"),
        ({"type": "array", "items": {}}, "not supported: items"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "is not JSON Schema"),
        (field_schema(type="string"), "a: a string needs maxLength"),
        (field_schema(type="string", maxLength=5, pattern="x"), "not supported: pattern"),
        (field_schema(type="object", properties={}), "a: needs type: object and properties"),
        (field_schema(**{"$ref": "#/x"}), "not supported: $ref"),
        (field_schema(oneOf=[{"type": "string"}]), "not supported: oneOf"),
        (field_schema(type=["string", "number"]), "not supported: type"),
        (field_schema(description="x"), "needs type or enum"),
        (field_schema(type="array", items={"type": "integer"}), "an array needs maxItems"),
        (field_schema(type="array", maxItems=2), "items: needs one type"),
        (field_schema(type="array", maxItems=2, items={"type": "array", "maxItems": 1}), "items: not supported"),
        (field_schema(enum=["a", "a"]), "texts that differ"),
        (field_schema(enum=[1, 2]), "an enum of anything but texts"),
        (field_schema(type="integer", minimum=1), "not supported: minimum"),
        (field_schema(type="integer") | {"required": ["b"]}, "required names 'b'"),
        (field_schema(type="integer") | {"additionalProperties": True}, "must be false or absent"),
        ({"type": "object", "properties": {"a\nb": {"type": "integer"}}}, "one line of a prompt"),
        ({"type": "object", "properties": {"a": True}}, "instead of a type"),
    ],
)
def test_a_schema_that_answers_cannot_be_held_to_is_refused_by_name(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match="json_schema") as error:
        task(schema)
    assert message in str(error.value)


def test_normalizers_name_fields_that_exist_and_belong_to_extraction() -> None:
    with pytest.raises(ValidationError, match="there is no field 'sellr'; there are kind, seller"):
        task(normalizers={"sellr": ["case"]})
    with pytest.raises(ValidationError, match="belong to kind extraction"):
        Task(kind="classification", instruction="Route the message.", normalizers={"a": ["case"]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keywords = st.sampled_from(["type", "properties", "required", "items", "enum", "maxLength", "maxItems", "a", "$ref"])
kinds = st.sampled_from(["object", "string", "array", "null", "number"])
schemas = st.recursive(
    json_values | kinds | st.lists(kinds, max_size=2),
    lambda inner: st.dictionaries(keywords, inner, max_size=4),
    max_leaves=8,
)


@examples(200)
@given(st.dictionaries(keywords, schemas, max_size=4))
def test_no_schema_crashes_the_check(schema: dict[str, Any]) -> None:
    try:
        task(schema)
    except ValidationError:
        return
    assert extraction.grammar(extraction.make_spec(task(schema), {}))


def test_the_prompt_is_instruction_fields_and_the_input_last() -> None:
    assert extraction.messages(SPEC, {"text": "Bill of Ho"}) == [
        {
            "role": "user",
            "content": "Read the document.\n\nFields:\n"
            '- kind (one of "order", "bill"): what it is\n'
            "- seller (text of at most 12 characters)\n"
            "- total (a number, or null)\n"
            "- pages (a whole number, or null)\n"
            "- paid (true or false, or null)\n"
            "- codes (a list of at most 3, each text of at most 4 characters, or null)\n\n"
            "Answer with one JSON object that has exactly these keys, in this order.\n\nInput:\nBill of Ho",
        }
    ]


def test_a_record_is_made_canonical() -> None:
    record = {
        "paid": "TRUE",
        "seller": " Ho \r\n Co ",
        "total": "12.50",
        "pages": "",
        "kind": "bill",
        "codes": ["a ", ""],
    }
    assert extraction.canonical_record(extraction.make_spec(task(), {}), record) == {
        "kind": "bill", "seller": "Ho\nCo", "total": 12.5, "pages": None, "paid": True, "codes": ["a"],
    }  # fmt: skip
    assert list(extraction.canonical_record(SPEC, {"seller": "Ho", "kind": "bill"})) == list(SPEC.fields)
    assert extraction.canonical_record(SPEC, EMPTY | {"total": 250.0, "pages": 2.0, "codes": '["x"]'}) == EMPTY | {
        "total": 250, "pages": 2, "codes": ["x"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sellr": "Ho"}, "there is no field 'sellr'"),
        ({"kind": "quote"}, 'field kind: given \'quote\', allowed: one of "order", "bill"'),
        ({"kind": None}, "field kind: is missing"),
        ({"seller": " "}, "field seller: is missing"),
        ({"seller": "x" * 13}, "field seller: given 13 characters, allowed: 12"),
        ({"seller": 7}, "field seller: given 7, allowed: text"),
        ({"seller": "\ud800"}, "field seller"),
        ({"total": "12,50"}, "field total: given '12,50', allowed: a number"),
        ({"total": float("nan")}, "field total"),
        ({"total": 10**400}, "field total"),
        ({"pages": 1.5}, "field pages: given 1.5, allowed: a whole number"),
        ({"pages": True}, "field pages"),
        ({"pages": 10**18}, "too large a number"),
        ({"paid": "maybe"}, "field paid: given 'maybe', allowed: true or false"),
        ({"paid": 2}, "field paid: given 2, allowed: true or false"),
        ({"codes": ["a"] * 4}, "field codes: given 4 entries, allowed: 3"),
        ({"codes": [1]}, "field codes: given 1, allowed: text"),
        ({"codes": "a"}, "field codes"),
    ],
)
def test_what_is_no_record_is_told_with_its_field(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        extraction.canonical_record(SPEC, EMPTY | record)
    assert message in str(error.value)


texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['a"b', "a\\b", "a\nb", "\x00", "é 漢", "😀"]
)
records = st.fixed_dictionaries(
    {"kind": st.sampled_from(["order", "bill"]), "seller": texts.map("x".__add__)},
    optional={
        "total": st.none() | st.floats(-1e90, 1e90).filter(lambda one: one == 0 or abs(one) > 1e-90) | st.integers(),
        "pages": st.none() | st.integers(1 - 10**18, 10**18 - 1),
        "paid": st.none() | st.booleans(),
        "codes": st.none() | st.lists(st.text(max_size=2), max_size=3),
    },
)


@examples(150)
@given(records)
@example({"kind": "bill", "seller": "x", "total": -1.2345678901234567e-12})
def test_the_answer_to_any_record_is_what_the_grammar_takes_and_what_is_read_back(record: dict[str, Any]) -> None:
    check_spelling(SPEC, record)


@pytest.mark.parametrize("limit", [1, 2, 127, 128, 129, 256, 257, 400])
@pytest.mark.parametrize("character", ["a", "é", "漢", "🎉", '"', "\n", "\x1f"])
def test_a_text_has_as_many_characters_as_its_limit_allows(limit: int, character: str) -> None:
    spec = extraction.make_spec(
        task({"type": "object", "properties": {"text": {"type": "string", "maxLength": limit}}}), {}
    )
    grammar = extraction.grammar(spec)
    for length in {1, limit // 2, limit - 1, limit} - {0}:
        assert matches(grammar, json.dumps({"text": length * character}, ensure_ascii=False))
    for length in (0, limit + 1):
        assert not matches(grammar, json.dumps({"text": length * character}, ensure_ascii=False))


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_grammar_lets_through_ends_and_is_a_record(seed: int) -> None:
    sample = sample_text(extraction.grammar(SPEC), random.Random(seed))
    assert extraction.parse(SPEC, sample).problem is None


@pytest.mark.parametrize(
    "beginning",
    [
        '{"kind": "quote"',
        '{"kind": "bill", "buyer"',
        '{"kind": "bill", "seller": null',
        '{"kind": "bill", "seller": ""',
        '{"kind": "bill", "seller": "' + "x" * 13,
        '{"kind": "bill", "seller": "a\n',
        '{"kind": "bill", "seller": "Ho", "total": 1.',
        '{"kind":"bill"',
        '{"seller"',
    ],
)
def test_the_grammar_takes_nothing_invented_too_long_or_out_of_order(beginning: str) -> None:
    ending = extraction.answer_text(SPEC, EMPTY)[len('{"kind": "bill", "seller": "Ho", "total": ') :]
    assert not matches(extraction.grammar(SPEC), beginning + ending)
    assert matches(extraction.grammar(SPEC), extraction.answer_text(SPEC, EMPTY))


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("", "not_json"),
        ("Here it is: {}", "not_json"),
        (json.dumps(EMPTY) + " done", "not_json"),
        (json.dumps(EMPTY | {"total": float("nan")}), "not_json"),
        ('{"kind": "bill", "kind": "order"}', "not_json"),
        ("[" * 100_000, "not_json"),
        ("9" * 10_000, "not_json"),
        ("[]", "wrong_schema"),
        (json.dumps(EMPTY | {"buyer": "x"}), "invented_key"),
        (json.dumps({"kind": "bill", "seller": "Ho"}), "wrong_schema"),
        (json.dumps(EMPTY | {"total": "12.50"}), "wrong_schema"),
        (json.dumps(EMPTY | {"seller": None}), "wrong_schema"),
        (json.dumps(EMPTY | {"seller": "\ud800"}), "wrong_schema"),
        (json.dumps(EMPTY).replace('"total": null', '"total": 1e999'), "wrong_schema"),
    ],
)
def test_an_answer_that_is_no_record_has_a_reason(output: str, problem: str) -> None:
    assert extraction.parse(SPEC, output) == ParsedAnswer(None, problem)


def test_json_in_another_spelling_is_the_same_record() -> None:
    respelled = json.dumps(EMPTY | {"total": 12.0, "codes": [], "seller": "Hô "}, indent=2) + "\n"
    assert extraction.parse(SPEC, respelled) == ParsedAnswer(EMPTY | {"total": 12, "seller": "Hô"})


@examples(200)
@given(
    st.fixed_dictionaries(
        {}, optional={name: json_values | st.sampled_from(["bill", "Ho", []]) for name in (*SPEC.fields, "other")}
    )
    | json_values
)
def test_the_parser_takes_what_the_schema_takes(value: Any) -> None:
    is_valid = jsonschema.Draft202012Validator(extraction.output_schema(SPEC)).is_valid(value)
    parsed = extraction.parse(SPEC, json.dumps(value))
    out_of_range = isinstance(value, dict) and any(
        isinstance(number, int | float) and number and not 1e-99 <= abs(number) < 1e18 for number in value.values()
    )
    assert (parsed.problem is None) == is_valid or out_of_range


def test_the_score_against_a_worked_example() -> None:
    spec = extraction.make_spec(task(normalizers={"seller": ["case"]}), {})
    targets = [
        EMPTY | {"seller": "Ho", "codes": ["a", "b"]},
        EMPTY | {"seller": "Ann", "total": 5},
        EMPTY | {"seller": "Bo"},
        EMPTY | {"seller": "Cy"},
    ]
    answers = [
        ParsedAnswer(EMPTY | {"seller": "HO", "codes": ["b", "a"]}),  # all right: case and order are evened out
        ParsedAnswer(EMPTY | {"seller": "An", "total": 5}),  # seller wrong
        ParsedAnswer(EMPTY | {"seller": "Bo", "pages": 1}),  # pages made up
        ParsedAnswer(None, TRUNCATED),  # kind and seller not found
    ]
    score = extraction.score(spec, targets, answers)
    # Values: 10 wanted (kind 4, seller 4, total 1, codes 1), 9 said (3, 3, 1, 1 and pages), 7 right (3, 2, 1, 1).
    assert (score["n"], score["exact_match"], score["schema_valid"]) == (4, 0.25, 0.75)
    assert score["field_f1"] == pytest.approx(14 / 19)
    assert (score["invalid"], score["wrong_value"]) == ({TRUNCATED: 1}, 2)
    assert score["per_field"]["seller"] == {"precision": pytest.approx(2 / 3), "recall": 0.5, "f1": 4 / 7, "n": 4}
    assert score["per_field"]["pages"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}
    assert score["per_field"]["codes"]["f1"] == 1.0
    assert "paid" not in score["per_field"]
    assert select_metrics("extraction", score) == {
        "exact_match": 0.25,
        "field_f1": score["field_f1"],
        "schema_valid": 0.75,
    }
    assert [name for name, _ in extraction.lowest_scoring(score)][:2] == ["pages", "seller"]


def test_no_rows_is_no_score() -> None:
    with pytest.raises(ValueError, match="no rows"):
        extraction.score(SPEC, [], [])


def test_training_ends_with_the_words_of_its_task(tmp_path: Path) -> None:
    recipe = load("extractor", (), "cpu").recipe
    run = runs.create(tmp_path, recipe, "digest", {}, tmp_path)
    spec = extraction.make_spec(recipe.task, {})
    target = extraction.canonical_record(spec, {"document_type": "order", "supplier": "Ho", "total": "9.00"})
    correct, half_correct = ParsedAnswer(target), ParsedAnswer(target | {"supplier": "Hu"})
    scores = {
        "tuned": extraction.score(spec, [target] * 2, [correct, half_correct]),
        "base": extraction.score(spec, [target] * 2, [half_correct, ParsedAnswer(None, TRUNCATED)]),
    }
    runs.start_stage(run, "train", {})
    runs.end_stage(run, "train", "done", "done", validation=scores)
    assert launch.summary_lines(run)[1:] == [
        "tuned     exact match 50.0%, field F1 83.3%, schema valid 100.0%  (2 validation rows)",
        "untuned   exact match 0.0%, field F1 44.4%, schema valid 50.0%  (the same base before training)",
    ]
    card = adapter.model_card(run, recipe, scores, ReferenceFile(rows=3, sha256="0123abcd"))
    assert "| field F1 | 83.3% | 44.4% |" in card
    assert "Weakest fields by F1: supplier (50%), document_type (100%), total (100%)." in card
    assert worker.wandb_headline(extraction, scores)["validation/untuned_schema_valid"] == 0.5


def test_an_answer_has_room_for_half_as_much_again_and_serving_is_told() -> None:
    assert run_data.max_answer_tokens([TokenizedRow("a", [1], ([2] * 10,))]) == chat_template.MIN_ANSWER_TOKENS
    assert run_data.max_answer_tokens([TokenizedRow("a", [1], ([2] * 10, [2] * 101))]) == 152
    recipe = load("extractor", (), "cpu").recipe
    spec = extraction.make_spec(recipe.task, {})
    prompt = adapter.build_prompt_spec(recipe, chat_template.load_rendering(recipe.model), spec, 152)
    assert prompt.max_answer_tokens == 152
    # What is on disk is enough to ask, to constrain and to read as training did.
    on_disk = json.loads(json.dumps(prompt.to_json()))["task"]
    assert on_disk.pop("kind") == "extraction"
    assert extraction.Spec(**on_disk) == spec


@pytest.mark.slow
def test_one_command_trains_an_extraction_and_leaves_what_serving_needs(python: Command, tmp_path: Path) -> None:
    rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in purchase_documents.generate_documents(120, seed=5))
    (tmp_path / "documents.jsonl").write_text("".join(rows), encoding="utf-8")
    committed = (RECIPES / "extractor.yaml").read_text(encoding="utf-8")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(committed.replace("../demo_data/purchase_documents.jsonl", "documents.jsonl"), encoding="utf-8")
    settings = ("train.max_steps=2", "train.save_steps=2", "tracking.wandb.mode=off")
    completed = python("train", recipe, *settings, "--hardware", "cpu")
    assert completed.returncode == 0, completed.stderr
    _, tuned, *_, untuned = completed.stdout.splitlines()
    assert "schema valid" in tuned and "schema valid" in untuned
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/*/manifest.json") if not path.parent.is_symlink()]
    prompt = atomic_files.read_json(run / "adapter" / "prompt.json")
    score = atomic_files.read_json(run / "manifest.json")["stages"]["train"]["metrics"]["validation"]["tuned"]
    # The grammar lets no other problem through than an answer that did not end.
    assert set(score["invalid"]) <= {TRUNCATED}
    probes = list(atomic_files.read_jsonl(run / "reference.jsonl"))
    assert all(len(probe["token_ids"]) <= prompt["max_answer_tokens"] for probe in probes)


def test_every_receipt_of_sroie_is_a_record_of_its_recipe(sroie: Path) -> None:
    spec = extraction.make_spec(load("sroie", (), "cpu").recipe.task, {})
    rows = [row for name in ("train", "test") for row in atomic_files.read_jsonl(sroie / f"{name}.jsonl")]
    records = [extraction.canonical_record(spec, row["target"]) for row in rows]
    assert len(records) == 626 + 361
    assert sum(record["address"] is None for record in records) == 1
    assert sum(record["total"] is None for record in records) == 1
    grammar = extraction.grammar(spec)
    assert all(matches(grammar, extraction.answer_text(spec, record)) for record in records[:20])
    # Every date and every total can be read.
    assert all(len(normalize(record["date"], ["date_dmy"])) == len("2018-04-02") for record in records)
    assert all(normalize(record["total"], ["amount"])[-3] == "." for record in records if record["total"])
