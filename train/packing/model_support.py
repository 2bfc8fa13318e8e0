"""The packing that a model can be trained with, and the cost of a pack on it."""

from typing import TYPE_CHECKING

from train.model import architecture, recurrent_layers
from train.packing.attention_blocks import BLOCK_TOKENS
from train.packing.packing_plan import PackCost, PackingMode

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def supported_packing(
    requested: PackingMode, config: "PretrainedConfig", longest_row: int
) -> tuple[PackingMode, str | None]:
    """Return the packing that this model supports, and the reason if it differs from the requested one, else None.

    `longest_row` is the most tokens of a prompt with its answer. A pack's mask disables sliding windows, which makes no
    difference only if no row is longer than the window. A recurrent layer takes no mask. If its state can be split
    (recurrent_layers.py), rows share a prefix; otherwise they stay separate, because bfd would carry the state of one
    row into the next.
    """
    name = config.get_text_config().model_type
    recurrent = architecture.has_recurrent_layers(config)
    if (
        requested != "none"
        and recurrent
        and not (requested == "shared_prefix" and recurrent_layers.can_split_rows(config))
    ):
        recurrent_kinds = ", ".join(
            sorted(architecture.layer_types(config) - {architecture.FULL, *architecture.WINDOW_SIZE_KEYS})
        )
        return (
            "none",
            f"{name} has layers of kind {recurrent_kinds}, which carry a state from row to row and know no mask",
        )
    window = architecture.window_tokens(config)
    if requested == "shared_prefix" and window is not None and window < longest_row:
        return "none" if recurrent else "bfd", (
            f"{name} has layers that attend in a window of {window} tokens, which a pack's mask would switch off; the "
            f"longest row has {longest_row}"
        )
    return requested, None


def pack_cost(config: "PretrainedConfig", on_gpu: bool) -> PackCost:
    """Return the pack cost on this model, see `PackCost`.

    On a CPU a pass costs as much as 50 to 150 tokens (measured, 5 and 30 million parameters, float32 and NF4). On a GPU
    a pass of less than about 1,000 tokens leaves the GPU idle (estimated, not measured).
    """
    width = config.get_text_config().hidden_size
    return PackCost(1000.0, 3.4 * width) if on_gpu else PackCost(100.0, 3.4 * width, BLOCK_TOKENS)
