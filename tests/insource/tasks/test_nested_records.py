"""Records with objects and lists of objects in them, and answers that leave out what a document does not give."""

import json
import random
from itertools import permutations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from insource.backends.wire.json_schema import restrict_keywords
from insource.system import atomic_files
from insource.tasks import extraction
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.records import record_counts
from insource.tracking.run import Run
from tests.helpers import commands
from tests.helpers.grammars import check_spelling, matches, sample_text
from tests.helpers.nested_records import ITEM, NORMALIZERS, SCHEMA, TASK, item, items, make_bills, make_record, names
from tests.helpers.prepared_rows import write_rows
from tests.helpers.property_tests import examples
from tests.insource.tasks.test_extraction import task

NULL = extraction.make_spec(task(SCHEMA, normalizers=NORMALIZERS), {})
OMIT = extraction.make_spec(task(SCHEMA, normalizers=NORMALIZERS, absent="omit"), {})
SPECS = (NULL, OMIT)


# The schema.


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"type": "object"}, "properties.a: needs type: object and properties"),
        (
            {"type": "object", "properties": {"b": {"type": "string"}}},
            "properties.a.properties.b: a string needs maxLe",
        ),
        ({"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["c"]}, "a: required names 'c'"),
        ({"type": "object", "properties": {"b": {"type": "integer"}}, "minProperties": 1}, "not supported: minProp"),
        ({"type": "array", "items": ITEM}, "properties.a: an array needs maxItems"),
        ({"type": "array", "maxItems": 2, "items": {"type": ["object", "null"], "properties": {}}}, "without null"),
        ({"type": "array", "maxItems": 2, "items": {"type": "object"}}, "properties.a.items: needs type: object and"),
        ({"type": "object", "properties": {"b\n": {"type": "integer"}}}, "one line of a prompt"),
    ],
)
def test_an_object_that_answers_cannot_be_held_to_is_refused_by_its_path(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        task({"type": "object", "properties": {"a": field}})
    assert message in str(error.value)


def test_objects_go_four_deep_and_a_path_names_one_field() -> None:
    field: dict[str, Any] = {"type": "integer"}
    for _ in range(3):
        field = {"type": "object", "properties": {"a": field}}
    assert task({"type": "object", "properties": {"a": field}})
    with pytest.raises(ValidationError, match="objects more than 4 deep"):
        task({"type": "object", "properties": {"a": {"type": "object", "properties": {"a": field}}}})
    ambiguous = {"a.b": {"type": "integer"}, "a": {"type": "object", "properties": {"b": {"type": "integer"}}}}
    with pytest.raises(ValidationError, match=r"'a\.b' names two fields"):
        task({"type": "object", "properties": ambiguous})


def test_normalizers_and_absent_name_what_is_there() -> None:
    with pytest.raises(ValidationError, match=r"there is no field 'line_items'; there are kind, seller\.name"):
        task(SCHEMA, normalizers={"line_items": ["case"]})
    with pytest.raises(ValidationError, match="absent"):
        task(SCHEMA, absent="skip")


def test_the_prompt_lists_what_is_in_an_object_below_it() -> None:
    (turn,) = extraction.messages(NULL, {"text": "Bill"})
    assert turn["content"] == (
        'Read the document.\n\nFields:\n- kind (one of "order", "bill")\n'
        "- seller (an object of the fields below, or null): who sells\n"
        "  - name (text of at most 12 characters)\n"
        "  - towns (a list of at most 2, each text of at most 8 characters, or null)\n"
        "- line_items (a list of at most 3, each an object of the fields below, or null): the goods\n"
        "  - name (text of at most 12 characters, or null): as printed\n"
        "  - amount (a whole number, or null)\n"
        "  - price (text of at most 8 characters, or null)\n"
        "- total (a number, or null)\n\n"
        "Answer with one JSON object that has exactly these keys, in this order.\n\nInput:\nBill"
    )
    prompt = extraction.messages(OMIT, {"text": "Bill"})[0]["content"]
    assert (
        "- total (a number, or left out)\n\nAnswer with one JSON object that has these keys, in this order. " in prompt
    )
    assert "Leave out what the document does not give.\n\n" in prompt and "or null" not in prompt


records = st.fixed_dictionaries(
    {"kind": st.sampled_from(["order", "bill"])},
    optional={
        "seller": st.none() | st.fixed_dictionaries({"name": names.map("x".__add__)},
                                                    optional={"towns": st.lists(names, max_size=2)}),
        "line_items": st.none() | st.lists(items, max_size=3),
        "total": st.none() | st.integers(0, 9),
    },
)  # fmt: skip


@examples(100)
@given(records)
def test_the_answer_to_any_record_is_what_the_grammar_takes_and_what_is_read_back(record: dict[str, Any]) -> None:
    for spec in SPECS:
        check_spelling(spec, record)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_grammar_lets_through_ends_and_is_a_record(seed: int) -> None:
    spec = SPECS[seed % 2]
    sample = sample_text(extraction.grammar(spec), random.Random(seed))
    assert extraction.parse(spec, sample).problem is None
    if spec is OMIT and not any(end in sample for end in ('" "', '"\\')):
        jsonschema.validate(json.loads(sample), extraction.output_schema(spec))


def test_an_answer_has_the_given_fields_alone() -> None:
    target = make_record(item("nail", 2), item(price="9"), total=4)
    assert extraction.answer_text(OMIT, target) == (
        '{"kind": "bill", "line_items": [{"name": "nail", "amount": 2}, {"price": "9"}], "total": 4}'
    )
    for spec in SPECS:
        # A closed model that must give every key gives null, and is read alike.
        assert extraction.parse(OMIT, extraction.answer_text(spec, target)) == ParsedAnswer(target)
    assert extraction.parse(NULL, extraction.answer_text(OMIT, target)) == ParsedAnswer(None, "wrong_schema")
    assert extraction.parse(OMIT, '{"total": 4}') == ParsedAnswer(None, "wrong_schema")
    assert extraction.score(OMIT, [target], [ParsedAnswer(target)]) == extraction.score(
        NULL, [target], [ParsedAnswer(target)]
    )


def test_the_omitting_grammar_takes_no_null_no_comma_too_many_and_no_other_order() -> None:
    grammar = extraction.grammar(OMIT)
    assert matches(grammar, '{"kind": "bill"}') and matches(grammar, '{"kind": "bill", "total": 4}')
    for invalid in (
        "{}",
        '{"kind": "bill", }',
        '{"kind": "bill", "total": null}',
        '{"total": 4, "kind": "bill"}',
        '{"kind": "bill", "line_items": [{}]}',
        '{"kind": "bill", "line_items": []}',
        '{"kind": "bill", "seller": {"towns": ["x"]}}',
        '{"kind": "bill", "line_items": [{"price": "1", "name": "x"}]}',
    ):
        assert not matches(grammar, invalid), invalid
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    optional_grammar = extraction.grammar(extraction.make_spec(task(schema, absent="omit"), {}))
    for answer in ("{}", '{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'):
        assert matches(optional_grammar, answer), answer


def test_strict_providers_are_asked_for_every_key_and_may_answer_null() -> None:
    keywords = frozenset({"type", "properties", "required", "additionalProperties", "items", "enum", "anyOf"})
    assert extraction.output_schema(OMIT)["required"] == ["kind"]
    sent_schema = restrict_keywords(extraction.output_schema(OMIT), keywords, one_type=True)
    assert sent_schema["required"] == ["kind", "seller", "line_items", "total"]
    seller, null_schema = sent_schema["properties"]["seller"]["anyOf"]
    assert seller["required"] == ["name", "towns"] and null_schema == {"type": "null"}
    assert seller["additionalProperties"] is False
    assert restrict_keywords(extraction.output_schema(OMIT), None) == extraction.output_schema(OMIT)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (make_record(item("nail") | {"colour": "red"}), "invented_key"),
        (make_record(seller={"name": "Ho", "towns": None, "street": "x"}), "invented_key"),
        (make_record({"name": "nail"}), "wrong_schema"),
        (make_record(seller={"towns": None}), "wrong_schema"),
        (make_record(item("nail", "2")), "wrong_schema"),  # type: ignore[arg-type]
        (make_record(*[item("nail")] * 4), "wrong_schema"),
        (make_record(seller="Ho"), "wrong_schema"),
        (make_record(line_items=["nail"]), "wrong_schema"),
    ],
)
def test_an_answer_that_is_no_record_has_a_reason(output: Any, problem: str) -> None:
    assert extraction.parse(NULL, json.dumps(output)) == ParsedAnswer(None, problem)


