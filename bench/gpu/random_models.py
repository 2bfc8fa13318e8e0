"""Models of random weights in the shapes of published models, created on the device, without a hub and without files.

    model = build_nf4_model("Llama-3.1-8B", spec, vocabulary=4096)     5.7 GB on a GPU, never more than that and a layer

The shapes are those of `bench.gpu_memory.BASES`. Speed and memory do not depend on the weights. A small model has the
same class with two narrow layers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import gpu_memory
from bench.gpu.spec import PartSpec
from bench.peers.spec import ADAPTER_DIR
from bench.training import fixtures
from train.model import base

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Layers of at least 64 weights a row: NF4 quantizes blocks of 64.
SMALL_SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128,
}  # fmt: skip
MAX_POSITIONS = 16_384
WEIGHT_STD = 0.02


@dataclass(frozen=True)
class RandomModel:
    """A model of random weights."""

    model: "PreTrainedModel"
    description: str
    linear_parameters: int
    """Weights of the layers that every token passes, without the head."""


def build_config(name: str, small: bool, vocabulary: int) -> "PretrainedConfig":
    """Return the config of a published model; a small one has the vocabulary of the bench's tokenizer."""
    from transformers import AutoConfig

    model_type, shape = gpu_memory.BASES[name]
    settings = {**shape, "max_position_embeddings": MAX_POSITIONS}
    if small:
        settings |= {**SMALL_SHAPE, "vocab_size": vocabulary}
    return AutoConfig.for_model(model_type, **settings)


def torch_dtype(spec: PartSpec) -> "torch.dtype":
    """Return the type of the weights that are not quantized: bfloat16 on a GPU, float32 on a CPU, as in training."""
    import torch

    return torch.bfloat16 if spec.on_gpu else torch.float32


def build_nf4_model(spec: PartSpec, vocabulary: int) -> RandomModel:
    """Return the spec's model with linear layers in NF4 (double quantization), quantized one by one on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    config, dtype = build_config(spec.model, spec.small, vocabulary), torch_dtype(spec)
    torch.manual_seed(fixtures.SEED)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    linear_parameters = fixtures.count_linear_parameters(model)
    parameters = model.num_parameters()
    head = model.get_output_embeddings()
    linear_layers = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    ]
    for parent, name, layer in linear_layers:
        setattr(parent, name, make_nf4_layer(layer, spec.device, dtype))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(module, name, _random_parameter(parameter, spec.device))
    model.tie_weights()
    # Its frequencies are computed from the config; they are no weights.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(spec.device)
    # PEFT wraps 4-bit layers only in a model with this mark, which from_pretrained sets.
    model.is_loaded_in_4bit = True
    base.disable_cpu_repacking(model)
    description = (
        f"{spec.model}{' in small' if spec.small else ''}, random weights, NF4, {parameters / 1e6:.1f}M parameters "
        f"({config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size})"
    )
    return RandomModel(model.eval(), description, linear_parameters)


def make_nf4_layer(layer: Any, device: str, dtype: "torch.dtype") -> Any:
    """Return a random layer of the same shape in NF4."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    quantized: Any = Linear4bit(  # type: ignore[no-untyped-call]
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    weight = torch.randn(layer.out_features, layer.in_features, dtype=dtype, device=device) * WEIGHT_STD
    # `to` quantizes.
    unquantized: Any = Params4bit(weight, requires_grad=False, quant_type="nf4", module=quantized)
    quantized.weight = unquantized.to(device)
    return quantized.eval()


def _random_parameter(parameter: Any, device: str) -> "torch.Tensor":
    """Return a frozen parameter of the same shape: ones for the scale of a norm, random values for a matrix."""
    import torch

    if parameter.dim() == 1:
        values = torch.ones(parameter.shape, dtype=parameter.dtype, device=device)
    else:
        values = torch.randn(parameter.shape, dtype=parameter.dtype, device=device) * WEIGHT_STD
    return torch.nn.Parameter(values, requires_grad=False)


def save_model(spec: PartSpec, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> RandomModel:
    """Save the spec's model without quantization, tokenizer and initial adapter, for frameworks that load files.

    The returned record has no model: its memory is free again.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = build_config(spec.model, spec.small, len(tokenizer))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(fixtures.SEED)
    with torch.device(spec.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(spec))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters, linear_parameters = model.num_parameters(), fixtures.count_linear_parameters(model)
    fixtures.save_adapter(model, str(folder), folder / ADAPTER_DIR)
    description = f"{spec.model}{' in small' if spec.small else ''}, random weights, {parameters / 1e6:.1f}M parameters"
    return RandomModel(None, description, linear_parameters)
