"""The training loop: TRL's SFTTrainer on packs, with a record of every step and a way back into an unfinished run."""

import math
import time
from pathlib import Path
from typing import Any

from recipes.schema import Recipe
from tasks.render import Example
from tracking import metrics
from tracking.run import Run
from train import base, packing

# What makes a checkpoint whole; trainer_state.json is written last.
CHECKPOINT_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")
OURS = {"batch_size", "packing", "pack_tokens", "max_length"}
# Trainer's own ways of talking, which `progress.py` replaces.
TALKERS = ("PrinterCallback", "ProgressCallback")


def fit(
    recipe: Recipe, run: Run, model: Any, tokenizer: Any, examples: list[Example], plan: packing.Plan, wandb_run: Any
) -> dict[str, float]:
    """Trains the model in place; goes on from the last whole checkpoint of the run, if there is one.

    Returns final_loss, the mean over training, and training_seconds.
    """
    from train.progress import Recorder, bar

    trainer = _trainer(recipe, run, model, tokenizer, examples, plan)
    base.float32_adapter(trainer.model)
    resume = last_whole_checkpoint(run.folder / "checkpoints")
    metrics.keep_up_to(run.folder / "metrics.jsonl", int(resume.name.rpartition("-")[2]) if resume else 0)
    began = time.monotonic()
    with bar("training", total_updates(recipe, len(examples))) as advance:
        trainer.add_callback(Recorder(run.folder / "metrics.jsonl", wandb_run, recipe.train.batch_size, advance))
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {"final_loss": float(result.training_loss), "training_seconds": round(time.monotonic() - began, 1)}


def _trainer(recipe: Recipe, run: Run, model: Any, tokenizer: Any, examples: list[Example], plan: packing.Plan) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from train.trainer import PackTrainer

    precision, on_cpu = recipe.accelerate.mixed_precision, recipe.accelerate.use_cpu
    settings = SFTConfig(
        output_dir=str(run.folder / "checkpoints"),
        per_device_train_batch_size=plan.rows_a_pack,
        gradient_accumulation_steps=plan.packs_an_update,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        save_total_limit=2,
        logging_nan_inf_filter=False,
        **recipe.train.model_dump(exclude=OURS),
    )
    trainer = (PackTrainer if plan.prefix_tokens else SFTTrainer)(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(packing.features(examples)),
        data_collator=packing.collator(plan, tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    handler = trainer.callback_handler
    handler.callbacks = [one for one in handler.callbacks if type(one).__name__ not in TALKERS]
    return trainer


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint that was written to its end."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if all((path / name).exists() for name in CHECKPOINT_FILES)), None)


def total_updates(recipe: Recipe, rows: int) -> int:
    """Returns how many optimizer updates the recipe asks for."""
    train = recipe.train
    if train.max_steps > 0:
        return train.max_steps
    return math.ceil(math.ceil(rows / train.batch_size) * train.num_train_epochs)


def peak_memory_bytes() -> int:
    """Returns the most memory that this process held: the GPU's where it trained on one, else its resident size."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
