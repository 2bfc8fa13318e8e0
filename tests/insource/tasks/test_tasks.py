"""Tasks: the prompt that training, serving and the closed baseline share, its parser and its score."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insource.config.errors import RecipeError
from insource.config.metric_names import select_metrics
from insource.config.schema.data import Task
from insource.tasks import classification, format_metrics
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tasks.rendering import chat_template
from insource.text.text_keys import clean, duplicate_key
from tests.helpers.errors import raises_error

SPEC = classification.make_spec(
    Task(kind="classification", instruction="Route the message."),
    {"late": "A parcel that is late", "broken": "", "late_fee": "A fee"},
)
CONVERSATION = classification.messages(SPEC, {"text": "where is it?"})


def test_the_prompt_is_instruction_labels_and_the_input_last() -> None:
    assert CONVERSATION == [
        {
            "role": "user",
            "content": "Route the message.\n\nLabels:\n- late: A parcel that is late\n- broken\n- late_fee: A fee\n\n"
            "Answer with exactly one label.\n\nInput:\nwhere is it?",
        }
    ]


def test_a_label_is_parsed_and_anything_else_is_not() -> None:
    assert classification.parse(SPEC, "late") == ParsedAnswer("late")
    assert classification.parse(SPEC, " late_fee\n") == ParsedAnswer("late_fee")
    assert classification.parse(SPEC, "Late-Fee") == ParsedAnswer("late_fee")
    for text in ("late.", "", "latebroken", "-late"):
        assert classification.parse(SPEC, text) == ParsedAnswer(None, "not_a_label")


def test_the_score_against_a_worked_example() -> None:
    answers = [ParsedAnswer("late"), ParsedAnswer("broken"), ParsedAnswer("broken"), ParsedAnswer(None, TRUNCATED)]
    score = classification.score(SPEC, ["late", "late", "broken", "late"], answers)
    # late: 1 of 1 said, 1 of 3 found; broken: 1 of 2 said, 1 of 1 found. An unreadable answer stays in the count.
    assert (score["n"], score["accuracy"], score["invalid"]) == (4, 0.5, 1)
    assert score["per_class"]["late"] == {"precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5, "n": 3}
    assert score["per_class"]["broken"]["f1"] == pytest.approx(2 / 3)
    assert score["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert "late_fee" not in score["per_class"]
    assert format_metrics(select_metrics("classification", score)) == "accuracy 50.0%, macro-F1 58.3%"
    assert classification.lowest_scoring(score) == [("late", 0.5), ("broken", pytest.approx(2 / 3))]


def test_no_rows_is_no_score() -> None:
    with pytest.raises(ValueError, match="no rows"):
        classification.score(SPEC, [], [])


def test_a_training_example_is_the_served_prompt_and_the_answer_with_its_stop(tokenizer: Any) -> None:
    (example,) = chat_template.render_examples(tokenizer, [CONVERSATION], ["late_fee"])
    served = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert example.prompt_ids == served
    assert tokenizer.decode(example.completion_ids) == "late_fee" + tokenizer.eos_token
    assert example.completion_ids[-1] == tokenizer.eos_token_id


def test_a_template_that_asks_otherwise_than_it_answers_is_refused(tokenizer: Any) -> None:
    import copy

    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = tokenizer.chat_template.replace("'<|assistant|>\n'", "'<|assistant|>\n<think>\n'")
    with raises_error(RecipeError, "INS-T008", match="thinking mode"):
        chat_template.render_examples(thinking, [CONVERSATION], ["late"])


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6))
def test_the_shared_prefix_is_shared_and_no_longer_one_is(rows: list[list[int]]) -> None:
    length = chat_template.shared_prefix_length(rows)
    assert all(row[:length] == rows[0][:length] for row in rows)
    assert not rows or min(map(len, rows)) == length or len({tuple(row[: length + 1]) for row in rows}) > 1


@given(st.text())
def test_cleaning_and_keys_settle_at_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert duplicate_key(clean(text)) == duplicate_key(text)


def test_keys_forgive_case_punctuation_and_spacing_and_nothing_else() -> None:
    assert duplicate_key("Where's\r\n my CARD?!") == duplicate_key("where s my card")
    assert duplicate_key("my card") != duplicate_key("my virtual card")
    assert duplicate_key("?") != duplicate_key("!")
