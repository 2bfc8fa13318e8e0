"""Adapters initialized from the base (PiSSA, OLoRA, LoftQ), and their export as standard LoRA adapters.

    init     W = remainder + s B0 A0    the base becomes `remainder`, quantized if the recipe sets it
    train        remainder + s B  A
    export   W + s [B | -B0] [A ; A0]   a standard adapter of twice the rank for the published base

PEFT initializes these adapters only from unquantized weights, or, for OLoRA, from dequantized ones. This module uses
the published weights, layer by layer, and quantizes the remainder. So the only loss is that of quantizing the
remainder, as with any adapter on a quantized base. vLLM serves the exported adapter unmerged.
"""

import copy
import math
from typing import TYPE_CHECKING, Any

from insource.config.errors import RecipeError
from insource.config.schema.lora import Lora

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

ADAPTER_NAME = "default"


def needs_base_weights(lora: Lora) -> bool:
    """Return whether the initialization reads the base weights, unlike random numbers, which fit any layer."""
    return lora.init_lora_weights not in (True, "gaussian")


def init_from_base_weights(model: "PreTrainedModel", lora: Lora) -> None:
    """Initialize the adapter of a quantized PeftModel from the weights before quantization, in place.

    Load the base once more, unquantized, into main memory. Raise RecipeError if it was published quantized.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    original = _load_unquantized(model)
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or ADAPTER_NAME not in layer.lora_A:
            continue
        weight = original.get_submodule(name).weight.detach()
        if not weight.is_floating_point():
            raise RecipeError(
                f"lora.init_lora_weights: {lora.init_lora_weights} starts from the weights before quantization, but "
                f"{model.config._name_or_path} is published quantized; set true",
                code="INS-T013",
            )
        device = layer.lora_A[ADAPTER_NAME].weight.device
        with torch.no_grad():
            _init_layer(layer, weight.to(device, torch.float32), lora)


def _init_layer(layer: "LoraLayer", weight: "torch.Tensor", lora: Lora) -> None:
    if lora.init_lora_weights == "loftq":
        lora_a, lora_b = _loftq_initialization(layer, weight, lora.loftq_config.loftq_iter if lora.loftq_config else 1)
    else:
        lora_a, lora_b, remainder = _peft_initialization(layer, weight, lora)
        if lora.modifies_base:
            _set_weight(layer.get_base_layer(), remainder)
    layer.lora_A[ADAPTER_NAME].weight.data, layer.lora_B[ADAPTER_NAME].weight.data = lora_a, lora_b


def _peft_initialization(
    layer: "LoraLayer", weight: "torch.Tensor", lora: Lora
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return A, B and the remainder of a weight, as PEFT computes them for an unquantized layer."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    linear.weight.data = weight.clone()
    wrapper = torch.nn.ModuleDict({"layer": linear})
    config = LoraConfig(
        r=layer.r[ADAPTER_NAME],
        lora_alpha=layer.lora_alpha[ADAPTER_NAME],
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.init_lora_weights,
        target_modules=["layer"],
    )
    initialized = inject_adapter_in_model(config, wrapper)["layer"]
    return (
        initialized.lora_A[ADAPTER_NAME].weight.data,
        initialized.lora_B[ADAPTER_NAME].weight.data,
        initialized.get_base_layer().weight.data,
    )


def _loftq_initialization(
    layer: "LoraLayer", weight: "torch.Tensor", rounds: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return A and B that best compensate the quantization error of a weight. Leave the base quantized.

    LoftQ, arXiv:2310.08659, algorithm 1. PEFT's own version needs a GPU and ignores the scaling s of the adapter.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    base, rank, scaling = layer.get_base_layer(), layer.r[ADAPTER_NAME], layer.scaling[ADAPTER_NAME]
    low_rank = torch.zeros_like(weight)
    for _ in range(rounds):
        _set_weight(base, weight - low_rank)
        residual = weight - dequantize_module_weight(base).to(torch.float32)
        u, singular_values, vh = torch.linalg.svd(residual, full_matrices=False)
        root = (singular_values[:rank] / scaling).sqrt()
        lora_a, lora_b = root[:, None] * vh[:rank], u[:, :rank] * root
        low_rank = scaling * lora_b @ lora_a
    return lora_a.contiguous(), lora_b.contiguous()


def _set_weight(base: Any, weight: "torch.Tensor") -> None:
    """Set the weight of a layer, quantized like the one before."""
    previous, parameter_class = base.weight, type(base.weight)
    if parameter_class.__name__ == "Int8Params":
        import torch

        # An earlier forward cached these from the weight; the next forward computes them again.
        base.state.CB = base.state.SCB = None
        parameter = parameter_class(weight.to(torch.float16), requires_grad=False, has_fp16_weights=False)
    else:
        parameter = parameter_class(
            weight.to(previous.quant_state.dtype),
            requires_grad=False,
            quant_type=previous.quant_type,
            quant_storage=previous.quant_storage,
            compress_statistics=previous.compress_statistics,
            blocksize=previous.blocksize,
            module=base,
        )
    base.weight = parameter.to(weight.device)


def _load_unquantized(model: "PreTrainedModel") -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model.config._name_or_path,
        revision=model.peft_config[ADAPTER_NAME].revision,
        dtype="auto",
        device_map={"": "cpu"},
        use_safetensors=True,
    )


def store_initial_weights(model: "PreTrainedModel") -> None:
    """Store A0 and B0 with the model, in main memory.

    A resumed run computes the same values before it loads its checkpoint.
    """
    from peft import get_peft_model_state_dict

    model.initial_adapter = {
        name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model).items()
    }


def to_standard_lora(
    model: "PreTrainedModel", state: "dict[str, torch.Tensor] | None" = None
) -> "tuple[dict[str, torch.Tensor], LoraConfig]":
    """Return tensors and LoraConfig of the standard adapter of twice the rank that equals the trained adapter.

    It applies to the published base (as PEFT's path_initial_model_for_weight_conversion). The model must have
    `initial_adapter` (`store_initial_weights`). `state` holds the model's trained tensors if the model is sharded
    (FSDP).
    """
    import torch
    from peft import get_peft_model_state_dict

    tensors = {}
    for name, trained in get_peft_model_state_dict(model, state_dict=state).items():
        initial = model.initial_adapter[name].to(trained)
        stacked = torch.cat([trained, initial]) if "lora_A" in name else torch.cat([trained, -initial], dim=1)
        tensors[name] = stacked.detach().cpu().contiguous()
    config = copy.deepcopy(model.peft_config[ADAPTER_NAME])
    # The scaling is unchanged: alpha / r, or with rsLoRA alpha / sqrt(r).
    factor = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, factor * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in config.alpha_pattern.items()}
    config.init_lora_weights, config.inference_mode = True, True
    return tensors, config
