"""Token counts of rows, with the tokenizer and the chat template of the base model.

All prompts share the text before the input. That prefix is counted once, and each row only from its input on. Tokens
may merge across the boundary: rows close to a limit are therefore tokenized in full.

Train rows are compared with train.max_length. For all other rows, the prompt and the longest answer that may be decoded
must fit serve.max_model_len and the context length of the base.
"""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from data_prep.arrays import Array
from data_prep.dedup.drops import TEST, TRAIN, DropDecisions
from data_prep.row_table import Table
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.train import Model
from insource.tasks import TASKS
from insource.tasks.rendering import base_tokenizer, chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUNDARY_TOKENS = 8
# Private-use characters, which mark the place of the input in the rendered template.
INPUT_MARKER = "\ue000input\ue001"
BASE_LIMIT_NAME = "what model.base can process"


@dataclass(frozen=True)
class ContextLimit:
    """The context limit of a served model.

    `tokens` is the limit of prompt and answer, `answer` the part reserved for the answer, `key` the setting that sets
    it.
    """

    tokens: int
    answer: int
    key: str

    def fits(self, table: Table) -> Array:
        """Return which rows fit (bool); rows without a token count fit."""
        prompts = table.columns["tokens"] - table.columns["answer_tokens"]
        return (table.columns["tokens"] < 0) | (prompts + self.answer <= self.tokens)


def count_tokens(
    table: Table, recipe: Recipe, label_descriptions: dict[str, str], drops: DropDecisions, may_be_empty: bool = False
) -> Array:
    """Return the tokens of each kept row: prompt, longest answer and stop token; -1 for dropped rows.

    `may_be_empty`: rows of a multi-label task may have no label.

    Raise RecipeError if the prompt exceeds a limit before any input is inserted.
    """
    task = TASKS[recipe.task.task_name]
    spec = task.make_spec(recipe.task, label_descriptions, may_be_empty)
    tokenizer = chat_template.load_tokenizer(recipe.model)
    prefix, between, suffix = _template_segments(tokenizer, task.messages(spec, {"text": INPUT_MARKER}))
    shared_tokens = sum(chat_template.count_tokens(tokenizer, [prefix, suffix]))
    _check_shared_prompt(shared_tokens, recipe, label_descriptions)
    limits = np.array([recipe.train.max_length, recipe.serve.max_model_len])
    tokens, answer_tokens = table.columns["tokens"], table.columns["answer_tokens"]
    for start, batch in table.texts.batches():
        rows = np.flatnonzero(drops.kept[start : start + batch.num_rows])
        if not len(rows):
            continue
        texts, targets = batch.column("text").take(rows).to_pylist(), batch.column("target").take(rows).to_pylist()
        input_tokens = np.array(chat_template.count_tokens(tokenizer, [text + between for text in texts]), np.int32)
        answers = [task.training_answers(spec, task.parse_target(target)) for target in targets]
        # Labels repeat in many rows, so each distinct answer is tokenized once.
        unique_answers = list(dict.fromkeys(chain.from_iterable(answers)))
        counts = dict(zip(unique_answers, chat_template.count_tokens(tokenizer, unique_answers), strict=True))
        answer_tokens[start + rows] = [max(counts[answer] for answer in row_answers) for row_answers in answers]
        tokens[start + rows] = shared_tokens + input_tokens + answer_tokens[start + rows]
        borderline = np.flatnonzero((np.abs(tokens[start + rows, None] - limits) <= BOUNDARY_TOKENS).any(axis=1))
        for index in borderline:
            conversation = task.messages(spec, {"text": texts[index]})
            examples = chat_template.render_examples(tokenizer, [conversation] * len(answers[index]), answers[index])
            tokens[start + rows[index]] = max(
                len(example.prompt_ids) + len(example.completion_ids) for example in examples
            )
    return tokens


