"""The base as quantization left it, written as ordinary weights: what adapters are trained on is what is served.

model, folder = load(recipe, bases, announce)

    quantization none    the published base; nothing is written
    nf4 on a CPU         the dequantized weights, for training too where memory allows: bitsandbytes would dequantize
                         each layer anew in every pass, to the same numbers
    nf4 or int8          the quantized base for training, and its dequantized weights on disk

Where disk or memory do not suffice, the published base is served, which is announced and recorded; scores of what is
served can then differ from those of training. Validation on a quantized base holds dequantized weights meanwhile
(`held`).
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from insource.tasks.rendering import base_tokenizer
from insource.tracking import digests
from insource.tracking.base_models import base_store, gguf_model
from train.distributed import world
from train.model import base

# Raised when the same base would be dequantized into something else.
VERSION = 1
# Share of this machine's memory that dequantized weights may take. Of all memory, not of what is free now: a run that
# goes on after an interruption has to compute as it did before.
MEMORY_SHARE = 0.4

Announce = Callable[[str], None]


def load(recipe: Recipe, store: Path, announce: Announce) -> tuple[Any, Path | None]:
    """Returns the base to train on, and the folder of its dequantized weights, None where the published base is served.

    `store` is the folder of all such bases; the first process writes. Raises RecipeError where there is no such base.
    """
    if recipe.model.quantization == "none":
        return base.base_model(recipe), None
    if recipe.lora.takes_from_base:
        model = base.base_model(recipe)
        announce(
            f"lora.init_lora_weights: {recipe.lora.init_lora_weights} changes the base that it is trained on; the "
            "adapter is served on the published base, on which answers can differ from those of training"
        )
        return model, None
    resident = recipe.model.quantization == "nf4" and recipe.accelerate.use_cpu
    if resident and (known := _known(recipe, store)):
        return base.base_model(recipe.with_model(base=str(known), revision=None, quantization="none")), known
    model = base.base_model(recipe)
    path = store / digest(recipe, model)
    size = dequantized_bytes(model)
    resident = resident and size <= MEMORY_SHARE * environment.memory_bytes()
    if resident:
        model = _plain(model)
    return model, _written(recipe, model, path, size, announce) if world.first() else None


@contextmanager
def held(model: Any, announce: Announce) -> Iterator[None]:
    """Has 4-bit layers compute with dequantized weights inside of the block, the same values, where memory allows.

    For many passes without gradients: each pass would dequantize all of them anew. The weights must be whole in this
    process (no FSDP).
    """
    import torch

    found = _four_bit_layers(model)
    size, memory = _plain_bytes(model, found), device_memory_bytes(model.device)
    problem = "" if size <= MEMORY_SHARE * memory else f"{memory / 1e9:,.1f} GB of memory are too few"
    plain: list[Any] = []
    if not problem:
        try:
            plain += (_plain_layer(layer, model.dtype) for *_, layer in found)
        except torch.OutOfMemoryError:
            plain.clear()
            problem = "too little memory is free"
    if problem:
        announce(f"validation dequantizes 4-bit weights in every pass: they take {size / 1e9:,.1f} GB, and {problem}")
    try:
        for (parent, name, _), layer in zip(found, plain or [layer for *_, layer in found], strict=True):
            setattr(parent, name, layer)
        yield
    finally:
        for parent, name, layer in found:
            setattr(parent, name, layer)


def held_bytes(model: Any) -> int:
    """Returns what `held` takes: the bytes of the dequantized weights, 0 where they are too many."""
    size = _plain_bytes(model, _four_bit_layers(model))
    return size if size <= MEMORY_SHARE * device_memory_bytes(model.device) else 0


def _four_bit_layers(model: Any) -> list[tuple[Any, str, Any]]:
    """All 4-bit layers, each with the module that has it under a name."""
    from bitsandbytes.nn.modules import Linear4bit

    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Linear4bit)
    ]


def _plain_bytes(model: Any, layers: list[tuple[Any, str, Any]]) -> int:
    return int(sum(layer.in_features * layer.out_features for *_, layer in layers) * model.dtype.itemsize)


def device_memory_bytes(device: Any) -> int:
    """Returns the memory of a device, all of it."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return environment.memory_bytes()


def _plain_layer(layer: Any, dtype: Any) -> Any:
    """Returns an ordinary layer of the weights of a 4-bit one, which computes in their type as that does."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    class Plain(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)

    plain = Plain(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = torch.nn.Parameter(dequantize_module_weight(layer).detach().to(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def digest(recipe: Recipe, model: Any) -> str:
    """Returns the digest of all that the dequantized weights of a base depend on."""
    return _digest(recipe, getattr(model.config, "_commit_hash", None), str(model.dtype).removeprefix("torch."))


def dequantized_bytes(model: Any) -> int:
    """Returns the bytes of a model's weights once they are dequantized, in the type that it computes in."""
    return int(model.num_parameters()) * int(model.dtype.itemsize)


