"""Memory of decoding, estimated from a model's config: the rows of a batch, and the peak for the run header.

    Qwen3-4B in bfloat16: 144 KiB of keys and values a token of a row; 64 rows of 124 tokens 1.2 GB, of 1,500 14.2 GB

Keys and values dominate. A batch holds those of its rows up to their last token, and those of the shared prefix once
(shared_cache.py). A pass adds its activations, and logits for rows whose answer continues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from train.evaluate.shared_cache import GPU_LIMITS, GROWTH_SLOTS, PassLimits

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Fraction of a GPU's memory that stays free: its allocator rounds and fragments, and libraries allocate memory too.
SPARE_FRACTION = 0.1
# The CUDA context's part of a GPU's total memory, which is given in GiB.
CUDA_CONTEXT_BYTES = 500_000_000
FLOAT32_BYTES = 4
MAX_BATCH_ROWS = 64
RECURRENT_KINDS = ("linear_attention", "hybrid")
# Heads, and both sizes of a head's state: Gated DeltaNet, Mamba2 of Granite, Bamba and Falcon-H1, Nemotron-H, Zamba2.
STATE_SIZE_KEYS = (
    ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
    ("mamba_n_heads", "mamba_d_head", "mamba_d_state"),
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size"),
    ("n_mamba_heads", "mamba_headdim", "mamba_d_state"),
)


@dataclass(frozen=True)
class DecodingWorkload:
    """The decoding of validation rows."""

    rows: int
    prefix_tokens: int
    row_tokens: int
    """Tokens of the longest row after the prefix, the maximum of answer tokens included."""
    dequantized_bytes: int = 0
    """Bytes of weights that are dequantized during decoding."""


def kv_bytes_per_token(text_config: "PretrainedConfig", dtype_bytes: int) -> int:
    """Return the bytes of keys and values of one token, in all layers of a text config."""
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return int(text_config.num_hidden_layers * 2 * heads * width * dtype_bytes)


def state_bytes(text_config: "PretrainedConfig") -> int:
    """Return the bytes of the states of a row in all recurrent layers, in float32; 0 without recurrent layers."""
    layers = sum(kind in RECURRENT_KINDS for kind in getattr(text_config, "layer_types", None) or ())
    sizes = [
        prod(getattr(text_config, key) for key in keys)
        for keys in STATE_SIZE_KEYS
        if all(getattr(text_config, key, None) for key in keys)
    ]
    return int(layers * max(sizes, default=0) * FLOAT32_BYTES)


def row_bytes(text_config: "PretrainedConfig", tokens: int, dtype_bytes: int) -> int:
    """Return the bytes of a row with `tokens` tokens after the prefix, its answer included.

    These are keys and values, with the free slots of a grown line. Those of one layer count twice, for the copy when
    lines grow, and once more in float32 for attention. States of recurrent layers are added.
    """
    cached = kv_bytes_per_token(text_config, dtype_bytes)
    layer_bytes = cached // text_config.num_hidden_layers
    keys_and_values = (tokens + GROWTH_SLOTS) * (cached + layer_bytes + layer_bytes * FLOAT32_BYTES // dtype_bytes)
    return int(keys_and_values + state_bytes(text_config))


def pass_bytes(
    text_config: "PretrainedConfig", rows: int, prefix: int, dtype_bytes: int, limits: PassLimits = GPU_LIMITS
) -> int:
    """Return the bytes of the largest pass for `rows` rows.

    These are activations of a layer, attention scores, and logits: in the model's type, in float32, in a copy, as
    log-probabilities, and the grammar's mask as numbers.
    """
    heads = text_config.num_attention_heads
    attention = heads * (getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)
    # A pass reads at most this many prompt tokens. Residual, norm and MLP are in the model's type, attention in
    # float32.
    tokens = limits.pass_tokens
    layer = tokens * (
        dtype_bytes * (3 * text_config.hidden_size + 3 * text_config.intermediate_size)
        + 2 * FLOAT32_BYTES * (text_config.hidden_size + attention)
    )
    scores = 3 * FLOAT32_BYTES * limits.scores
    prefix_bytes = prefix * kv_bytes_per_token(text_config, dtype_bytes)
    return int(layer + scores + prefix_bytes + rows * text_config.vocab_size * (dtype_bytes + 6 * FLOAT32_BYTES))


def fit_batch_rows(
    text_config: "PretrainedConfig",
    prefix: int,
    tokens: Sequence[int],
    dtype_bytes: int,
    free_bytes: int,
    max_rows: int,
) -> int:
    """Return the number of rows to decode in one batch: `max_rows`, or as many as fit into the free bytes.

    It is at least one. `tokens` are the rows' tokens after the prefix in ascending order, answers included.
    """
    budget = free_bytes * (1 - SPARE_FRACTION)
    for rows in range(min(max_rows, len(tokens)), 1, -1):
        needed = rows * row_bytes(text_config, tokens[rows - 1], dtype_bytes) + pass_bytes(
            text_config, rows, prefix, dtype_bytes
        )
        if needed <= budget:
            return rows
    return 1


def estimate_decoding_peak(
    text_config: "PretrainedConfig",
    workload: DecodingWorkload,
    dtype_bytes: int,
    limits: PassLimits,
    free_bytes: int | None,
) -> tuple[int, int]:
    """Return the rows of a batch, and their bytes of memory besides the model.

    `free_bytes` is the free memory besides the model, None for no limit.
    """
    rows, prefix, tokens = min(workload.rows, MAX_BATCH_ROWS), workload.prefix_tokens, workload.row_tokens
    if free_bytes is not None:
        rows = fit_batch_rows(text_config, prefix, [tokens] * rows, dtype_bytes, free_bytes, rows)
    return rows, rows * row_bytes(text_config, tokens, dtype_bytes) + pass_bytes(
        text_config, rows, prefix, dtype_bytes, limits
    )


def usable_bytes(device_bytes: int) -> int:
    """Return the memory of a GPU that a process can use."""
    return device_bytes - CUDA_CONTEXT_BYTES
