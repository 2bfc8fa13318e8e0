"""Rows that a model reads token by token: what decoding asks of their cache, whichever it is.

shared_cache.py     rows behind a prefix that is kept once, several tokens of a row at a time
padded_cache.py     rows of models that cannot share one
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

# A cache is made smaller when so large a part of its rows has ended.
COMPACT_FRACTION = 0.25


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a row, the first of them in slot `start`; logits are wanted behind the last `wanted`."""

    row: int
    start: int
    ids: Sequence[int]
    wanted: int


class RowCache(Protocol):
    """Rows that a model reads token by token."""

    device: Any
    ragged: bool
    """Whether rows may read different numbers of tokens at a time."""

    def logits(self, spans: Sequence[Span], columns: Any) -> Any:
        """Returns float32 logits [wanted, columns] in the order of the spans, all columns where that is None.

        Spans are in the order of their rows, and a slot that is written again is replaced.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all other rows."""


class UnsupportedAttentionError(Exception):
    """The model does not attend through transformers' attention interface in each of its layers."""


@contextmanager
def restrict_logits(model: Any, columns: Any) -> Iterator[None]:
    """Has the model compute only these columns of its logits inside of the block, all where that is None.

    What a model does to its logits (a cap, a scale) it does to each by itself. A head that is no plain layer, as with
    an adapter on it, computes all, and the columns are taken of them.
    """
    import torch

    head = model.get_output_embeddings()
    if columns is None or head is None:
        yield
        return
    forward, instance_forward = head.forward, vars(head).get("forward")
    is_plain_linear = type(head) is torch.nn.Linear and instance_forward is None

    def restricted_forward(hidden: Any) -> Any:
        if not is_plain_linear:
            return forward(hidden)[..., columns]
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