def ensure(recipe: Recipe, store: Path, digest: str, announce: Announce) -> Path | None:
    """Returns the folder of a base that a run was trained on, written anew where it was removed; None where it is to be
    made of other files now, or does not fit."""
    if (store / digest / atomic_files.SUMS).is_file():
        return store / digest
    model, path = load(recipe, store, announce)
    del model
    return path if path and path.name == digest else None


def _digest(recipe: Recipe, commit: str | None, dtype: str) -> str:
    folder = Path(recipe.model.base)
    published: Any = digests.of_base(folder) if folder.is_dir() else [recipe.model.base, commit]
    made_by = metadata.version("bitsandbytes")
    return atomic_files.digest([VERSION, published, recipe.model.quantization, dtype, made_by])


def _known(recipe: Recipe, store: Path) -> Path | None:
    """The base that is on disk already: only a local base is known by its files before it is loaded."""
    if not Path(recipe.model.base).is_dir():
        return None
    path = store / _digest(recipe, None, "float32")
    if not (path / atomic_files.SUMS).is_file() or atomic_files.changed(path):
        return None
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return path if size <= MEMORY_SHARE * environment.memory_bytes() else None


def _written(recipe: Recipe, model: Any, path: Path, size: int, announce: Announce) -> Path | None:
    """Returns the folder, written where it is missing; None, announced, where that is not possible."""
    with base_store.locked(path):
        if (path / atomic_files.SUMS).is_file() and not atomic_files.changed(path):
            return path
        problem = base_store.no_room(path.parent, size)
        if getattr(model, "is_quantized", False) and size > environment.available_memory_bytes():
            free = environment.available_memory_bytes()
            problem = f"it takes {size / 1e9:,.1f} GB of memory to write, and {free / 1e9:,.1f} GB are free"
        if problem:
            announce(
                f"the base as {recipe.model.quantization} left it is not kept: {problem}. The published base is "
                "served in its place, on which answers can differ from those of training"
            )
            return None
        shown = os.path.relpath(path)
        print(f"base      writing what {recipe.model.quantization} left of it, {size / 1e9:,.2f} GB: {shown}",
              file=sys.stderr, flush=True)  # fmt: skip
        with atomic_files.whole_folder(path) as folder:
            _save(model, folder, recipe)
            about = {"version": VERSION, "base": _about(recipe, model), "quantization": recipe.model.quantization}
            about |= {
                "dtype": str(model.dtype).removeprefix("torch."),
                "bitsandbytes": metadata.version("bitsandbytes"),
            }
            if gguf_model.about(recipe.model.base):
                about[gguf_model.MOVED] = gguf_model.moved(Path(recipe.model.base), folder)
            atomic_files.write_json(folder / base_store.ABOUT, about)
            atomic_files.write_sums(folder)
    return path


def _about(recipe: Recipe, model: Any) -> dict[str, Any]:
    folder = Path(recipe.model.base)
    local, gguf = folder.is_dir(), gguf_model.about(recipe.model.base)
    return {
        "name": gguf["file"] if gguf else folder.name if local else recipe.model.base,
        "commit": None if local else getattr(model.config, "_commit_hash", None),
        "sha256": digests.of_base(folder) if local else None,
    }


def _plain(model: Any) -> Any:
    """Returns a quantized model with ordinary layers of the same weights, in place."""
    plain = model.dequantize()
    plain.requires_grad_(False)
    return plain.eval()


def _save(model: Any, folder: Path, recipe: Recipe) -> None:
    """Writes weights, configuration and tokenizer of a base, quantized or dequantized, as an ordinary model."""
    plain = _copied(model) if getattr(model, "is_quantized", False) else model
    plain.save_pretrained(folder, max_shard_size=recipe.export.max_shard_size)
    # As it was published: recipes that pin other things share the folder, and serve with the tokenizer of the adapter.
    tokenizer = base_tokenizer.tokenizer_of(recipe.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _copied(model: Any) -> Any:
    """Returns the dequantized weights of a model in main memory, in a model that is there to be saved.

    Layers are dequantized one by one where they lie, so that a GPU holds no second model.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    tensors = {}
    for name in plain.state_dict():
        layer, _, part = name.rpartition(".")
        module = model.get_submodule(layer)
        quantized = part == "weight" and type(module.weight).__name__ in ("Params4bit", "Int8Params")
        tensor = dequantize_module_weight(module) if quantized else getattr(module, part)
        tensors[name] = tensor.detach().to("cpu", model.dtype)
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
