"""The merged model: the base of training with the adapter merged into it, as one folder that any loader can read.

merged/  model-00001-of-00004.safetensors ... config.json generation_config.json   transformers' own format
         tokenizer.json tokenizer_config.json chat_template.jinja prompt.json      as in the adapter folder
         export.json         the provenance
         README.md SHA256SUMS

The base is the dequantized base of training (`serve.base: trained`), in the type that training and serving compute in,
so that the merged model gives the same answers as the trained one; or it is the published base. The result is never
quantized to 4 bits again, which would ruin a merged model.
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.tasks.rendering import chat_template
from insource.tracking import run as runs
from insource.tracking.base_models import base_store
from insource.tracking.prompt_spec import read_trained_base
from insource.tracking.run import Run
from train.device import gpu, out_of_memory
from train.export import adapter
from train.model import base, dequantize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Files of the adapter folder that every folder of weights needs for people and for servers.
COMPANION_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "prompt.json")


def write_merged(run: Run, recipe: Recipe, provenance: Mapping[str, Any]) -> Path:
    """Write the folder of the merged model atomically and return it."""
    target = run.folder / "merged"
    # The tokenizer of training, even if the base's has changed.
    tokenizer = chat_template.load_saved_tokenizer(str(run.folder / "adapter"))
    with atomic_files.atomic_folder(target) as folder:
        save_model(merge_adapter(run, recipe, provenance["base"]), folder, recipe, tokenizer)
        # Reference cycles keep the model in memory, and quantization loads the merged model again.
        out_of_memory.release_memory()
        write_companion_files(run, folder, provenance, model_card(run, recipe, provenance["base"]))
        atomic_files.write_checksums(folder)
    return target


def select_merge_base(run: Run, recipe: Recipe) -> str:
    """Return the base that a run is merged into: the digest of the base of training, or "published"."""
    trained = read_trained_base(run.folder / "adapter")
    return trained.digest if trained and recipe.serve.base == "trained" else "published"


def merge_adapter(run: Run, recipe: Recipe, merge_base: str) -> "PreTrainedModel":
    """Return the base with the run's adapter merged into it, computed in the type of training (float32 on a CPU).

    If the GPU of the recipe is not usable here or has too little memory, it is merged in main memory, in the same type.
    Raise StageError if the base of training is missing and cannot be written again.
    """
    base_recipe = recipe.with_model(quantization="none")
    if merge_base != "published":
        folder = dequantize.ensure_base(
            recipe, base_store.store_path(run.folder), merge_base, partial(runs.record_fallback, run, "export")
        )
        if folder is None:
            raise StageError(
                f"{base_store.store_path(run.folder) / merge_base}, the base that run {run.id} was trained on, is "
                "missing and cannot be written again; train again (FRESH=1), or use SET=serve.base=published",
                code="INS-E003",
            )
        base_recipe = recipe.with_model(base=str(folder), revision=None, quantization="none")
    if recipe.accelerate.use_cpu:
        return _merge_onto(base_recipe, run.folder / "adapter")
    if gpu.is_usable():
        try:
            return _merge_onto(base_recipe, run.folder / "adapter")
        except RuntimeError as error:
            if not out_of_memory.is_out_of_memory(error):
                raise
            message = f"merged in main memory, the GPU has too little: {str(error).splitlines()[0]}"
        # Outside of the except block, where the failed model would still be held.
        out_of_memory.release_memory()
    else:
        message = "merged in main memory: PyTorch can use no GPU here"
    log_line(f"fallback  {message}")
    runs.record_fallback(run, "export", message)
    return _merge_onto(base_recipe, run.folder / "adapter", in_main_memory=True)


def _merge_onto(base_recipe: Recipe, adapter_folder: Path, in_main_memory: bool = False) -> "PreTrainedModel":
    from peft import PeftModel

    model = base.load_base_model(base_recipe, in_main_memory=in_main_memory)
    # By default PEFT loads an adapter to the GPU, even if its base is in main memory.
    adapted = PeftModel.from_pretrained(
        model, adapter_folder, autocast_adapter_dtype=False, torch_device=str(model.device)
    )
    return adapted.merge_and_unload(safe_merge=True)


def save_model(model: "PreTrainedModel", folder: Path, recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write the weights in shards, in the type that they were computed in, and the generation config of training."""
    model.generation_config = adapter.build_generation_config(tokenizer)
    model.save_pretrained(folder, max_shard_size=recipe.export.max_shard_size)


def write_companion_files(run: Run, folder: Path, provenance: Mapping[str, Any], card: str) -> None:
    """Write the files beside the weights: tokenizer, template and prompt of training, card, and provenance."""
    for name in COMPANION_FILES:
        if (path := run.folder / "adapter" / name).is_file():
            shutil.copyfile(path, folder / name)
    atomic_files.write_text(folder / "README.md", card)
    atomic_files.write_json(folder / "export.json", provenance)


def model_card(run: Run, recipe: Recipe, merge_base: str) -> str:
    """Return the model card (README.md) of the merged model."""
    trained_base_note = f"what {recipe.model.quantization} left of the base, which is what it was trained on"
    base_note = "the base as it was published" if merge_base == "published" else trained_base_note
    return f"""---
base_model: {adapter.base_display_name(recipe)}
base_model_relation: merge
pipeline_tag: text-generation
tags: [insource, {recipe.task.kind}]
---

# {run.recipe_name}: {recipe.task.instruction}

The adapter of insource's run `{run.id}` merged onto {base_note}. Its training and scores are on the
adapter's card; the run's parity.md compares the scores of both. Prompts: `prompt.json`, rendered by
`chat_template.jinja` and nothing else.
"""
