"""One training run, as it is launched: `python -m train.worker runs/classifier/<run id>`, once for each process.

Read `main` from top to bottom: rows, prompts, checks, the base and its score, packs, training, the tuned score, the
adapter.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files, disk_full
from insource.tasks import KINDS
from insource.tasks.rendering import chat_template
from insource.tracking import metrics, wandb_logging
from insource.tracking import run as runs
from insource.tracking.base_models import base_store, gguf_model
from insource.tracking.run import Run
from train.device import gpu, out_of_memory, precision
from train.distributed import fsdp, launcher, world
from train.evaluate import decodability, decoding_memory, reference_answers
from train.evaluate.constrained_decoding import Answer
from train.evaluate.log_likelihood import BATCH_ROWS
from train.evaluate.validation import Compared, Decoded, headlines
from train.export import adapter
from train.loop import checkpoints, signals
from train.loop.fit import fit
from train.loop.metrics_callback import peak_memory_bytes
from train.loop.signals import Wish
from train.model import base, dequantize
from train.packing import dataset, packing_plan, sampler
from train.packing.dataset import Lesson
from train.packing.packing_plan import Row
from train.report import learning_curve, preflight, run_header


def main(recipe: Recipe, run: Run, wish: Wish) -> None:
    """Trains the adapter of a run and leaves it, its scores and its record in the run folder.

    Raises RecipeError, StageError, and KeyboardInterrupt where it was asked to stop; `test.jsonl` and
    `calibration.jsonl` are never opened.
    """
    began = time.monotonic()
    hashes = {name: atomic_files.sha256(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")}
    if world.first():
        runs.start(run, "train", {f"data/{name}.jsonl": sha256 for name, sha256 in hashes.items()})
    gpu.check(recipe)
    train_rows, validation_rows = rows_of(run, "train", hashes), rows_of(run, "validation", hashes)
    task = KINDS[recipe.task.variant]
    spec = task.specify(recipe.task, labels_of(run), may_be_empty(run))
    if hasattr(spec, "normalize_labels"):
        spec = replace(spec, normalize_labels=recipe.data.normalize_labels)
    told = teller(run)

    rendering = chat_template.rendering_of(recipe.model)
    tokenizer = rendering.tokenizer
    say(*rendering.lines())
    if rendering.differs:
        told(f"{rendering.differs}; learnt is what is served and decoded: the open prompt, the answer, the stop")
    for note in gguf_model.notes(recipe.model.base):
        told(note)
    rows = dataset.learnt(task, spec, tokenizer, train_rows)
    config = base.config_of(recipe.model)
    preflight.check(rows, tokenizer, recipe, config)
    decodability.check(task, spec, train_rows, rows, tokenizer, config.get_text_config().vocab_size)
    model, kept = dequantize.load(recipe, base_store.store(run.folder), told)
    plan = dataset.planned(recipe, rows, model.config, told)

    prompts = chat_template.prompt_ids(tokenizer, [task.messages(spec, row["input"]) for row in validation_rows])
    decoded = Decoded(task, spec, validation_rows, prompts, tokenizer, max_answer_tokens(rows), told)
    asked: Decoded | Compared = decoded
    if task.OBJECTIVE == "prefer":
        pairs = dataset.learnt(task, spec, tokenizer, validation_rows)
        asked = Compared(task, spec, validation_rows, pairs, packing_plan.same_for(plan, pairs, BATCH_ROWS), tokenizer)
        with precision.training(recipe):
            reference = Compared(task, spec, train_rows, rows, plan, tokenizer).ask(model, "reference")
        rows = [replace(row, reference=one) for row, one in zip(rows, reference, strict=True)]
    untuned: list[Any] = asked.ask(model, "untuned")

    model = base.with_adapter(model, recipe.lora, recipe.train.seed)
    taught = dataset.ordered(recipe, rows, [str(row["target"]) for row in train_rows], plan, task.OBJECTIVE)
    weights = gguf_model.told(recipe.model.base, recipe.model.quantization, kept)
    told_facts = facts(recipe, run, model, taught, decoded, weights)
    say(*run_header.lines(told_facts), *preflight.sample(rows[0], tokenizer))
    wandb_run = wandb_of(run, recipe)
    trained = fit(recipe, run, model, tokenizer, taught, headlines(asked, untuned, model), told, wish, wandb_run)
    out_of_memory.release()

    tuned: list[Any] = asked.ask(model, "tuned")
    probed = decoded.first(reference_answers.ROWS)
    answers = probed.ask(model, "probes") if asked is not decoded else tuned[: len(probed.rows)]
    state = fsdp.adapter_tensors(model)  # of all processes together, before the others leave
    if not world.first():
        return
    scores = {"tuned": asked.score(tuned, untuned), "base": asked.score(untuned, untuned)}
    with disk_full.told_when_full(run.folder / "adapter"):
        commit = getattr(model.config, "_commit_hash", None)
        trained_base = base_store.record(kept, kept.name) if kept else None
        prompt = adapter.prompt(recipe, rendering, spec, decoded.max_answer_tokens, commit, trained_base)
        folder = adapter.export(run, recipe, model, tokenizer, prompt, scores, probed, answers, state)
        picture = run.folder / "learning_curve.png"
        learning_curve.draw(
            run.folder / "metrics.jsonl", picture, f"{run.recipe_name}  {run.id}", trained.get("best_step")
        )
    wandb_logging.picture(wandb_run, picture)
    if asked is decoded:
        show_answers(wandb_run, recipe, decoded, tuned)
    wandb_logging.finish(
        wandb_run, run, headline(task, scores), {f"data_{name}_sha256": sha for name, sha in hashes.items()}
    )
    spent: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": peak_memory_bytes()}
    spent |= {"parameters": told_facts.parameters, "trainable_parameters": told_facts.trainable}
    spent |= {"weights": weights} if weights else {}
    outputs = [*sorted(folder.iterdir()), run.references]
    runs.end(run, "train", "done", "done", outputs, validation=scores, **trained, **spent)


def rows_of(run: Run, split: str, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns the rows of train or validation. Raises StageError where the file is not the one that was prepared."""
    path = run.folder / "data" / f"{split}.jsonl"
    if hashes[split] != atomic_files.read_json(run.folder / "data" / "data.json")["sha256"][path.name]:
        raise StageError(
            f"{path} is not what data preparation wrote: remove its folder, and the next run prepares it anew"
        )
    return list(atomic_files.read_jsonl(path))


