"""The training loop on a base, undisturbed, and killed with kill -9 and resumed: a program of its own.

    python -m tests.helpers.killed_training FOLDER BASE...

Each training is a process that the program forks, so that torch is imported once. Each base has a folder in FOLDER
with the runs `undisturbed` and `killed`, which `bench.kills.run_hashes` reads. It prints packing and precision of each
training.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

# What only the trainings use is imported before the processes fork.
import peft  # noqa: F401
import torch
import transformers

from insource.config.load import load
from train.loop import callbacks, fit, metrics_callback, trainer  # noqa: F401
from train.loop.signals import StopRequest
from train.model import base
from train.packing import dataset
from train.packing.packing_plan import TokenizedRow

# Logged rows and checkpoints fall on different updates.
SETTINGS = (
    *("train.max_steps=6", "train.batch_size=4", "train.save_steps=2", "train.logging_steps=3"),
    *("model.quantization=none", "lora.r=8", "lora.lora_dropout=0.05"),
)
# Killed while this is written, or, if the process that waits for it is slow, soon after.
KILL_AT = "checkpoint-4"
PREFIX = list(range(100, 160))
# Ragged, so that packs have different lengths.
ROWS = [
    TokenizedRow(f"r{index}", [*PREFIX, *range(200, 201 + index % 7), 30 + index % 12], ([50 + index % 12, 2],))
    for index in range(24)
]


def main() -> int:
    folder, bases = Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]
    for path in bases:
        train_in_fork(path, folder / path.name / "undisturbed", is_killed=False)
        train_in_fork(path, folder / path.name / "killed", is_killed=True)
        train_in_fork(path, folder / path.name / "killed", is_killed=False)
    return 0


def train_base(base_folder: Path, run_folder: Path) -> None:
    """Train an adapter in the run folder; resume from its newest checkpoint, if there is one."""
    torch.set_num_threads(1)
    recipe = load("classifier", [*SETTINGS, f"model.base={base_folder}"], "cpu").recipe
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_folder)
    model = base.add_adapter(base.load_base_model(recipe), recipe.lora, recipe.train.seed)
    plan = dataset.plan_packing(recipe, ROWS, model.config, print)
    training_set = dataset.build_training_set(recipe, ROWS, [], plan, "imitate")
    print(f"{base_folder.name}: {plan.mode}, mixed precision {recipe.accelerate.mixed_precision}", flush=True)
    fit.train_adapter(recipe, run_folder, model, tokenizer, training_set, dict, print, StopRequest(), None)
    model.save_pretrained(run_folder / "adapter")


def train_in_fork(base_folder: Path, run_folder: Path, *, is_killed: bool) -> None:
    """Train in a process of its own. Raise RuntimeError if it fails, or ends before it was killed."""
    run_folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=train_base, args=(base_folder, run_folder))
    process.start()
    checkpoints = run_folder / "checkpoints"
    while is_killed and process.is_alive():
        if (checkpoints / ".writing" / KILL_AT).exists() or (checkpoints / KILL_AT).exists():
            os.kill(process.pid or 0, signal.SIGKILL)
            break
        time.sleep(0.001)
    process.join()
    if process.exitcode != (-signal.SIGKILL if is_killed else 0):
        raise RuntimeError(f"the training of {base_folder.name} ended with {process.exitcode}")


if __name__ == "__main__":
    sys.exit(main())
