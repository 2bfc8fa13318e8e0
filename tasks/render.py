"""From messages to token ids, by the tokenizer's own chat template and nothing else.

Training, validation and the reference answers all render here; a server renders the same messages with the same
template, and parity compares the ids.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.errors import RecipeError
from recipes.schema_train import Model

Messages = list[dict[str, str]]

# An answer may take more tokens than any in train, and by other tokens than the tokenizer's own; what ends sooner
# costs nothing.
ANSWER_ROOM = 1.5
LEAST_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Example:
    """One training example as token ids: what is read and what is answered, the stop token last."""

    prompt_ids: list[int]
    completion_ids: list[int]


def tokenizer_of(model: Model) -> Any:
    """Returns the tokenizer of a base model. Raises RecipeError where it is not there, or renders no conversations."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.base, revision=model.revision)
    except OSError as error:
        raise RecipeError(not_found(model, error)) from None
    if not tokenizer.chat_template:
        raise RecipeError(
            f"model.base: the tokenizer of {model.base} has no chat template; "
            "take an instruction-tuned model, or add chat_template.jinja to the folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: Any, conversations: Sequence[Messages]) -> list[list[int]]:
    """Returns the ids of each conversation up to where the model answers."""
    texts = tokenizer.apply_chat_template(list(conversations), tokenize=False, add_generation_prompt=True)
    return _encode(tokenizer, texts)


def examples(tokenizer: Any, conversations: Sequence[Messages], answers: Sequence[str]) -> list[Example]:
    """Returns the ids of each conversation with its answer, cut after the token that ends the answer.

    Raises RecipeError where the template renders an answered conversation otherwise than it renders the open one: a
    model trained on the one would be asked the other.
    """
    answered = [
        [*messages, {"role": "assistant", "content": text}]
        for messages, text in zip(conversations, answers, strict=True)
    ]
    whole = _encode(tokenizer, tokenizer.apply_chat_template(answered, tokenize=False))
    found = []
    for prompt, ids, text in zip(prompt_ids(tokenizer, conversations), whole, answers, strict=True):
        if ids[: len(prompt)] != prompt:
            raise RecipeError(
                f"The chat template of {tokenizer.name_or_path} renders a conversation that ends in {text!r} "
                "differently from one that asks for it: the prompt trained on would not be the prompt served.\n"
                f"  asked:    ...{tokenizer.decode(prompt[-12:])!r}\n"
                f"  answered: ...{tokenizer.decode(ids[max(0, len(prompt) - 12) : len(prompt) + 12])!r}\n"
                "  Use a base model without a thinking mode (such as Qwen3-4B-Instruct-2507), or mend its template."
            )
        found.append(Example(prompt, _up_to_stop(tokenizer, ids[len(prompt) :])))
    return found


def max_answer_tokens(longest: int) -> int:
    """Returns how many tokens an answer may have, where the longest that is learnt has so many, its stop token too."""
    return max(LEAST_ANSWER_TOKENS, math.ceil(ANSWER_ROOM * longest))


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Returns how many tokens each text is by itself."""
    if tokenizer.is_fast:
        return [len(one) for one in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return [len(ids) for ids in _encode(tokenizer, texts)]


def template_sha256(tokenizer: Any) -> str:
    """Returns the hash of the chat template, by which a server's template is known to be the trained one."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def shared_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Returns how many leading ids all the sequences share (0 for no sequences)."""
    if not sequences:
        return 0
    # What the least and the greatest share in lexicographic order, all between them share too.
    low, high = min(sequences), max(sequences)
    length = 0
    while length < min(len(low), len(high)) and low[length] == high[length]:
        length += 1
    return length


def not_found(model: Model, error: OSError) -> str:
    """Returns what to tell when a base model, or its tokenizer, cannot be loaded."""
    reason = str(error).splitlines()[0]
    if Path(model.base).is_dir():
        return f"model.base: {model.base} cannot be loaded: {reason}"
    return (
        f"model.base: {model.base} is neither on this machine nor on the hub: {reason}\n"
        "  Give a folder, log in to the hub (gated models), or take model.base=pocket to try the pipeline."
    )


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _up_to_stop(tokenizer: Any, ids: list[int]) -> list[int]:
    """Cuts what the template writes after the end of the turn (often a line break): it is never generated."""
    stops = {tokenizer.eos_token_id} | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for at, token in enumerate(ids):
        if token in stops:
            return ids[: at + 1]
    return ids
