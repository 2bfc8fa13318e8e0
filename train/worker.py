"""One training run, as `accelerate launch` starts it: `python -m train.worker runs/classifier/<run id>`.

Read `main` from top to bottom: rows, prompts, checks, base, base's score, training, tuned score, adapter.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from recipes import command
from recipes.command import StageError
from recipes.load import RecipeError
from recipes.schema import Recipe
from tasks import KINDS, render
from tracking import files, metrics, weights_and_biases
from tracking import run as runs
from tracking.run import Run
from train import adapter, base, packing, preflight
from train.decode import Answer, decode

Row = dict[str, Any]


def main(recipe: Recipe, run: Run) -> None:
    """Trains the adapter of a run and leaves it, its scores and its record in the run folder.

    Raises RecipeError and StageError; `test.jsonl` and `calibration.jsonl` are never opened.
    """
    import torch
    import transformers

    began = time.monotonic()
    transformers.set_seed(recipe.train.seed)
    inputs = {
        f"data/{name}.jsonl": files.sha256(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")
    }
    runs.start(run, "train", inputs)
    task = KINDS[recipe.task.kind]
    labels = {
        label: one["description"] for label, one in files.read_json(run.folder / "data" / "data.json")["labels"].items()
    }
    spec = task.specify(recipe.task, labels)

    tokenizer = base.tokenizer_of(recipe)
    train_rows, validation_rows = rows_of(run, "train"), rows_of(run, "validation")
    conversations = [task.messages(spec, row["input"]) for row in train_rows]
    examples = render.examples(tokenizer, conversations, [task.answer(spec, row["target"]) for row in train_rows])
    prompts = render.prompt_ids(tokenizer, [task.messages(spec, row["input"]) for row in validation_rows])

    model = base.base_model(recipe)
    preflight.check(
        examples,
        [row["id"] for row in train_rows],
        tokenizer,
        recipe,
        model.config.get_text_config().max_position_embeddings,
    )
    train = recipe.train
    if train.packing == "shared_prefix" and (why := packing.unshareable(model.config)):
        told = f"packing none instead of shared_prefix: {why}"
        say(f"fallback  {told}")
        runs.fallback(run, "train", told)
        train = train.model_copy(update={"packing": "none"})
    plan = packing.plan(examples, train, recipe.accelerate.num_processes)

    untuned = decode_rows("untuned", model, tokenizer, prompts, task.grammar(spec))
    base_score = score(task, spec, validation_rows, untuned)

    model = base.with_adapter(model, recipe.lora, recipe.train.seed)
    for line in header(model, recipe, plan, train_rows, validation_rows, preflight.sample(examples[0], tokenizer)):
        say(line)
    wandb_run = weights_and_biases.start(run, recipe, weights_and_biases.config(recipe, adapter.base_name(recipe)))
    trained = fit(recipe, train.packing, run, model, tokenizer, examples, plan, wandb_run)

    tuned = decode_rows("tuned", model, tokenizer, prompts, task.grammar(spec))
    scores = {"tuned": score(task, spec, validation_rows, tuned), "base": base_score}
    probes = [
        adapter.probe(row, ids, one)
        for row, ids, one in zip(validation_rows[: adapter.PROBE_ROWS], prompts, tuned, strict=False)
    ]
    folder = adapter.export(run, recipe, model, tokenizer, spec, scores, probes)
    if wandb_run is not None:
        headline = {f"validation/{name}": scores["tuned"][name] for name in ("accuracy", "macro_f1")}
        headline |= {f"validation/untuned_{name}": base_score[name] for name in ("accuracy", "macro_f1")}
        digests = {name: files.sha256(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")}
        weights_and_biases.finish(
            wandb_run, run, headline, {f"data_{name}_sha256": sha for name, sha in digests.items()}
        )
    seconds = {"seconds": round(time.monotonic() - began, 1), "training_seconds": trained["seconds"]}
    figures = {
        "validation": scores,
        "final_loss": trained["loss"],
        "peak_memory_bytes": peak_memory_bytes(torch),
        **seconds,
    }
    runs.end(run, "train", "done", "done", sorted(folder.iterdir()), **figures)


def rows_of(run: Run, split: str) -> list[Row]:
    """Returns the rows of train or validation. Raises StageError where the file is not the one that was prepared."""
    path = run.folder / "data" / f"{split}.jsonl"
    if files.sha256(path) != files.read_json(run.folder / "data" / "data.json")["sha256"][path.name]:
        raise StageError(
            f"{path} is not what data preparation wrote: remove its folder, and the next run prepares it anew"
        )
    return list(files.read_jsonl(path))


def decode_rows(what: str, model: Any, tokenizer: Any, prompts: list[list[int]], grammar: str) -> list[Answer]:
    """Returns the model's answers to the validation prompts, with progress."""
    from train.progress import bar

    with bar(what, len(prompts)) as advance:
        return decode(model, tokenizer, prompts, grammar, on_batch=advance)


