"""Log-likelihoods of given answers: the reference and the validation metric of preference tuning."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from train.distributed import world
from train.evaluate.pack_passes import compute_by_row
from train.loop.losses import log_probabilities
from train.packing.collate import Batch
from train.packing.packing_plan import Pack, PackingPlan, TokenizedRow, UpdateShards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_ROWS = 16


def compute_log_likelihoods(
    model: "PreTrainedModel",
    rows: Sequence[TokenizedRow],
    plan: PackingPlan,
    pad_token_id: int,
    on_batch: Callable[[int], None] = lambda rows: None,
    on_fallback: Callable[[str], None] = lambda message: None,
) -> list[tuple[float, ...]]:
    """Return for each row the natural-log probability of each of its completions under the current model.

    Rows are packed as in training. `on_fallback`: see `compute_by_row`. The mode of the model is unchanged.
    """
    indices = range(len(rows))
    chunks = [indices[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS)]

    def compute(pack: Pack, batch: Batch) -> dict[str, tuple[float, ...]]:
        token_log_probs, sequence, _ = log_probabilities(model, batch)
        sums = token_log_probs.new_zeros(2 * len(pack.rows)).index_add(0, sequence, token_log_probs).view(-1, 2)
        return {row.id: tuple(pair) for row, pair in zip(pack.rows, sums.tolist(), strict=True)}

    shards = UpdateShards(rows, plan, world.shard(chunks), 1)
    log_likelihoods = compute_by_row(model, shards, plan.mode, pad_token_id, compute, on_batch, on_fallback)
    chunk_results = [[log_likelihoods[rows[index].id] for index in chunk] for chunk in world.shard(chunks)]
    return [pair for chunk in world.gather_in_order(chunk_results, len(chunks)) for pair in chunk]
