"""Check of the GPU before the base is loaded: PyTorch can use it, and it supports bfloat16."""

import os
from collections.abc import Mapping

from insource.config import hardware
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe

# bfloat16 in hardware, and the minimum of vLLM 0.32 for bfloat16 (vllm/platforms/cuda.py).
MIN_CAPABILITY = (8, 0)


def is_usable() -> bool:
    """Return whether PyTorch can use a GPU in this process."""
    import torch

    return torch.cuda.is_available()


def check_gpu(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe needs a GPU and this process has no usable one."""
    if recipe.accelerate.use_cpu:
        return
    import torch

    if not is_usable():
        raise RecipeError(
            explain_missing_gpu(
                torch.__version__, torch.version.cuda, hardware.read_driver_version(), hardware.list_gpus(), os.environ
            ),
            code="INS-X005",
        )
    if message := explain_old_gpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability()):
        raise RecipeError(message, code="INS-X005")


def explain_missing_gpu(
    torch_version: str,
    cuda_version: str | None,
    driver_version: str | None,
    gpus: list[str],
    environment: Mapping[str, str],
) -> str:
    """Return the probable reason why PyTorch finds no GPU, and the remedy."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if cuda_version is None:
        reason = (
            f"the installed PyTorch ({torch_version}) is built for CPUs: `make setup HARDWARE=gpu` installs the one "
            "for GPUs"
        )
    elif visible is not None and visible.strip() in ("", "-1"):
        reason = f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU: unset it, or name one"
    elif not gpus:
        reason = (
            "nvidia-smi shows no GPU: install NVIDIA's driver, or start the container with its GPUs "
            "(docker run --gpus all)"
        )
    else:
        reason = (
            f"the driver ({driver_version or 'of unknown version'}) is too old for PyTorch {torch_version}, which is "
            f"built for CUDA {cuda_version}: update the driver (CUDA 13 needs {hardware.MIN_DRIVER_VERSION} or newer)"
        )
    return f"accelerate.use_cpu: false, and PyTorch can use no GPU here; {reason}. HARDWARE=cpu trains on the CPU"


def explain_old_gpu(name: str, capability: tuple[int, int]) -> str | None:
    """Return why a GPU is too old for training, or None if it is not."""
    if capability >= MIN_CAPABILITY:
        return None
    display = ".".join(map(str, capability))
    return (
        f"accelerate.use_cpu: false, and {name} has compute capability {display}: bfloat16, in which insource trains "
        "and vLLM serves, needs 8.0 or newer (Ampere: A100, A10, RTX 30); use another GPU, or HARDWARE=cpu"
    )
