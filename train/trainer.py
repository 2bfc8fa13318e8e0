"""TRL's SFTTrainer for packed sequences: the language-model head looks only at what must be predicted.

A pack holds some fifty answer tokens among a thousand. TRL computes logits, entropy and accuracy for every token, which
for a small model costs as much as the model itself and for a vocabulary of 150,000 is most of the memory. The loss is
the same number: the sum over answer tokens, divided by their count in the whole update.
"""

from typing import Any

import torch
from trl import SFTTrainer

from train.packing import IGNORE


class PackTrainer(SFTTrainer):  # type: ignore[misc]
    """An SFTTrainer whose batches are one packed sequence, [1, T], as SharedPrefixCollator makes them."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of one pack; `num_items_in_batch` is the count of answer tokens in the whole update."""
        targets = inputs.pop("labels")[0, 1:]
        kept = (targets != IGNORE).nonzero()[:, 0]
        outputs = model(**inputs, use_cache=False, logits_to_keep=kept)
        summed = torch.nn.functional.cross_entropy(outputs.logits[0].float(), targets[kept], reduction="sum")
        count = kept.numel() if num_items_in_batch is None else num_items_in_batch
        # Every process divides by the count of all processes, and gradients are averaged over processes.
        loss = summed / count * (self.accelerator.num_processes if num_items_in_batch is not None else 1)
        return (loss, outputs) if return_outputs else loss
