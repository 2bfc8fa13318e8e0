"""Free text: scores equal what was computed by hand, and rows of any kind are carried through the data stage."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare
from data_prep.readers.source_row import SourceRow
from data_prep.rows.data_row import Rejected, Row, make_row
from demo_data import support_chats
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.config.metric_names import select_metrics
from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.tasks import TASKS, format_metrics, generation
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from tests.conftest import Command
from tests.helpers.errors import raises_error
from tests.helpers.property_tests import examples

SPEC = generation.make_spec(Task(kind="generation", instruction="Sum up the message."), {})


def rouge_l(target: str, answer: str) -> float:
    return generation.score_rows(SPEC, [target], [ParsedAnswer(answer)])[0]["rouge_l"]


def chrf(target: str, answer: str) -> float:
    return generation.score_rows(SPEC, [target], [ParsedAnswer(answer)])[0]["chrf"]


def test_the_prompt_is_the_instruction_and_the_input_last_and_nothing_constrains_the_answer() -> None:
    content = "Sum up the message.\n\nInput:\nwhere is it?"
    assert generation.messages(SPEC, {"text": "where is it?"}) == [{"role": "user", "content": content}]
    assert generation.grammar(SPEC) is None
    assert generation.output_schema(SPEC) is None
    assert generation.answer_text(SPEC, "Late.") == "Late."


def test_an_output_is_clean_text_or_empty() -> None:
    assert generation.parse(SPEC, " Hub:\u00a0silent. \r\n") == ParsedAnswer("Hub: silent.")
    assert generation.parse(SPEC, " \n") == ParsedAnswer(None, generation.EMPTY_ANSWER)


@pytest.mark.parametrize(
    ("target", "answer", "expected"),
    [
        # Lin 2004: of four words three, and two, are a common subsequence.
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        # P = 2/2, R = 2/5.
        ("a b c d e", "b d", 2 * 1 * 0.4 / 1.4),
        ("Refund, please!", "refund please", 1.0),
        ("a b", "c d", 0.0),
        ("snake_case stays", "snake case stays", 1.0),
        # Scripts that Google's own tokenizer drops, and scripts without spaces.
        ("Größe falsch", "größe FALSCH", 1.0),
        ("где моя карта", "где карта", 2 * 1 * (2 / 3) / (5 / 3)),
        ("我的卡在哪里", "我的卡", 2 * 1 * 0.5 / 1.5),
        ("สวัสดี", "สวัสดี", 1.0),
        ("?", "?", 1.0),
    ],
)
def test_rouge_l_is_what_is_computed_by_hand(target: str, answer: str, expected: float) -> None:
    assert rouge_l(target, answer) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("target", "answer", "expected"),
    [
        # Of 1-grams 2/2 and 2/3, of 2-grams 1/1 and 1/2, and no 3-gram in the answer: P = 1, R = 7/12, F2 = 5PR/(4P+R).
        ("abc", "ab", 5 * (7 / 12) / (4 + 7 / 12)),
        # P and R change places.
        ("ab", "abc", 5 * (7 / 12) / (4 * (7 / 12) + 1)),
        ("a b c", "abc", 1.0),
        ("ab", "AB", 0.0),
        ("ab", "cd", 0.0),
    ],
)
def test_chrf_is_what_is_computed_by_hand(target: str, answer: str, expected: float) -> None:
    assert chrf(target, answer) == pytest.approx(expected)


def test_the_score_against_a_worked_example() -> None:
    targets = ["a b c d", "police killed the gunman", "hub: silent", "xx"]
    answers = [
        ParsedAnswer("a b c d"),
        ParsedAnswer("police kill the gunman"),
        ParsedAnswer(None, TRUNCATED),
        ParsedAnswer(None, "empty"),
    ]
    score = generation.score(SPEC, targets, answers)
    assert score["n"] == 4
    # What could not be read stays in the count.
    assert score["rouge_l"] == pytest.approx((1 + 0.75) / 4)
    assert score["exact_match"] == 0.25
    assert score["invalid"] == {"empty": 1, TRUNCATED: 1}
    assert score["length_ratio"] == pytest.approx((1 + 22 / 24) / 2)
    assert format_metrics(select_metrics("generation", score)).startswith("ROUGE-L 43.8%, chrF ")
    assert set(generation.score_rows(SPEC, targets, answers)[0]) == set(select_metrics("generation", score))


def test_the_weakest_are_lengths_and_slices_by_rouge_l() -> None:
    targets, answers = ["a b", "c d e", "f g h i"], [ParsedAnswer("a b"), ParsedAnswer("x"), ParsedAnswer("f g")]
    score = generation.score(SPEC, targets, answers)
    assert generation.lowest_scoring(score)[0] == ("targets of 4 to 5 characters", 0.0)
    score["slices"] = {"channel": {"email": {"n": 1, "rouge_l": 0.25}}}
    assert generation.lowest_scoring(score)[1] == ("channel email", 0.25)


def test_no_rows_is_no_score() -> None:
    with pytest.raises(ValueError, match="no rows"):
        generation.score(SPEC, [], [])


visible = (
    st.text(min_size=1, max_size=40).map(lambda text: generation.parse(SPEC, text)).filter(lambda parsed: parsed.value)
)


@examples(60)
@given(st.lists(st.tuples(visible, visible), min_size=1, max_size=7))
def test_scores_stay_within_0_and_1_and_are_1_for_the_target_itself(
    pairs: list[tuple[ParsedAnswer, ParsedAnswer]],
) -> None:
    targets = [target.value for target, _ in pairs]
    for row in generation.score_rows(SPEC, targets, [answer for _, answer in pairs]):
        assert all(0 <= value <= 1 + 1e-9 for value in row.values())
    perfect = generation.score(SPEC, targets, [target for target, _ in pairs])
    assert [perfect[name] for name in ("rouge_l", "chrf", "exact_match", "length_ratio")] == pytest.approx([1.0] * 4)
    assert sum(part["n"] for part in perfect["per_part"].values()) == len(pairs)


def test_the_demo_is_what_its_generator_writes_and_no_baseline_sums_it_up(python: Command) -> None:
    committed = (RECIPES.parent / "demo_data" / "support_chats.jsonl").read_text(encoding="utf-8")
    assert python("demo_data.support_chats").stdout == committed
    rows = list(support_chats.generate_conversations(200))
    targets = [row["summary"] for row in rows]
    first_sentences = [re.split(r"(?<=[.!?])\s", row["text"].split(": ", 1)[-1])[0] for row in rows]
    baselines = {
        "first sentence": first_sentences,
        "whole text": [row["text"] for row in rows],
        "one for all": ["Hub, order 48213: no power. Wants a refund."] * len(rows),
    }
    scores = {
        name: generation.score(SPEC, targets, [generation.parse(SPEC, output) for output in outputs])["rouge_l"]
        for name, outputs in baselines.items()
    }
    assert scores["first sentence"] < 0.2
    assert scores["whole text"] < 0.2
    assert scores["one for all"] < 0.4


def recipe_for(folder: Path, rows: list[Any], extra: str = "") -> Recipe:
    lines = [json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "r.yaml").write_text(
        "task: {kind: generation, instruction: Sum up the message.}\nmodel: {base: pocket}\n"
        f"data:\n  source: {{path: rows.jsonl}}\n  split: {{stratify: null}}\n{extra}",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), (), "cpu").recipe


def prepared(recipe: Recipe, runs: Path) -> tuple[dict[str, dict[str, Any]], Any]:
    """Returns {row id: row} of what was written, with its split, and data.json."""
    folder, _ = prepare.main(recipe, runs)
    rows = {
        row["id"]: {**row, "split": name}
        for name in SPLITS
        for row in atomic_files.read_jsonl(folder / f"{name}.jsonl")
    }
    return rows, atomic_files.read_json(folder / "data.json")


def many(count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"message number {number} is about {number * 7919} cats", "target": f"{number * 7919} cats."}
        for number in range(count)
    ]


def test_the_recipe_is_prepared_whole(tmp_path: Path) -> None:
    rows, report = prepared(load("summarizer", (), "cpu").recipe, tmp_path)
    assert report["rows"]["read"] == support_chats.ROWS
    assert report["rows"]["rejected"] == {}
    assert len(rows) > 0.97 * support_chats.ROWS
    committed = list(atomic_files.read_jsonl(RECIPES.parent / "demo_data" / "support_chats.jsonl"))
    assert all(rows[summary["conversation_id"]]["target"] == summary["summary"] for summary in committed[:50])
    assert report["labels"] == report["fields"] == {}
    assert 0.3 < report["answers"]["words_from_text"]["mean"] < 0.7
    assert report["tokens"]["longest"] < 400
    page = next(tmp_path.rglob("data.html")).read_text(encoding="utf-8")
    assert "What are the answers like?" in page
    assert "None" not in re.findall(r"<td[^>]*>([^<]*)</td>", page)


def test_a_text_may_have_several_answers_and_leaves_only_with_the_same_one(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"text": f"quite another {n}", "target": "t"}) + "\n" for n in range(9)), encoding="utf-8"
    )
    conflicting = [{"text": "torn apart", "target": target} for target in ("One way.", "Another way.", "One way.")]
    recipe = recipe_for(tmp_path, [*many(200), *conflicting], "  conflicts: fail\n")
    source = recipe.data.source.model_copy(
        update={"path": None, "train": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "test.jsonl")}
    )
    split = recipe.data.split.model_copy(update={"validation": 0.05, "calibration": 0.01})
    data = recipe.data.model_copy(update={"source": source, "split": split})
    rows, report = prepared(recipe.model_copy(update={"data": data}), tmp_path / "runs")
    assert sorted(row["target"] for row in rows.values() if row["input"]["text"] == "torn apart") == [
        "Another way.",
        "One way.",
    ]
    assert report["rows"]["dropped"] == {"duplicate": 1}


def test_rows_without_a_usable_answer_are_rejected_with_the_reason(tmp_path: Path) -> None:
    invalid: dict[str, Any] = {
        "no_answer": {"text": "what now", "target": " \n"},
        "bad_answer": {"text": "what now", "target": ["a", "list"]},
        "nul_byte": {"text": "what now", "target": "a\0b"},
        "no_text": {"text": None, "target": "Nothing."},
    }
    recipe = recipe_for(tmp_path, [*many(80), *invalid.values(), {"text": "no target at all"}], "  max_rejected: 0.2\n")
    _, report = prepared(recipe, tmp_path / "runs")
    assert report["rows"]["rejected"] == {**dict.fromkeys(invalid, 1), "no_answer": 2}


def test_a_missing_answer_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, [{"text": "hello", "targets": "x"}] * 3)
    with raises_error(
        RecipeError, "INS-D021", match=r"data\.columns\.target: there is no column 'target'; did you mean 'targets'"
    ):
        prepare.main(recipe, tmp_path / "runs")


def test_the_last_turn_of_a_chat_is_the_answer(tmp_path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["target"]}]}
        for row in many(80)
    ]
    rows, _ = prepared(recipe_for(tmp_path, chats, "  columns: {messages: messages}\n"), tmp_path / "runs")
    assert {row["target"] for row in rows.values()} == {row["target"] for row in many(80)}


def test_what_is_redacted_in_a_text_is_redacted_in_its_answer_alike_and_what_is_new_gets_its_own_number(
    tmp_path: Path,
) -> None:
    secrets = ("ann.smith@example.org", "bob@example.net", "4111 1111 1111 1111")
    repeated_row = {
        "text": f"I am {secrets[0]}, see [EMAIL_4]",
        "target": f"Customer {secrets[0].upper()}, colleague {secrets[1]}, card {secrets[2]}",
    }
    only_answered = {"text": "who is it?", "target": f"It is {secrets[1]}."}
    redacted_before = {"text": "see [EMAIL_4]", "target": f"Ask {secrets[1]}."}
    recipe = recipe_for(
        tmp_path, [repeated_row, only_answered, redacted_before, *many(80)], "privacy: {redact: [email, card]}\n"
    )
    rows, report = prepared(recipe, tmp_path / "runs")
    first, second, third = (rows[f"rows.jsonl:{line}"] for line in (1, 2, 3))
    assert first["input"]["text"] == "I am [EMAIL_5], see [EMAIL_4]"
    assert first["target"] == "Customer [EMAIL_5], colleague [EMAIL_6], card [CARD_1]"
    assert second["target"] == "It is [EMAIL_1]."
    assert third["target"] == "Ask [EMAIL_5]."
    assert report["personal_data"]["email"]["rows"] == 3
    assert report["personal_data"]["card"]["rows"] == 1
    for path in filter(Path.is_file, (tmp_path / "runs").rglob("*")):
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path


@cache
def any_columns() -> Recipe:
    overrides = ["data.columns.target=target", "data.columns.id=null", "data.slices={}"]
    return load("summarizer", overrides, "cpu").recipe


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@examples(150)
@given(st.fixed_dictionaries({}, optional={"text": anything, "target": anything}))
def test_any_row_is_used_or_rejected(values: dict[str, Any]) -> None:
    result = make_row(SourceRow("rows.jsonl", 1, values), any_columns())
    if isinstance(result, Rejected):
        assert result.reason in {"no_text", "bad_text", "no_answer", "bad_answer", "nul_byte", "lone_surrogate"}
        return
    assert isinstance(result, Row)
    target = TASKS["generation"].parse_target(result.target)
    assert generation.parse(SPEC, target) == ParsedAnswer(target)
    assert result.text
