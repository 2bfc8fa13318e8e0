"""One training run, as `accelerate launch` starts it: `python -m train.worker runs/classifier/<run id>`.

Read `main` from top to bottom: rows, prompts, checks, the base and its score, training, the tuned score, the adapter.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

from recipes import command
from recipes.errors import RecipeError, StageError
from recipes.schema import Recipe
from tasks import KINDS, render
from tasks.parsed import UNFINISHED, Parsed
from tracking import files, weights_and_biases
from tracking import run as runs
from tracking.run import Run
from train import adapter, base, packing, preflight
from train.decode import Answer, decode
from train.fit import fit, last_whole_checkpoint, peak_memory_bytes, total_updates

Row = dict[str, Any]

# An answer may take more tokens than any in train, and by other tokens than the tokenizer's own; what ends sooner
# costs nothing.
ANSWER_ROOM = 1.5
LEAST_ANSWER_TOKENS = 64


def main(recipe: Recipe, run: Run) -> None:
    """Trains the adapter of a run and leaves it, its scores and its record in the run folder.

    Raises RecipeError and StageError; `test.jsonl` and `calibration.jsonl` are never opened.
    """
    began = time.monotonic()
    hashes = {name: files.sha256(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")}
    runs.start(run, "train", {f"data/{name}.jsonl": sha256 for name, sha256 in hashes.items()})
    train_rows, validation_rows = rows_of(run, "train", hashes), rows_of(run, "validation", hashes)
    task = KINDS[recipe.task.kind]
    spec = task.specify(recipe.task, labels_of(run))

    tokenizer = render.tokenizer_of(recipe.model)
    conversations = [task.messages(spec, row["input"]) for row in train_rows]
    examples = render.examples(tokenizer, conversations, [task.answer(spec, row["target"]) for row in train_rows])
    prompts = render.prompt_ids(tokenizer, [task.messages(spec, row["input"]) for row in validation_rows])

    model = base.base_model(recipe)
    preflight.check(examples, [row["id"] for row in train_rows], tokenizer, recipe, model.config)
    plan = plan_packs(recipe, run, model, examples)
    limit = max_answer_tokens(examples)
    untuned = answers("untuned", model, tokenizer, prompts, task.grammar(spec), limit)

    model = base.with_adapter(model, recipe.lora, recipe.train.seed)
    say(*header(model, recipe, plan, len(train_rows), len(validation_rows)), *preflight.sample(examples[0], tokenizer))
    wandb_run = weights_and_biases.start(run, recipe, weights_and_biases.config(recipe, adapter.base_name(recipe)))
    trained = fit(recipe, run, model, tokenizer, examples, plan, wandb_run)

    tuned = answers("tuned", model, tokenizer, prompts, task.grammar(spec), limit)
    scores = {
        "tuned": score(task, spec, validation_rows, tuned),
        "base": score(task, spec, validation_rows, untuned),
    }
    probes = adapter.probes(validation_rows, prompts, tuned)
    prompt = adapter.prompt(recipe, tokenizer, spec, limit)
    folder = adapter.export(run, recipe, model, tokenizer, prompt, scores, probes)
    weights_and_biases.finish(
        wandb_run, run, headline(task, scores), {f"data_{name}_sha256": sha for name, sha in hashes.items()}
    )
    spent = {"seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": peak_memory_bytes()}
    runs.end(run, "train", "done", "done", sorted(folder.iterdir()), validation=scores, **trained, **spent)


def rows_of(run: Run, split: str, hashes: dict[str, str]) -> list[Row]:
    """Returns the rows of train or validation. Raises StageError where the file is not the one that was prepared."""
    path = run.folder / "data" / f"{split}.jsonl"
    if hashes[split] != files.read_json(run.folder / "data" / "data.json")["sha256"][path.name]:
        raise StageError(
            f"{path} is not what data preparation wrote: remove its folder, and the next run prepares it anew"
        )
    return list(files.read_jsonl(path))


def labels_of(run: Run) -> dict[str, str]:
    """Returns the labels with their descriptions, in prompt order, as data preparation found or checked them."""
    labels = files.read_json(run.folder / "data" / "data.json")["labels"]
    return {label: one["description"] for label, one in labels.items()}


def plan_packs(recipe: Recipe, run: Run, model: Any, examples: list[render.Example]) -> packing.Plan:
    """Returns how rows are packed; another packing than the recipe's is announced and recorded."""
    kind, why = packing.possible(recipe.train.packing, model.config)
    if why:
        told = f"train.packing: {kind}, not {recipe.train.packing}: {why}"
        say(f"fallback  {told}")
        runs.fallback(run, "train", told)
    train = recipe.train.model_copy(update={"packing": kind})
    return packing.plan(examples, train, recipe.accelerate.num_processes)


