"""How many tokens each row is, by the base model's own tokenizer and chat template.

A prompt is the same up to its input, so the opening is counted once and each row's own part by itself. Tokens may join
across that seam: rows near the limit are therefore counted whole.
"""

from itertools import chain
from typing import Any

import numpy as np

from data_prep.deduplicate import TRAIN, Left
from data_prep.table import Array, Table
from recipes.errors import RecipeError
from recipes.schema import Recipe
from tasks import KINDS, render

SEAM_TOKENS = 8
# Characters that no text holds, in the place of the input.
INPUT = "\ue000input\ue001"


def count(table: Table, recipe: Recipe, labels: dict[str, str], left: Left) -> Array:
    """Returns the tokens of each row that stays: prompt, answer (the longer of two) and stop token; -1 for others."""
    task = KINDS[recipe.task.kind]
    spec = task.specify(recipe.task, labels)
    tokenizer = render.tokenizer_of(recipe.model)
    before, between, after = _seams(tokenizer, task.messages(spec, {"text": INPUT}))
    shared = sum(render.token_counts(tokenizer, [before, after]))
    tokens = table.columns["tokens"]
    for first, batch in table.texts.batches():
        rows = np.flatnonzero(left.stays[first : first + batch.num_rows])
        if not len(rows):
            continue
        texts, targets = batch.column("text").take(rows).to_pylist(), batch.column("target").take(rows).to_pylist()
        own = np.array(render.token_counts(tokenizer, [text + between for text in texts]), np.int32)
        answers = [task.answers(spec, task.target_of(target)) for target in targets]
        # Labels are few and come again and again; other answers are as many as rows.
        different = list(dict.fromkeys(chain.from_iterable(answers)))
        counts = dict(zip(different, render.token_counts(tokenizer, different), strict=True))
        longest = [max(counts[answer] for answer in mine) for mine in answers]
        tokens[first + rows] = shared + own + np.array(longest, np.int32)
        close = np.flatnonzero(np.abs(tokens[first + rows] - recipe.train.max_length) <= SEAM_TOKENS)
        for at in close:
            conversation = task.messages(spec, {"text": texts[at]})
            examples = render.examples(tokenizer, [conversation] * len(answers[at]), answers[at])
            tokens[first + rows[at]] = max(len(one.prompt_ids) + len(one.completion_ids) for one in examples)
    return tokens


def drop_too_long(table: Table, splits: Array, recipe: Recipe, left: Left) -> None:
    """Makes train rows over max_length leave, or stops the stage; held-out rows stay, for they count.

    Raises RecipeError naming the longest row where data.too_long is fail.
    """
    limit = recipe.train.max_length
    rows = np.flatnonzero((splits == TRAIN) & left.stays & (table.columns["tokens"] > limit))
    if len(rows) and recipe.data.too_long == "fail":
        longest = int(rows[np.argmax(table.columns["tokens"][rows])])
        raise RecipeError(
            f"{table.place(longest)}: {len(rows)} train rows are longer than train.max_length ({limit} tokens), "
            f"this one {table.columns['tokens'][longest]}; raise train.max_length, or set data.too_long: drop"
        )
    left.drop(rows, "too_long")


def _seams(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, str, str]:
    """Returns what stands before the input, between input and answer, and after the answer: the stop token."""
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    before, found, between = text.partition(INPUT)
    if not found:
        raise RecipeError(f"model.base: the chat template of {tokenizer.name_or_path} leaves the message out")
    return before, between, tokenizer.eos_token
