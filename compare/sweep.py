"""Train and rank several bases or settings of one recipe: `make sweep RECIPE=classifier MODELS="pocket smollm2"`.

    variant    accuracy  95% interval  to the best, points  untuned  training  training cost  parameters
    lora.r=32  86.7%     83.9 to 89.0  best                 10.9%    228 s     $0.13          5,475,584
    lora.r=8   85.1%     82.2 to 87.5  −1.6 (−3.2 to −0.1)  10.9%    201 s     $0.11          5,475,584

Every variant is trained on the same rows and scored on validation. The best metric wins; of equal variants the smaller
model wins. Only the winner is exported and compared: the test set is read once, after the choice.
`runs/<recipe>/latest` then is the winner, so that `make serve` and `make deploy` use it. A repeated sweep does not
train again what is already trained.
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
from compare.records import SystemAnswer
from compare.scoring import predictions
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe, load
from insource.config.metric_names import FIRST_METRICS, select_metrics
from insource.config.recipe import Recipe
from insource.config.schema.serving_and_cost import Cost
from insource.config.schema.train import Accelerate
from insource.stats import intervals, paired
from insource.stats.metric_stats import MetricStats
from insource.system import atomic_files
from insource.system.number_format import format_delta, format_delta_range, format_percent, format_range, format_usd
from insource.tasks import metric_label
from insource.tasks.data_row import Rows
from insource.tracking import folder_ownership, run
from insource.tracking.reference_row import read_references
from insource.tracking.run import Run

# Sections that no variant may change: results on other rows or for another task are not comparable.
SHARED_SECTIONS = ("task", "data", "compare", "privacy")


@dataclass(frozen=True)
class Variant:
    """One base with one group of settings."""

    name: str
    settings: tuple[str, ...]
    """Recipe keys that it replaces, key=value."""


@dataclass(frozen=True)
class TrainedVariant:
    """A variant with its run and its validation metrics."""

    variant: Variant
    run: Run
    headline_metrics: Mapping[str, float]
    """The main metrics on all validation rows."""
    untuned_metrics: Mapping[str, float]
    """Those of its base before training."""
    metric_stats: Mapping[str, MetricStats]
    """Metric statistics of the validation rows whose answers the run keeps, {} if its kind is not decoded."""
    rows: Rows
    """The validation rows whose answers the run keeps."""
    rows_sha256: str
    """Of the validation rows, by id and text."""
    training_seconds: float
    parameters: int
    """Of the base; 0 if an earlier version, which did not record it, trained the variant."""


def main() -> int:
    """Run the sweep and return the exit code.

    Raise RecipeError if the variants cannot be compared, StageError if none was trained.
    """
    arguments = build_parser().parse_intermixed_args()
    parent = run.runs_folder(arguments.runs)
    variants = parse_variants(arguments.models.split(), arguments.variants)
    loaded = folder_ownership.resolve_name(check_variants(arguments, variants), parent)
    if arguments.dry_run:
        print(*(f"would train  {planned.name}" for planned in variants), sep="\n")
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
                    "tokenizer or train.max_length drops other rows. Compare the two by `make compare`, or set "
                    "train.max_length and serve.max_model_len so high that no row is dropped",
                    code="INS-C012",
                )
    if not trained:
        raise StageError(
            f"no variant was trained: {'; '.join(f'{name}: {reason}' for name, reason in failed.items())}",
            code="INS-C011",
        )
    ranked = sorted(trained, key=lambda candidate: (-candidate.headline_metrics[metric], candidate.parameters))
    board = [leaderboard_entry(candidate, ranked[0], metric, loaded.recipe.cost) for candidate in ranked]
    path = parent / loaded.name / f"sweep-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    best = ranked[0]
    summary = {"metric": metric, "winner": best.variant.name, "run": best.run.id, "variants": board, "failed": failed}
    atomic_files.write_json(path, summary)
    run.set_latest(best.run)
    print(*leaderboard_lines(board, metric, failed), f"wrote     {os.path.relpath(path)}", sep="\n")
    return compare_best(arguments, best)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.build_parser("compare.sweep", "Train several bases or settings, and compare the best on the test set.")
    parser.add_argument(
        "--models", default=os.environ.get("MODELS", ""), help='bases: "pocket smollm2" (default: $MODELS)'
    )
    parser.add_argument(
        "--variants",
        default=os.environ.get("VARIANTS", ""),
        help='settings: "lora.r=8; lora.r=32 train.learning_rate=1e-3" (default: $VARIANTS)',
    )
    # make passes an empty variable if none is set.
    compare_default = os.environ.get("COMPARE") != "0"
    parser.add_argument(
        "--no-compare",
        dest="compare",
        action="store_false",
        default=compare_default,
        help="only train and rank; do not read the test set (COMPARE=0)",
    )
    return parser


def parse_variants(models: Sequence[str], variants_text: str) -> list[Variant]:
    """Return every model with every group of settings. Raise RecipeError if fewer than two variants differ."""
    groups = [tuple(group.split()) for group in variants_text.split(";") if group.strip()] or [()]
    bases: list[tuple[str, ...]] = [(f"model.base={model}",) for model in models] or [()]
    names = list(models) or [""]
    variants = [
        Variant(" ".join([name, *settings]).strip(), (*base, *settings))
        for (name, base), settings in product(zip(names, bases, strict=True), groups)
    ]
    if len({variant.name for variant in variants}) < max(2, len(variants)):
        raise RecipeError(
            f"a sweep needs at least two different variants, but MODELS={' '.join(models)!r} "
            f"VARIANTS={variants_text!r} names {len({variant.name for variant in variants})}; give "
            'MODELS="pocket smollm2", or VARIANTS="lora.r=8; lora.r=32"',
            code="INS-R016",
        )
    return variants


def check_variants(arguments: argparse.Namespace, variants: Sequence[Variant]) -> LoadedRecipe:
    """Return the recipe without a variant.

    Raise RecipeError before training if a variant cannot be loaded, or changes more than training.
    """
    plain = load(arguments.recipe, arguments.set, arguments.hardware)
    for variant in variants:
        try:
            changed = load(arguments.recipe, [*arguments.set, *variant.settings], arguments.hardware)
        except RecipeError as error:
            raise error.with_message(f"variant {variant.name}: {error}") from None
        for name, value in shared_settings(plain.recipe).items():
            if shared_settings(changed.recipe)[name] != value:
                raise RecipeError(
                    f"variant {variant.name} changes `{name}`: variants may change only model, lora, train "
                    "and accelerate, because they are compared on the same rows; set it for all of them (SET)",
                    code="INS-R016",
                )
    return plain


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all variants must share.

    Of `serve` these are the keys that drop rows. Other keys may differ: vLLM does not take an adapter such as DoRA's,
    so that it is served merged.
    """
    return {name: getattr(recipe, name) for name in SHARED_SECTIONS} | {
        "serve.max_model_len": recipe.serve.max_model_len
    }


