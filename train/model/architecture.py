"""Properties of a model's layers, read from its config before training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# Kinds of layers (transformers' `layer_types`) that attend and so can take a mask.
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
HYBRID = "hybrid"
# The config keys of window sizes.
WINDOW_SIZE_KEYS = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}


def layer_types(config: "PretrainedConfig") -> set[str]:
    """Return the kinds of layers of a model, from its text config."""
    text_config = config.get_text_config()
    if kinds := getattr(text_config, "layer_types", None):
        return set(kinds)
    if getattr(text_config, "mamba_d_state", None) or getattr(text_config, "state_size", None):
        return {"mamba"}
    sliding = getattr(text_config, "sliding_window", None) and getattr(text_config, "use_sliding_window", True)
    return {SLIDING} if sliding else {FULL}


def has_recurrent_layers(config: "PretrainedConfig") -> bool:
    """Return whether a layer carries a state from token to token, which would mix rows of one sequence."""
    return bool(layer_types(config) - {FULL, *WINDOW_SIZE_KEYS})


def count_attention_layers(config: "PretrainedConfig") -> int:
    """Return the number of layers that attend, those of kind `hybrid` included, which attend beside a recurrence."""
    text_config = config.get_text_config()
    kinds = getattr(text_config, "layer_types", None)
    if not kinds:
        return int(text_config.num_hidden_layers)
    return sum(kind in {FULL, HYBRID, *WINDOW_SIZE_KEYS} for kind in kinds[: text_config.num_hidden_layers])


def window_tokens(config: "PretrainedConfig") -> int | None:
    """Return the smallest attention window of the layers in tokens, or None if all layers have full attention."""
    text_config = config.get_text_config()
    sizes = [getattr(text_config, WINDOW_SIZE_KEYS[kind]) for kind in layer_types(config) & set(WINDOW_SIZE_KEYS)]
    return min(sizes) if sizes else None


@dataclass(frozen=True)
class Window:
    """The attention window of a layer."""

    kind: str
    tokens: int

    def first_visible(self, positions: "torch.Tensor") -> "torch.Tensor":
        """Return the first position that tokens at these positions see."""
        return positions // self.tokens * self.tokens if self.kind == CHUNKED else positions - self.tokens + 1


def layer_window(config: "PretrainedConfig", layer: int) -> Window | None:
    """Return the window of an attention layer, or None for full attention."""
    text_config = config.get_text_config()
    kinds = getattr(text_config, "layer_types", None)
    kind = kinds[layer] if kinds else next(iter(layer_types(config)))
    tokens = getattr(text_config, WINDOW_SIZE_KEYS[kind], None) if kind in WINDOW_SIZE_KEYS else None
    return Window(kind, tokens) if tokens else None