def labels_of(run: Run) -> dict[str, str]:
    """Returns the labels with their descriptions, in prompt order, as data preparation found or checked them."""
    labels = atomic_files.read_json(run.folder / "data" / "data.json")["labels"]
    return {label: one["description"] for label, one in labels.items()}


def may_be_empty(run: Run) -> bool:
    """Returns whether rows of several labels may have none: the prepared data have such rows."""
    told = atomic_files.read_json(run.folder / "data" / "data.json").get("labels_per_row")
    return bool(told and told["may_be_empty"])


def max_answer_tokens(rows: Sequence[Row]) -> int:
    """Returns how many tokens an answer may have, here and where the adapter is served."""
    return chat_template.max_answer_tokens(max(len(answer) for row in rows for answer in row.completions))


def teller(run: Run) -> Callable[[str], None]:
    """Returns what says aloud, and records, that something is done otherwise than the recipe asks; the same once."""
    known: set[str] = set()

    def tell(told: str) -> None:
        if told in known:
            return
        known.add(told)
        say(f"fallback  {told}")
        if world.first():
            runs.fallback(run, "train", told)

    return tell


def wandb_of(run: Run, recipe: Recipe) -> Any:
    """Returns the W&B run, None in all processes but the first and where it is off."""
    if not world.first():
        return None
    return wandb_logging.start(run, recipe, wandb_logging.config(recipe, adapter.base_name(recipe)))


def facts(
    recipe: Recipe, run: Run, model: Any, lesson: Lesson, decoded: Decoded, weights: str | None
) -> run_header.Facts:
    """Returns what the header tells of this training; `weights` is what was lost of them before it."""
    train, tokens = recipe.train, packing_plan.tokens_of(lesson.shares)
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    data = atomic_files.read_json(run.folder / "data" / "data.json")["rows"]
    saved = checkpoints.in_order(run.folder / "checkpoints")
    memory = run_header.estimate(
        model,
        pack_tokens=tokens.longest_pack,
        answer_tokens=tokens.longest_pack_answers,
        mask_pairs=tokens.longest_pack_pairs,
        checkpointing=train.gradient_checkpointing,
        optim=train.optim,
        compute_bytes=2 if precision.multiplies_in(recipe) == "bfloat16" else 4,
        autocast=precision.is_bfloat16_on_cpu(recipe),
        shards=world.count() if recipe.accelerate.distributed_type == "FSDP" else 1,
        decoded=decoding(recipe, model, decoded),
        device=None
        if recipe.accelerate.use_cpu
        else decoding_memory.usable_bytes(dequantize.device_memory_bytes(model.device)),
    )
    return run_header.Facts(
        base=adapter.base_name(recipe),
        quantization=recipe.model.quantization,
        parameters=model.num_parameters() - trainable,
        multiplied=precision.multiplies_in(recipe),
        trainable=trainable,
        adapter=f"LoRA r={recipe.lora.r}",
        train_rows=len(lesson.rows),
        validation_rows=len(decoded.rows),
        longest_row_tokens=max(row.longest for row in lesson.rows),
        batch_size=train.batch_size,
        processes=world.count(),
        packing=lesson.plan.kind,
        tokens_an_update=tokens.computed,
        separate_tokens_an_update=tokens.separate,
        packs_an_update=tokens.packs,
        updates=len(lesson.updates),
        epochs=len(lesson.updates) / sampler.an_epoch(len(lesson.rows), train.batch_size),
        weights=weights,
        rejected=data["rejected"],
        dropped=data["dropped"],
        weighting=weighting(recipe),
        memory=memory,
        updates_done=checkpoints.step(saved[-1]) if saved else 0,
        examples_per_second=metrics.last(run.folder / "metrics.jsonl", "examples_per_second"),
    )


