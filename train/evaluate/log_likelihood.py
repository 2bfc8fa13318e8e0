"""Log-likelihoods of given answers: the reference and the validation metric of preference tuning."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from train.distributed import world
from train.loop.losses import log_probabilities
from train.packing import collate
from train.packing.attention import pack_attention, preferred_implementation
from train.packing.packing_plan import PackingPlan, TokenizedRow, UpdateShards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_ROWS = 16


def compute_log_likelihoods(
    model: "PreTrainedModel",
    rows: Sequence[TokenizedRow],
    plan: PackingPlan,
    pad_token_id: int,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[tuple[float, ...]]:
    """Return for each row the natural-log probability of each of its completions under the current model.

    Rows are packed as in training. The mode of the model is unchanged.
    """
    import torch

    was_training = model.training
    model.eval()
    indices = range(len(rows))
    chunks = [indices[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS)]
    shards = UpdateShards(rows, plan, world.shard(chunks), 1)
    log_likelihoods: dict[str, tuple[float, ...]] = {}
    with torch.inference_mode():
        for index in range(len(shards)):
            for pack in shards[index].packs:
                batch = collate.collate_pack(
                    pack, plan.mode, model.device, pad_token_id, preferred_implementation(model.device)
                )
                with pack_attention(model.config, batch):
                    token_log_probs, sequence, _ = log_probabilities(model, batch)
                sums = token_log_probs.new_zeros(2 * len(pack.rows)).index_add(0, sequence, token_log_probs).view(-1, 2)
                log_likelihoods |= {row.id: tuple(pair) for row, pair in zip(pack.rows, sums.tolist(), strict=True)}
            on_batch(len(log_likelihoods))
    model.train(was_training)
    chunk_results = [[log_likelihoods[rows[index].id] for index in chunk] for chunk in world.shard(chunks)]
    return [pair for chunk in world.gather_in_order(chunk_results, len(chunks)) for pair in chunk]
