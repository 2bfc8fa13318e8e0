"""This project, with the modules of `make train`: base, packs, loop.

Rows come as token ids in a given order; `make train` renders and shuffles them.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.spec import ADAPTER_DIR, PeerSpec, package_versions, read_spec
from bench.peers.training_probe import TrainingProbe
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.tasks.rendering import chat_template
from train.loop import fit
from train.loop.signals import StopRequest
from train.model import base
from train.packing import dataset, packing_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[2]


def main(spec: PeerSpec) -> None:
    """Train, and write result.json."""
    from peft import PeftModel

    recipe = build_recipe(spec)
    model, tokenizer = base.load_base_model(recipe), chat_template.load_tokenizer(recipe.model)
    model = base.cast_adapter_to_float32(PeftModel.from_pretrained(model, spec.adapter, is_trainable=True))
    result = train_and_probe(recipe, Path(spec.folder), model, tokenizer, spec.examples())
    model.save_pretrained(str(Path(spec.folder) / ADAPTER_DIR))
    spec.write_result(result)


def train_and_probe(
    recipe: Recipe,
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[tuple[list[int], list[int]]],
) -> dict[str, Any]:
    """Train a model with an adapter on rows of prompt and answer ids, in their order, and return the figures.

    The run is in `folder`.
    """
    rows = [packing_plan.TokenizedRow(str(index), prompt, (answer,)) for index, (prompt, answer) in enumerate(examples)]
    batch_size = recipe.train.batch_size
    updates = [list(range(start, start + batch_size)) for start in range(0, len(rows), batch_size)]
    training_set = dataset.TrainingSet(
        rows, dataset.plan_packing(recipe, rows, model.config, print), updates, "imitate"
    )
    run_folder = folder / "run"
    run_folder.mkdir(parents=True)
    probe = TrainingProbe()
    probe.attach(model)
    fit.train_adapter(recipe, run_folder, model, tokenizer, training_set, dict, print, StopRequest(), None)
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = packing_plan.compute_packing_stats(training_set.update_shards)
    return {
        "version": f"insource {insource_version()}, {package_versions('transformers', 'peft', 'torch')}",
        "losses": [record["loss"] for record in map(json.loads, lines) if "loss" in record],
        "token_ratio": tokens.unpacked / tokens.computed,
        "packs_an_update": tokens.packs,
        "longest_pack": tokens.longest_pack,
        **probe.report(),
    }


def insource_version() -> str:
    """Return the version of this project, which runs from its folder and is not installed."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def build_recipe(spec: PeerSpec) -> Recipe:
    """Return a recipe with the settings of the spec, and the defaults for the rest."""
    keys: dict[str, Any] = {
        "model.base": spec.model,
        "model.quantization": spec.quantization,
        "train.batch_size": spec.batch_size,
        "train.max_steps": spec.updates,
        "train.learning_rate": spec.learning_rate,
        "train.lr_scheduler_type": "constant",
        "train.adam_beta2": 0.999,
        "train.warmup_steps": 0,
        "train.logging_steps": 1,
        "train.save_steps": 1_000_000,
        "train.eval_strategy": "no",
        "train.max_length": 8192,
        "train.pack_tokens": 8192,
    }
    if not spec.on_gpu:
        keys["accelerate.mixed_precision"] = "bf16" if spec.bfloat16 else "no"
    if spec.on_gpu:
        keys["train.optim"] = "adamw_torch"
        keys["train.gradient_checkpointing"] = False
    overrides = [f"{name}={value}" for name, value in keys.items()]
    return load("classifier", overrides, "gpu" if spec.on_gpu else "cpu").recipe


if __name__ == "__main__":
    main(read_spec())
