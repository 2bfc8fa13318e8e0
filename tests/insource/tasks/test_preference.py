"""Preferences: pairs in the forms that people have them, what contradicts what, and scores computed by hand."""

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
from data_prep.rows.data_row import Rejected, make_row
from demo_data import reply_pairs
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.config.metric_names import select_metrics
from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.tasks import format_metrics, preference
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tasks.rendering import chat_template
from tests.conftest import Command
from tests.helpers.errors import raises_error
from tests.helpers.property_tests import examples

SPEC = preference.make_spec(Task(kind="preference", instruction="Answer the customer."), {})
PAIR = {"chosen": "Under Plan.", "rejected": "No idea, look yourself."}


def judged(
    chosen: float, rejected: float, chosen_tokens: int = 2, rejected_tokens: int = 4, **references: float
) -> ParsedAnswer:
    """What a model makes of a pair; a reference that is not given is what the model says."""
    return ParsedAnswer(
        {
            "chosen": chosen,
            "rejected": rejected,
            "reference_chosen": references.get("reference_chosen", chosen),
            "reference_rejected": references.get("reference_rejected", rejected),
            "chosen_tokens": chosen_tokens,
            "rejected_tokens": rejected_tokens,
        }
    )


def test_a_target_is_a_pair_and_the_chosen_answer_is_the_answer() -> None:
    content = "Answer the customer.\n\nInput:\nhow do I pay?"
    assert preference.messages(SPEC, {"text": "how do I pay?"}) == [{"role": "user", "content": content}]
    assert preference.preference_pair(SPEC, PAIR) == ("Under Plan.", "No idea, look yourself.")
    assert preference.answer_text(SPEC, PAIR) == "Under Plan."
    assert preference.grammar(SPEC) is None
    assert preference.output_schema(SPEC) is None
    assert preference.parse(SPEC, " Under Plan.\n") == ParsedAnswer("Under Plan.")
    assert preference.parse(SPEC, "\n") == ParsedAnswer(None, preference.EMPTY_ANSWER)


def test_the_score_against_a_worked_example() -> None:
    answers = [
        # A token: -1 against -2. Reward: -2 + 4 = 2 against -8 + 7 = -1.
        judged(-2, -8, reference_chosen=-4, reference_rejected=-7),
        # A token: -3 against -2, though the whole chosen answer is the more probable one. Reward: 0 against 1.
        judged(-6, -8, reference_chosen=-6, reference_rejected=-9),
        # As probable: not preferred. Reward: 1 against 0.
        judged(-2, -4, reference_chosen=-3, reference_rejected=-4),
        ParsedAnswer(None, TRUNCATED),
    ]
    same_length = {"chosen": "aaa", "rejected": "bbb"}
    score = preference.score(SPEC, [PAIR, PAIR, same_length, PAIR], answers)
    assert score["n"] == 4
    assert score["preference_accuracy"] == 0.25
    assert score["mean_margin"] == pytest.approx((1 - 1 + 0 + 0) / 4)
    assert score["reward_accuracy"] == 0.5
    assert score["mean_reward_margin"] == pytest.approx((3 - 1 + 1 + 0) / 4)
    assert score["invalid"] == {TRUNCATED: 1}
    assert score["per_part"] == {
        "both as long": {"preference_accuracy": 0.0, "n": 1},
        "chosen shorter": {"preference_accuracy": pytest.approx(1 / 3), "n": 3},
    }
    assert format_metrics(select_metrics("preference", score)) == "preference accuracy 25.0%, reward accuracy 50.0%"
    score["slices"] = {"broken_rule": {"evades": {"n": 1, "preference_accuracy": 0.1}}}
    assert preference.lowest_scoring(score)[1] == ("broken_rule evades", 0.1)


def test_the_base_has_no_reward() -> None:
    score = preference.score(SPEC, [PAIR, PAIR], [judged(-2, -8), judged(-9, -8)])
    assert format_metrics(select_metrics("preference", score)) == "preference accuracy 50.0%"
    assert not [name for name in score if "reward" in name]


def test_no_rows_is_no_score() -> None:
    with pytest.raises(ValueError, match="no rows"):
        preference.score(SPEC, [], [])


nats = st.floats(-500, -0.01)
verdicts = st.tuples(nats, nats, nats, nats, st.integers(1, 90), st.integers(1, 90))


