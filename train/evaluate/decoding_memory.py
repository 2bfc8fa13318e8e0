"""What decoding holds, by a model's config: how many rows are decoded at once, and the peak that the header tells.

    Qwen3-4B in bfloat16: 144 KiB of keys and values a token of a row; 64 rows of 124 tokens 1.2 GB, of 1,500 14.2 GB

Keys and values dominate: a batch holds those of its rows to their last token, and those of the shared prefix once
(shared_cache.py). A pass adds its activations, and logits where an answer goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.evaluate.shared_cache import GPU_LIMITS, GROWTH_SLOTS, PassLimits

# Left free of what a GPU has: its allocator rounds and fragments, and libraries allocate beside it.
SPARE_FRACTION = 0.1
# Of memory that is given in GiB, what CUDA's context takes.
CUDA_CONTEXT_BYTES = 500_000_000
FLOAT32_BYTES = 4
MAX_BATCH_ROWS = 64


@dataclass(frozen=True)
class DecodingWorkload:
    """How validation rows are decoded."""

    rows: int
    prefix_tokens: int
    row_tokens: int
    """Of the longest row behind the prefix, with the most tokens that an answer may have."""
    dequantized: int = 0
    """Bytes of weights that are held dequantized meanwhile."""


def kv_bytes_per_token(text: Any, dtype_bytes: int) -> int:
    """Returns the bytes of keys and values of one token, in all layers of a text config."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * 2 * heads * width * dtype_bytes)


def row_bytes(text: Any, tokens: int, dtype_bytes: int) -> int:
    """Returns the bytes of a row of so many tokens behind the prefix, its answer included: keys and values with the
    slots that lines are made longer by, those of a layer twice while they are, in float32 while it attends."""
    cached = kv_bytes_per_token(text, dtype_bytes)
    a_layer = cached // text.num_hidden_layers
    return int((tokens + GROWTH_SLOTS) * (cached + a_layer + a_layer * FLOAT32_BYTES // dtype_bytes))


def pass_bytes(text: Any, rows: int, prefix: int, dtype_bytes: int, limits: PassLimits = GPU_LIMITS) -> int:
    """Returns the bytes of the largest pass for so many rows: activations of a layer, scores, and logits in the type of
    the model, in float32, in a copy, as logarithms of probabilities, and what the grammar allows as numbers."""
    heads = text.num_attention_heads
    attention = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    # A pass reads at most so many tokens, of prompts; residual, norm and MLP in the model's type, attention in float32.
    tokens = limits.pass_tokens
    layer = tokens * (
        dtype_bytes * (3 * text.hidden_size + 3 * text.intermediate_size)
        + 2 * FLOAT32_BYTES * (text.hidden_size + attention)
    )
    scores = 3 * FLOAT32_BYTES * limits.scores
    opening = prefix * kv_bytes_per_token(text, dtype_bytes)
    return int(layer + scores + opening + rows * text.vocab_size * (dtype_bytes + 6 * FLOAT32_BYTES))


def fit_batch_rows(text: Any, prefix: int, tokens: Sequence[int], dtype_bytes: int, free_bytes: int, most: int) -> int:
    """Returns how many of the rows, whose tokens behind the prefix (answers included) ascend, are decoded in one batch:
    `most`, or as many as a GPU has free bytes for, and at least one."""
    budget = free_bytes * (1 - SPARE_FRACTION)
    for rows in range(min(most, len(tokens)), 1, -1):
        needed = rows * row_bytes(text, tokens[rows - 1], dtype_bytes) + pass_bytes(text, rows, prefix, dtype_bytes)
        if needed <= budget:
            return rows
    return 1


def estimate_decoding_peak(
    text: Any, decoded: DecodingWorkload, dtype_bytes: int, limits: PassLimits, free_bytes: int | None
) -> tuple[int, int]:
    """Returns how many rows are decoded at once, and what that holds beside the model. `free_bytes`: what there is
    beside the model, None where that is no limit."""
    rows, prefix, tokens = min(decoded.rows, MAX_BATCH_ROWS), decoded.prefix_tokens, decoded.row_tokens
    if free_bytes is not None:
        rows = fit_batch_rows(text, prefix, [tokens] * rows, dtype_bytes, free_bytes, rows)
    return rows, rows * row_bytes(text, tokens, dtype_bytes) + pass_bytes(text, rows, prefix, dtype_bytes, limits)


def usable_bytes(device_bytes: int) -> int:
    """Returns what a process has of a GPU's memory."""
    return device_bytes - CUDA_CONTEXT_BYTES
