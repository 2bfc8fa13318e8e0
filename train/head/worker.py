"""The process that trains a classification head: `python -m train.head.worker runs/classifier/<run id>`.

Base, rows, order of rows, updates, optimizer and LoRA settings are those of the run. The head reads the last token of
the prompt that the label tokens get, so the two differ only in how an answer comes out of the same computation. Packs,
checkpoints and metrics are those of train/loop. Validation is scored after each epoch, and the best epoch is kept.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.metric_names import FIRST_METRICS, select_metrics
from insource.config.recipe import Recipe
from insource.system import atomic_files, disk_full, environment
from insource.tasks import train_subset
from insource.tasks.data_row import Rows
from insource.tasks.rendering import chat_template
from insource.tasks.task_kind import TaskKind
from insource.tracking import run as runs
from insource.tracking.base_models import base_store
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run
from train.device import gpu, out_of_memory
from train.distributed import launcher
from train.evaluate import packing_check
from train.export import adapter
from train.head import folder as head_folder
from train.head import model as head_model
from train.head import validation
from train.loop import losses, signals
from train.loop.fit import train_adapter
from train.loop.metrics_callback import peak_memory_bytes, show_progress
from train.loop.signals import StopRequest
from train.model import base
from train.packing import dataset, packing_plan, sampler
from train.packing.dataset import TrainingSet
from train.packing.packing_plan import PackingPlan, TokenizedRow
from train.run_data import read_rows
from train.run_log import fallback_logger, log

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STAGE = "head"


@dataclass(frozen=True)
class HeadData:
    """The rows of a run, as the head gets them."""

    prompt: PromptSpec
    """prompt.json of the run's adapter."""
    task: TaskKind
    spec: Any
    tokenizer: "PreTrainedTokenizerBase"
    train_targets: Sequence[str]
    train_rows: Sequence[TokenizedRow]
    validation: Rows
    validation_rows: Sequence[TokenizedRow]
    sha256: dict[str, str]
    """Hashes of the files of rows."""

    @property
    def labels(self) -> list[str]:
        """Return the labels in the order of the logits."""
        return list(self.spec.labels)


def main(recipe: Recipe, run: Run, learning_rate: float, fresh: bool, stop_request: StopRequest) -> None:
    """Train the head of a run and write it, its score and its record into the run folder.

    Never read `test.jsonl` or `calibration.jsonl`. Raise RecipeError, StageError, or KeyboardInterrupt if a signal
    requested a stop.
    """
    started_at = time.monotonic()
    data = load_data(run)
    checksums = run.folder / "adapter" / atomic_files.CHECKSUMS
    runs.start_stage(run, STAGE, {**data.sha256, f"adapter/{atomic_files.CHECKSUMS}": atomic_files.sha256(checksums)})
    gpu.check_gpu(recipe)
    log_fallback = fallback_logger(run, STAGE)
    settings = training_recipe(recipe, learning_rate)
    if recipe.accelerate.num_processes > 1:
        log_fallback(f"the head trains in one process, the adapter was trained in {recipe.accelerate.num_processes}")
    model = load_model(settings, run, data)
    plan = plan_packs(settings, run, model, data, log_fallback)
    training_set = dataset.build_training_set(settings, data.train_rows, data.train_targets, plan, "classify")
    log(*header_lines(settings, model, training_set, data))
    work = head_folder.work_folder(run, head_folder.compute_digest(run, learning_rate), fresh)
    result = train_adapter(
        settings, work, model, data.tokenizer, training_set, partial(validate, model, plan, data), log_fallback,
        stop_request, None,
    )  # fmt: skip
    out_of_memory.release_memory()
    predicted = predict(model, plan, data)
    score = validation.score_labels(data.task, data.spec, data.validation, [label for label, _ in predicted])
    labels, log_probabilities = zip(*predicted, strict=True)
    record = build_record(recipe, run, learning_rate, data, training_set, score, result)
    record["difference"] = validation.compare_with_tokens(run, data.task, data.spec, data.validation, labels)
    with disk_full.raise_on_full_disk(run.folder / head_folder.FOLDER):
        ids = [row["id"] for row in data.validation]
        validation_path = head_folder.write_validation(run, ids, labels, log_probabilities)
        written = head_folder.write_folder(
            run, model, data.tokenizer, adapter.base_display_name(recipe), record, work / "metrics.jsonl"
        )
    usage = {"seconds": round(time.monotonic() - started_at, 1), "peak_memory_bytes": peak_memory_bytes()}
    outputs = [*sorted(written.iterdir()), validation_path]
    metrics = {"learning_rate": learning_rate, "difference": record["difference"], **result, **usage}
    runs.end_stage(run, STAGE, "done", "done", outputs, validation=score, **metrics)
    shutil.rmtree(work)