def drop_too_long(table: Table, splits: Array, recipe: Recipe, drops: DropDecisions) -> ContextLimit:
    """Drop the rows that exceed a limit and return the context limit of a served model.

    Train rows are dropped, or fail the stage, if they exceed train.max_length or the context length of the base. Rows
    of validation and calibration are dropped if no served model can answer them. Test rows are kept, because they
    count.

    Raise RecipeError with the longest train row if data.too_long is "fail".
    """
    context_length = _read_context_length(recipe.model)
    _drop_from_train(table, splits, recipe, drops, recipe.train.max_length, "too_long")
    if context_length is not None:
        _drop_from_train(table, splits, recipe, drops, context_length, "too_long_for_base")
    context_limit = compute_context_limit(table, splits, recipe, drops, context_length)
    drops.drop(~np.isin(splits, (TRAIN, TEST)) & drops.kept & ~context_limit.fits(table), "too_long_to_serve")
    return context_limit


def _drop_from_train(
    table: Table, splits: Array, recipe: Recipe, drops: DropDecisions, limit: int, reason: str
) -> None:
    """Drop the train rows longer than `limit`, or raise RecipeError if data.too_long is "fail"."""
    rows = np.flatnonzero((splits == TRAIN) & drops.kept & (table.columns["tokens"] > limit))
    if len(rows) and recipe.data.too_long == "fail":
        longest = int(rows[np.argmax(table.columns["tokens"][rows])])
        key, advice = (
            ("train.max_length", "raise train.max_length")
            if reason == "too_long"
            else (BASE_LIMIT_NAME, "use a base with a longer context")
        )
        raise RecipeError(
            f"{table.location(longest)}: {len(rows)} train rows are longer than {key} ({limit} tokens), "
            f"this one {table.columns['tokens'][longest]}; {advice}, or set data.too_long: drop",
            code="INS-D031",
        )
    drops.drop(rows, reason)


def compute_context_limit(
    table: Table, splits: Array, recipe: Recipe, drops: DropDecisions, context_length: int | None
) -> ContextLimit:
    """Return the context limit of a served model, with the answer limit that training will set.

    `context_length` is the context length of the base in tokens, None if it is unknown.
    """
    answers = table.columns["answer_tokens"][(splits == TRAIN) & drops.kept]
    answer = chat_template.max_answer_tokens(int(answers.max(initial=0)) + 1)
    tokens, key = recipe.serve.max_model_len, "serve.max_model_len"
    if context_length is not None and context_length < tokens:
        tokens, key = context_length, BASE_LIMIT_NAME
    return ContextLimit(tokens, answer, key)


def _read_context_length(model: Model) -> int | None:
    """Return the context length in config.json of the base; None if the file or the value is missing."""
    config = base_tokenizer.read_model_config(model)
    if config is None:
        return None
    length = config.get("text_config", config).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _check_shared_prompt(shared_tokens: int, recipe: Recipe, label_descriptions: dict[str, str]) -> None:
    """Raise RecipeError if the shared part of the prompt leaves no tokens for an input."""
    contents = (
        f"its instruction and {len(label_descriptions)} labels" if label_descriptions else "its instruction and fields"
    )
    for key, limit in (
        ("train.max_length", recipe.train.max_length),
        ("serve.max_model_len", recipe.serve.max_model_len),
    ):
        if shared_tokens >= limit:
            raise RecipeError(
                f"{key}: given {limit} tokens, but the prompt without an input has {shared_tokens} ({contents}); "
                f"raise {key} above that, or shorten the prompt",
                code="INS-D032",
            )


def _template_segments(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> tuple[str, str, str]:
    """Return the prompt before the input, the text between input and answer, and the stop token.

    Raise RecipeError if the chat template omits the message.
    """
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    prefix, marker, between = text.partition(INPUT_MARKER)
    if not marker:
        raise RecipeError(
            f"model.base: the chat template of {tokenizer.name_or_path} omits the message", code="INS-T007"
        )
    return prefix, between, tokenizer.eos_token
