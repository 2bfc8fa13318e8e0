"""Observations of a training from outside, the same for every system.

They are the end of each optimizer update, the token ids that went through the model, and the type in which its first
linear layer multiplied.

    input_ids       5 6 1 9 2 | 3 4 8 2      position_ids   0 1 2 3 4 | 2 3 4 5     one prefix [5 6], two rows
    rows seen       [5 6 1 9 2]  [5 6 3 4 8 2]

A token at position p follows the p tokens before it. This rule reads packs with a shared prefix, packs of complete
rows, and padded batches.
"""

import hashlib
import json
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TokenIds = tuple[int, ...]


class TrainingProbe:
    """Recorder of optimizer updates. Call `attach(model)` before training; it costs about a thousandth of a step."""

    def __init__(self) -> None:
        self.update_times: list[float] = [time.perf_counter()]
        self.updates: list[list[TokenIds]] = []
        self._current_rows: list[TokenIds] = []
        self._n_computed_tokens = 0
        self.computed_tokens: list[int] = []
        self._product_dtype: str | None = None
        self._hooks = [register_optimizer_step_post_hook(self._record_update)]

    def attach(self, model: "PreTrainedModel") -> None:
        """Record the inputs of this model from now on."""
        self._hooks.append(model.register_forward_pre_hook(self._record_forward, with_kwargs=True))
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
        self._hooks.append(layer.register_forward_hook(self._record_product))

    def _record_forward(self, _module: Any, _args: Any, inputs: Mapping[str, Any]) -> None:
        ids = inputs["input_ids"]
        self._n_computed_tokens += ids.numel()
        self._current_rows += split_rows(
            ids.tolist(), _to_lists(inputs.get("position_ids")), _to_lists(inputs.get("attention_mask"), dimensions=2)
        )

    def _record_product(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self._product_dtype = str(output.dtype).removeprefix("torch.")

    def _record_update(self, *_: object) -> None:
        self.update_times.append(time.perf_counter())
        self.updates.append(self._current_rows)
        self.computed_tokens.append(self._n_computed_tokens)
        self._current_rows, self._n_computed_tokens = [], 0

    @property
    def seconds(self) -> list[float]:
        """Return the seconds from the end of one update to the end of the next.

        The first includes all work that is done once.
        """
        return [current - previous for previous, current in zip(self.update_times, self.update_times[1:], strict=False)]

    def report(self) -> dict[str, Any]:
        """Return the figures that result.json contains for every system."""
        return {
            "raw_seconds": [round(seconds, 4) for seconds in self.seconds],
            "update_rows": [len(update) for update in self.updates],
            "update_tokens": [sum(map(len, update)) for update in self.updates],
            "computed_tokens": self.computed_tokens,
            "product_dtype": self._product_dtype,
            "token_ids_sha256": json_sha256(sorted(row for rows in self.updates for row in rows)),
            "updates_sha256": json_sha256(sorted(rows) for rows in self.updates),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def detach(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def split_rows(
    ids: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None, mask: Sequence[Sequence[int]] | None
) -> Iterator[TokenIds]:
    """Yield the rows of a batch: [B, T] ids, and positions or a padding mask if there are any."""
    for index, line in enumerate(ids):
        if positions is None or mask is not None:
            yield tuple(
                token for token, is_real in zip(line, mask[index] if mask else [1] * len(line), strict=True) if is_real
            )
        else:
            yield from _position_paths(line, positions[index])


def _position_paths(ids: Sequence[int], positions: Sequence[int]) -> Iterator[TokenIds]:
    path: list[int] = []
    for token, position in zip(ids, positions, strict=True):
        if position < len(path):
            # Padding to a round length consists of tokens at position 0; no row has a single token.
            if len(path) > 1:
                yield tuple(path)
            del path[position:]
        path.append(token)
    if len(path) > 1:
        yield tuple(path)


def _to_lists(tensor: Any, dimensions: int | None = None) -> Any:
    if not isinstance(tensor, torch.Tensor) or (dimensions is not None and tensor.dim() != dimensions):
        return None
    return tensor.tolist()


def json_sha256(values: Iterable[object]) -> str:
    """Return the SHA-256 of the values as JSON."""
    return hashlib.sha256(json.dumps(list(values), separators=(",", ":")).encode()).hexdigest()


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: of the GPU if there is one, else the resident size."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
