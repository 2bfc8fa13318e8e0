"""Loading of the base model, published or quantized, and LoRA on top. dequantize.py chooses the base for training.

model = load_base_model(recipe)                                every process loads its own, on its own device
model = add_adapter(model, recipe.lora, recipe.train.seed)     PeftModel, the adapter in float32
model = load_base_model(recipe, labels=("late", "lost"))       with a new classification head instead of the LM head
"""

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.lora import Lora
from insource.config.schema.train import Model
from insource.tasks.rendering import hub_model
from insource.tracking.base_models import smollm2_wheel
from train.model import lora_init, multimodal
from train.model.classification_head import HEAD_MODULE

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel


def load_config(model: Model) -> "PretrainedConfig":
    """Return the configuration of a base model without reading its weights.

    Raise RecipeError if there is no such base.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model.base, revision=model.revision)
    except (OSError, ValueError) as error:
        raise RecipeError(hub_model.not_found_message(model, error), code="INS-T001") from None


def load_base_model(recipe: Recipe, in_main_memory: bool = False, labels: Sequence[str] = ()) -> "PreTrainedModel":
    """Return the base model in evaluation mode, quantized as in the recipe, on this process's device or in main memory.

    It computes in bfloat16 if the recipe is for a GPU and in float32 if it is for a CPU, also with `in_main_memory` and
    on a machine without a usable GPU, where a stage after training may load it. NF4 uses double quantization (QLoRA,
    arXiv:2305.14314); int8 is LLM.int8 (arXiv:2208.07339). With `labels` the model has a new classification head for
    them, in float32, whose weights are drawn from torch's random state. Raise RecipeError if there is no such base, or
    if transformers has no class with such a head for it.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    smollm2_wheel.ensure_smollm2_folder(recipe.model.base)
    transformers.utils.logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available() and not recipe.accelerate.use_cpu
    dtype = torch.float32 if recipe.accelerate.use_cpu else torch.bfloat16
    model_class: Any = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    try:
        model = model_class.from_pretrained(
            recipe.model.base,
            revision=recipe.model.revision,
            dtype=dtype,
            quantization_config=_quantization_config(recipe, dtype, has_head=bool(labels)),
            attn_implementation="sdpa",
            device_map={"": int(os.environ.get("LOCAL_RANK", "0"))} if on_gpu and not in_main_memory else {"": "cpu"},
            use_safetensors=True,
            **({"num_labels": len(labels)} if labels else {}),
        )
    except OSError as error:
        raise RecipeError(hub_model.not_found_message(recipe.model, error), code="INS-T001") from None
    except ValueError as error:
        if not labels:
            raise
        raise RecipeError(
            f"compare.head: transformers has no class with a classification head for {recipe.model.base} "
            f"({str(error).splitlines()[0][:200]}); leave compare.head out, or take another base",
            code="INS-T019",
        ) from None
    disable_cpu_repacking(model)
    multimodal.fix_no_split_modules(model)
    if labels:
        _check_head(model, recipe.model)
        getattr(model, HEAD_MODULE).float()
    return model.eval()


def _quantization_config(recipe: Recipe, dtype: "torch.dtype", has_head: bool) -> "BitsAndBytesConfig | None":
    """Return the settings of bitsandbytes for the recipe's quantization, None for none. `dtype` computes."""
    import torch
    from transformers import BitsAndBytesConfig

    # Without the name bitsandbytes would look for the LM head, and quantize this one.
    skipped = [HEAD_MODULE] if has_head else None
    if recipe.model.quantization == "none":
        return None
    if recipe.model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shards only floating-point tensors: packed 4-bit weights are stored as such.
        bnb_4bit_quant_storage=dtype if recipe.accelerate.distributed_type == "FSDP" else torch.uint8,
        llm_int8_skip_modules=skipped,
    )


def _check_head(model: "PreTrainedModel", settings: Model) -> None:
    """Raise RecipeError if the model is not a text model with a head of the usual name."""
    if not hasattr(model, HEAD_MODULE) or model.config.get_text_config() is not model.config:
        raise RecipeError(
            f"compare.head: {settings.base} is loaded as {type(model).__name__}, which is not a text-only model with a "
            f"head named {HEAD_MODULE}; leave compare.head out, or take another base",
            code="INS-T019",
        )


def disable_cpu_repacking(model: "PreTrainedModel") -> None:
    """Stop bitsandbytes 0.50 from repacking 4-bit weights on CPUs with AVX512_BF16.

    An evaluation forward there rewrites the weights for a kernel without autograd. Every later training step then gets
    wrong gradients, with only a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def add_adapter(
    model: "PreTrainedModel",
    lora: Lora,
    seed: int,
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM",
    revision: str | None = None,
) -> "PreTrainedModel":
    """Return the model with a new LoRA adapter; the base is frozen, the adapter float32.

    bfloat16 adapters lose small updates: at a learning rate of 2e-5 most entries never change. An adapter that is
    initialized from the base uses the weights before quantization, see lora_init.py. With SEQ_CLS the classification
    head is trained in full and belongs to the adapter (PEFT's modules_to_save). `revision` is the commit of a base
    on the hub, for adapter_config.json. Raise RecipeError if PEFT rejects the settings.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    options = lora.model_dump(exclude={"loftq_config"}) | {
        "exclude_modules": multimodal.build_exclude_modules(model, lora.exclude_modules)
    }
    settings = {name: value for name, value in options.items() if value is not None}
    defer_init = lora_init.needs_base_weights(lora) and getattr(model, "is_quantized", False)
    if defer_init:
        settings["init_lora_weights"] = True
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # PEFT's own conversion of such an adapter loses the scaling of patterns; lora_init.py keeps it.
            warnings.filterwarnings("ignore", "Using Rank-Stabilized LoRA with rank_pattern")
            adapted = get_peft_model(model, LoraConfig(task_type=TaskType[task_type], **settings), revision=revision)
    except (ValueError, TypeError) as error:
        # PEFT's message names the missing modules or the conflicting settings.
        raise RecipeError(f"lora: {error}", code="INS-T013") from None
    if defer_init:
        lora_init.init_from_base_weights(adapted, lora)
    cast_adapter_to_float32(adapted)
    if lora.modifies_base:
        lora_init.store_initial_weights(adapted)
    return adapted


def cast_adapter_to_float32(model: "PreTrainedModel") -> "PreTrainedModel":
    """Cast trainable parameters to float32, in place: PEFT and TRL create or leave bfloat16 adapters on some bases."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model
