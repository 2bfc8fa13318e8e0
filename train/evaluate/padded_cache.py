"""Padded cache for models that cannot share a prefix: other recurrent layers, or their own kind of attention.

    [ padding | row ]     all rows end in the same column

It is transformers' own cache of the model, without a shared prefix: a recurrent layer would carry the state of a prefix
and of the padding after it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.evaluate.row_cache import COMPACT_FRACTION, Span, restrict_logits

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel


class PaddedCache:
    """Rows that a model reads in one step each, see `RowCache`."""

    ragged = takes_drafts = False

    def __init__(self, model: "PreTrainedModel", rows: int, pad_token_id: int) -> None:
        self.model, self.device, self.pad_token_id = model, model.device, pad_token_id
        self.cache: Cache | None = None
        self.rows = list(range(rows))
        self.attention_mask: torch.Tensor | None = None
        """The attention mask [rows, tokens]."""

    def logits(self, spans: Sequence[Span], columns: "torch.Tensor | None" = None) -> "torch.Tensor":
        """See `RowCache`: in the first call complete prompts, later one token of each row."""
        import torch

        device = self.device
        ids_by_row = {span.row: list(span.ids) for span in spans}
        longest = max(map(len, ids_by_row.values()))
        lines = [ids_by_row.get(row, [self.pad_token_id]) for row in self.rows]
        pad_lengths = [longest - len(line) for line in lines]
        ids = torch.tensor(
            [[self.pad_token_id] * pad_length + line for pad_length, line in zip(pad_lengths, lines, strict=True)],
            device=device,
        )
        new_mask = torch.tensor(
            [[0] * pad_length + [1] * (longest - pad_length) for pad_length in pad_lengths], device=device
        )
        self.attention_mask = (
            new_mask if self.attention_mask is None else torch.cat([self.attention_mask, new_mask], dim=1)
        )
        positions = (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -longest:]
        with restrict_logits(self.model, columns):
            output = self.model(
                input_ids=ids,
                attention_mask=self.attention_mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = output.past_key_values
        active = torch.tensor([index for index, row in enumerate(self.rows) if row in ids_by_row], device=device)
        logits: torch.Tensor = output.logits[active, -1].float()
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """See `RowCache`. The cache is compacted once a quarter of its rows has ended."""
        import torch

        if len(rows) > (1 - COMPACT_FRACTION) * len(self.rows) or self.cache is None:
            return
        remaining = set(rows)
        indices = torch.tensor([index for index, row in enumerate(self.rows) if row in remaining], device=self.device)
        self.cache.batch_select_indices(indices)
        self.attention_mask = None if self.attention_mask is None else self.attention_mask[indices]
        self.rows = [row for row in self.rows if row in remaining]
