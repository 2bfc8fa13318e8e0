"""What each system is asked for a row: the task's own prompt, for some with examples in front."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compare.eval_dataset import EvalDataset, Rows
from compare.systems import linear_baseline
from compare.systems.catalog import System
from insource.backends.types import ApiFormat, ChoiceQuestion, Constraint, Request
from insource.backends.wire import model_families
from insource.config.recipe import Recipe
from insource.config.schema.compare import Baseline
from insource.tasks import few_shot
from insource.tasks.rendering import chat_template

# Answers of a closed model: other tokenizers.
OUTPUT_TOKEN_FACTOR, MIN_OUTPUT_TOKENS = 4, 256
API_FORMATS: Mapping[str, ApiFormat] = {
    "openai": "openai",
    "azure": "openai",
    "anthropic": "anthropic",
    "bedrock": "anthropic",
    "vertex": "anthropic",
}


def build_requests(system: System, material: EvalDataset, rows: Rows) -> list[Request]:
    """Returns the request for each row."""
    baseline, prompt = system.baseline, material.prompt
    if baseline is not None and baseline.decides:
        return [_decision_request(baseline, material, row) for row in rows]
    constraint, most = Constraint(prompt["grammar"], prompt["output_schema"]), int(prompt["max_answer_tokens"])
    room = 0
    if baseline is not None:
        room = 0 if baseline.max_output_tokens else thinking_tokens(baseline)
        most = baseline.max_output_tokens or max(MIN_OUTPUT_TOKENS, OUTPUT_TOKEN_FACTOR * most) + room
        constraint = dataclasses.replace(constraint, grammar=None)
    asked = build_conversations(system, material, rows)
    return [Request(row["id"], one, most, constraint, room) for row, one in zip(rows, asked, strict=True)]


def thinking_tokens(baseline: Baseline) -> int:
    """Returns the output tokens that a closed model gets for thinking, beside those for its answer. An unknown model on
    this machine gets none: its context may be too short for it."""
    family = model_families.find_family(lookup_api_format(baseline), baseline.model or "")
    if family is model_families.UNKNOWN and baseline.loopback and baseline.effort is None:
        return 0
    return family.room_for_thinking(baseline.effort)


def lookup_api_format(baseline: Baseline) -> ApiFormat:
    """Returns the wire that a baseline speaks."""
    return API_FORMATS[baseline.provider] if baseline.api == "chat" else baseline.api


def _decision_request(baseline: Baseline, material: EvalDataset, row: Mapping[str, Any]) -> Request:
    """The row as a question with the labels as its answers: nothing is written, so no token of output is set aside."""
    labels = tuple(material.spec.labels.items())
    instruction = baseline.instruction or material.spec.instruction
    assert isinstance(instruction, str), "instructions.py has not chosen among several yet"
    return Request(row["id"], (), 0, choices=ChoiceQuestion(instruction, labels, row["input"]["text"]))


def build_conversations(system: System, material: EvalDataset, rows: Rows) -> list[list[dict[str, str]]]:
    """Returns the messages for each row, up to the answer."""
    spec, baseline = material.spec, system.baseline
    if baseline is not None and baseline.messages:
        return [baseline.asked(row["input"]["text"]) for row in rows]
    if baseline is not None and baseline.instruction:
        assert isinstance(baseline.instruction, str), "instructions.py has not chosen among several yet"
        spec = dataclasses.replace(spec, instruction=baseline.instruction)
    examples = linear_baseline.nearest_rows(material.train, rows, system.shots)
    return [
        few_shot.messages(material.module, spec, [material.train[at] for at in chosen], row["input"])
        for chosen, row in zip(examples, rows, strict=True)
    ]


def drop_examples_to_fit(
    asked: Sequence[Request], tokenizer: Any, recipe: Recipe, longest_answer: int
) -> tuple[list[Request], int]:
    """Returns the requests with as many examples left out, the least similar first, as `serve.max_model_len` asks for,
    and how many requests lost some."""
    room = recipe.serve.max_model_len - longest_answer
    found = list(asked)
    todo = list(range(len(found)))
    while todo:
        lengths = [len(ids) for ids in chat_template.prompt_ids(tokenizer, [list(found[at].messages) for at in todo])]  # type: ignore[arg-type]
        todo = [at for at, length in zip(todo, lengths, strict=True) if length > room and len(found[at].messages) > 1]
        for at in todo:
            found[at] = dataclasses.replace(found[at], messages=_drop_first_example(found[at].messages))
    cut = sum(len(a.messages) < len(b.messages) for a, b in zip(found, asked, strict=True))
    return found, cut


def _drop_first_example(messages: Any) -> list[dict[str, str]]:
    """A conversation without its first example: the task's prompt moves to the next turn."""
    before, _, _ = messages[0]["content"].rpartition(few_shot.INPUT_HEADER)
    first = {**messages[2], "content": before + messages[2]["content"]}
    return [first, *messages[3:]]
