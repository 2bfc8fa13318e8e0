"""The requests for rows: the task's prompt, for some systems with examples before it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from compare.eval_dataset import EvalDataset
from compare.records import System
from insource.backends import api_requests
from insource.backends.types import Constraint, Request
from insource.config.schema.compare import Baseline
from insource.tasks import few_shot, tfidf
from insource.tasks.data_row import InputRow, InputRows, Rows
from insource.tasks.rendering import chat_template


def build_requests(
    system: System, dataset: EvalDataset, rows: InputRows, examples: Sequence[Rows] | None = None
) -> list[Request]:
    """Return the request for each row. `examples` are those of each row, by default the retrieved ones."""
    baseline, prompt = system.baseline, dataset.prompt
    if baseline is not None and baseline.uses_decision_api:
        return [_decision_request(baseline, dataset, row) for row in rows]
    schema, max_tokens = prompt.output_schema, prompt.max_answer_tokens
    conversations = zip(rows, build_conversations(system, dataset, rows, examples), strict=True)
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


def build_conversations(
    system: System, dataset: EvalDataset, rows: InputRows, examples: Sequence[Rows] | None = None
) -> list[list[dict[str, str]]]:
    """Return the messages for each row, up to the answer."""
    spec, baseline = dataset.spec, system.baseline
    if baseline is not None and baseline.messages:
        return [baseline.build_messages(row["input"]["text"]) for row in rows]
    if baseline is not None and baseline.instruction:
        assert isinstance(baseline.instruction, str), "prompt_selection.select_prompt has not run"
        spec = dataclasses.replace(spec, instruction=baseline.instruction)
    if examples is None:
        examples = retrieve_examples(system, dataset, rows)
    return few_shot.build_conversations(dataset.task, spec, rows, examples)


def retrieve_examples(system: System, dataset: EvalDataset, rows: InputRows) -> list[Rows]:
    """Return the examples of each row: the most similar train rows, the most similar last."""
    nearest = tfidf.nearest_rows(dataset.train, rows, system.shots)
    return [[dataset.train[index] for index in indices] for indices in nearest]


def fit_examples(
    system: System, dataset: EvalDataset, rows: InputRows, adapter: Path, max_model_len: int
) -> tuple[list[Rows], int]:
    """Return the examples of each row that fit the prompt, and the number of rows that lost examples.

    A prompt leaves room for the answer in `max_model_len`. A prompt of training has also the limit of training.
    `adapter` is the folder with the tokenizer.
    """
    retrieved = retrieve_examples(system, dataset, rows)
    if not system.shots:
        return retrieved, 0
    prompt, tokenizer = dataset.prompt, chat_template.load_saved_tokenizer(str(adapter))
    max_prompt_tokens = max_model_len - prompt.max_answer_tokens
    if system.uses_tuned_scale and prompt.examples is not None:
        max_prompt_tokens = min(max_prompt_tokens, prompt.examples.max_prompt_tokens)
    fitted = few_shot.fit_examples(dataset.task, dataset.spec, tokenizer, rows, retrieved, max_prompt_tokens)
    return fitted, sum(len(after) < len(before) for after, before in zip(fitted, retrieved, strict=True))