def score(task: Any, spec: Any, rows: list[Row], answers: list[Answer]) -> dict[str, Any]:
    """Returns the task's score; an answer that did not end counts as wrong."""
    parsed = [task.parse(spec, one.text) if one.complete else None for one in answers]
    return task.score(spec, [row["target"] for row in rows], parsed)  # type: ignore[no-any-return]


def fit(
    recipe: Recipe,
    kind: str,
    run: Run,
    model: Any,
    tokenizer: Any,
    examples: list[render.Example],
    plan: packing.Plan,
    wandb_run: Any,
) -> dict[str, float]:
    """Trains the model in place and returns its final loss and the seconds that training took."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from train.progress import Recorder, bar

    gpu = recipe.accelerate.mixed_precision
    ours = {"batch_size", "packing", "pack_tokens", "max_length"}
    settings = SFTConfig(
        output_dir=str(run.folder / "checkpoints"),
        per_device_train_batch_size=plan.rows_a_pack,
        gradient_accumulation_steps=plan.packs_an_update,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        bf16=gpu == "bf16",
        fp16=gpu == "fp16",
        use_cpu=recipe.accelerate.use_cpu,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        save_total_limit=2,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=not recipe.accelerate.use_cpu,
        **recipe.train.model_dump(exclude=ours),
    )
    collator = (
        packing.SharedPrefixCollator(plan.prefix_tokens)
        if plan.prefix_tokens
        else packing.PaddedCollator(tokenizer.pad_token_id)
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(packing.features(examples)),
        data_collator=collator,
        processing_class=tokenizer,
    )
    base.float32_adapter(trainer.model)
    for callback in ("PrinterCallback", "ProgressCallback"):
        trainer.callback_handler.callbacks = [
            one for one in trainer.callback_handler.callbacks if type(one).__name__ != callback
        ]
    resume = last_whole_checkpoint(run.folder / "checkpoints")
    metrics.keep_up_to(run.folder / "metrics.jsonl", int(resume.name.rpartition("-")[2]) if resume else 0)
    if resume:
        say(f"resuming  from {resume.name}")
    began = time.monotonic()
    with bar("training", total_updates(recipe, len(examples))) as advance:
        trainer.add_callback(Recorder(run.folder / "metrics.jsonl", wandb_run, recipe.train.batch_size, advance))
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {"loss": float(result.training_loss), "seconds": round(time.monotonic() - began, 1)}


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint that was written to its end: trainer_state.json is written last."""
    needed = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if all((path / name).exists() for name in needed)), None)


def total_updates(recipe: Recipe, rows: int) -> int:
    """Returns how many optimizer updates the recipe asks for."""
    train = recipe.train
    if train.max_steps > 0:
        return train.max_steps
    return max(1, int(-(-rows // train.batch_size) * train.num_train_epochs))


def header(
    model: Any, recipe: Recipe, plan: packing.Plan, train_rows: list[Row], validation_rows: list[Row], sample: list[str]
) -> list[str]:
    """Returns what is said before training: model, trainable share, packs, updates, and one row as the model sees it."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = model.num_parameters()
    packed = "each row alone"
    if plan.prefix_tokens:
        saved = plan.tokens_a_row / plan.packed_tokens_a_row
        packed = (
            f"shared_prefix: {plan.prefix_tokens} of {plan.tokens_a_row:.0f} tokens a row are shared, "
            f"{plan.rows_a_pack} rows a pack: {saved:.1f} times fewer tokens"
        )
    return [
        f"base      {adapter.base_name(recipe)}, {recipe.model.quantization}, {everything - trainable:,} parameters",
        f"adapter   LoRA r={recipe.lora.r}: {trainable:,} trainable parameters ({trainable / everything:.1%})",
        f"rows      {len(train_rows):,} to train on, {len(validation_rows):,} to validate on",
        f"packing   {packed}",
        f"updates   {total_updates(recipe, len(train_rows)):,} of {recipe.train.batch_size} examples",
        *sample,
    ]


def peak_memory_bytes(torch: Any) -> int:
    """Returns the most memory that this process held: the GPU's where it trained on one, else its resident size."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(line: str) -> None:
    """Prints to the person, not to the result."""
    print(line, file=sys.stderr, flush=True)


def work() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.worker", description="Train one run; started by python -m train."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    run = Run(parser.parse_args().run)
    try:
        main(run.recipe(), run)
    except (RecipeError, StageError) as error:
        code = command.WRONG if isinstance(error, RecipeError) else command.FAILED
        runs.end(run, "train", "failed", str(error), exit_code=code)
        raise
    return command.DONE


if __name__ == "__main__":
    command.run(work)
