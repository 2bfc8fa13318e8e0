"""Attention of a pack: by a dense mask, by FlexAttention on a GPU, or block by block of rows on a CPU.

    prefix 727 tokens, 64 rows of 31        dense mask: 7.3 million pairs of tokens
                                            blocks of rows, with the prefix and themselves: 2.3 million

A dense mask computes all pairs of tokens of a pack, hidden ones included. At 64 rows this costs more than all matrix
products of the model. Attention by blocks puts rows into blocks of some hundred tokens. A block attends to the prefix
and to itself, through the mask of its own tokens, so the sum over visible tokens is the same. PyTorch's FlexAttention
does this on GPUs, but has no backward pass on a CPU.

In bfloat16 (device/precision.py) blocks are computed by matrix products. PyTorch's fused kernel for CPUs is not faster
in bfloat16 than in float32. The matrix products took 24 ms, the kernel 42 ms (one layer of SmolLM2, 672 tokens of
prefix and 270 of rows, forward and backward; 2 cores of an AMD EPYC with AVX512_BF16, 2026-11-29).
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from train.model import recurrent_layers
from train.packing.attention_blocks import FLEX, SHARED_PREFIX, AttentionBlocks, Implementation
from train.packing.branch_states import BranchStates
from train.packing.collate import Batch

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

# Block size within the prefix for matrix products: a block attends to all tokens before it and to itself.
PREFIX_BLOCK_TOKENS = 112
# Shared memory that FlexAttention's kernels need for heads of width 256, with PyTorch 2.13's tiles for every 8.x GPU:
# 153,600 bytes, and 100,352 at width 128 (compiled by Triton 3.7.1). A100 has 166,912, H100 232,448. RTX 30 to 50, A10
# and L4 have 101,376, which leaves too little margin.
FLEX_SHARED_BYTES = 160_000
# Messages of Triton's and torch's compilers that reach PyTorch as a plain RuntimeError.
_FLEX_ERRORS = ("No valid triton configs", "out of resource")
_flex_disabled = False


def preferred_implementation(device: "torch.device", config: "PretrainedConfig") -> Implementation:
    """Return the implementation for long packs of a model of this config on a device.

    It is FlexAttention if its kernels fit the GPU, else blocks. FlexAttention has no dropout.
    """
    dropout: float = getattr(config.get_text_config(), "attention_dropout", 0.0)
    if device.type != "cuda" or _flex_disabled or dropout:
        return SHARED_PREFIX
    import torch

    # CUDA builds of PyTorch have this property. Without it nothing shows that the kernels fit.
    shared = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return FLEX if shared >= FLEX_SHARED_BYTES else SHARED_PREFIX


def disable_unsupported_flex(error: RuntimeError) -> str | None:
    """Disable FlexAttention if the error means that its kernels cannot be compiled here or do not fit this GPU.

    Return the message to print and record, None for any other error. Packs are then computed by blocks. Training
    compiles nothing but FlexAttention, so every error of torch.compile is its error: a missing C compiler or Python.h,
    a GPU that Triton does not know, kernels that need more shared memory.
    """
    compiler_errors = sys.modules.get("torch._dynamo.exc")  # loaded once something is compiled
    is_compiler_error = compiler_errors is not None and isinstance(error, compiler_errors.TorchDynamoException)
    if _flex_disabled or not (is_compiler_error or any(message in str(error) for message in _FLEX_ERRORS)):
        return None
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return disable_flex(reason[:200])


def disable_flex(reason: str) -> str:
    """Compute packs by blocks from here on in this process. Return the message to print and record."""
    global _flex_disabled
    _flex_disabled = True
    return f"FlexAttention's kernels cannot be compiled for this GPU ({reason}): long packs attend by blocks of rows"


_current_blocks: AttentionBlocks | None = None
"""The blocks of the pack in computation. transformers passes only a mask to attention, no blocks."""


@contextmanager
def pack_attention(config: "PretrainedConfig", batch: Batch) -> Iterator[None]:
    """Make a model of this config compute a batch inside of the block: its attention, and its recurrent layers.

    The backward pass belongs inside the block too.
    """
    global _current_blocks
    text_config = config.get_text_config()
    previous = text_config._attn_implementation, _current_blocks
    if batch.attention == SHARED_PREFIX:
        _register_attention()
    text_config._attn_implementation, _current_blocks = batch.attention, batch.blocks
    try:
        with _split_recurrent_rows(config, batch):
            yield
    finally:
        text_config._attn_implementation, _current_blocks = previous


def _split_recurrent_rows(config: "PretrainedConfig", batch: Batch) -> AbstractContextManager[None]:
    if not batch.segments or not recurrent_layers.is_recurrent(config):
        return nullcontext()
    input_ids = batch.inputs["input_ids"]
    states = BranchStates(batch.segments, input_ids.shape[1], input_ids.device)
    return recurrent_layers.split_rows(config, states)


def _register_attention() -> None:
    # Only the attention function is registered: transformers builds no mask for a name without a mask function.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(SHARED_PREFIX, block_attention_forward)


def block_attention_forward(
    module: "nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    **kwargs: Any,
) -> tuple["torch.Tensor", None]:
    """Return the output of SDPA for the pack's mask, [1, T, heads, width].

    query, key and value are [1, heads, T, width]. Raise RuntimeError outside of `pack_attention`, where no blocks are
    set.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if _current_blocks is None:
        raise RuntimeError(f"{SHARED_PREFIX} attends to the blocks of a pack, and there is none")
    if torch.is_autocast_enabled("cpu") and query.device.type == "cpu" and not kwargs.get("dropout"):
        return _autocast_block_attention(
            query, key, value, _current_blocks, kwargs.get("scaling") or query.shape[-1] ** -0.5
        ), None
    # One split for all blocks: the gradient of a slice is as long as the pack, and there would be one for each block.
    queries, keys, values = (tensor.split(_current_blocks.tokens, dim=2) for tensor in (query, key, value))
    outputs = []
    if _current_blocks.prefix:
        outputs.append(sdpa(module, queries[0], keys[0], values[0], None, **kwargs)[0])  # no mask means causal
    for rows, key_rows, value_rows, mask in zip(queries[1:], keys[1:], values[1:], _current_blocks.masks, strict=True):
        visible_kv = (torch.cat([keys[0], key_rows], dim=2), torch.cat([values[0], value_rows], dim=2))
        outputs.append(sdpa(module, rows, *visible_kv, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _autocast_block_attention(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", blocks: AttentionBlocks, scaling: float
) -> "torch.Tensor":
    """Return attention [1, T, heads, width], block by block, in the type that autocast multiplies in.

    Scores and probabilities of a block are in that type, as in transformers' own eager attention. The softmax sums in
    float32. Probabilities are kept for the backward pass: heads x pairs of tokens for each layer.
    """
    import torch

    with torch.autocast("cpu", enabled=False):
        dtype, (heads, tokens, width), groups = torch.get_autocast_dtype("cpu"), query.shape[1:], key.shape[1]
        query, key, value = (query * scaling).to(dtype)[0], key.to(dtype)[0], value.to(dtype)[0]
        outputs, prefix_tokens = [], blocks.prefix
        lengths = [
            min(PREFIX_BLOCK_TOKENS, prefix_tokens - offset) for offset in range(0, prefix_tokens, PREFIX_BLOCK_TOKENS)
        ]
        queries = query.split([*lengths, *blocks.tokens[1:]], dim=1)
        keys, values = (tensor.split([prefix_tokens, tokens - prefix_tokens], dim=1) for tensor in (key, value))

        def attend(
            rows: torch.Tensor, seen_keys: torch.Tensor, seen_values: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:
            # Query heads with the same key head are stacked in one matrix.
            scores = torch.bmm(rows.reshape(groups, -1, width), seen_keys.transpose(1, 2)).add_(mask)
            return torch.bmm(torch.softmax(scores, dim=-1), seen_values).view(heads, -1, width)

        offset = 0
        for rows in queries[: len(lengths)]:
            offset += rows.shape[1]
            mask = _causal_bias(rows.shape[1], offset, heads // groups, dtype)
            outputs.append(attend(rows, keys[0][:, :offset], values[0][:, :offset], mask))
        row_kv = (parts[1].split(blocks.tokens[1:], dim=1) for parts in (keys, values))
        masks = blocks.score_bias(heads // groups, dtype)
        for rows, key_rows, value_rows, mask in zip(queries[len(lengths) :], *row_kv, masks, strict=True):
            seen_keys = torch.cat([keys[0], key_rows], dim=1)
            outputs.append(attend(rows, seen_keys, torch.cat([values[0], value_rows], dim=1), mask))
        return torch.cat(outputs, dim=1).transpose(0, 1)[None]


@cache
def _causal_bias(tokens: int, visible_tokens: int, repeated: int, dtype: "torch.dtype") -> "torch.Tensor":
    """Return the bias of the scores of a prefix block, [repeated * tokens, visible_tokens].

    The block's tokens are the last of the visible tokens.
    """
    import torch

    hidden = torch.ones(tokens, visible_tokens, dtype=torch.bool).triu(visible_tokens - tokens + 1)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf")).repeat(repeated, 1)