@given(st.lists(verdicts, min_size=1, max_size=9))
def test_who_prefers_the_opposite_gets_the_opposite_margins(rows: list[tuple[Any, ...]]) -> None:
    answers = [judged(a, b, m, n, reference_chosen=c, reference_rejected=d) for a, b, c, d, m, n in rows]
    swapped_answers = [judged(b, a, n, m, reference_chosen=d, reference_rejected=c) for a, b, c, d, m, n in rows]
    for score, swapped_score in zip(
        *(preference.score_rows(SPEC, [PAIR] * len(rows), side) for side in (answers, swapped_answers)), strict=True
    ):
        assert score["margin"] == pytest.approx(-swapped_score["margin"])
        assert score["reward_margin"] == pytest.approx(-swapped_score["reward_margin"])
        assert score["preference_accuracy"] + swapped_score["preference_accuracy"] <= 1
        assert score["reward_accuracy"] + swapped_score["reward_accuracy"] <= 1


def recipe_for(folder: Path, rows: list[Any], extra: str = "") -> Recipe:
    lines = [json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "r.yaml").write_text(
        "task: {kind: preference, instruction: Answer the customer.}\nmodel: {base: pocket}\n"
        f"data:\n  source: {{path: rows.jsonl}}\n  split: {{stratify: null}}\n{extra}",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), (), "cpu").recipe


def prepared(recipe: Recipe, runs: Path) -> tuple[dict[str, dict[str, Any]], Any]:
    """Returns {row id: row} of what was written, and data.json."""
    folder, _ = prepare.main(recipe, runs)
    rows = {row["id"]: row for name in SPLITS for row in atomic_files.read_jsonl(folder / f"{name}.jsonl")}
    return rows, atomic_files.read_json(folder / "data.json")


def many(count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"question number {n} is about {n * 7919} cats", "chosen": f"{n * 7919}, thanks.", "rejected": f"{n}!"}
        for n in range(count)
    ]


USER, SYSTEM = {"role": "user", "content": "how do I pay?"}, {"role": "system", "content": "Be kind."}
GOOD, BAD = {"role": "assistant", "content": PAIR["chosen"]}, {"role": "assistant", "content": PAIR["rejected"]}
EARLIER = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "how can I help?"}]


@pytest.mark.parametrize(
    ("values", "text", "system"),
    [
        ({"text": "how do I pay?", **PAIR}, "how do I pay?", ""),
        ({"text": [SYSTEM, USER], **PAIR}, "how do I pay?", "Be kind."),
        ({"text": [USER], "chosen": [GOOD], "rejected": [BAD]}, "how do I pay?", ""),
        ({"text": "how do I pay?", "chosen": [GOOD], "rejected": [BAD]}, "how do I pay?", ""),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "how do I pay?", "Be kind."),
        ({"text": "not read", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "how do I pay?", ""),
        (
            {"chosen": [*EARLIER, USER, GOOD], "rejected": [*EARLIER, USER, BAD]},
            "user: hello\nassistant: how can I help?\nuser: how do I pay?",
            "",
        ),
    ],
)
def test_pairs_are_read_in_each_form_of_trl(tmp_path: Path, values: dict[str, Any], text: str, system: str) -> None:
    settings = "" if "text" in values else "  columns: {text: chosen}\n"
    row = make_row(SourceRow("rows.jsonl", 1, values), recipe_for(tmp_path, [], settings))
    assert not isinstance(row, Rejected), row
    assert (row.text, row.system, json.loads(row.target)) == (text, system, PAIR)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": "a", "chosen": "the same", "rejected": " the  same\n"}, "same_answers"),
        ({"text": "a", "chosen": "x", "rejected": ""}, "no_answer"),
        ({"text": "a", "chosen": "x"}, "no_answer"),
        ({"text": "a", "chosen": "x", "rejected": {"role": "assistant"}}, "bad_answer"),
        ({"text": "a", "chosen": "x", "rejected": "y\0"}, "nul_byte"),
        ({"text": "a", "chosen": "x", "rejected": "\ud83d"}, "lone_surrogate"),
        ({"text": "", "chosen": "x", "rejected": "y"}, "no_text"),
        ({"text": "a", "chosen": [USER, GOOD], "rejected": "y"}, "bad_messages"),
        ({"text": "a", "chosen": [USER, GOOD], "rejected": [*EARLIER, USER, BAD]}, "bad_pair"),
        ({"text": "a", "chosen": [USER, GOOD], "rejected": [USER, BAD, USER]}, "bad_pair"),
        ({"text": "a", "chosen": [], "rejected": []}, "bad_messages"),
        ({"text": [SYSTEM], "chosen": "x", "rejected": "y"}, "bad_messages"),
        ({"text": None, "chosen": [GOOD], "rejected": [BAD]}, "no_text"),
    ],
)
def test_what_is_no_pair_is_rejected_with_the_reason(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    row = make_row(SourceRow("rows.jsonl", 1, values), recipe_for(tmp_path, []))
    assert isinstance(row, Rejected)
    assert row.reason == reason


def test_a_prompt_that_is_said_to_stand_inside_and_does_not_is_no_text(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, [], "  columns: {text: chosen}\n")
    row = make_row(SourceRow("rows.jsonl", 1, {"chosen": [GOOD], "rejected": [BAD]}), recipe)
    assert isinstance(row, Rejected) and row.reason == "no_text"


def test_chat_rows_of_one_answer_and_missing_columns_are_refused(tmp_path: Path) -> None:
    with raises_error(RecipeError, "INS-R006", match=r"data\.columns\.messages: a conversation has one answer"):
        prepare.main(recipe_for(tmp_path, many(9), "  columns: {messages: messages}\n"), tmp_path / "runs")
    with raises_error(RecipeError, "INS-D021", match=r"data\.columns\.chosen: there is no column 'choosen'"):
        prepare.main(recipe_for(tmp_path, many(9), "  columns: {chosen: choosen}\n"), tmp_path / "runs")


def given_splits(folder: Path, train: list[dict[str, Any]], conflicts: str) -> Recipe:
    recipe = recipe_for(folder, [*many(200), *train], f"  conflicts: {conflicts}\n")
    test_rows = [{"text": f"quite another {n}", "chosen": "yes", "rejected": "no"} for n in range(9)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test_rows), encoding="utf-8")
    paths = {"path": None, "train": str(folder / "rows.jsonl"), "test": str(folder / "test.jsonl")}
    split = recipe.data.split.model_copy(update={"validation": 0.05, "calibration": 0.01})
    source = recipe.data.source.model_copy(update=paths)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": source, "split": split})})


