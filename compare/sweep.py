"""Several bases or settings of one recipe under one protocol: `make sweep RECIPE=classifier MODELS="pocket smollm2"`.

    variant    accuracy  95% interval    to the best          trained  parameters
    lora.r=32  86.7%     83.9% to 89.0%  best                 228 s    5,475,584
    lora.r=8   85.1%     82.2% to 87.5%  -1.6 (-3.2 to -0.1)  201 s    5,475,584

Every variant is trained on the same rows and scored on validation; the best figure there wins, the smaller model where
two are equal. Only the winner is exported and compared: the test set is read once, when the choice has been made.
`runs/<recipe>/latest` is the winner afterwards, so that `make serve` and `make deploy` take it. Called again, what is
trained already is not trained again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

from compare import eval_dataset
from compare.eval_dataset import cluster_ids
from compare.scoring import predictions
from compare.scoring.predictions import SystemAnswer
from insource.config import cli
from insource.config.conflicts import METRICS
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe, load
from insource.config.recipe import Recipe
from insource.stats import intervals, paired
from insource.stats.metric_stats import MetricStats
from insource.system import atomic_files
from insource.tasks import metric_label, references
from insource.tracking import folder_ownership, run
from insource.tracking.run import Run

# Sections that no variant may change: on other rows or another task nothing is comparable.
SHARED_SECTIONS = ("task", "data", "compare", "privacy")


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    settings: tuple[str, ...]
    """Recipe keys that it replaces, key=value."""


@dataclass(frozen=True)
class TrainedVariant:
    """A variant with its run and what it reached on validation."""

    variant: Variant
    run: Run
    figures: Mapping[str, float]
    """The headline figures on all validation rows."""
    tallies: Mapping[str, MetricStats]
    """Of the validation rows whose answers the run keeps, {} where its kind is not decoded."""
    rows: Sequence[Mapping[str, Any]]
    """Those rows."""
    rows_sha256: str
    """Of the validation rows, by id and text."""
    seconds: float
    parameters: int
    """Of the base; 0 where an earlier version trained it, which did not record it."""


def main() -> int:
    """Returns the exit code. Raises RecipeError where variants cannot be compared, StageError where none is trained."""
    arguments = build_parser().parse_intermixed_args()
    parent = run.runs_folder(arguments.runs)
    variants = parse_variants(arguments.models.split(), arguments.variants)
    loaded = folder_ownership.resolve_name(check_variants(arguments, variants), parent)
    if arguments.dry_run:
        print(*(f"would train  {one.name}" for one in variants), sep="\n")
        return cli.OK
    metric = deciding_metric(loaded)
    trained, failed = [], {}
    for number, variant in enumerate(variants, start=1):
        print(f"sweep     {number} of {len(variants)}: {variant.name}", file=sys.stderr, flush=True)
        code = run_stage("train", arguments, *variant.settings)
        if code == cli.INTERRUPTED:
            return code
        if code:
            failed[variant.name] = f"training ended with exit code {code}"
        else:
            trained.append(evaluate_variant(variant, run.find(parent / loaded.name, None)))
            if trained[-1].rows_sha256 != trained[0].rows_sha256:
                raise StageError(
                    f"variant {variant.name} was scored on other validation rows than {trained[0].variant.name}: its "
                    "tokenizer or train.max_length leaves out other ones. Compare the two by `make compare`, or give "
                    "both a train.max_length and serve.max_model_len that hold every row"
                )
    if not trained:
        raise StageError(f"no variant was trained: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    ranked = sorted(trained, key=lambda one: (-one.figures[metric], one.parameters))
    board = [leaderboard_entry(one, ranked[0], metric) for one in ranked]
    path = parent / loaded.name / f"sweep-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    best = ranked[0]
    told = {"metric": metric, "winner": best.variant.name, "run": best.run.id, "variants": board, "failed": failed}
    atomic_files.write_json(path, told)
    run.set_latest(best.run)
    print(*leaderboard_lines(board, metric, failed), f"wrote     {os.path.relpath(path)}", sep="\n")
    return compare_best(arguments, best)


def build_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = cli.build_parser("compare.sweep", "Train several bases or settings, and compare the best on the test set.")
    made.add_argument(
        "--models", default=os.environ.get("MODELS", ""), help='bases: "pocket smollm2" (default: $MODELS)'
    )
    made.add_argument(
        "--variants",
        default=os.environ.get("VARIANTS", ""),
        help='settings: "lora.r=8; lora.r=32 train.learning_rate=1e-3" (default: $VARIANTS)',
    )
    # make hands down an empty one where none is given.
    given = os.environ.get("COMPARE") != "0"
    made.add_argument(
        "--no-compare",
        dest="compare",
        action="store_false",
        default=given,
        help="train and rank alone; the test set stays shut (COMPARE=0)",
    )
    return made


def parse_variants(models: Sequence[str], given: str) -> list[Variant]:
    """Returns every model with every group of settings. Raises RecipeError where that is no choice."""
    groups = [tuple(one.split()) for one in given.split(";") if one.strip()] or [()]
    bases: list[tuple[str, ...]] = [(f"model.base={model}",) for model in models] or [()]
    names = list(models) or [""]
    variants = [
        Variant(" ".join([name, *settings]).strip(), (*base, *settings))
        for (name, base), settings in product(zip(names, bases, strict=True), groups)
    ]
    if len({one.name for one in variants}) < max(2, len(variants)):
        raise RecipeError(
            "a sweep chooses among variants that differ, and "
            f"MODELS={' '.join(models)!r} VARIANTS={given!r} names {len({one.name for one in variants})}; give "
            'MODELS="pocket smollm2", or VARIANTS="lora.r=8; lora.r=32"'
        )
    return variants


def check_variants(arguments: argparse.Namespace, variants: Sequence[Variant]) -> LoadedRecipe:
    """Returns the recipe as it is without a variant. Raises RecipeError, before anything is trained, where a variant
    cannot be loaded, or changes more than training."""
    plain = load(arguments.recipe, arguments.set, arguments.hardware)
    for variant in variants:
        try:
            one = load(arguments.recipe, [*arguments.set, *variant.settings], arguments.hardware)
        except RecipeError as error:
            raise RecipeError(f"variant {variant.name}: {error}") from None
        for name, value in shared_settings(plain.recipe).items():
            if shared_settings(one.recipe)[name] != value:
                raise RecipeError(
                    f"variant {variant.name} changes `{name}`: variants differ in model, lora, train and "
                    "accelerate, and are compared on the same rows; put it into SET, for all of them"
                )
    return plain


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """Returns what all variants must have in common. Of `serve` that is what leaves out rows: an adapter that vLLM does
    not take, such as DoRA's, is served merged."""
    return {name: getattr(recipe, name) for name in SHARED_SECTIONS} | {
        "serve.max_model_len": recipe.serve.max_model_len
    }


