"""One of two processes that shard the pocket model by FSDP2 (gloo, CPU), as accelerate does on GPUs.

python -m torch.distributed.run ... tests/helpers/fsdp_ranks.py <folder> <quantization> <init_lora_weights>

It trains one update, answers rows, trains another update and writes the adapter. Accelerator.prepare supports no FSDP
on CPUs, so this calls the functions that it would call.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from ruamel.yaml import YAML

from insource.config import hardware
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.tasks import classification
from insource.tasks.rendering import chat_template
from train.distributed import fsdp, world
from train.evaluate.validation import GenerationEvaluator
from train.export import adapter
from train.model import base

SPEC = classification.make_spec(
    Task(kind="classification", instruction="Say what the user wants."),
    {"find_bus": "Find a bus", "find_bus_stop": "Find where it stops", "get weather": "Weather", "other": ""},
)
# An odd number of texts, of very different lengths: the processes make different numbers of steps.
TEXTS = [
    "I need a bus",
    "rain?",
    "Will it rain in San Jose on Monday, and shall I take my umbrella with me?",
    "so " * 90,
    "ok",
]


def load_recipe(*settings: str) -> Recipe:
    loaded = load("classifier", ["lora.r=4", *settings], "cpu").recipe
    return loaded.model_copy(update={"accelerate": loaded.accelerate.model_copy(update={"distributed_type": "FSDP"})})


def make_evaluator(tokenizer: Any) -> GenerationEvaluator:
    """Return an evaluator of TEXTS."""
    rows = [{"id": str(index), "input": {"text": text}, "target": "other"} for index, text in enumerate(TEXTS)]
    prompts = chat_template.encode_prompts(tokenizer, [classification.messages(SPEC, row["input"]) for row in rows])
    return GenerationEvaluator(classification, SPEC, rows, prompts, tokenizer, 24)


def shard(model: Any) -> None:
    """Shard a model with the settings of recipes/hardware/fsdp.yaml."""
    config = YAML(typ="safe").load((hardware.HARDWARE_DIR / "fsdp.yaml").read_text(encoding="utf-8"))["accelerate"][
        "fsdp_config"
    ]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"],
        reshard_after_forward=config["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=config["fsdp_cpu_ram_efficient_loading"],
    )
    fsdp2_prepare_model(
        SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            mixed_precision="no",
            is_main_process=world.is_main_process(),
            device=torch.device("cpu"),
        ),
        model,
    )


def train_one_update(model: Any, prompts: list[list[int]]) -> float:
    """Train one update on the same row in all processes. Return its loss."""
    model.train()
    ids = torch.tensor([prompts[0]])
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None
    return float(loss.detach())


def main(folder: Path, quantization: str, init: str) -> None:
    recipe = load_recipe(f"model.quantization={quantization}", f"lora.init_lora_weights={init}")
    tokenizer = chat_template.load_tokenizer(recipe.model)
    model, evaluator = base.load_base_model(recipe), make_evaluator(tokenizer)
    untuned = evaluator.predict(model, "untuned")
    model = base.add_adapter(model, recipe.lora, 1)
    shard(model)
    assert fsdp.is_sharded(model)
    unchanged = evaluator.predict(model, "sharded")
    first_loss = train_one_update(model, evaluator.prompts)
    tuned = evaluator.predict(model, "tuned")
    local_size = sum(parameter.to_local().numel() for parameter in model.parameters())
    second_loss = train_one_update(model, evaluator.prompts)
    tuned_twice = evaluator.predict(model, "tuned")
    state = fsdp.gather_adapter(model)
    if world.is_main_process():
        folder.mkdir()
        adapter._save_weights(model, recipe, folder, state)
        report = {
            "losses": [first_loss, second_loss],
            "local": local_size,
            "whole": sum(parameter.numel() for parameter in model.parameters()),
        }
        answers_by_name = {"untuned": untuned, "unchanged": unchanged, "tuned": tuned, "tuned_again": tuned_twice}
        for name, answers in answers_by_name.items():
            report[name] = [(answer.token_ids, answer.log_probability) for answer in answers]
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    world.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
