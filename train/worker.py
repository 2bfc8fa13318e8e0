"""One process of a training run: `python -m train.worker runs/classifier/<run id>`.

`main` is the summary of this stage: rows, prompts, checks, the base and its score, packs, training, the tuned score,
the adapter.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files, disk_full
from insource.tasks import TASKS, train_subset
from insource.tasks.data_row import DataRow
from insource.tasks.rendering import chat_template
from insource.tasks.task_kind import TaskKind
from insource.tracking import metrics, train_labels, wandb_logging
from insource.tracking import run as runs
from insource.tracking.base_models import base_store, gguf_model
from insource.tracking.data_report import DataReport
from insource.tracking.manifest import StageState
from insource.tracking.run import Run
from train.device import gpu, out_of_memory, precision
from train.distributed import fsdp, launcher, world
from train.evaluate import decodability, decoding_memory, packing_check, reference_answers, untuned_answers
from train.evaluate.constrained_decoding import DecodedAnswer
from train.evaluate.log_likelihood import BATCH_ROWS
from train.evaluate.validation import GenerationEvaluator, PreferenceEvaluator, make_validation_function
from train.export import adapter
from train.loop import checkpoints, signals
from train.loop.fit import train_adapter
from train.loop.metrics_callback import peak_memory_bytes
from train.loop.signals import StopRequest
from train.model import base, dequantize
from train.packing import dataset, packing_plan, sampler
from train.packing.dataset import TrainingSet
from train.packing.packing_plan import TokenizedRow
from train.report import learning_curve, preflight, run_header

if TYPE_CHECKING:
    import wandb
    from transformers import PreTrainedModel


def main(recipe: Recipe, run: Run, stop_request: StopRequest) -> None:
    """Train the adapter of a run and write it, its scores and its record to the run folder.

    Never read `test.jsonl` or `calibration.jsonl`. Raise RecipeError, StageError, or KeyboardInterrupt if a signal
    requested a stop.
    """
    started_at = time.monotonic()
    hashes = {name: atomic_files.sha256(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")}
    if world.is_main_process():
        runs.start_stage(run, "train", {f"data/{name}.jsonl": sha256 for name, sha256 in hashes.items()})
    gpu.check_gpu(recipe)
    train_rows, validation_rows = read_rows(run, "train", hashes), read_rows(run, "validation", hashes)
    task, report = TASKS[recipe.task.task_name], DataReport.read(run.folder / "data")
    spec = task.make_spec(recipe.task, report.label_descriptions, report.may_be_empty)
    if hasattr(spec, "normalize_labels"):
        spec = replace(spec, normalize_labels=recipe.data.normalize_labels)
    log_fallback = fallback_logger(run)

    rendering = chat_template.load_rendering(recipe.model)
    tokenizer = rendering.tokenizer
    log(*rendering.summary_lines())
    if rendering.own_suffix_reason:
        log_fallback(
            f"{rendering.own_suffix_reason}; "
            "learnt is what is served and decoded: the open prompt, the answer, the stop"
        )
    for note in gguf_model.read_notes(recipe.model.base):
        log_fallback(note)
    rows = dataset.tokenize_rows(task, spec, tokenizer, train_rows)
    config = base.load_config(recipe.model)
    preflight.check_training_rows(rows, tokenizer, recipe, config)
    decodability.check_answers_decodable(task, spec, train_rows, rows, tokenizer, config.get_text_config().vocab_size)
    answer_limit, trained_labels = max_answer_tokens(rows), {str(row["target"]) for row in train_rows}
    selected = train_subset.select_train_rows(train_rows, recipe)
    train_rows, rows = [train_rows[index] for index in selected], [rows[index] for index in selected]
    if recipe.train.soft_labels:
        rows = dataset.apply_soft_labels(task, spec, tokenizer, rows, train_rows)
    model, base_folder = dequantize.load_training_base(recipe, base_store.store_path(run.folder), log_fallback)
    plan = dataset.plan_packing(recipe, rows, model.config, log_fallback)
    runs_folder = base_store.store_path(run.folder).parent
    plan = packing_check.verify_packing(recipe, runs_folder, model, rows, plan, tokenizer.pad_token_id, log_fallback)

    prompts = chat_template.encode_prompts(tokenizer, [task.messages(spec, row["input"]) for row in validation_rows])
    generation_evaluator = GenerationEvaluator(
        task, spec, validation_rows, prompts, tokenizer, answer_limit, log_fallback
    )
    evaluator: GenerationEvaluator | PreferenceEvaluator = generation_evaluator
    if task.OBJECTIVE == "prefer":
        pairs = dataset.tokenize_rows(task, spec, tokenizer, validation_rows)
        evaluator = PreferenceEvaluator(
            task, spec, validation_rows, pairs, packing_plan.plan_for_rows(plan, pairs, BATCH_ROWS), tokenizer
        )
        with precision.training_autocast(recipe):
            reference_log_probs = PreferenceEvaluator(task, spec, train_rows, rows, plan, tokenizer).predict(
                model, "reference"
            )
        rows = [replace(row, reference=log_probs) for row, log_probs in zip(rows, reference_log_probs, strict=True)]
    base_outputs = untuned_answers.predict_untuned(run, recipe, evaluator, model)

    model = base.add_adapter(model, recipe.lora, recipe.train.seed)
    training_set = dataset.build_training_set(
        recipe, rows, [str(row["target"]) for row in train_rows], plan, task.OBJECTIVE, trained_labels
    )
    weight_note = gguf_model.describe_weight_loss(recipe.model.base, recipe.model.quantization, base_folder)
    header_info = build_header_info(recipe, run, model, training_set, generation_evaluator, weight_note)
    log(*run_header.header_lines(header_info), *preflight.sample_lines(rows[0], tokenizer))
    wandb_run = init_wandb(run, recipe)
    train_result = train_adapter(
        recipe,
        run.folder,
        model,
        tokenizer,
        training_set,
        make_validation_function(evaluator, base_outputs, model),
        log_fallback,
        stop_request,
        wandb_run,
    )
    out_of_memory.release_memory()

    tuned_outputs: list[Any] = evaluator.predict(model, "tuned")
    reference_evaluator = generation_evaluator.first(reference_answers.REFERENCE_ROWS)
    answers = (
        reference_evaluator.predict(model, "probes")
        if evaluator is not generation_evaluator
        else tuned_outputs[: len(reference_evaluator.rows)]
    )
    # A collective call: it comes before the other processes return.
    adapter_state = fsdp.gather_adapter(model)
    if not world.is_main_process():
        return
    scores = {
        "tuned": evaluator.score(tuned_outputs, base_outputs),
        "base": evaluator.score(base_outputs, base_outputs),
    }
    with disk_full.raise_on_full_disk(run.folder / "adapter"):
        commit = getattr(model.config, "_commit_hash", None)
        trained_base = base_store.read_record(base_folder, base_folder.name) if base_folder else None
        prompt = adapter.build_prompt_spec(
            recipe, rendering, spec, generation_evaluator.max_answer_tokens, commit, trained_base
        )
        folder = adapter.write_adapter_folder(
            run, recipe, model, tokenizer, prompt, scores, reference_evaluator, answers, adapter_state
        )
        curve_path = run.folder / "learning_curve.png"
        learning_curve.draw(
            run.folder / "metrics.jsonl", curve_path, f"{run.recipe_name}  {run.id}", train_result.get("best_step")
        )
    wandb_logging.log_image(wandb_run, curve_path)
    if evaluator is generation_evaluator:
        log_predictions(wandb_run, recipe, generation_evaluator, tuned_outputs)
    wandb_logging.finish_run(
        wandb_run, run, wandb_headline(task, scores), {f"data_{name}_sha256": sha for name, sha in hashes.items()}
    )
    usage: dict[str, Any] = {
        "seconds": round(time.monotonic() - started_at, 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    usage |= {"parameters": header_info.parameters, "trainable_parameters": header_info.trainable}
    usage |= {"weights": weight_note} if weight_note else {}
    outputs = [*sorted(folder.iterdir()), run.references_path]
    runs.end_stage(run, "train", "done", "done", outputs, validation=scores, **train_result, **usage)


def read_rows(run: Run, split: str, hashes: Mapping[str, str]) -> list[DataRow]:
    """Return the rows of train or validation. Raise StageError if the file is not the prepared one."""
    path = run.folder / "data" / f"{split}.jsonl"
    if hashes[split] != DataReport.read(path.parent).sha256[path.name]:
        raise StageError(
            f"{path} was changed after data preparation; remove its folder, and the next run prepares the data again",
            code="INS-D033",
        )
    return list(atomic_files.read_jsonl(path))


def max_answer_tokens(rows: Sequence[TokenizedRow]) -> int:
    """Return the limit of answer tokens, for validation and for serving."""
    return chat_template.max_answer_tokens(max(len(answer) for row in rows for answer in row.completions))


def fallback_logger(run: Run, stage: str = "train") -> Callable[[str], None]:
    """Return a function that prints a fallback and records it under a stage of the manifest, each message only once.

    A fallback is a deviation from the recipe's settings.
    """
    logged: set[str] = set()

    def log_fallback(message: str) -> None:
        if message in logged:
            return
        logged.add(message)
        log(f"fallback  {message}")
        if world.is_main_process():
            runs.record_fallback(run, stage, message)

    return log_fallback


def init_wandb(run: Run, recipe: Recipe) -> "wandb.Run | None":
    """Return the W&B run, or None in all processes but the main one and if W&B is off."""
    if not world.is_main_process():
        return None
    return wandb_logging.init_run(run, recipe, wandb_logging.build_config(recipe, adapter.base_display_name(recipe)))


def build_header_info(
    recipe: Recipe,
    run: Run,
    model: "PreTrainedModel",
    training_set: TrainingSet,
    evaluator: GenerationEvaluator,
    weight_note: str | None,
) -> run_header.HeaderInfo:
    """Return the values of the header. `weight_note` is the loss of the weights' precision before training."""
    train, stats = recipe.train, packing_plan.compute_packing_stats(training_set.update_shards)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    data = DataReport.read(run.folder / "data").rows
    teacher_share = train_labels.read_teacher_share(recipe, run.folder / "data")
    saved_checkpoints = checkpoints.list_checkpoints(run.folder / "checkpoints")
    memory = run_header.estimate_memory(
        model,
        pack_tokens=stats.longest_pack,
        answer_tokens=stats.longest_pack_answers,
        mask_pairs=stats.longest_pack_pairs,
        checkpointing=train.gradient_checkpointing,
        optim=train.optim,
        compute_bytes=2 if precision.compute_dtype(recipe) == "bfloat16" else 4,
        autocast=precision.uses_cpu_bfloat16(recipe),
        shards=world.world_size() if recipe.accelerate.distributed_type == "FSDP" else 1,
        workload=build_decoding_workload(recipe, model, evaluator),
        device_bytes=None
        if recipe.accelerate.use_cpu
        else decoding_memory.usable_bytes(dequantize.device_memory_bytes(model.device)),
    )
    return run_header.HeaderInfo(
        base=adapter.base_display_name(recipe),
        quantization=recipe.model.quantization,
        parameters=model.num_parameters() - trainable,
        compute_dtype=precision.compute_dtype(recipe),
        trainable=trainable,
        adapter=f"LoRA r={recipe.lora.r}",
        train_rows=len(training_set.rows),
        teacher_note=teacher_share.sentence() if teacher_share else None,
        validation_rows=len(evaluator.rows),
        longest_row_tokens=max(row.longest_sequence_tokens for row in training_set.rows),
        batch_size=train.batch_size,
        processes=world.world_size(),
        packing=training_set.plan.mode,
        tokens_per_update=stats.computed,
        unpacked_tokens_per_update=stats.unpacked,
        packs_per_update=stats.packs,
        updates=len(training_set.updates),
        epochs=len(training_set.updates) / sampler.updates_per_epoch(len(training_set.rows), train.batch_size),
        weights_note=weight_note,
        rejected=data.rejected,
        dropped=data.dropped,
        class_balance=class_balance_note(recipe),
        memory=memory,
        updates_done=checkpoints.step(saved_checkpoints[-1]) if saved_checkpoints else 0,
        examples_per_second=metrics.read_last_value(run.folder / "metrics.jsonl", "examples_per_second"),
    )