def test_a_record_is_canonical_at_every_depth() -> None:
    record = {
        "kind": "bill",
        "seller": '{"name": " Ho "}',
        "line_items": [{"price": "2", "amount": "3", "name": ""}, {"name": " "}, {}],
        "total": "4.0",
    }
    assert extraction.canonical_record(NULL, record) == make_record(
        item(None, 3, "2"), seller={"name": "Ho", "towns": None}, total=4
    )
    for invalid, message in (
        ({"seller": {"towns": ["x"]}}, "field seller: name: is missing, and it is required"),
        (
            {"line_items": [{"name": "x"}, {"naem": "x"}]},
            "field line_items: entry 2: there is no field 'naem'; there are",
        ),
        (
            {"line_items": [{"amount": "two"}]},
            "field line_items: entry 1: amount: given 'two', allowed: a whole number",
        ),
        ({"line_items": {"name": "x"}}, "field line_items: given {'name': 'x'}, allowed: a list of at most 3"),
    ):
        with pytest.raises(ValueError) as error:
            extraction.canonical_record(NULL, {"kind": "bill", **invalid})
        assert message in str(error.value)


# Scores.


def test_items_are_assigned_so_that_most_values_are_right_in_any_order() -> None:
    target = make_record(item("nail", 2, "1.50"), item("saw", 1, "9"), item("glue", 1))
    predicted = make_record(item("Saw", 1, "8"), item("NAIL", 2, "1,50 €"), seller={"name": "Ho", "towns": None})
    score = extraction.score(NULL, [target], [ParsedAnswer(predicted)])
    # nail: 3 of 3; saw: name and amount of 3; glue: neither of its 2. The seller was made up.
    assert score["per_field"]["line_items.name"] == {
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": 0.8,
        "n": 3,
    }
    assert score["per_field"]["line_items.price"]["f1"] == 0.5
    assert score["per_field"]["seller.name"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}
    assert score["per_item"] == {"line_items": {"precision": 0.5, "recall": pytest.approx(1 / 3), "f1": 0.4, "n": 3}}
    # Right 6 (kind, 5 of the items), said 8, wanted 9.
    assert score["field_f1"] == pytest.approx(2 * 6 / (8 + 9)) and score["exact_match"] == 0
    for order in permutations(target["line_items"]):
        assert extraction.score(NULL, [target], [ParsedAnswer(make_record(*order))])["exact_match"] == 1


