"""What training computes in on a CPU: float32, or matrices multiplied in bfloat16 where the processor does that itself.

    with precision.training(recipe):         forward passes of an update, and what they are compared with
        loss = ...

Adapter, gradients, optimizer, norms, the residual stream and the loss stay float32; linear layers and attention compute
in bfloat16 and sum in float32 (torch.autocast). What is validated, referred to and served on a CPU is float32, so that
scores do not depend on the processor. On a GPU the base is bfloat16 and accelerate does the rest.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from insource.config.recipe import Recipe


def uses_cpu_bfloat16(recipe: Recipe) -> bool:
    """Returns whether this recipe trains in bfloat16 on a CPU."""
    return recipe.accelerate.use_cpu and recipe.accelerate.mixed_precision == "bf16"


def compute_dtype(recipe: Recipe) -> str:
    """Returns the type in which training multiplies matrices; on a GPU that of the base, whatever is mixed above."""
    return "float32" if recipe.accelerate.use_cpu and not uses_cpu_bfloat16(recipe) else "bfloat16"


def training_autocast(recipe: Recipe) -> AbstractContextManager[Any]:
    """Has the model compute as it does in training inside of the block. Backward passes belong outside of it."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if uses_cpu_bfloat16(recipe) else nullcontext()