def build_decoding_workload(
    recipe: Recipe, model: "PreTrainedModel", evaluator: GenerationEvaluator
) -> decoding_memory.DecodingWorkload:
    """Return the decoding of the validation rows, for the memory estimate."""
    prefix = chat_template.shared_prefix_length(evaluator.prompts)
    longest = max(map(len, evaluator.prompts)) - prefix + evaluator.max_answer_tokens
    is_sharded = recipe.accelerate.distributed_type == "FSDP"
    rows = -(-len(evaluator.prompts) // world.world_size())
    return decoding_memory.DecodingWorkload(
        rows, prefix, longest, 0 if is_sharded else dequantize.dequantized_layer_bytes(model)
    )


def class_balance_note(recipe: Recipe) -> str | None:
    """Return a note on class balancing (sampling or loss weights), or None without it."""
    notes = ["classes are drawn equally often"] if recipe.train.balanced_sampling else []
    if recipe.train.class_weight == "balanced":
        notes.append("classes weigh the same in the loss")
    elif recipe.train.class_weight:
        notes.append("classes weigh in the loss as train.class_weight says")
    return ", ".join(notes) or None


def log_predictions(
    wandb_run: "wandb.Run | None", recipe: Recipe, evaluator: GenerationEvaluator, answers: Sequence[DecodedAnswer]
) -> None:
    """Log the validation predictions to W&B: sample rows, and the confusion matrix of a classification task."""
    parsed = evaluator.parse(answers)
    targets = evaluator.resolve_targets(parsed)
    rows = [
        {
            "id": row["id"],
            "input": row["input"]["text"],
            "target": target,
            "answer": answer.text,
            "right": parsed_answer.problem is None and parsed_answer.value == target,
            "log_probability": answer.log_probability,
        }
        for row, answer, parsed_answer, target in zip(evaluator.rows, answers, parsed, targets, strict=True)
    ]
    wandb_logging.log_predictions(wandb_run, recipe, rows)
    if recipe.task.task_name == "classification":
        predicted = [None if parsed_answer.problem else parsed_answer.value for parsed_answer in parsed]
        wandb_logging.log_confusion(wandb_run, recipe, [row["target"] for row in evaluator.rows], predicted)


def wandb_headline(task: TaskKind, scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics for the summary of the W&B run."""
    names = {"tuned": "validation/", "base": "validation/untuned_"}
    return {
        prefix + name: value for key, prefix in names.items() for name, value in task.main_metrics(scores[key]).items()
    }


def log(*lines: str) -> None:
    """Print to stderr, in the main process only."""
    for line in lines if world.is_main_process() else ():
        print(line, file=sys.stderr, flush=True)


def run_worker() -> int:
    """Train the run named on the command line and record its end. Return the exit code.

    Every outcome is recorded in the manifest, errors and signals included.
    """
    launcher.die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m train.worker", description="One run; `python -m train` starts it.")
    parser.add_argument("run", type=Path, help="the run folder")
    run = Run(parser.parse_args().run)

    def record_end(state: StageState, reason: str, code: int) -> None:
        # On a full disk the manifest keeps its old state; the error message reports the problem.
        with suppress(OSError):
            if world.is_main_process():
                runs.end_stage(run, "train", state, reason, exit_code=code)

    def on_forced_exit(signal_name: str) -> None:
        record_end("interrupted", f"{signal_name}, twice", cli.INTERRUPTED)

    with (
        runs.lock_run(run) if world.is_main_process() else nullcontext(),
        signals.handle_signals(on_forced_exit) as stop_request,
    ):
        try:
            with disk_full.raise_on_full_disk(run.folder):
                main(run.recipe(), run, stop_request)
        except (RecipeError, StageError) as error:
            code = cli.USAGE_ERROR if isinstance(error, RecipeError) else cli.FAILED
            record_end("failed", str(error), code)
            raise
        except KeyboardInterrupt as interrupt:
            record_end("interrupted", str(interrupt) or "Ctrl-C", cli.INTERRUPTED)
            # Only the main process exits with 130: the launcher would stop all processes, this one included, while it
            # saves.
            return cli.INTERRUPTED if world.is_main_process() else cli.OK
        except Exception as error:
            if out_of_memory.is_out_of_memory(error):
                record_end("failed", out_of_memory.describe_out_of_memory(error), cli.FAILED)
                raise StageError(out_of_memory.describe_out_of_memory(error), code="INS-T016") from error
            record_end("failed", f"{type(error).__name__}: {error}", cli.FAILED)
            raise
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(run_worker)
