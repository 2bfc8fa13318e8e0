"""The number type of training on a CPU: float32, or bfloat16 matrix products if the processor has them in hardware.

    with training_autocast(recipe):         forward passes of an update, and the passes compared with them
        loss = ...

Adapter, gradients, optimizer, norms, the residual stream and the loss stay float32. Linear layers and attention compute
in bfloat16 and sum in float32 (torch.autocast). Validation, reference answers and serving on a CPU use float32, so that
scores do not depend on the processor. On a GPU the base is bfloat16, and accelerate sets up the rest.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from insource.config.recipe import Recipe


def uses_cpu_bfloat16(recipe: Recipe) -> bool:
    """Return whether this recipe trains in bfloat16 on a CPU."""
    return recipe.accelerate.use_cpu and recipe.accelerate.mixed_precision == "bf16"


def compute_dtype(recipe: Recipe) -> str:
    """Return the type of matrix products in training. On a GPU it is the base's type, with any mixed precision."""
    return "float32" if recipe.accelerate.use_cpu and not uses_cpu_bfloat16(recipe) else "bfloat16"


def training_autocast(recipe: Recipe) -> AbstractContextManager[Any]:
    """Return a context in which the model computes as in training. Run backward passes outside of it."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if uses_cpu_bfloat16(recipe) else nullcontext()
