"""The cache interface of decoding: rows that a model reads token by token.

shared_cache.py     rows after a prefix that is stored once, several tokens of a row at a time
padded_cache.py     rows of models that cannot share a prefix
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# A cache is compacted when this fraction of its rows has ended.
COMPACT_FRACTION = 0.25


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a row, the first of them in slot `start`.

    Logits are needed after the last `n_logits` tokens.
    """

    row: int
    start: int
    ids: Sequence[int]
    n_logits: int


class RowCache(Protocol):
    """Rows that a model reads token by token."""

    device: "torch.device"
    ragged: bool
    """Whether rows may read different numbers of tokens in a pass."""

    @property
    def takes_drafts(self) -> bool:
        """Whether a slot can be written again, so that tokens can be read before it is known that they follow."""

    def logits(self, spans: Sequence[Span], columns: "torch.Tensor | None") -> "torch.Tensor":
        """Return float32 logits [n_logits of all spans, columns] in the order of the spans.

        All columns are returned if `columns` is None. Spans must be in the order of their rows. A slot that is written
        again is replaced, if the cache takes drafts.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""


class UnsupportedAttentionError(Exception):
    """A layer of the model does not use transformers' attention interface."""


@contextmanager
def restrict_logits(model: "PreTrainedModel", columns: "torch.Tensor | None") -> Iterator[None]:
    """Make the model compute only these columns of its logits inside of the block, all if `columns` is None.

    Changes that a model makes to its logits (a cap, a scale) apply to each logit separately. A head that is not a plain
    linear layer, as with an adapter on it, computes all columns, and the requested ones are selected.
    """
    import torch

    head = model.get_output_embeddings()
    if columns is None or head is None:
        yield
        return
    forward, instance_forward = head.forward, vars(head).get("forward")
    is_plain_linear = type(head) is torch.nn.Linear and instance_forward is None

    def restricted_forward(hidden: torch.Tensor) -> torch.Tensor:
        if not is_plain_linear:
            logits: torch.Tensor = forward(hidden)[..., columns]
            return logits
        bias = None if head.bias is None else head.bias[columns]
        return torch.nn.functional.linear(hidden, head.weight[columns], bias)

    head.forward = restricted_forward
    try:
        yield
    finally:
        if instance_forward is None:
            del head.forward
        else:
            head.forward = instance_forward
