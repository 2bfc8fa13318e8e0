"""One process of a training run: `python -m train.worker runs/classifier/<run id>`.

`main` is the summary of this stage: rows, prompts, checks, the base and its score, packs, training, the tuned score,
the adapter.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.metric_names import select_metrics
from insource.config.recipe import Recipe
from insource.system import atomic_files, disk_full
from insource.tasks.task_kind import TaskKind
from insource.tracking import run as runs
from insource.tracking import wandb_logging
from insource.tracking.base_models import base_store, gguf_model
from insource.tracking.manifest import StageState
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run
from train import header_info, run_data, run_evaluation
from train.device import gpu, out_of_memory
from train.distributed import fsdp, launcher, world
from train.evaluate.constrained_decoding import DecodedAnswer
from train.evaluate.validation import GenerationEvaluator, make_validation_function
from train.export import adapter
from train.loop import signals
from train.loop.fit import train_adapter
from train.loop.metrics_callback import peak_memory_bytes
from train.loop.signals import StopRequest
from train.model import base, dequantize
from train.report import learning_curve, preflight, run_header
from train.run_log import fallback_logger, log

if TYPE_CHECKING:
    import wandb


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
    log_fallback = fallback_logger(run)
    data = run_data.prepare_rows(recipe, run, hashes, log_fallback)

    model, base_folder = dequantize.load_training_base(recipe, base_store.store_path(run.folder), log_fallback)
    plan = run_data.plan_packs(recipe, run, model, data, log_fallback)
    if data.task.OBJECTIVE == "prefer":
        data = run_evaluation.add_reference_log_probabilities(recipe, data, model, plan, log_fallback)
    evaluation = run_evaluation.evaluate_base(recipe, run, data, model, plan, log_fallback)

    model = base.add_adapter(model, recipe.lora, recipe.train.seed, revision=recipe.model.revision)
    training_set = data.build_training_set(recipe, plan)
    weight_note = gguf_model.describe_weight_loss(recipe.model.base, recipe.model.quantization, base_folder)
    header = header_info.build_header_info(recipe, run, model, training_set, evaluation.generation, weight_note)
    log(*run_header.header_lines(header), *preflight.sample_lines(data.tokenized[0], data.tokenizer))
    wandb_run = init_wandb(run, recipe)
    train_result = train_adapter(
        recipe,
        run.folder,
        model,
        data.tokenizer,
        training_set,
        make_validation_function(evaluation.deciding, evaluation.base_outputs, model),
        log_fallback,
        stop_request,
        wandb_run,
    )
    out_of_memory.release_memory()

    tuned_outputs, more_scores = evaluation.predict_tuned(model)
    references = evaluation.answer_references(model, tuned_outputs)
    # A collective call: it comes before the other processes return.
    adapter_state = fsdp.gather_adapter(model)
    if not world.is_main_process():
        return
    scores = evaluation.score(tuned_outputs) | more_scores
    with disk_full.raise_on_full_disk(run.folder / "adapter"):
        prompt = build_prompt_spec(recipe, data, base_folder)
        folder = adapter.write_adapter_folder(
            run, recipe, model, data.tokenizer, prompt, scores, *references, adapter_state
        )
        curve_path = draw_learning_curve(run, train_result.get("best_step"))
    wandb_logging.log_image(wandb_run, curve_path)
    if evaluation.deciding is evaluation.generation:
        log_predictions(wandb_run, recipe, evaluation.generation, tuned_outputs)
    digests = {f"data_{name}_sha256": sha256 for name, sha256 in hashes.items()}
    wandb_logging.finish_run(wandb_run, run, wandb_headline(data.task, scores), digests)
    usage = measure_usage(started_at, header, weight_note)
    outputs = [*sorted(folder.iterdir()), run.references_path]
    runs.end_stage(run, "train", "done", "done", outputs, validation=scores, **train_result, **usage)


def build_prompt_spec(recipe: Recipe, data: run_data.PreparedRows, base_folder: Path | None) -> PromptSpec:
    """Return prompt.json of the run. `base_folder` is the dequantized base that it was trained on, if there is one."""
    trained_base = base_store.read_record(base_folder, base_folder.name) if base_folder else None
    prompt = adapter.build_prompt_spec(recipe, data.rendering, data.spec, data.max_answer_tokens, trained_base)
    return prompt.model_copy(update={"examples": data.examples.setting}) if data.examples else prompt


def draw_learning_curve(run: Run, best_step: int | None) -> Path:
    """Draw the learning curve of the run. Return the path of the picture."""
    path = run.folder / "learning_curve.png"
    learning_curve.draw(run.folder / "metrics.jsonl", path, f"{run.recipe_name}  {run.id}", best_step)
    return path


def measure_usage(started_at: float, header: run_header.HeaderInfo, weight_note: str | None) -> dict[str, object]:
    """Return the metrics of the manifest on time, memory and size."""
    return {
        "seconds": round(time.monotonic() - started_at, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters": header.parameters,
        "trainable_parameters": header.trainable,
    } | ({"weights": weight_note} if weight_note else {})


def init_wandb(run: Run, recipe: Recipe) -> "wandb.Run | None":
    """Return the W&B run, or None in all processes but the main one and if W&B is off."""
    if not world.is_main_process():
        return None
    return wandb_logging.init_run(run, recipe, wandb_logging.build_config(recipe, adapter.base_display_name(recipe)))


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
        prefix + name: value
        for key, prefix in names.items()
        for name, value in select_metrics(task.NAME, scores[key]).items()
    }


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