TORN = [
    {"text": "torn apart", "chosen": "A", "rejected": "B"},
    {"text": "Torn apart!", "chosen": "A", "rejected": "B"},
    {"text": "torn apart.", "chosen": "B", "rejected": "A"},
    {"text": "torn apart", "chosen": "A", "rejected": "C"},
    {"text": "torn apart", "chosen": "D", "rejected": "A"},
]


@pytest.mark.parametrize(
    ("conflicts", "expected"), [("drop", {("A", "C"), ("D", "A")}), ("majority", {("A", "B"), ("A", "C"), ("D", "A")})]
)
def test_opposite_preferences_are_a_conflict_and_other_pairs_of_one_prompt_are_not(
    tmp_path: Path, conflicts: str, expected: set[tuple[str, str]]
) -> None:
    rows, report = prepared(given_splits(tmp_path, TORN, conflicts), tmp_path / "runs")
    conflicting = [row["target"] for row in rows.values() if row["input"]["text"].lower().startswith("torn")]
    assert {(target["chosen"], target["rejected"]) for target in conflicting} == expected
    assert len(conflicting) == len(expected)
    assert report["rows"]["dropped"]["conflict"] == (3 if conflicts == "drop" else 1)


def test_opposite_preferences_stop_the_stage_where_the_recipe_says_so(tmp_path: Path) -> None:
    with raises_error(RecipeError, "INS-D029", match=r"rows\.jsonl:20\d: 1 texts have several"):
        prepare.main(given_splits(tmp_path, TORN, "fail"), tmp_path / "runs")


