"""The requests for rows: the task's prompt, for some systems with examples before it."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compare.eval_dataset import EvalDataset
from compare.records import System
from compare.systems import linear_baseline
from insource.backends import api_requests
from insource.backends.types import Constraint, Request
from insource.config.recipe import Recipe
from insource.config.schema.compare import Baseline
from insource.tasks import few_shot
from insource.tasks.data_row import InputRow, InputRows
from insource.tasks.rendering import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_requests(system: System, dataset: EvalDataset, rows: InputRows) -> list[Request]:
    """Return the request for each row."""
    baseline, prompt = system.baseline, dataset.prompt
    if baseline is not None and baseline.uses_decision_api:
        return [_decision_request(baseline, dataset, row) for row in rows]
    schema, max_tokens = prompt.output_schema, prompt.max_answer_tokens
    conversations = zip(rows, build_conversations(system, dataset, rows), strict=True)
    if baseline is not None:
        return [
            api_requests.make_chat_request(row["id"], messages, baseline, schema, max_tokens)
            for row, messages in conversations
        ]
    constraint = Constraint(prompt.grammar, schema)
    return [Request(row["id"], messages, max_tokens, constraint) for row, messages in conversations]


def _decision_request(baseline: Baseline, dataset: EvalDataset, row: InputRow) -> Request:
    """Return a row as a question with the labels as choices."""
    instruction = baseline.instruction or dataset.spec.instruction
    assert isinstance(instruction, str), "prompt_selection.select_prompt has not run"
    return api_requests.make_choice_request(row["id"], row["input"]["text"], instruction, dataset.spec.labels)


def build_conversations(system: System, dataset: EvalDataset, rows: InputRows) -> list[list[dict[str, str]]]:
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
    requests: Sequence[Request], tokenizer: "PreTrainedTokenizerBase", recipe: Recipe, max_answer_tokens: int
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
