"""The quantized base, written as ordinary weights, so that serving uses the weights that the adapter was trained on.

model, folder = load_training_base(recipe, store, on_fallback)

    quantization none    the published base; nothing is written
    nf4 on a CPU         the dequantized weights, also for training if memory allows: bitsandbytes would dequantize
                         each layer again in every pass, to the same numbers
    nf4 or int8          the quantized base for training, and its dequantized weights on disk

If disk space or memory does not suffice, the published base is served. This fallback is printed and recorded, because
scores of the served model can then differ from those of training. Validation on a quantized base holds dequantized
weights temporarily (`dequantize_layers`).
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from insource.system.console_log import log_line
from insource.tasks.rendering import base_tokenizer
from insource.tracking import digests
from insource.tracking.base_models import base_store, gguf_model
from train.device import out_of_memory
from train.distributed import world
from train.model import base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Increase this number when the same base would be dequantized into something else.
VERSION = 1
# The fraction of this machine's memory that dequantized weights may take. It is of all memory, not of free memory: a
# run that resumes after an interruption has to compute as before.
MAX_MEMORY_FRACTION = 0.4

FallbackLogger = Callable[[str], None]


def load_training_base(
    recipe: Recipe, store: Path, on_fallback: FallbackLogger
) -> "tuple[PreTrainedModel, Path | None]":
    """Return the base for training, and the folder of its dequantized weights, or None if the published base is served.

    `store` is the folder of all such bases; the main process writes. Raise RecipeError if there is no such base.
    """
    if recipe.model.quantization == "none":
        return base.load_base_model(recipe), None
    if recipe.lora.modifies_base:
        model = base.load_base_model(recipe)
        on_fallback(
            f"lora.init_lora_weights: {recipe.lora.init_lora_weights} changes the base that it is trained on; the "
            "adapter is served on the published base, on which answers can differ from those of training"
        )
        return model, None
    resident = recipe.model.quantization == "nf4" and recipe.accelerate.use_cpu
    if resident and (existing := _find_existing(recipe, store)):
        return base.load_base_model(recipe.with_model(base=str(existing), revision=None, quantization="none")), existing
    model = base.load_base_model(recipe)
    path = store / compute_digest(recipe, model)
    size = dequantized_bytes(model)
    resident = resident and size <= MAX_MEMORY_FRACTION * environment.memory_bytes()
    if resident:
        model = _dequantize_model(model)
    return model, _write_if_missing(recipe, model, path, size, on_fallback) if world.is_main_process() else None


@contextmanager
def dequantize_layers(model: "PreTrainedModel", on_fallback: FallbackLogger) -> Iterator[None]:
    """Replace 4-bit layers by dequantized ones with the same values inside of the block, if memory allows.

    For many passes without gradients: each pass would dequantize all layers again. The weights must be unsharded in
    this process (no FSDP).
    """
    layers = _four_bit_layers(model)
    size, memory = _layer_bytes(model, layers), device_memory_bytes(model.device)
    problem = "" if size <= MAX_MEMORY_FRACTION * memory else f"{memory / 1e9:,.1f} GB of memory are too few"
    dequantized: list[Any] = []
    if not problem:
        try:
            dequantized += (_dequantize_layer(layer, model.dtype) for *_, layer in layers)
        except RuntimeError as error:
            if not out_of_memory.is_out_of_memory(error):
                raise
            dequantized.clear()
            problem = "too little memory is free"
    if problem:
        on_fallback(
            f"validation dequantizes 4-bit weights in every pass: they take {size / 1e9:,.1f} GB, and {problem}"
        )
    try:
        for (parent, name, _), layer in zip(layers, dequantized or [layer for *_, layer in layers], strict=True):
            setattr(parent, name, layer)
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def dequantized_layer_bytes(model: "PreTrainedModel") -> int:
    """Return the memory of `dequantize_layers`: the bytes of the dequantized weights, 0 if they are too many."""
    size = _layer_bytes(model, _four_bit_layers(model))
    return size if size <= MAX_MEMORY_FRACTION * device_memory_bytes(model.device) else 0


def _four_bit_layers(model: "PreTrainedModel") -> list[tuple[object, str, object]]:
    """Return all 4-bit layers, each with its parent module and its name in it."""
    from bitsandbytes.nn.modules import Linear4bit

    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Linear4bit)
    ]


def _layer_bytes(model: "PreTrainedModel", layers: list[tuple[Any, str, Any]]) -> int:
    return int(sum(layer.in_features * layer.out_features for *_, layer in layers) * model.dtype.itemsize)


def device_memory_bytes(device: "torch.device") -> int:
    """Return the memory of a device, or the part of it that this process may use."""
    import torch

    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction(device))
    return environment.memory_bytes()


def _dequantize_layer(layer: Any, dtype: "torch.dtype") -> Any:
    """Return an ordinary layer with the weights of a 4-bit layer.

    It computes in the type of the weights, like the original.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    class Plain(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)

    dequantized = Plain(layer.in_features, layer.out_features, bias=False, device="meta")
    dequantized.weight = torch.nn.Parameter(dequantize_module_weight(layer).detach().to(dtype), requires_grad=False)
    dequantized.bias = layer.bias
    return dequantized.train(layer.training)


