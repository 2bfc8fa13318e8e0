"""The functions of transformers' recurrent layers, replaced while a model computes several rows in one sequence.

    family             models                                             functions of its modeling module
    Gated DeltaNet     Qwen3.5, Qwen3-Next, OLMo-Hybrid                   causal_conv1d_fn, torch_chunk_gated_delta_rule
    Mamba2             Granite 4, Nemotron-H, Bamba, Falcon-H1, Zamba2    causal_conv1d_fn, mamba2_chunk_scan
    short convolution  LFM2                                               causal_conv1d_fn

Projections, gates and norms of such a layer compute each token by itself. Only these functions carry something from
token to token: a convolution its last inputs, a scan its state. They are replaced by functions that split the sequence
into rows, and start each row from the state where its prefix ends. transformers' functions then compute the rows, so
its kernels for GPUs are used where they are installed.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from train.model import architecture

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

CONVOLUTION, DELTA_RULE, SSD = "causal_conv1d_fn", "torch_chunk_gated_delta_rule", "mamba2_chunk_scan"
# Convolution, scan, norm and output projection of Mamba2 in one kernel. None makes the layer call them one by one.
FUSED_SSD = "mamba2_split_conv1d_scan_combined"
SUPPORTED_MODEL_TYPES = frozenset(
    {
        *("olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
        *("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"),
        *("lfm2", "lfm2_moe"),
    }
)
"""Text models whose recurrent layers use these functions only."""

Convolution = Callable[["torch.Tensor"], "torch.Tensor"]
"""A causal convolution of sequences [N, channels, L], each from zeros on; the output has the same shape."""
Scan = Callable[
    ["list[torch.Tensor]", "torch.Tensor | None", "torch.Tensor | None"], "tuple[torch.Tensor, torch.Tensor]"
]
"""A scan of sequences: (inputs [N, L, ...] each, initial state [N, ...] or None, valid tokens [N, L] or None for all).

It returns the output [N, L, ...] and the final state [N, ...]. Tokens that are not valid do not change the state.
"""


class RowStates(Protocol):
    """Rows side by side in one sequence of T tokens, and the state that each of them starts from."""

    def convolve(self, convolution: Convolution, inputs: "torch.Tensor", width: int) -> "torch.Tensor":
        """Return the convolution of `width` tokens of each row, [1, channels, T], from inputs of the same shape."""

    def scan(self, scan: Scan, inputs: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """Return the output of a scan of each row, [1, T, ...], from inputs [1, T, ...]."""


def can_split_rows(config: "PretrainedConfig") -> bool:
    """Return whether the recurrent layers of a model use the functions that this module replaces, and no others."""
    return config.get_text_config().model_type in SUPPORTED_MODEL_TYPES


@contextmanager
def split_rows(config: "PretrainedConfig", rows: RowStates) -> Iterator[None]:
    """Make the recurrent layers of a model with this config compute rows separately inside of the block.

    The backward pass belongs inside the block too, because gradient checkpointing computes layers again there.
    """
    text_config = config.get_text_config()
    name = type(text_config).__module__.replace(".configuration_", ".modeling_")
    modeling: Any = importlib.import_module(name)
    builders = {CONVOLUTION: _split_convolution, DELTA_RULE: _split_delta_rule, SSD: _split_ssd, FUSED_SSD: _decline}
    originals = {name: getattr(modeling, name) for name in builders if hasattr(modeling, name)}
    for name, original in originals.items():
        setattr(modeling, name, builders[name](original, rows))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(modeling, name, original)


def is_recurrent(config: "PretrainedConfig") -> bool:
    """Return whether rows of a model with this config need `split_rows` to be in one sequence."""
    return architecture.has_recurrent_layers(config) and can_split_rows(config)


def _split_convolution(original: Callable[..., Any], rows: RowStates) -> Callable[..., Any]:
    def causal_conv1d_fn(
        inputs: "torch.Tensor",
        weight: "torch.Tensor",
        bias: "torch.Tensor | None" = None,
        activation: str | None = None,
        **_kwargs: object,
    ) -> "torch.Tensor":
        # LFM2's convolution has no activation, and kernels take it by name only.
        kwargs = {"activation": activation} if activation is not None else {}
        return rows.convolve(lambda padded: original(padded, weight, bias, **kwargs), inputs, weight.shape[-1])

    return causal_conv1d_fn


def _chunk_size(tensor: "torch.Tensor", chunk_size: int) -> dict[str, int]:
    """Return the chunk size as an argument. PyTorch's reference on a CPU pads to it, and rows are short."""
    return {"chunk_size": min(chunk_size, tensor.shape[1])} if tensor.device.type == "cpu" else {}


def _split_delta_rule(original: Callable[..., Any], rows: RowStates) -> Callable[..., Any]:
    def torch_chunk_gated_delta_rule(
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        g: "torch.Tensor",
        beta: "torch.Tensor",
        chunk_size: int = 64,
        use_qk_l2norm_in_kernel: bool = False,
        **_kwargs: object,
    ) -> "tuple[torch.Tensor, None]":
        def scan(
            inputs: "list[torch.Tensor]", initial_state: "torch.Tensor | None", valid: "torch.Tensor | None"
        ) -> "tuple[torch.Tensor, torch.Tensor]":
            *query_key_value, decay, write_strength = inputs
            if valid is not None:
                # Neither decay nor write: the state stays.
                decay, write_strength = (gate.masked_fill(~valid[..., None], 0) for gate in (decay, write_strength))
            output: tuple[torch.Tensor, torch.Tensor] = original(
                *query_key_value,
                g=decay,
                beta=write_strength,
                initial_state=initial_state,
                output_final_state=True,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
                **_chunk_size(decay, chunk_size),
            )
            return output

        return rows.scan(scan, (query, key, value, g, beta)), None

    return torch_chunk_gated_delta_rule


def _split_ssd(original: Callable[..., Any], rows: RowStates) -> Callable[..., Any]:
    def mamba2_chunk_scan(
        hidden_states: "torch.Tensor",
        dt: "torch.Tensor",
        a: "torch.Tensor",
        b: "torch.Tensor",
        c: "torch.Tensor",
        chunk_size: int,
        dt_bias: "torch.Tensor | None" = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        **kwargs: Any,
    ) -> "torch.Tensor":
        import torch

        # A step of 0 leaves the state as it is. Steps are therefore computed here: bias and softplus would change them.
        if dt_bias is not None:
            dt = dt + dt_bias.to(dt.dtype)
        if dt_softplus:
            dt = torch.nn.functional.softplus(dt)
        dt = torch.clamp(dt, min=dt_limit[0], max=dt_limit[1])

        def scan(
            inputs: "list[torch.Tensor]", initial_state: "torch.Tensor | None", valid: "torch.Tensor | None"
        ) -> "tuple[torch.Tensor, torch.Tensor]":
            x, steps, row_b, row_c = inputs
            if valid is not None:
                steps = steps.masked_fill(~valid[..., None], 0)
            arguments = {
                "chunk_size": chunk_size,
                **_chunk_size(steps, chunk_size),
                "D": kwargs.get("D"),
                "initial_states": initial_state,
                "return_final_states": True,
            }
            output: tuple[torch.Tensor, torch.Tensor] = original(x, steps, a, row_b, row_c, **arguments)
            return output

        return rows.scan(scan, (hidden_states, dt, b, c))

    return mamba2_chunk_scan


def _decline(_original: Callable[..., Any], _rows: RowStates) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: None
