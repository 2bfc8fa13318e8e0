"""The base model as it is trained against: quantized weights, LoRA on top."""

from typing import Any

from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_train import Lora
from tasks import render


def base_model(recipe: Recipe) -> Any:
    """Returns the base model in evaluation mode, quantized as the recipe says, attending with SDPA.

    NF4 is with double quantization (QLoRA, arXiv:2305.14314). Computes in bfloat16 on a GPU and in float32 on a CPU.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    transformers.utils.logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available() and not recipe.accelerate.use_cpu
    dtype = torch.bfloat16 if on_gpu else torch.float32
    quantization = {
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "none": None,
    }[recipe.model.quantization]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            recipe.model.base,
            revision=recipe.model.revision,
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation="sdpa",
            device_map={"": torch.cuda.current_device()} if on_gpu else {"": "cpu"},
            use_safetensors=True,
        )
    except OSError as error:
        raise RecipeError(render.not_found(recipe.model, error)) from None
    keep_weights_in_place(model)
    return model.eval()


def keep_weights_in_place(model: Any) -> None:
    """Stops bitsandbytes 0.50 from repacking 4-bit weights on CPUs with AVX512_BF16.

    An evaluation forward there rewrites the weights for a kernel without autograd, and every later training step gets
    wrong gradients with no more than a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def with_adapter(model: Any, lora: Lora, seed: int) -> Any:
    """Returns the model with a fresh LoRA adapter; the base is frozen, the adapter float32.

    bfloat16 adapters lose small updates: at a learning rate of 2e-5 most entries never move. Raises RecipeError where
    PEFT refuses the settings.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    settings = {name: value for name, value in lora.model_dump().items() if value is not None}
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **settings))
    except ValueError as error:
        # PEFT says which modules it did not find, or which settings do not go together.
        raise RecipeError(f"lora: {error}") from None
    return float32_adapter(adapted)


def float32_adapter(model: Any) -> Any:
    """Casts what is trained to float32, in place: TRL casts adapters on a 4-bit base to bfloat16."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model