def load_data(run: Run) -> HeadData:
    """Return the rows of a run. Raise StageError if they are not the prepared ones."""
    prompt = PromptSpec.read(run.folder / "adapter")
    task, spec = prompt.load_task()
    tokenizer = chat_template.load_saved_tokenizer(str(run.folder / "adapter"))
    names = ("train", "validation")
    hashes = {name: atomic_files.sha256(run.folder / "data" / f"{name}.jsonl") for name in names}
    train, validation_rows = (read_rows(run, name, hashes) for name in names)
    train = [train[index] for index in train_subset.select_train_rows(train, run.recipe())]
    classes = {label: number for number, label in enumerate(spec.labels)}
    targets = [str(row["target"]) for row in train]
    return HeadData(
        prompt,
        task,
        spec,
        tokenizer,
        targets,
        tokenize_rows(task, spec, tokenizer, train, [classes[target] for target in targets]),
        validation_rows,
        tokenize_rows(task, spec, tokenizer, validation_rows, [0] * len(validation_rows)),
        {f"data/{name}.jsonl": sha256 for name, sha256 in hashes.items()},
    )


def tokenize_rows(
    task: TaskKind, spec: object, tokenizer: "PreTrainedTokenizerBase", rows: Rows, classes: Sequence[int]
) -> list[TokenizedRow]:
    """Return the rows as token ids: the prompt, and the class as a completion of one "token" (losses.class_logits)."""
    prompts = chat_template.encode_prompts(tokenizer, [task.messages(spec, row["input"]) for row in rows])
    return [
        TokenizedRow(row["id"], prompt, ([number],)) for row, prompt, number in zip(rows, prompts, classes, strict=True)
    ]


def training_recipe(recipe: Recipe, learning_rate: float) -> Recipe:
    """Return the recipe of the head's training.

    It is that of the adapter with the head's learning rate, in one process, scored on validation after each epoch,
    and ends with the best epoch.
    """
    changes = {
        "learning_rate": learning_rate,
        "eval_strategy": "epoch",
        "eval_steps": None,
        "load_best_model_at_end": True,
        "metric_for_best_model": recipe.train.metric_for_best_model or FIRST_METRICS["classification"],
        "early_stopping_patience": None,
    }
    one_process = {"distributed_type": "NO", "num_processes": 1, "num_machines": 1, "machine_rank": 0}
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=changes),
            "accelerate": recipe.accelerate.model_copy(update=one_process),
        }
    )


def load_model(recipe: Recipe, run: Run, data: HeadData) -> Any:
    """Return the base with a new head and LoRA. Its random weights depend only on train.seed."""
    import torch

    torch.manual_seed(recipe.train.seed)
    model = head_model.load_base_with_head(recipe, run, data.labels, training=True)
    if len(data.labels) > model.config.vocab_size:
        raise StageError(
            f"compare.head: {len(data.labels)} labels are more than the {model.config.vocab_size} tokens",
            code="INS-T019",
        )
    model.config.pad_token_id = data.tokenizer.pad_token_id
    return base.add_adapter(model, recipe.lora, recipe.train.seed, "SEQ_CLS", recipe.model.revision)