def compute_digest(recipe: Recipe, model: "PreTrainedModel") -> str:
    """Return the digest of everything that the dequantized weights of a base depend on."""
    return _compute_digest(recipe, str(model.dtype).removeprefix("torch."))


def dequantized_bytes(model: "PreTrainedModel") -> int:
    """Return the bytes of a model's weights after dequantization, in the type that it computes in."""
    return int(model.num_parameters()) * int(model.dtype.itemsize)


def ensure_base(recipe: Recipe, store: Path, digest: str, on_fallback: FallbackLogger) -> Path | None:
    """Return the folder of the base that a run was trained on; write it again if it was removed.

    Return None if the files or versions it is made of have changed, or if it does not fit.
    """
    if (store / digest / atomic_files.CHECKSUMS).is_file():
        return store / digest
    model, path = load_training_base(recipe, store, on_fallback)
    del model
    return path if path and path.name == digest else None


def _compute_digest(recipe: Recipe, dtype: str) -> str:
    folder = Path(recipe.model.base)
    published: object = (
        digests.hash_base_files(folder) if folder.is_dir() else [recipe.model.base, recipe.model.revision]
    )
    library_version = metadata.version("bitsandbytes")
    return atomic_files.digest([VERSION, published, recipe.model.quantization, dtype, library_version])


def _find_existing(recipe: Recipe, store: Path) -> Path | None:
    """Return the base if it is on disk already.

    Only a local base can be identified by its files before it is loaded.
    """
    if not Path(recipe.model.base).is_dir():
        return None
    path = store / _compute_digest(recipe, "float32")
    if not (path / atomic_files.CHECKSUMS).is_file() or atomic_files.find_changes(path):
        return None
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return path if size <= MAX_MEMORY_FRACTION * environment.memory_bytes() else None


def _write_if_missing(
    recipe: Recipe, model: "PreTrainedModel", path: Path, size: int, on_fallback: FallbackLogger
) -> Path | None:
    """Return the folder, written if it is missing, or None after a fallback message if that is not possible."""
    with base_store.lock_base(path):
        if (path / atomic_files.CHECKSUMS).is_file() and not atomic_files.find_changes(path):
            return path
        problem = base_store.disk_space_problem(path.parent, size)
        if getattr(model, "is_quantized", False) and size > environment.available_memory_bytes():
            free_bytes = environment.available_memory_bytes()
            problem = f"it takes {size / 1e9:,.1f} GB of memory to write, and {free_bytes / 1e9:,.1f} GB are free"
        if problem:
            on_fallback(
                f"the base as {recipe.model.quantization} left it is not kept: {problem}. The published base is "
                "served in its place, on which answers can differ from those of training"
            )
            return None
        display = os.path.relpath(path)
        log_line(f"base      writing what {recipe.model.quantization} left of it, {size / 1e9:,.2f} GB: {display}")
        with atomic_files.atomic_folder(path) as folder:
            _save_base(model, folder, recipe)
            record = {
                "version": VERSION,
                "base": _describe_base(recipe),
                "quantization": recipe.model.quantization,
                "dtype": str(model.dtype).removeprefix("torch."),
                "bitsandbytes": metadata.version("bitsandbytes"),
            }
            if gguf_model.read_gguf_info(recipe.model.base):
                record[gguf_model.WEIGHT_CHANGE_KEY] = gguf_model.measure_weight_change(Path(recipe.model.base), folder)
            atomic_files.write_json(folder / base_store.METADATA_FILE, record)
            atomic_files.write_checksums(folder)
    return path


def _describe_base(recipe: Recipe) -> dict[str, object]:
    folder = Path(recipe.model.base)
    local, gguf = folder.is_dir(), gguf_model.read_gguf_info(recipe.model.base)
    return {
        "name": gguf["file"] if gguf else folder.name if local else recipe.model.base,
        "commit": None if local else recipe.model.revision,
        "sha256": digests.hash_base_files(folder) if local else None,
    }


def _dequantize_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """Replace the layers of a quantized model by ordinary ones with the same weights, in place, and return it."""
    dequantized = model.dequantize()
    dequantized.requires_grad_(False)
    return dequantized.eval()


def _save_base(model: "PreTrainedModel", folder: Path, recipe: Recipe) -> None:
    """Write weights, configuration and tokenizer of a base, quantized or dequantized, as an ordinary model."""
    dequantized = _copy_to_main_memory(model) if getattr(model, "is_quantized", False) else model
    dequantized.save_pretrained(folder, max_shard_size=recipe.export.max_shard_size)
    # The tokenizer as published: recipes with other pinned settings share the folder, and serve with the adapter's
    # tokenizer.
    tokenizer = base_tokenizer.load_base_tokenizer(recipe.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _copy_to_main_memory(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model in main memory with the dequantized weights of a model, only for saving.

    Layers are dequantized one by one on their device, so that a GPU never holds a second model.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        dequantized = type(model)(config)
    tensors = {}
    for name in dequantized.state_dict():
        layer, _, part = name.rpartition(".")
        module = model.get_submodule(layer)
        quantized = part == "weight" and type(module.weight).__name__ in ("Params4bit", "Int8Params")
        tensor = dequantize_module_weight(module) if quantized else getattr(module, part)
        tensors[name] = tensor.detach().to("cpu", model.dtype)
    dequantized.load_state_dict(tensors, assign=True)
    dequantized.tie_weights()
    dequantized.generation_config = model.generation_config
    return dequantized
