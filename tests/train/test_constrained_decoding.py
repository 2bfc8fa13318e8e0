"""Decoding: greedy under the constraint, whatever stands beside a row in its batch, and as plain decoding has it."""

from typing import Any

import pytest
import torch

from insource.config.load import load
from insource.config.schema.data import Task
from insource.tasks import classification, extraction
from insource.tasks.rendering import chat_template
from tests.helpers.plain_decoding import assert_equals_plain_decoding
from train.evaluate.constrained_decoding import decode_answers
from train.model import base

SPEC = classification.make_spec(
    Task(kind="classification", instruction="Say what the user wants."),
    {
        "find_bus": "Find a bus",
        "find_bus_stop": "Find where the bus stops",
        "get weather": "Weather of a place",
        'odd "\\ one': "é",
    },
)
TEXTS = [
    "I need a bus to Fresno",
    "rain?",
    "Will it rain in San Jose on Monday, and should I take my umbrella with me?",
    "é ß 漢字",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return base.load_base_model(load("classifier", (), "cpu").recipe)


def prompts(tokenizer: Any) -> list[list[int]]:
    return chat_template.encode_prompts(tokenizer, [classification.messages(SPEC, {"text": text}) for text in TEXTS])


def label_log_probability(model: Any, tokenizer: Any, prompt: list[int], label: str) -> float:
    """The unconstrained log-probability of one tokenisation of a label, without any cache."""
    answer = [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
    return float(sum(logits[len(prompt) - 1 + index, token] for index, token in enumerate(answer)))


def test_only_labels_come_out_and_each_row_answers_as_it_would_alone(model: Any, tokenizer: Any) -> None:
    prompt_ids = prompts(tokenizer)
    answers = decode_answers(model, tokenizer, prompt_ids, classification.grammar(SPEC))
    assert all(answer.complete and answer.text in SPEC.labels for answer in answers)
    for prompt, answer in zip(prompt_ids, answers, strict=True):
        (single,) = decode_answers(model, tokenizer, [prompt], classification.grammar(SPEC))
        assert single.token_ids == answer.token_ids
        assert single.log_probability == pytest.approx(answer.log_probability, abs=1e-4)


def test_the_probability_is_that_of_the_path_among_what_was_allowed(model: Any, tokenizer: Any) -> None:
    # With two labels of one distinct first token each, the path is that one choice.
    spec = classification.make_spec(Task(kind="classification", instruction="Say what it is."), {"yes": "", "no": ""})
    (prompt,) = chat_template.encode_prompts(tokenizer, [classification.messages(spec, {"text": "rain?"})])
    (answer,) = decode_answers(model, tokenizer, [prompt], classification.grammar(spec))
    assert 0 < torch.tensor(answer.log_probability).exp() <= 1
    assert label_log_probability(model, tokenizer, prompt, answer.text) <= answer.log_probability + 1e-4


def test_decoding_leaves_the_mode_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    decode_answers(model, tokenizer, prompts(tokenizer)[:1], classification.grammar(SPEC))
    assert model.training
    model.eval()


def test_an_answer_that_does_not_end_is_not_complete(model: Any, tokenizer: Any) -> None:
    (answer,) = decode_answers(model, tokenizer, prompts(tokenizer)[:1], classification.grammar(SPEC), max_new_tokens=1)
    assert not answer.complete


def test_labels_are_those_of_plain_decoding(model: Any, tokenizer: Any) -> None:
    # The last opens otherwise, and shares no prefix.
    prompt_ids = [*prompts(tokenizer), prompts(tokenizer)[0][3:]]
    assert_equals_plain_decoding(model, tokenizer, prompt_ids, classification.grammar(SPEC))


def test_records_are_those_of_plain_decoding(model: Any, tokenizer: Any) -> None:
    spec = extraction.make_spec(load("extractor", (), "cpu").recipe.task, {})
    prompt_ids = chat_template.encode_prompts(tokenizer, [extraction.messages(spec, {"text": text}) for text in TEXTS])
    assert_equals_plain_decoding(model, tokenizer, prompt_ids, extraction.grammar(spec), max_new_tokens=48)


def test_free_text_is_that_of_plain_decoding(model: Any, tokenizer: Any) -> None:
    assert_equals_plain_decoding(model, tokenizer, prompts(tokenizer), None, max_new_tokens=12)


def test_labels_that_part_within_a_character_are_those_of_plain_decoding(model: Any, tokenizer: Any) -> None:
    # Their certain beginning, the first byte of two, is no text.
    labels = dict.fromkeys(["é1", "ê1", "漢字", "漢子"], "")
    spec = classification.make_spec(Task(kind="classification", instruction="Say what it is."), labels)
    prompt_ids = chat_template.encode_prompts(
        tokenizer, [classification.messages(spec, {"text": text}) for text in TEXTS]
    )
    assert_equals_plain_decoding(model, tokenizer, prompt_ids, classification.grammar(spec))


def test_an_answer_is_cut_where_plain_decoding_is(model: Any, tokenizer: Any) -> None:
    for max_tokens in (1, 2, 3, 5):
        assert_equals_plain_decoding(
            model, tokenizer, prompts(tokenizer), classification.grammar(SPEC), max_new_tokens=max_tokens
        )


def test_small_batches_answer_as_large_ones(model: Any, tokenizer: Any) -> None:
    prompt_ids = prompts(tokenizer) * 3
    large_batch = decode_answers(model, tokenizer, prompt_ids, classification.grammar(SPEC))
    small_batches = decode_answers(model, tokenizer, prompt_ids, classification.grammar(SPEC), batch_rows=5)
    assert [answer.token_ids for answer in large_batch] == [answer.token_ids for answer in small_batches]
