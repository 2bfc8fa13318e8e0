"""The base model as it is trained against: tokenizer, quantized weights, LoRA on top."""

from pathlib import Path
from typing import Any

from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_train import Lora


def tokenizer_of(recipe: Recipe) -> Any:
    """Returns the base's tokenizer. Raises RecipeError where it has no chat template to render prompts with."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.model.base, revision=recipe.model.revision)
    except OSError as error:
        raise RecipeError(_not_found(recipe, error)) from None
    if not tokenizer.chat_template:
        raise RecipeError(
            f"model.base: the tokenizer of {recipe.model.base} has no chat template; "
            "take an instruction-tuned model, or add chat_template.jinja to the folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
        raise RecipeError(_not_found(recipe, error)) from None
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


def _not_found(recipe: Recipe, error: OSError) -> str:
    if Path(recipe.model.base).is_dir():
        return f"model.base: {recipe.model.base} cannot be loaded: {str(error).splitlines()[0]}"
    return (
        f"model.base: {recipe.model.base} is neither on this machine nor on the hub: {str(error).splitlines()[0]}\n"
        "  Give a folder, log in to the hub (gated models), or take model.base=pocket to try the pipeline."
    )
