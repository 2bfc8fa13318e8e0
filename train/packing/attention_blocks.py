"""Attention blocks of a pack: its tokens after the prefix, cut between rows. collate.py makes them for attention.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Implementation = Literal["sdpa", "flex_attention", "shared_prefix"]
FLEX: Implementation = "flex_attention"
SHARED_PREFIX: Implementation = "shared_prefix"
"""The name under which attention by blocks of rows is registered with transformers."""
# Below this a dense mask is as fast. Larger blocks compute more hidden pairs; smaller blocks do not keep the cores
# busy.
MIN_BLOCKED_TOKENS = 512
BLOCK_TOKENS = 320


@dataclass(frozen=True)
class AttentionBlocks:
    """The prefix of a pack and the masks of its blocks."""

    prefix: int
    """Tokens of the prefix, 0 if nothing is shared."""
    masks: tuple["torch.Tensor", ...]
    """The visible tokens of each block, [1, 1, B, prefix + B]. A block sees all of the prefix and a part of itself."""
    _score_bias: dict[tuple[int, "torch.dtype"], list["torch.Tensor"]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """The cache of `score_bias`."""

    @property
    def tokens(self) -> list[int]:
        """The number of tokens of the prefix and of each block."""
        return [self.prefix, *(mask.shape[2] for mask in self.masks)]

    def score_bias(self, repeated: int, dtype: "torch.dtype") -> list["torch.Tensor"]:
        """Return the bias of each block's scores, [repeated * B, prefix + B].

        It is 0 for visible pairs, -inf for hidden ones.
        """
        import torch

        if (repeated, dtype) not in self._score_bias:
            biases = (
                torch.zeros(mask.shape[2:], dtype=dtype).masked_fill(~mask[0, 0], float("-inf")) for mask in self.masks
            )
            self._score_bias[repeated, dtype] = [bias.repeat(repeated, 1) for bias in biases]
        return self._score_bias[repeated, dtype]


def block_lengths(prefix: int, row_tokens: Sequence[int]) -> list[int] | None:
    """Return the tokens of each block, made of complete rows, or None if a dense mask is as fast."""
    if prefix + sum(row_tokens) < MIN_BLOCKED_TOKENS:
        return None
    lengths = [0]
    for tokens in row_tokens:
        if lengths[-1] and lengths[-1] + tokens > BLOCK_TOKENS:
            lengths.append(0)
        lengths[-1] += tokens
    return lengths