def test_an_item_too_many_and_one_said_twice_are_no_exact_match() -> None:
    target = make_record(item("nail", 2))
    for predicted in (
        make_record(item("nail", 2), item("nail", 2)),
        make_record(item("nail", 2), item("saw")),
        make_record(),
    ):
        score = extraction.score(NULL, [target], [ParsedAnswer(predicted)])
        assert score["exact_match"] == 0 and score["field_f1"] < 1
    empty = extraction.score(NULL, [make_record()], [ParsedAnswer(make_record())])
    assert empty["exact_match"] == 1 and empty["per_item"] == {}


@examples(60)
@given(st.lists(items, max_size=3), st.lists(items, max_size=3))
def test_the_assignment_is_the_best_of_all(target_items: list[Any], predicted_items: list[Any]) -> None:
    target, prediction = (
        extraction.canonical_record(NULL, {"kind": "bill", "line_items": side})
        for side in (target_items, predicted_items)
    )
    counts = record_counts.count_record(NULL.fields, target, prediction, NULL.normalizers)
    rows, answers = target["line_items"] or [], prediction["line_items"] or []
    fewer, larger = sorted((rows, answers), key=len)
    item_fields = NULL.fields["line_items"]["items"]["properties"]

    def count_equal(a: Any, b: Any) -> int:
        return record_counts.count_record(item_fields, a, b, NULL.normalizers, "line_items.").n_correct

    best = max(
        sum(count_equal(a, b) for a, b in zip(fewer, order, strict=True)) for order in permutations(larger, len(fewer))
    )
    assert counts.n_correct == best + 1  # and the kind
    assert counts.exact == (
        extraction.record_equality_key(NULL, target) == extraction.record_equality_key(NULL, prediction)
    )
    swapped_counts = record_counts.count_record(NULL.fields, prediction, target, NULL.normalizers)
    assert swapped_counts.n_correct == counts.n_correct and swapped_counts.exact == counts.exact