def deciding_metric(loaded: LoadedRecipe) -> str:
    """Returns the metric that decides: the planned one, else the first of the kind."""
    primary = loaded.recipe.compare.primary
    return primary.metric if primary else METRICS[loaded.recipe.task.variant][0]


def run_stage(stage: str, arguments: argparse.Namespace, *more: str) -> int:
    """Returns the exit code of a stage, run as a process of its own."""
    asked = [sys.executable, "-m", stage, arguments.recipe, *arguments.set, *more]
    asked += ["--hardware", arguments.hardware] if arguments.hardware else []
    asked += ["--runs", arguments.runs] if arguments.runs else []
    return subprocess.run(asked, check=False).returncode


def evaluate_variant(variant: Variant, here: Run) -> TrainedVariant:
    """Returns what a trained run reached on validation."""
    metrics = here.stage("train")["metrics"]
    held = eval_dataset.load_validation_dataset(here)
    rows: Sequence[Mapping[str, Any]] = []
    tallies: Mapping[str, MetricStats] = {}
    if held.module.OBJECTIVE != "prefer":
        said = {line["id"]: line["answer"] for line in atomic_files.read_jsonl(here.references)}
        rows = [row for row in held.test if row["id"] in said]
        parsed = [predictions.parse_answer(held, SystemAnswer(row["id"], said[row["id"]])) for row in rows]
        targets = references.select_targets(held.module, held.spec, rows, parsed)
        tallies = held.module.compute_metric_stats(held.spec, targets, parsed)
    return TrainedVariant(
        variant,
        here,
        held.module.main_metrics(metrics["validation"]["tuned"]),
        tallies,
        rows,
        atomic_files.digest([[row["id"], row["input"]["text"]] for row in held.test]),
        metrics["seconds"],
        metrics.get("parameters", 0),
    )


