"""Quantized models in the format of compressed-tensors, which vLLM reads: quantized/<scheme>/.

int8    W8A8   weights to 8 bits a channel, activations to 8 bits a token at run time; CPUs and GPUs
fp8     W8A8   the same in 8-bit floating point; GPUs of compute capability 8.9 and newer
w4a16   W4A16  weights to 4 bits in groups of 128 (64 or 32 if a layer is no multiple), activations unchanged;
               GPUs, and CPUs with AVX-512

Without calibration the scales come only from the weights. With `export.calibration_rows` llm-compressor fits them on
rows of train, in a separate environment (gptq.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import hardware
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from insource.tracking.run import Run
from train.export import adapter, gptq, merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PRESETS: Mapping[str, str] = {"int8": "W8A8", "fp8": "FP8_DYNAMIC", "w4a16": "W4A16"}
# The head chooses between tokens, and it is small compared with the other layers.
SKIPPED_LAYERS = ["lm_head"]
GROUP_SIZES = (128, 64, 32)
MIN_FP8_CAPABILITY = 8.9


def list_schemes(recipe: Recipe) -> list[str]:
    """Return the schemes that the recipe requests. Raise RecipeError for one that this hardware cannot serve."""
    requested, capability = recipe.export.quantize, _compute_capability(recipe)
    if requested == "none":
        return []
    if requested == "auto":
        return ["fp8" if capability is not None and capability >= MIN_FP8_CAPABILITY else "int8"]
    if "fp8" in requested and (capability is None or capability < MIN_FP8_CAPABILITY):
        hardware_note = "this machine serves on a CPU" if capability is None else f"this GPU has {capability}"
        raise RecipeError(
            f"export.quantize: fp8 needs a GPU of compute capability {MIN_FP8_CAPABILITY} or newer, and "
            f"{hardware_note}; set int8",
            code="INS-E012",
        )
    if "w4a16" in requested and recipe.accelerate.use_cpu and not environment.cpu_serves_w4a16():
        raise RecipeError(
            "export.quantize: w4a16 needs a GPU or a CPU with AVX-512: vLLM has no kernel for this machine; set int8",
            code="INS-E012",
        )
    return list(dict.fromkeys(requested))


def write_quantized(run: Run, recipe: Recipe, scheme: str, provenance: Mapping[str, object]) -> Path:
    """Write the folder of the merged model quantized by a scheme, atomically, and return it."""
    merged, target = run.folder / "merged", run.folder / "quantized" / scheme
    target.parent.mkdir(exist_ok=True)
    with atomic_files.atomic_folder(target) as folder:
        if recipe.export.calibration_rows:
            gptq.quantize_gptq(run, recipe, merged, PRESETS[scheme], choose_group_size(_load_merged(merged)), folder)
        else:
            quantize_data_free(merged, PRESETS[scheme], folder, recipe.export.max_shard_size)
        merge.write_companion_files(run, folder, provenance, model_card(run, recipe, scheme))
        atomic_files.write_checksums(folder)
    return target


def quantize_data_free(merged: Path, preset: str, folder: Path, max_shard_size: str) -> None:
    """Write the model quantized by a preset of compressed-tensors, with scales only from the weights."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme

    model = _load_merged(merged)
    scheme = preset_name_to_scheme(preset, targets=["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = choose_group_size(model)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=SKIPPED_LAYERS))
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "quantization_scheme", None) is not None:
                _set_scale(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    compressor.update_config(folder)


def _load_merged(merged: Path) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16, use_safetensors=True)


def choose_group_size(model: "PreTrainedModel") -> int:
    """Return the largest of vLLM's group sizes that divides the width of every layer."""
    from torch.nn import Linear

    widths = [layer.in_features for layer in model.modules() if isinstance(layer, Linear)]
    return next(size for size in GROUP_SIZES if size == GROUP_SIZES[-1] or not any(width % size for width in widths))


def _set_scale(module: Any) -> None:
    """Set a layer's scale for each output channel, or for each group of inputs of it."""
    from compressed_tensors.quantization.utils import calculate_qparams

    args, weight = module.quantization_scheme.weights, module.weight.float()
    groups = weight.unflatten(1, (-1, args.group_size)) if args.group_size else weight.unsqueeze(1)
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    module.weight_scale.data.copy_(scale)
    if getattr(module, "weight_zero_point", None) is not None:
        module.weight_zero_point.data.copy_(zero_point)


def model_card(run: Run, recipe: Recipe, scheme: str) -> str:
    """Return the model card (README.md) of a quantized model."""
    rows = recipe.export.calibration_rows
    calibrated = (
        f"fitted on {rows} rows of train by llm-compressor" if rows else "from the weights alone (compressed-tensors)"
    )
    return f"""---
base_model: {adapter.base_display_name(recipe)}
base_model_relation: quantized
pipeline_tag: text-generation
tags: [insource, {recipe.task.kind}, {scheme}]
---

# {run.recipe_name}, {scheme}

The merged model of insource's run `{run.id}`, quantized to {PRESETS[scheme]}, the scales {calibrated}. `lm_head` is not
quantized. The run's parity.md compares its scores with the others'.
"""


def _compute_capability(recipe: Recipe) -> float | None:
    """Return the compute capability of the GPU that serves on this machine, None on a CPU."""
    if recipe.accelerate.use_cpu:
        return None
    try:
        return min(map(float, hardware.query_gpus("compute_cap")))
    except ValueError:  # no GPU is listed, or no number
        return None
