"""The model of a classification head: the base that the run's adapter was trained on, with a head."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from insource.config.recipe import Recipe
from insource.tracking.base_models import base_store
from insource.tracking.prompt_spec import read_trained_base
from insource.tracking.run import Run
from train.head import folder
from train.model import base, dequantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_base_with_head(recipe: Recipe, run: Run, labels: Sequence[str], training: bool) -> "PreTrainedModel":
    """Return the base with a new head: quantized or dequantized as in the training of the adapter.

    To answer rows (`training` false) the dequantized base is taken if there is one: it has the weights of training and
    is what vLLM serves. Raise RecipeError if there is no such base.
    """
    quantized_training = training and not (recipe.model.quantization == "nf4" and recipe.accelerate.use_cpu)
    dequantized = None if quantized_training else find_dequantized_base(run, recipe)
    if dequantized is not None:
        recipe = recipe.with_model(base=str(dequantized), revision=None, quantization="none")
    return base.load_base_model(recipe, labels=labels)


def find_dequantized_base(run: Run, recipe: Recipe) -> Path | None:
    """Return the dequantized base of the run, None if there is none or it would take too much of the memory.

    The memory is that of the device that the recipe computes on: the GPU, or main memory.
    """
    import torch

    record = read_trained_base(run.folder / "adapter")
    path = base_store.find(run.folder, record.digest) if record else None
    if path is None:
        return None
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    device = torch.device("cpu" if recipe.accelerate.use_cpu else "cuda")
    return path if size <= dequantize.MAX_MEMORY_FRACTION * dequantize.device_memory_bytes(device) else None


def load_trained_head(recipe: Recipe, run: Run) -> "PreTrainedModel":
    """Return the trained model of a run in evaluation mode, with LoRA merged into the base unless that is quantized."""
    from peft import PeftModel

    model = load_base_with_head(recipe, run, folder.read_record(run)["labels"], training=False)
    # By default PEFT loads an adapter to the GPU, even if its base is in main memory.
    adapted = PeftModel.from_pretrained(model, run.folder / folder.FOLDER, torch_device=str(model.device))
    if not getattr(model, "is_quantized", False):
        adapted = adapted.merge_and_unload(safe_merge=True)
    return adapted.eval()