def leaderboard_entry(one: TrainedVariant, best: TrainedVariant, metric: str) -> dict[str, Any]:
    """Returns what the board says of a variant, beside the best one.

    The interval and the paired difference are of the validation rows whose answers both runs keep (the first 500); the
    figure that decides is of all validation rows.
    """
    told: dict[str, Any] = {
        "variant": one.variant.name,
        "settings": list(one.variant.settings),
        "run": one.run.id,
        "figures": dict(one.figures),
        "interval": None,
        "to_the_best": None,
        "training_seconds": one.seconds,
        "parameters": one.parameters,
    }
    if metric not in one.tallies:
        return told
    found = intervals.compute_interval(one.tallies[metric], cluster_ids(one.rows))
    told["interval"] = {"n": len(one.rows), "low": found.low, "high": found.high}
    if one is not best and [row["id"] for row in one.rows] == [row["id"] for row in best.rows]:
        apart = paired.compute_paired_difference(one.tallies[metric], best.tallies[metric], cluster_ids(one.rows))
        told["to_the_best"] = {"n": apart.n, "delta": apart.delta, "low": apart.low, "high": apart.high}
    return told


def leaderboard_lines(board: Sequence[Mapping[str, Any]], metric: str, failed: Mapping[str, str]) -> list[str]:
    """Returns the leaderboard, best first, and what it does not say."""
    rows = [("variant", metric_label(metric), "95% interval", "to the best", "trained", "parameters")]
    for one in board:
        interval, apart = one["interval"], one["to_the_best"]
        difference = (
            f"{100 * apart['delta']:+.1f} ({100 * apart['low']:+.1f} to {100 * apart['high']:+.1f})" if apart else ""
        )
        rows.append(
            (
                one["variant"],
                f"{one['figures'][metric]:.1%}",
                f"{interval['low']:.1%} to {interval['high']:.1%}" if interval else "",
                "best" if one is board[0] else difference,
                f"{one['training_seconds']:,.0f} s",
                f"{one['parameters']:,}" if one["parameters"] else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    told += [f"not trained  {name}: {why}" for name, why in failed.items()]
    close = [one["variant"] for one in board[1:] if one["to_the_best"] and one["to_the_best"]["high"] >= 0]
    if close:
        told.append(f"not told apart from the best by {board[0]['interval']['n']:,} rows: {', '.join(close)}")
    told.append(
        f"the best of {len(board)} on validation looks better there than it is; the test set says how good it is"
    )
    return told


def compare_best(arguments: argparse.Namespace, best: TrainedVariant) -> int:
    """Exports the best variant and compares it on the test set, which no other one has read. Returns the exit code."""
    if not arguments.compare:
        return cli.OK
    more = ("--run", best.run.id, *best.variant.settings)
    return run_stage("train.export", arguments, *more) or run_stage("compare", arguments, *more)


if __name__ == "__main__":
    cli.run_cli(main)
