"""The training loop: Trainer on shards of updates, with metrics of every step, and resuming of an unfinished run."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.tracking import metrics
from train.device import malloc, precision
from train.distributed import world
from train.loop import checkpoints
from train.loop.signals import StopRequest
from train.packing import sampler
from train.packing.dataset import TrainingSet

if TYPE_CHECKING:
    import wandb
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

# Keys of `train` that other modules read, or that have another meaning in Trainer, whose batches are updates.
NOT_FOR_TRAINER = {
    "batch_size",
    "packing",
    "pack_tokens",
    "max_length",
    "num_train_epochs",
    "max_steps",
    "save_total_limit",
    "max_train_rows",
    "class_weight",
    "balanced_sampling",
    "soft_labels",
    "shots",
    "beta",
    "loss_type",
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "load_best_model_at_end",
}
# Trainer's console output, which metrics_callback.py replaces.
CONSOLE_CALLBACKS = ("PrinterCallback", "ProgressCallback")

FallbackLogger = Callable[[str], None]


def train_adapter(
    recipe: Recipe,
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    training_set: TrainingSet,
    validate: Callable[[], dict[str, float]],
    on_fallback: FallbackLogger,
    stop_request: StopRequest,
    wandb_run: "wandb.Run | None",
) -> dict[str, Any]:
    """Train the model in place. Resume from the last valid checkpoint below `folder`, if there is one.

    `validate` returns the validation metrics of the current model. `on_fallback` prints and records a message.
    `stop_request` is set by signals. Return final_loss (the mean over training), training_seconds, and best_step if the
    best checkpoint was loaded. Raise KeyboardInterrupt after saving if a stop was requested.
    """
    from train.loop.callbacks import GracefulStop, RestoreTrainerState, SaveEvery
    from train.loop.metrics_callback import MetricsCallback, show_progress

    if recipe.accelerate.use_cpu:
        malloc.disable_malloc_trim()
    checkpoints_folder, metrics_path = folder / checkpoints.FOLDER, folder / "metrics.jsonl"
    resume = _find_resume_checkpoint(checkpoints_folder, on_fallback)
    steps_done = checkpoints.step(resume) if resume else 0
    if world.is_main_process():
        if resume:
            log_line(f"resuming  from {resume.name}")
        metrics.truncate_after(metrics_path, steps_done)
    started_at = time.monotonic()
    with show_progress("training", len(training_set.updates), steps_done) as advance:
        recorder = MetricsCallback(
            metrics_path, wandb_run, sampler.updates_per_epoch(len(training_set.rows), recipe.train.batch_size), advance
        )
        trainer = build_trainer(
            recipe, str(checkpoints_folder), model, tokenizer, training_set, validate, on_fallback, recorder
        )
        trainer.add_callback(GracefulStop(stop_request))
        trainer.add_callback(SaveEvery(recipe.train.save_steps))
        if resume:
            trainer.add_callback(RestoreTrainerState(trainer, resume, recorder.load_state_dict, on_fallback))
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    stop_request.raise_if_requested()
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return {
        "final_loss": float(result.training_loss),
        "training_seconds": round(time.monotonic() - started_at, 1),
        **({"best_step": best} if best else {}),
    }


def _find_resume_checkpoint(folder: Path, on_fallback: FallbackLogger) -> Path | None:
    """Return the checkpoint to resume from, the same in all processes, or None."""
    from accelerate.utils import broadcast_object_list

    latest: list[Path | None] = [None]
    if world.is_main_process():
        scan = checkpoints.find_latest_valid(folder)
        for problem in scan.damaged:
            on_fallback(problem)
        latest = [scan.latest]
    if world.world_size() > 1:
        broadcast_object_list(latest)
    return latest[0]


def build_trainer(
    recipe: Recipe,
    folder: str,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    training_set: TrainingSet,
    validate: Callable[[], dict[str, float]],
    on_fallback: FallbackLogger,
    recorder: Any,
) -> Any:
    """Return the trainer, with its checkpoints below `folder`."""
    from transformers import EarlyStoppingCallback

    from train.loop.trainer import PackTrainer

    if recipe.train.gradient_checkpointing:
        model.enable_input_require_grads()
    trainer = PackTrainer(
        model=model,
        args=build_training_arguments(
            recipe, folder, sampler.updates_per_epoch(len(training_set.rows), recipe.train.batch_size)
        ),
        train_dataset=training_set.update_shards,
        # Trainer requires a data set for evaluation; the evaluator has its own rows.
        eval_dataset=training_set.update_shards,
        processing_class=tokenizer,
        training_set=training_set,
        beta=recipe.train.beta,
        validate=validate,
        recorder=recorder,
        on_fallback=on_fallback,
        forward_context=partial(precision.training_autocast, recipe),
    )
    trainer.add_callback(recorder)
    if recipe.train.early_stopping_patience is not None:
        patience, threshold = recipe.train.early_stopping_patience, recipe.train.early_stopping_threshold
        trainer.add_callback(EarlyStoppingCallback(patience, threshold))
    handler = trainer.callback_handler
    handler.callbacks = [callback for callback in handler.callbacks if type(callback).__name__ not in CONSOLE_CALLBACKS]
    return trainer


def build_training_arguments(recipe: Recipe, folder: str, updates_per_epoch: int) -> "TrainingArguments":
    """Return transformers' TrainingArguments, with checkpoints below `folder`.

    An epoch has `updates_per_epoch` updates.
    """
    from transformers import TrainingArguments

    # Trainer sees all updates as one epoch. If it keeps the best checkpoint it saves only at evaluations, see
    # SaveEvery.
    interval = (
        updates_per_epoch
        if recipe.train.eval_strategy == "epoch"
        else recipe.train.eval_steps or recipe.train.save_steps
    )
    evaluates = recipe.train.eval_strategy != "no"
    mixed_precision, on_cpu = recipe.accelerate.mixed_precision, recipe.accelerate.use_cpu
    trainer_settings = {
        name: value for name, value in recipe.train.model_dump(exclude=NOT_FOR_TRAINER).items() if value is not None
    }
    return TrainingArguments(
        output_dir=folder,
        # An item of the data set is one process's part of an update, and the items are all updates of all epochs.
        per_device_train_batch_size=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        # On a CPU accelerate would run validation in bfloat16 too; see device/precision.py.
        bf16=mixed_precision == "bf16" and not on_cpu,
        fp16=mixed_precision == "fp16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        report_to="none",
        disable_tqdm=True,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=interval if evaluates else None,
        save_strategy="steps",
        # Otherwise the patience of early stopping would start again with every resume.
        restore_callback_states_from_checkpoint=True,
        save_steps=interval if recipe.train.selects_best_checkpoint else recipe.train.save_steps,
        load_best_model_at_end=recipe.train.selects_best_checkpoint,
        greater_is_better=True if recipe.train.selects_best_checkpoint else None,
        # `checkpoints.rotate` removes checkpoints.
        save_total_limit=None,
        logging_nan_inf_filter=False,
        **trainer_settings,
    )
