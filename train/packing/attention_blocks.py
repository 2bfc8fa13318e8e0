"""The blocks of a pack: how its tokens are cut between rows for attention by blocks (attention.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Implementation = Literal["sdpa", "flex_attention", "shared_prefix"]
SHARED_PREFIX: Implementation = "shared_prefix"
"""The name under which transformers knows attention by blocks of rows."""
# Below, a dense mask is as quick. Larger blocks look at more in vain, smaller ones keep no core busy.
MIN_BLOCKED_TOKENS = 512
BLOCK_TOKENS = 320


@dataclass(frozen=True)
class AttentionBlocks:
    """The tokens of a pack, cut between rows."""

    prefix: int
    """Its tokens, 0 where nothing is shared."""
    masks: tuple[Any, ...]
    """What each block sees, [1, 1, B, prefix + B]: the prefix, and what it may of itself. Blocks stand in order."""
    _added: dict[tuple[int, Any], list[Any]] = field(default_factory=dict, compare=False, repr=False)
    """What `added` returned."""

    @property
    def tokens(self) -> list[int]:
        """How many tokens the prefix and each block have."""
        return [self.prefix, *(mask.shape[2] for mask in self.masks)]

    def added(self, repeated: int, dtype: Any) -> list[Any]:
        """Returns what is added to the scores of each block, [repeated * B, prefix + B]: 0 where it sees, else -inf."""
        import torch

        if (repeated, dtype) not in self._added:
            biases = (
                torch.zeros(mask.shape[2:], dtype=dtype).masked_fill(~mask[0, 0], float("-inf")) for mask in self.masks
            )
            self._added[repeated, dtype] = [bias.repeat(repeated, 1) for bias in biases]
        return self._added[repeated, dtype]


def block_lengths(prefix: int, row_tokens: Sequence[int]) -> list[int] | None:
    """Returns how many tokens blocks of whole rows of these lengths have, None where a dense mask is as quick."""
    if prefix + sum(row_tokens) < MIN_BLOCKED_TOKENS:
        return None
    lengths = [0]
    for tokens in row_tokens:
        if lengths[-1] and lengths[-1] + tokens > BLOCK_TOKENS:
            lengths.append(0)
        lengths[-1] += tokens
    return lengths