def test_the_order_of_items_counts_where_the_schema_says_so() -> None:
    schema = json.loads(json.dumps(SCHEMA))
    schema["properties"]["line_items"]["ordered"] = True
    spec = extraction.make_spec(task(schema), {})
    target, reordered = make_record(item("nail", 2), item("saw", 1)), make_record(item("saw", 1), item("nail", 2))
    assert extraction.score(spec, [target], [ParsedAnswer(target)])["exact_match"] == 1
    score = extraction.score(spec, [target], [ParsedAnswer(reordered)])
    assert score["exact_match"] == 0 and score["per_item"]["line_items"]["f1"] == 0
    assert extraction.record_equality_key(spec, target) != extraction.record_equality_key(spec, reordered)
    assert "ordered" not in json.dumps(extraction.output_schema(spec))


@pytest.mark.slow(minutes=4)
def test_line_items_with_references_are_trained_served_by_vllm_and_compared(tmp_path: Path) -> None:
    rows = []
    for bill in make_bills(160):
        record = {name: bill[name] for name in ("kind", "line_items")}
        rows.append({"text": bill["text"], "records": [record, {**record, "total": 1}]})
    write_rows(tmp_path / "rows.jsonl", rows)
    recipe = tmp_path / "bills.yaml"
    recipe.write_text(
        f"task: {json.dumps({**TASK, 'absent': 'omit'})}\n"
        "data:\n"
        "  source: {path: rows.jsonl}\n"
        "  columns: {targets: records}\n"
        "  split: {stratify: null, test: 0.2, validation: 0.15, calibration: 0.1}\n"
        "model: {base: pocket}\n"
        'tracking: {wandb: {mode: "off"}}\n'
        "compare: {primary: {baseline: base, metric: field_f1}, base_shots: 0}\n",
        encoding="utf-8",
    )
    runs = tmp_path / "runs"
    for stage, *arguments in (("train", *commands.TRAIN_SETTINGS), ("train.export", "export.quantize=none"),
                          ("compare", "export.quantize=none", "compare.forms=served")):  # fmt: skip
        completed = commands.run_command(runs, stage, recipe, *arguments)
        assert completed.returncode == 0, completed.stderr
    run = Run((runs / "bills" / "latest").resolve())
    scores = atomic_files.read_json(run.folder / "scores.json")
    test = {row["id"]: row for row in atomic_files.read_jsonl(run.folder / "data" / "test.jsonl")}
    predicted = list(atomic_files.read_jsonl(run.folder / "predictions" / "tuned.jsonl"))
    assert [row["id"] for row in predicted] == list(test)
    complete_rows = [row for row in predicted if row["parse_ok"]]
    # What ended has the form, leaves out what is null, and is read back with every field.
    for row in complete_rows:
        assert row["schema_ok"] and "null" not in row["output"] and set(row["parsed"]) == set(SCHEMA["properties"])
    assert scores["systems"]["tuned"]["parity"]["agreement"] >= 0.99
    # The answer of the nearest train row is no good one; its parts are told by path, and by whole entries.
    linear_system = scores["systems"]["tfidf"]
    assert {"kind", "line_items.name", "line_items, whole entries"} <= set(linear_system["per_part"])
    assert linear_system["validity"]["schema"] == 1 and linear_system["per_part"]["kind"]["f1"] == 1
    assert "line_items.name" in (run.folder / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
