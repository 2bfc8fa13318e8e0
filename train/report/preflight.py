"""Checks before training of mistakes that would waste hours: an error, or a line in the header.

The answer must end with the stop token, and no row may lose its answer to truncation. The header shows one row as the
model gets it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from train.packing.packing_plan import TokenizedRow

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def check_training_rows(
    rows: Sequence[TokenizedRow], tokenizer: "PreTrainedTokenizerBase", recipe: Recipe, config: "PretrainedConfig"
) -> None:
    """Raise RecipeError if the rows cannot be trained on; `config` is the base model's.

    The message names the row and the key to change.
    """
    limit, context_tokens = recipe.train.max_length, config.get_text_config().max_position_embeddings
    if limit > context_tokens:
        raise RecipeError(
            f"train.max_length: given {limit}, allowed: at most {context_tokens}, the context of {recipe.model.base}",
            code="INS-T012",
        )
    too_long = [(row.longest_sequence_tokens, row.id) for row in rows if row.longest_sequence_tokens > limit]
    if too_long:
        longest, row_id = max(too_long)
        raise RecipeError(
            f"{len(too_long)} of {len(rows)} train rows are longer than train.max_length ({limit} tokens), "
            f"so their answers would be cut off; the longest is {row_id} with {longest}.\n"
            f"  Set train.max_length={longest} (and train.pack_tokens at least as high), or leave these rows out.",
            code="INS-D031",
        )
    for row in rows:
        for answer in row.completions:
            if answer[-1:] == [tokenizer.eos_token_id]:
                continue
            tail = tokenizer.decode(answer[-3:])
            raise RecipeError(
                f"row {row.id}: its answer ends in {tail!r} and not in the stop token {tokenizer.eos_token!r}, so the "
                "model would not learn to stop; set model.stop to the token that ends a turn in the chat template",
                code="INS-T009",
            )


def sample_lines(row: TokenizedRow, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return a row as the model gets it: the end of the prompt, the answer to learn, and the answer to avoid."""
    lines = [f"reads     ...{tokenizer.decode(row.prompt_ids[-30:])!r}"]
    names = ("learns", "not")
    return lines + [
        f"{name:<9} {tokenizer.decode(completion)!r}" for name, completion in zip(names, row.completions, strict=False)
    ]
