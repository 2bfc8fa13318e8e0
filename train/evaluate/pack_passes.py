"""Forward passes over packed rows without gradients: log-likelihoods of answers, and predictions of a head."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from train.packing import collate
from train.packing.attention import disable_unsupported_flex, pack_attention, preferred_implementation
from train.packing.collate import Batch
from train.packing.packing_plan import Pack, PackingMode, UpdateShards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")


def compute_by_row(
    model: "PreTrainedModel",
    shards: UpdateShards,
    mode: PackingMode,
    pad_token_id: int,
    compute: Callable[[Pack, Batch], Mapping[str, Result]],
    on_batch: Callable[[int], None] = lambda rows: None,
    on_fallback: Callable[[str], None] = lambda message: None,
) -> dict[str, Result]:
    """Return {row id: result} of all packs.

    `compute` runs the model on a pack and returns the results of its rows. `on_batch` gets the number of rows so far
    after each shard, `on_fallback` a message if FlexAttention cannot be compiled. The mode of the model is unchanged.
    """
    import torch

    was_training = model.training
    model.eval()
    results: dict[str, Result] = {}
    with torch.inference_mode():
        for index in range(len(shards)):
            for pack in shards[index].packs:
                results |= _compute_pack(model, pack, mode, pad_token_id, compute, on_fallback)
            on_batch(len(results))
    model.train(was_training)
    return results


def _compute_pack(
    model: "PreTrainedModel",
    pack: Pack,
    mode: PackingMode,
    pad_token_id: int,
    compute: Callable[[Pack, Batch], Mapping[str, Result]],
    on_fallback: Callable[[str], None],
) -> Mapping[str, Result]:
    while True:
        batch = collate.collate_pack(
            pack, mode, model.device, pad_token_id, preferred_implementation(model.device, model.config)
        )
        try:
            with pack_attention(model.config, batch):
                return compute(pack, batch)
        except RuntimeError as error:
            if (message := disable_unsupported_flex(error)) is None:
                raise
            on_fallback(message)
