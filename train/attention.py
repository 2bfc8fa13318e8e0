"""How a pack attends: by a dense mask, by FlexAttention's blocks on a GPU, or on a CPU block by block of rows.

    prefix 727 tokens, 64 rows of 31        every token at every other: 7.3 million pairs
                                            blocks of rows at the prefix and themselves: 2.3 million

A dense mask has each token of a pack look at all others, the hidden ones too, which at 64 rows costs more than all
matrices of the model. Here rows stand in blocks of some hundred tokens; a block looks at the prefix and itself, through
the mask of its own tokens, so that the result is the same sum over what is seen. PyTorch's FlexAttention does that on
GPUs, and has no backward pass on a CPU.
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
    """Its tokens, 0 where nothing is shared."""
    masks: tuple[Any, ...]
    """What each block sees, [1, 1, B, prefix + B]: the prefix, and what it may of itself. Blocks stand in order."""

    @property
    def tokens(self) -> list[int]:
        """How many tokens the prefix and each block have."""
        return [self.prefix, *(mask.shape[2] for mask in self.masks)]


def block_lengths(prefix: int, row_tokens: Sequence[int]) -> list[int] | None:
    """Returns how many tokens blocks of whole rows of these lengths have, None where a dense mask is as quick."""
    if prefix + sum(row_tokens) < LEAST_TOKENS:
        return None
    found = [0]
    for tokens in row_tokens:
        if found[-1] and found[-1] + tokens > BLOCK_TOKENS:
            found.append(0)
        found[-1] += tokens
    return found


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
    # As attention alone: transformers builds no mask for what it knows none of.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(BLOCKS, by_blocks)


def by_blocks(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> tuple[Any, None]:
    """Returns what SDPA returns for the pack's mask; query, key and value are [1, heads, T, width].

    Raises RuntimeError outside of `attending`, where nothing says what is seen.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if _blocks is None:
        raise RuntimeError(f"{BLOCKS} attends to the blocks of a pack, and there is none")
    # Split once: the gradient of a slice is as long as the pack, and there are as many as blocks.
    queries, keys, values = (one.split(_blocks.tokens, dim=2) for one in (query, key, value))
    found = []
    if _blocks.prefix:
        found.append(sdpa(module, queries[0], keys[0], values[0], None, **given)[0])  # without a mask it is causal
    for rows, key_rows, value_rows, mask in zip(queries[1:], keys[1:], values[1:], _blocks.masks, strict=True):
        seen = (torch.cat([keys[0], key_rows], dim=2), torch.cat([values[0], value_rows], dim=2))
        found.append(sdpa(module, rows, *seen, mask, **given)[0])
    return torch.cat(found, dim=1), None