def test_the_longer_answer_counts_against_max_length(tmp_path: Path, tokenizer: Any) -> None:
    long_text = " ".join(f"word{n}" for n in range(60))
    rows = many(200)
    for number, side in ((10, "chosen"), (11, "rejected"), (12, "chosen"), (13, "rejected")):
        rows[number][side] = f"{long_text} {number}"
    recipe = recipe_for(tmp_path, rows)
    spec = preference.make_spec(recipe.task, {})
    conversations = [preference.messages(spec, row) for row in rows for _ in range(2)]
    answers = [row[side] for row in rows for side in ("chosen", "rejected")]
    token_counts = [
        len(example.prompt_ids) + len(example.completion_ids)
        for example in chat_template.render_examples(tokenizer, conversations, answers)
    ]
    lengths = [max(pair) for pair in zip(token_counts[::2], token_counts[1::2], strict=True)]
    # Far from either, so that no row is counted anew for being close.
    limit = sum(sorted(lengths)[-5:-3]) // 2
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_length": limit})})
    prepared_rows, report = prepared(recipe, tmp_path / "runs")
    assert report["tokens"]["longest"] == max(lengths)
    too_long = {f"rows.jsonl:{index + 1}" for index, length in enumerate(lengths) if length > limit}
    assert too_long == {f"rows.jsonl:{number + 1}" for number in (10, 11, 12, 13)}
    assert report["rows"]["dropped"].get("too_long", 0) == len(too_long - prepared_rows.keys()) > 0


def test_personal_data_get_one_placeholder_in_prompt_and_both_answers(tmp_path: Path) -> None:
    secrets = ("ann.smith@example.org", "bob@example.net", "carl@example.com")
    pair = {
        "text": f"I am {secrets[0]}",
        "chosen": f"Thanks {secrets[0]}, ask {secrets[1]}.",
        "rejected": f"Ask {secrets[2]}, then {secrets[1]}.",
    }
    near_duplicate = {"text": "who?", "chosen": f"It is {secrets[1]}", "rejected": f"It is {secrets[2]}"}
    recipe = recipe_for(
        tmp_path, [pair, *many(80), near_duplicate], "  max_rejected: 0.05\nprivacy: {redact: [email]}\n"
    )
    rows, report = prepared(recipe, tmp_path / "runs")
    assert rows["rows.jsonl:1"]["input"]["text"] == "I am [EMAIL_1]"
    assert rows["rows.jsonl:1"]["target"] == {
        "chosen": "Thanks [EMAIL_1], ask [EMAIL_2].",
        "rejected": "Ask [EMAIL_3], then [EMAIL_2].",
    }
    assert rows["rows.jsonl:82"]["target"] == {"chosen": "It is [EMAIL_1]", "rejected": "It is [EMAIL_2]"}
    for path in filter(Path.is_file, (tmp_path / "runs").rglob("*")):
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path
    assert report["personal_data"]["email"]["rows"] == 2


def test_the_demo_is_what_its_generator_writes_and_its_recipe_is_prepared_whole(
    tmp_path: Path, python: Command
) -> None:
    committed = (RECIPES.parent / "demo_data" / "reply_pairs.jsonl").read_text(encoding="utf-8")
    assert python("demo_data.reply_pairs").stdout == committed
    rows, report = prepared(load("preference", (), "cpu").recipe, tmp_path)
    assert report["rows"]["read"] == reply_pairs.ROWS
    assert report["rows"]["rejected"] == {}
    assert len(rows) > 0.97 * reply_pairs.ROWS
    # Who always takes the shorter answer, or the longer one, is wrong too often to be taken for a model.
    assert 0.25 < report["answers"]["chosen_longer"]["mean"] < 0.75
    assert set(report["slices"]["broken_rule"]["values"]) == set(reply_pairs.STYLE_BREAKS)
    html = next(tmp_path.rglob("data.html")).read_text(encoding="utf-8")
    assert "The chosen answer is the longer one in 32" in html
    assert "None" not in re.findall(r"<td[^>]*>([^<]*)</td>", html)


@cache
def any_columns(prompt_inside: bool) -> Recipe:
    overrides = ["data.columns.id=null", "data.slices={}", f"data.columns.text={'chosen' if prompt_inside else 'text'}"]
    return load("preference", overrides, "cpu").recipe


message = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": st.text(max_size=6)}
)
cells = st.none() | st.integers() | st.text(max_size=8) | st.lists(message | st.text(max_size=3), max_size=4)


@examples(200)
@given(
    values=st.fixed_dictionaries({}, optional={"text": cells, "chosen": cells, "rejected": cells}),
    prompt_inside=st.booleans(),
)
def test_any_row_is_a_pair_of_different_answers_or_rejected(values: dict[str, Any], prompt_inside: bool) -> None:
    row = make_row(SourceRow("rows.jsonl", 1, values), any_columns(prompt_inside))
    if isinstance(row, Rejected):
        assert row.detail
        return
    chosen, rejected = preference.preference_pair(SPEC, preference.parse_target(row.target))
    assert row.text and chosen and rejected and chosen != rejected