def deciding_metric(loaded: LoadedRecipe) -> str:
    """Return the metric that decides: the planned one, else the first of the task kind."""
    primary = loaded.recipe.compare.primary
    return primary.metric if primary else FIRST_METRICS[loaded.recipe.task.task_name]


def run_stage(stage: str, arguments: argparse.Namespace, *extra: str) -> int:
    """Run a stage in a subprocess and return its exit code."""
    return subprocess.run(cli.stage_argv(stage, arguments, *extra), check=False).returncode


def evaluate_variant(variant: Variant, trained_run: Run) -> TrainedVariant:
    """Return the validation metrics of a trained run."""
    metrics = trained_run.stage("train").metrics
    dataset = eval_dataset.load_validation_dataset(trained_run)
    rows: Rows = []
    metric_stats: Mapping[str, MetricStats] = {}
    if dataset.task.OBJECTIVE != "prefer":
        answers = {row.id: row.answer for row in read_references(trained_run.references_path)}
        rows = [row for row in dataset.test if row["id"] in answers]
        parsed = [predictions.parse_answer(dataset, SystemAnswer(row["id"], answers[row["id"]])) for row in rows]
        metric_stats = dataset.compute_metric_stats(rows, parsed)
    return TrainedVariant(
        variant,
        trained_run,
        select_metrics(dataset.task.NAME, metrics["validation"]["tuned"]),
        select_metrics(dataset.task.NAME, metrics["validation"]["base"]),
        metric_stats,
        rows,
        atomic_files.digest([[row["id"], row["input"]["text"]] for row in dataset.test]),
        metrics["seconds"],
        metrics.get("parameters", 0),
    )


