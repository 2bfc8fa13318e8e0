"""The requests for rows: the task's prompt, for some systems with examples before it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compare.eval_dataset import EvalDataset, Rows
from compare.records import System
from compare.systems import linear_baseline
from insource.backends.types import ApiFormat, ChoiceQuestion, Constraint, Request
from insource.backends.wire import model_families
from insource.config.providers import PROVIDERS
from insource.config.recipe import Recipe
from insource.config.schema.compare import Baseline
from insource.tasks import few_shot
from insource.tasks.rendering import chat_template

# Limits for answers of API models, whose tokenizers differ from the base's.
OUTPUT_TOKEN_FACTOR, MIN_OUTPUT_TOKENS = 4, 256


def build_requests(system: System, dataset: EvalDataset, rows: Rows) -> list[Request]:
    """Return the request for each row."""
    baseline, prompt = system.baseline, dataset.prompt
    if baseline is not None and baseline.uses_decision_api:
        return [_decision_request(baseline, dataset, row) for row in rows]
    constraint, max_tokens = Constraint(prompt["grammar"], prompt["output_schema"]), int(prompt["max_answer_tokens"])
    reserved_tokens = 0
    if baseline is not None:
        reserved_tokens = 0 if baseline.max_output_tokens else thinking_tokens(baseline)
        answer_tokens = max(MIN_OUTPUT_TOKENS, OUTPUT_TOKEN_FACTOR * max_tokens)
        max_tokens = baseline.max_output_tokens or answer_tokens + reserved_tokens
        constraint = dataclasses.replace(constraint, grammar=None)
    conversations = build_conversations(system, dataset, rows)
    return [
        Request(row["id"], messages, max_tokens, constraint, reserved_tokens)
        for row, messages in zip(rows, conversations, strict=True)
    ]


def thinking_tokens(baseline: Baseline) -> int:
    """Return the output tokens reserved for an API model's reasoning, in addition to those for its answer.

    An unknown local model gets none: its context may be too short.
    """
    family = model_families.find_family(lookup_api_format(baseline), baseline.model or "")
    if family is model_families.UNKNOWN and baseline.is_loopback and baseline.effort is None:
        return 0
    return family.thinking_tokens(baseline.effort)


def lookup_api_format(baseline: Baseline) -> ApiFormat:
    """Return the API format of a baseline."""
    return PROVIDERS[baseline.provider].api_format if baseline.api == "chat" else baseline.api


def _decision_request(baseline: Baseline, dataset: EvalDataset, row: Mapping[str, Any]) -> Request:
    """Return a row as a question with the labels as choices.

    No text is generated, so that no output tokens are reserved.
    """
    labels = tuple(dataset.spec.labels.items())
    instruction = baseline.instruction or dataset.spec.instruction
    assert isinstance(instruction, str), "prompt_selection.select_prompt has not run"
    return Request(row["id"], (), 0, choices=ChoiceQuestion(instruction, labels, row["input"]["text"]))


def build_conversations(system: System, dataset: EvalDataset, rows: Rows) -> list[list[dict[str, str]]]:
    """Return the messages for each row, up to the answer."""
    spec, baseline = dataset.spec, system.baseline
    if baseline is not None and baseline.messages:
        return [baseline.build_messages(row["input"]["text"]) for row in rows]
    if baseline is not None and baseline.instruction:
        assert isinstance(baseline.instruction, str), "prompt_selection.select_prompt has not run"
        spec = dataclasses.replace(spec, instruction=baseline.instruction)
    examples = linear_baseline.nearest_rows(dataset.train, rows, system.shots)
    return [
        few_shot.messages(dataset.task, spec, [dataset.train[index] for index in indices], row["input"])
        for indices, row in zip(examples, rows, strict=True)
    ]


def drop_examples_to_fit(
    requests: Sequence[Request], tokenizer: Any, recipe: Recipe, max_answer_tokens: int
) -> tuple[list[Request], int]:
    """Return requests without the examples that do not fit `serve.max_model_len`, and the number of shortened ones.

    The least similar examples are dropped first.
    """
    available_tokens = recipe.serve.max_model_len - max_answer_tokens
    shortened = list(requests)
    pending = list(range(len(shortened)))
    while pending:
        conversations = [list(shortened[index].messages) for index in pending]
        lengths = [len(ids) for ids in chat_template.encode_prompts(tokenizer, conversations)]  # type: ignore[arg-type]
        pending = [
            index
            for index, length in zip(pending, lengths, strict=True)
            if length > available_tokens and len(shortened[index].messages) > 1
        ]
        for index in pending:
            messages = _drop_first_example(shortened[index].messages)
            shortened[index] = dataclasses.replace(shortened[index], messages=messages)
    n_shortened = sum(len(new.messages) < len(old.messages) for new, old in zip(shortened, requests, strict=True))
    return shortened, n_shortened


def _drop_first_example(messages: Any) -> list[dict[str, str]]:
    """Return a conversation without its first example. The task's prompt moves to the next turn."""
    preamble, _, _ = messages[0]["content"].rpartition(few_shot.INPUT_HEADER)
    first = {**messages[2], "content": preamble + messages[2]["content"]}
    return [first, *messages[3:]]