def plan_packs(
    recipe: Recipe, run: Run, model: "PreTrainedModel", data: HeadData, log_fallback: Callable[[str], None]
) -> PackingPlan:
    """Return the packing plan. On a base that computes packs differently from rows it has separate rows.

    The check of the adapter's training is used if it was of the same base and libraries (evaluate/packing_check.py).
    """
    plan = dataset.plan_packing(recipe, data.train_rows, model.config, log_fallback)
    runs_folder, pad_token_id = base_store.store_path(run.folder).parent, data.tokenizer.pad_token_id
    return packing_check.verify_packing(
        recipe, runs_folder, model, data.train_rows, plan, pad_token_id, log_fallback, losses.class_log_probabilities
    )


def header_lines(recipe: Recipe, model: "PreTrainedModel", training_set: TrainingSet, data: HeadData) -> list[str]:
    """Return the header of the training."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    stats = packing_plan.compute_packing_stats(training_set.update_shards)
    updates = len(training_set.updates)
    epochs = updates / sampler.updates_per_epoch(len(training_set.rows), recipe.train.batch_size)
    return [
        f"head      {len(data.labels)} labels on {adapter.base_display_name(recipe)}, LoRA r={recipe.lora.r} and head: "
        f"{trainable:,} trainable parameters",
        f"rows      {len(training_set.rows):,} train, {len(data.validation):,} validation",
        f"updates   {updates:,} of {recipe.train.batch_size} examples ({epochs:.3g} epochs), learning rate "
        f"{recipe.train.learning_rate:g}, {stats.computed:,.0f} tokens an update ({training_set.plan.mode})",
    ]


def predict(model: "PreTrainedModel", plan: PackingPlan, data: HeadData) -> list[tuple[str, float]]:
    """Return the label of each validation row with its log-probability."""
    with show_progress("validating", len(data.validation_rows)) as advance:
        predicted = validation.predict_log_probabilities(
            model, data.validation_rows, plan, data.tokenizer.pad_token_id, on_batch=advance
        )
    return [validation.most_probable(data.labels, log_probabilities) for log_probabilities in predicted]


def validate(model: "PreTrainedModel", plan: PackingPlan, data: HeadData) -> dict[str, float]:
    """Return the main metrics of the current model on the validation rows."""
    labels = [label for label, _ in predict(model, plan, data)]
    score = validation.score_labels(data.task, data.spec, data.validation, labels)
    return {name: float(value) for name, value in select_metrics(data.task.NAME, score).items()}


def build_record(
    recipe: Recipe,
    run: Run,
    learning_rate: float,
    data: HeadData,
    training_set: TrainingSet,
    score: dict[str, object],
    result: dict[str, object],
) -> dict[str, Any]:
    """Return head.json without the difference to the label tokens."""
    return {
        "schema_version": 1,
        "digest": head_folder.compute_digest(run, learning_rate),
        "labels": data.labels,
        "task": data.prompt.task,
        "rendering": head_folder.RENDERING,
        "chat_template_sha256": data.prompt.chat_template_sha256,
        "base": data.prompt.base.to_json(),
        "quantization": recipe.model.quantization,
        "learning_rate": learning_rate,
        "updates": len(training_set.updates),
        **result,
        "validation": {"n": score["n"], **select_metrics(data.task.NAME, score)},
        "versions": environment.read_package_versions(),
    }


def run_worker() -> int:
    """Train the head of the run named on the command line and record its end. Return the exit code."""
    launcher.die_with_parent()
    parser = argparse.ArgumentParser(
        prog="python -m train.head.worker", description="`python -m train.head` starts it."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--fresh", action="store_true", help="discard the checkpoints of an unfinished training")
    arguments = parser.parse_args()
    run = Run(arguments.run)

    def on_forced_exit(signal_name: str) -> None:
        runs.end_stage(run, STAGE, "interrupted", f"{signal_name}, twice")

    with runs.lock_run(run), signals.handle_signals(on_forced_exit) as stop_request, runs.record_stage(run, STAGE):
        try:
            with disk_full.raise_on_full_disk(run.folder):
                main(run.recipe(), run, arguments.learning_rate, arguments.fresh, stop_request)
        except (RecipeError, StageError, KeyboardInterrupt):
            raise
        except Exception as error:
            if out_of_memory.is_out_of_memory(error):
                raise StageError(out_of_memory.describe_out_of_memory(error), code="INS-T016") from error
            raise
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(run_worker)