def decoding(recipe: Recipe, model: Any, decoded: Decoded) -> decoding_memory.Decoding:
    """Returns how validation rows are decoded, for the estimate of memory."""
    prefix = chat_template.shared_prefix_length(decoded.prompts)
    longest = max(map(len, decoded.prompts)) - prefix + decoded.max_answer_tokens
    spread = recipe.accelerate.distributed_type == "FSDP"
    rows = -(-len(decoded.prompts) // world.count())
    return decoding_memory.Decoding(rows, prefix, longest, 0 if spread else dequantize.held_bytes(model))


def weighting(recipe: Recipe) -> str | None:
    """Returns how classes are made to count otherwise than as often as they occur, or None."""
    told = ["classes are drawn equally often"] if recipe.train.balanced_sampling else []
    if recipe.train.class_weight == "balanced":
        told.append("classes weigh the same in the loss")
    elif recipe.train.class_weight:
        told.append("classes weigh in the loss as train.class_weight says")
    return ", ".join(told) or None


def show_answers(wandb_run: Any, recipe: Recipe, decoded: Decoded, answers: Sequence[Answer]) -> None:
    """Sends W&B what was answered on validation: sample rows, and which label was taken for which."""
    parsed = decoded.parsed(answers)
    targets = decoded.targets(parsed)
    rows = [
        {
            "id": row["id"],
            "input": row["input"]["text"],
            "target": target,
            "answer": answer.text,
            "right": one.problem is None and one.value == target,
            "log_probability": answer.log_probability,
        }
        for row, answer, one, target in zip(decoded.rows, answers, parsed, targets, strict=True)
    ]
    wandb_logging.predictions(wandb_run, recipe, rows)
    if recipe.task.variant == "classification":
        given = [None if one.problem else one.value for one in parsed]
        wandb_logging.confusion(wandb_run, recipe, [row["target"] for row in decoded.rows], given)


def headline(task: ModuleType, scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures that stand beside a run's name in W&B."""
    names = {"tuned": "validation/", "base": "validation/untuned_"}
    return {
        before + name: value for which, before in names.items() for name, value in task.headline(scores[which]).items()
    }


def say(*lines: str) -> None:
    """Prints to the person, not to the result; of several processes the first one does."""
    for line in lines if world.first() else ():
        print(line, file=sys.stderr, flush=True)


def work() -> int:
    """Trains the run named on the command line and records how it ended, whichever way."""
    launcher.end_with_launcher()
    parser = argparse.ArgumentParser(prog="python -m train.worker", description="One run; `python -m train` starts it.")
    parser.add_argument("run", type=Path, help="the run folder")
    run = Run(parser.parse_args().run)

    def ended(state: runs.State, reason: str, code: int) -> None:
        # On a full disk the manifest keeps its old state, and the message tells.
        with suppress(OSError):
            if world.first():
                runs.end(run, "train", state, reason, exit_code=code)

    def left(signal_name: str) -> None:
        ended("interrupted", f"{signal_name}, twice", cli.INTERRUPTED)

    with runs.locked(run) if world.first() else nullcontext(), signals.listening(left) as wish:
        try:
            with disk_full.told_when_full(run.folder):
                main(run.recipe(), run, wish)
        except (RecipeError, StageError) as error:
            code = cli.WRONG if isinstance(error, RecipeError) else cli.FAILED
            ended("failed", str(error), code)
            raise
        except KeyboardInterrupt as signal_name:
            ended("interrupted", str(signal_name) or "Ctrl-C", cli.INTERRUPTED)
            # Of several processes the first one's exit tells; another's would have it ended while it saves.
            return cli.INTERRUPTED if world.first() else cli.DONE
        except Exception as error:
            if out_of_memory.short(error):
                ended("failed", out_of_memory.in_words(error), cli.FAILED)
                raise StageError(out_of_memory.in_words(error)) from error
            ended("failed", f"{type(error).__name__}: {error}", cli.FAILED)
            raise
    return cli.DONE


if __name__ == "__main__":
    cli.run(work)
