"""Part 3 of the GPU bench: updates of a LoRA adapter on an NF4 base, by the modules of `make train`."""

import math
from pathlib import Path

from bench.gpu import random_models, workload
from bench.gpu.random_models import RandomModel
from bench.gpu.spec import CaseLog, Measurement, PartSpec
from bench.peers import insource_sft
from bench.training import table
from bench.training.workloads import Workload
from insource.config.errors import StageError
from insource.config.load import load
from insource.config.recipe import Recipe
from train.model import base


def run(spec: PartSpec, log: CaseLog) -> None:
    """Build the base, then train."""
    tokenizer = workload.load_tokenizer()
    built: list[RandomModel] = []

    def build() -> Measurement:
        built.append(random_models.build_nf4_model(spec, len(tokenizer)))
        return Measurement(details={"model": built[0].description})

    log.run("base in NF4", build)
    batch_size, updates = (8, 2) if spec.small else (64, 4)
    data = workload.load_rows(spec, tokenizer, batch_size * updates)
    log.run(f"updates of {batch_size} rows", lambda: train(spec, built[0], tokenizer, data, batch_size, updates))


def train(
    spec: PartSpec, built: RandomModel, tokenizer: object, data: Workload, batch_size: int, updates: int
) -> Measurement:
    """Return the training rate without the first update, which warms up. Raise StageError if a loss is not finite."""
    recipe = build_recipe(spec, batch_size, updates)
    model = base.add_adapter(built.model, recipe.lora, recipe.train.seed)
    examples = [(example.prompt_ids, example.completion_ids) for example in data.examples]
    result = insource_sft.train_and_probe(recipe, Path(spec.folder), model, tokenizer, examples)
    if not all(map(math.isfinite, result["losses"])):
        raise StageError(f"losses of the updates: {result['losses']}", code="INS-X010")
    seconds, tokens = sum(result["raw_seconds"][1:]), sum(result["computed_tokens"][1:])
    names = ("losses", "raw_seconds", "computed_tokens", "token_ratio", "packs_an_update", "longest_pack")
    return Measurement(
        table.examples_per_second(result, data.row_tokens),
        "examples/s",
        # 2 operations a weight and token forward, 2 backward; layers that are computed again do not count.
        4 * built.linear_parameters * tokens / seconds,
        details={
            "model": built.description,
            "prefix_tokens": data.prefix_tokens,
            "row_tokens": round(data.row_tokens, 1),
            "tokens_per_second": tokens / seconds,
            **{name: result[name] for name in names},
        },
    )


def build_recipe(spec: PartSpec, batch_size: int, updates: int) -> Recipe:
    """Return the classifier's recipe on this device with few updates. Its base is not loaded."""
    keys = {
        "model.base": "pocket",
        "model.quantization": "nf4",
        "lora.r": 16,
        "lora.lora_alpha": 32,
        "train.batch_size": batch_size,
        "train.max_steps": updates,
        "train.learning_rate": 1e-3,
        "train.logging_steps": 1,
        "train.save_steps": 1_000_000,
        "train.max_length": 8192,
        "train.pack_tokens": 8192,
    }
    if not spec.on_gpu:
        keys["accelerate.mixed_precision"] = "bf16" if spec.dtype == "bfloat16" else "no"
    overrides = [f"{name}={value}" for name, value in keys.items()]
    return load("classifier", overrides, "gpu" if spec.on_gpu else "cpu").recipe