def compute_training_usd(cost: Cost, accelerate: Accelerate, seconds: float) -> float | None:
    """Return the cost of a training in USD; None on a CPU without `cost.cpu_usd_per_hour`."""
    hourly = cost.cpu_usd_per_hour if accelerate.use_cpu else cost.gpu_usd_per_hour
    n_machines = accelerate.num_machines if accelerate.use_cpu else accelerate.num_processes
    return None if hourly is None else hourly * n_machines * seconds / 3600


def leaderboard_entry(trained: TrainedVariant, best: TrainedVariant, metric: str, cost: Cost) -> dict[str, Any]:
    """Return the leaderboard entry of a variant, with its difference from the best one.

    The interval and the paired difference are of the validation rows whose answers both runs keep (the first 500). The
    metric that decides is of all validation rows.
    """
    entry: dict[str, Any] = {
        "variant": trained.variant.name,
        "settings": list(trained.variant.settings),
        "run": trained.run.id,
        "figures": dict(trained.headline_metrics),
        "untuned": dict(trained.untuned_metrics),
        "interval": None,
        "to_the_best": None,
        "training_seconds": trained.training_seconds,
        "training_usd": compute_training_usd(cost, trained.run.recipe().accelerate, trained.training_seconds),
        "parameters": trained.parameters,
    }
    if metric not in trained.metric_stats:
        return entry
    interval = intervals.compute_interval(trained.metric_stats[metric], cluster_ids(trained.rows))
    entry["interval"] = {"n": len(trained.rows), "low": interval.low, "high": interval.high}
    if trained is not best and [row["id"] for row in trained.rows] == [row["id"] for row in best.rows]:
        difference = paired.compute_paired_difference(
            trained.metric_stats[metric], best.metric_stats[metric], cluster_ids(trained.rows)
        )
        entry["to_the_best"] = {
            "n": difference.n,
            "delta": difference.delta,
            "low": difference.low,
            "high": difference.high,
        }
    return entry


def leaderboard_lines(board: Sequence[Mapping[str, Any]], metric: str, failed: Mapping[str, str]) -> list[str]:
    """Return the leaderboard, best first, and its caveats. Costs are left out if they are unknown."""
    header = ["variant", metric_label(metric), "95% interval", "to the best, points"]
    header += ["untuned", "training", "training cost", "parameters"]
    rows = [header, *(leaderboard_row(entry, metric, is_best=entry is board[0]) for entry in board)]
    if all(entry["training_usd"] is None for entry in board):
        cost_column = header.index("training cost")
        rows = [[*row[:cost_column], *row[cost_column + 1 :]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"not trained  {name}: {reason}" for name, reason in failed.items()]
    close = [entry["variant"] for entry in board[1:] if entry["to_the_best"] and entry["to_the_best"]["high"] >= 0]
    if close:
        lines.append(f"not distinguishable from the best by {board[0]['interval']['n']:,} rows: {', '.join(close)}")
    if (untuned := board[0]["untuned"].get(metric)) is not None and board[0]["figures"][metric] <= untuned:
        lines.append(f"the best variant is not above its own base before training ({format_percent(untuned)})")
    lines.append(
        f"the best of {len(board)} on validation looks better there than it is; the test set says how good it is"
    )
    return lines


def leaderboard_row(entry: Mapping[str, Any], metric: str, is_best: bool) -> list[str]:
    """Return the cells of a variant."""
    interval, delta, untuned = entry["interval"], entry["to_the_best"], entry["untuned"].get(metric)
    difference = f"{format_delta(delta['delta'])} ({format_delta_range(delta['low'], delta['high'])})" if delta else ""
    return [
        entry["variant"],
        format_percent(entry["figures"][metric]),
        format_range(interval["low"], interval["high"]) if interval else "",
        "best" if is_best else difference,
        "" if untuned is None else format_percent(untuned),
        f"{entry['training_seconds']:,.0f} s",
        format_usd(entry["training_usd"]),
        f"{entry['parameters']:,}" if entry["parameters"] else "",
    ]


def compare_best(arguments: argparse.Namespace, best: TrainedVariant) -> int:
    """Export the best variant, compare it on the test set and return the exit code.

    No other variant reads the test set.
    """
    if not arguments.compare:
        return cli.OK
    run_options = ("--run", best.run.id, *best.variant.settings)
    return run_stage("train.export", arguments, *run_options) or run_stage("compare", arguments, *run_options)


if __name__ == "__main__":
    cli.run_cli(main)