def max_answer_tokens(examples: list[render.Example]) -> int:
    """Returns how many tokens an answer may have, here and where the adapter is served."""
    return max(LEAST_ANSWER_TOKENS, math.ceil(ANSWER_ROOM * max(len(one.completion_ids) for one in examples)))


def answers(what: str, model: Any, tokenizer: Any, prompts: list[list[int]], grammar: str, limit: int) -> list[Answer]:
    """Returns the model's answers to the validation prompts, each of at most `limit` tokens, with progress."""
    from train.progress import bar

    with bar(what, len(prompts)) as advance:
        return decode(model, tokenizer, prompts, grammar, max_new_tokens=limit, on_batch=advance)


def score(task: Any, spec: Any, rows: list[Row], decoded: list[Answer]) -> dict[str, Any]:
    """Returns the task's score, and under "slices" the headline of each part of the rows that the recipe tells apart.

    An answer that did not end counts as wrong.
    """
    parsed = [task.parse(spec, one.text) if one.complete else Parsed(None, UNFINISHED) for one in decoded]
    targets = [row["target"] for row in rows]
    parts: dict[str, dict[str, list[int]]] = {}
    for at, row in enumerate(rows):
        for name, value in row.get("slices", {}).items():
            parts.setdefault(name, {}).setdefault(str(value).lower(), []).append(at)

    def of(mine: list[int]) -> dict[str, Any]:
        return {
            "n": len(mine),
            **task.headline(task.score(spec, [targets[at] for at in mine], [parsed[at] for at in mine])),
        }

    slices = {name: {value: of(mine) for value, mine in sorted(values.items())} for name, values in parts.items()}
    return {**task.score(spec, targets, parsed), "slices": slices}


def headline(task: Any, scores: dict[str, Any]) -> dict[str, float]:
    """Returns the figures that stand beside a run's name in W&B."""
    names = {"tuned": "validation/", "base": "validation/untuned_"}
    return {
        before + name: value for which, before in names.items() for name, value in task.headline(scores[which]).items()
    }


def header(model: Any, recipe: Recipe, plan: packing.Plan, train_rows: int, validation_rows: int) -> list[str]:
    """Returns what is said before training: model, trainable share, rows, packs and updates."""
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
        f"rows      {train_rows:,} to train on, {validation_rows:,} to validate on",
        f"packing   {packed}",
        f"updates   {total_updates(recipe, train_rows):,} of {recipe.train.batch_size} examples",
    ]


def say(*lines: str) -> None:
    """Prints to the person, not to the result."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def work() -> int:
    """Trains the run named on the command line and records how it ended, whichever way."""
    parser = argparse.ArgumentParser(prog="python -m train.worker", description="One run; `python -m train` starts it.")
    parser.add_argument("run", type=Path, help="the run folder")
    run = Run(parser.parse_args().run)
    with runs.locked(run):
        if checkpoint := last_whole_checkpoint(run.folder / "checkpoints"):
            say(f"resuming  from {checkpoint.name}")
        try:
            main(run.recipe(), run)
        except (RecipeError, StageError) as error:
            code = command.WRONG if isinstance(error, RecipeError) else command.FAILED
            runs.end(run, "train", "failed", str(error), exit_code=code)
            raise
    return command.DONE


if __name__ == "__main__":
    command.run(work)
