"""The merged model: the adapter taken into the base, in bfloat16, as one folder that anything can load.

merged/  model-00001-of-00004.safetensors ... config.json generation_config.json   transformers' own format
         tokenizer.json tokenizer_config.json chat_template.jinja prompt.json      as in the adapter folder
         reference.jsonl     what these weights answer in transformers
         export.json         what it was made of
         README.md SHA256SUMS

The base is the one that was published, or with `export.replay_nf4` what NF4 has left of it, which is what the adapter
was trained against. The result is never quantized again to 4 bits: that is what ruins merged models.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.schema import Recipe
from tasks import render, spec_of
from tracking import files
from tracking.run import Run
from train import adapter, base, references
from train.validate import Decoded

# What a folder of weights needs of the adapter's beside weights, for people and for servers.
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "prompt.json")


def write(run: Run, recipe: Recipe, made_of: Mapping[str, Any]) -> Path:
    """Returns the folder of the merged model, complete."""
    target = run.folder / "merged"
    # The tokenizer of the training, whatever has become of the base's.
    tokenizer = render.tokenizer_of(recipe.with_model(base=str(run.folder / "adapter"), revision=None).model)
    with files.whole_folder(target) as folder:
        save(merged(recipe, run.folder / "adapter"), folder, recipe, tokenizer)
        accompany(run, folder, made_of, card(run, recipe))
        references.write(folder, reference_lines(run, recipe, folder, tokenizer))
        files.write_sums(folder)
    return target


def merged(recipe: Recipe, folder: Path) -> Any:
    """Returns the base with an adapter merged into it, computed as training computes (float32 on a CPU)."""
    from peft import PeftModel

    # With replay_nf4 what NF4 has left of each weight, as an ordinary weight.
    replay = recipe.export.replay_nf4
    model = base.base_model(recipe).dequantize() if replay else base.base_model(recipe.with_model(quantization="none"))
    adapted = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    return adapted.merge_and_unload(safe_merge=True)


def save(model: Any, folder: Path, recipe: Recipe, tokenizer: Any) -> None:
    """Writes weights in bfloat16 in shards, and a generation config that stops where training stopped."""
    import torch
    from transformers import GenerationConfig

    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder, max_shard_size=recipe.export.max_shard_size)


def accompany(run: Run, folder: Path, made_of: Mapping[str, Any], text: str) -> None:
    """Writes what stands beside weights: tokenizer, template and prompt of the training, card, what it is made of."""
    for name in COMPANIONS:
        if (path := run.folder / "adapter" / name).is_file():
            shutil.copyfile(path, folder / name)
    files.write_text(folder / "README.md", text)
    files.write_json(folder / "export.json", made_of)


def reference_lines(run: Run, recipe: Recipe, folder: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Returns what the weights in a folder answer in transformers, to the rows of adapter/reference.jsonl."""
    known = list(files.read_jsonl(run.folder / "adapter" / "reference.jsonl"))
    prompt = files.read_json(folder / "prompt.json")
    module, spec = spec_of(prompt["task"])
    prompts = [one["prompt_ids"] for one in known]
    decoded = Decoded(module, spec, known, prompts, tokenizer, prompt["max_answer_tokens"], sharded=False)
    model = base.base_model(recipe.with_model(base=str(folder), revision=None, quantization="none"))
    return references.lines(known, prompts, references.of(model, decoded, "merged"))


def card(run: Run, recipe: Recipe) -> str:
    """Returns the model card (README.md) of the merged model."""
    onto = "what NF4 has left of the base (replay_nf4)" if recipe.export.replay_nf4 else "the base as it was published"
    return f"""---
base_model: {adapter.base_name(recipe)}
base_model_relation: merge
pipeline_tag: text-generation
tags: [insource, {recipe.task.kind}]
---

# {run.recipe_name}: {recipe.task.instruction}

The adapter of insource's run `{run.id}` merged onto {onto}, in bfloat16. How it was trained and scored stands on the
adapter's card; how this scores beside it, in the run's parity.md. Prompts: `prompt.json`, rendered by
`chat_template.jinja` and nothing else.
"""
