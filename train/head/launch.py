"""Find or train the classification head of a run: `python -m train.head RECIPE`.

    head      runs/classifier/<run id>/head
    head      accuracy 81.1%, macro-F1 80.4%  (736 validation rows)
    tokens    accuracy 64.7%, macro-F1 62.2%  (the label tokens of the same run)
    paired    the head is better: accuracy 81.6% of the head, 63.6% of the tokens, difference +18.0 points ...

This module imports nothing heavy, so that a wrong recipe or a finished head is reported without delay.
"""

import argparse
import os
import sys
from typing import Any

from insource.config import cli, conflicts
from insource.config.errors import RecipeError, StageError
from insource.config.metric_names import select_metrics
from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.system.progress_bar import format_duration
from insource.tasks import format_metrics, metric_label
from insource.tracking import run as runs
from insource.tracking.run import Run
from train import launch
from train.head import folder as head_folder


def main(arguments: argparse.Namespace) -> int:
    """Train the head unless the run has it. Return the exit code.

    The training settings are those of the run, the learning rate of the head is that of the current recipe. Raise
    RecipeError if the recipe cannot have a head, StageError if the training ended without a recorded reason.
    """
    loaded, trained_run = runs.load_recipe_and_run(arguments)
    recipe = trained_run.recipe()
    if problem := conflicts.find_head_problem(recipe):
        raise RecipeError(f"{'.'.join(problem[0])}: {problem[1]}", code="INS-R006")
    learning_rate = loaded.recipe.compare.head_learning_rate or recipe.train.learning_rate
    digest = head_folder.compute_digest(trained_run, learning_rate)
    if head_folder.is_current(trained_run, digest) and not arguments.fresh:
        print(f"head      unchanged: run {trained_run.id} has it", file=sys.stderr)
    elif arguments.dry_run:
        print(f"head      would be trained for run {trained_run.id}", file=sys.stderr)
        return cli.OK
    else:
        log_line(announcement(trained_run))
        train_head(trained_run, learning_rate, arguments.fresh)
    print(*summary_lines(trained_run), sep="\n")
    return cli.OK


def announcement(trained_run: Run) -> str:
    """Return the line before the training, with the time that the adapter took."""
    seconds = trained_run.stage("train").metrics.get("training_seconds")
    time_text = f": about as long as its adapter took ({format_duration(seconds)})" if seconds else ""
    return f"head      training a classification head for run {trained_run.id}{time_text}"


def train_head(trained_run: Run, learning_rate: float, fresh: bool) -> None:
    """Train the head in a process of its own. Exit with its code if it fails or is interrupted."""
    recipe = trained_run.recipe()
    threads = max(1, len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "train.head.worker", str(trained_run.folder.resolve())]
    command += ["--learning-rate", repr(learning_rate), *(["--fresh"] if fresh else [])]
    code, stopped = launch.run_program(command, launch.worker_environment(_in_one_process(recipe), threads))
    if code == cli.INTERRUPTED or (code and stopped):
        print("interrupted: the same command resumes the head", file=sys.stderr)
        sys.exit(cli.INTERRUPTED)
    if code in (cli.FAILED, cli.USAGE_ERROR):
        sys.exit(code)
    if code:
        raise StageError(
            f"training of the head ended with exit code {code}; run the same command again to go on", code="INS-T017"
        )


def _in_one_process(recipe: Recipe) -> Recipe:
    changes = {"distributed_type": "NO", "num_processes": 1}
    return recipe.model_copy(update={"accelerate": recipe.accelerate.model_copy(update=changes)})


def summary_lines(trained_run: Run) -> list[str]:
    """Return the summary of a head: its validation score, that of the label tokens, and the paired difference."""
    record = head_folder.read_record(trained_run)
    score = record["validation"]
    lines = [
        f"head      {os.path.relpath(trained_run.folder / head_folder.FOLDER)}",
        f"head      {format_metrics({name: score[name] for name in score if name != 'n'})}  "
        f"({score['n']} validation rows)",
    ]
    tokens = trained_run.stage("train").metrics.get("validation", {}).get("tuned")
    if tokens:
        text = format_metrics(select_metrics("classification", tokens))
        lines.append(f"tokens    {text}  (the label tokens of the same run)")
    return lines + ([f"paired    {difference_text(record['difference'])}"] if record["difference"] else [])


def difference_text(difference: dict[str, Any]) -> str:
    """Return the paired difference of head and label tokens as a sentence."""
    if difference["low"] > 0:
        conclusion = "the head is better"
    elif difference["high"] < 0:
        conclusion = "the label tokens are better"
    else:
        conclusion = "neither is shown to be better"
    return (
        f"{conclusion}: {metric_label(difference['metric'])} {difference['head']:.1%} of the head, "
        f"{difference['tokens']:.1%} of the tokens, difference {100 * difference['difference']:+.1f} points "
        f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}) on {difference['n']:,} validation rows"
    )
