"""How a pack attends: by a dense mask, by FlexAttention's blocks on a GPU, or on a CPU block by block of rows.

    prefix 727 tokens, 64 rows of 31        every token at every other: 7.3 million pairs
                                            blocks of rows at the prefix and themselves: 2.3 million

A dense mask has each token of a pack look at all others, the hidden ones too, which at 64 rows costs more than all
matrices of the model. Here rows stand in blocks of some hundred tokens; a block looks at the prefix and itself, through
the same mask, so that the result is the same sum over what is seen. PyTorch's FlexAttention does that on GPUs, and has
no backward pass on a CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from train.batches import Batch

Implementation = Literal["sdpa", "flex_attention", "shared_prefix"]
BLOCKS: Implementation = "shared_prefix"
"""The name under which transformers knows attention by blocks of rows."""
# Below, a dense mask is as quick. Larger blocks look at more in vain, smaller ones keep no core busy.
LEAST_TOKENS = 512
BLOCK_TOKENS = 320


def quickest(device: Any) -> Implementation:
    """Returns what computes long packs on a device."""
    return "flex_attention" if device.type == "cuda" else BLOCKS


@dataclass(frozen=True)
class Blocks:
    """The tokens of a pack, cut between rows."""

    prefix: int
    spans: tuple[tuple[int, int], ...]
    """First token of each block, and the one behind its last."""


def blocks_of(prefix: int, row_tokens: Sequence[int]) -> Blocks | None:
    """Returns blocks of whole rows of these lengths behind a prefix, None where a dense mask is as quick."""
    if prefix + sum(row_tokens) < LEAST_TOKENS:
        return None
    spans, start, end = [], prefix, prefix
    for tokens in row_tokens:
        if end > start and end + tokens - start > BLOCK_TOKENS:
            spans.append((start, end))
            start = end
        end += tokens
    return Blocks(prefix, (*spans, (start, end)))


_blocks: Blocks | None = None
"""Of the pack that is computed now: transformers passes a mask to attention, and nothing about it."""


@contextmanager
def attending(config: Any, batch: "Batch") -> Iterator[None]:
    """Has a model of this config attend as a batch needs it inside of the block, in its backward pass too."""
    global _blocks
    text = config.get_text_config()
    before = text._attn_implementation, _blocks
    if batch.attention == BLOCKS:
        _register()
    text._attn_implementation, _blocks = batch.attention, batch.blocks
    try:
        yield
    finally:
        text._attn_implementation, _blocks = before


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(BLOCKS, by_blocks)
    ALL_MASK_ATTENTION_FUNCTIONS.register(BLOCKS, sdpa_mask)


def by_blocks(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> tuple[Any, None]:
    """Returns what SDPA returns for a pack's mask [1, 1, T, T]; query, key and value are [1, heads, T, width]."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if _blocks is None:
        return sdpa(module, query, key, value, attention_mask, **given)  # type: ignore[no-any-return]
    prefix, found = _blocks.prefix, []
    if prefix:
        opening = (one[:, :, :prefix] for one in (query, key, value))
        found.append(sdpa(module, *opening, None, **given)[0])  # without a mask it is causal
    for start, end in _blocks.spans:
        keys, values = (torch.cat([one[:, :, :prefix], one[:, :, start:end]], dim=2) for one in (key, value))
        rows = attention_mask[:, :, start:end]
        seen = torch.cat([rows[..., :prefix], rows[..., start:end]], dim=3)
        found.append(sdpa(module, query[:, :, start:end], keys, values, seen, **given)[0])
    return torch.cat(found, dim=1), None
