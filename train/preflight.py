"""What would waste hours, found before the first of them: refused, or said aloud.

The stop token must be learnt, no row may lose its answer to truncation, and one row is shown as the model will see it.
"""

from collections.abc import Sequence
from typing import Any

from recipes.errors import RecipeError
from recipes.schema import Recipe
from tasks.render import Example


def check(examples: Sequence[Example], ids: Sequence[str], tokenizer: Any, recipe: Recipe, config: Any) -> None:
    """Returns nothing where training can begin. Raises RecipeError naming the row and the key to change.

    `ids` are the row ids of the examples; `config` is the base model's.
    """
    limit, context_tokens = recipe.train.max_length, config.get_text_config().max_position_embeddings
    if limit > context_tokens:
        raise RecipeError(
            f"train.max_length: {limit} is more than the {context_tokens} tokens that {recipe.model.base} can look at"
        )
    lengths = [len(one.prompt_ids) + len(one.completion_ids) for one in examples]
    too_long = [(length, row) for length, row in zip(lengths, ids, strict=True) if length > limit]
    if too_long:
        longest, row = max(too_long)
        raise RecipeError(
            f"{len(too_long)} of {len(examples)} train rows are longer than train.max_length ({limit} tokens) and "
            f"would lose their answer; the longest is {row} with {longest}.\n"
            f"  Set train.max_length={longest} (and train.pack_tokens no smaller), or leave these rows out."
        )
    for one, row in zip(examples, ids, strict=True):
        if one.completion_ids[-1:] != [tokenizer.eos_token_id]:
            ends = tokenizer.decode(one.completion_ids[-3:])
            raise RecipeError(
                f"row {row}: its answer ends in {ends!r} and not in the stop token {tokenizer.eos_token!r}, so the "
                "model would never learn to stop; eos_token must be what the chat template ends a turn with"
            )


def sample(example: Example, tokenizer: Any) -> list[str]:
    """Returns one row as the model sees it: the end of what it reads, and what it learns."""
    read = tokenizer.decode(example.prompt_ids[-30:])
    return [f"reads     ...{read!r}", f"learns    {tokenizer.decode(example.completion_ids)!r}"]
