"""`python -m compare.curve RECIPE`: would more labels help?

    rows   tuned accuracy  95% interval  to the size before   linear accuracy  95% interval  to the size before
    2,592  ...
    tuned     Whether more labels would help is unknown. Doubling the train rows from ...

Every size is one training on a nested subset of the train rows, the largest first. If the two largest give a clear
answer, no smaller one is trained (conclusion.is_clear). The linear model is fitted on the same subsets. Only validation
rows are scored; the test set is not read. `--model linear` fits only the linear model.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compare.curve import conclusion, page, points, results, training, wording
from compare.curve.points import LearningCurve
from compare.curve.results import ApiLevel, CurveSettings
from compare.eval_dataset import EvalDataset
from compare.sweep import deciding_metric
from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import LoadedRecipe, describe_precedence, load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks import TASKS, train_subset
from insource.tracking import folder_ownership, run
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run

MODELS = ("tuned", "linear")


def main() -> int:
    """Draw the curve and return the exit code. Raise RecipeError if the recipe has none."""
    arguments = build_parser().parse_intermixed_args()
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    check_recipe(loaded.recipe)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    if arguments.dry_run:
        count = loaded.recipe.curve.points
        print(f"would fit the linear model on {count} sizes: all train rows, a half, a quarter and so on")
        if arguments.model == "tuned":
            print(f"would train at most {count} times, the largest size first, and score validation rows")
        return cli.OK
    data = training.prepare_data(arguments)
    loaded = folder_ownership.resolve_name(loaded, run.runs_folder(arguments.runs))
    dataset = points.load_curve_dataset(loaded.recipe, data)
    settings = build_settings(loaded, data, dataset)
    sizes = ", ".join(f"{size:,}" for size in settings.planned_sizes)
    print(f"curve     linear model on {sizes} rows", file=sys.stderr, flush=True)
    linear = points.fit_linear_curve(dataset, loaded.recipe, settings.planned_sizes, settings.metric)
    if arguments.model == "linear":
        return report(data.parent.parent, settings, {"linear": linear}, "curve-linear", is_stopped=False)
    return train_curve(arguments, loaded.recipe, settings, dataset, linear)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.build_parser("compare.curve", "Estimate what more labels would bring, from nested subsets of train.")
    # make passes an empty variable if none is set.
    parser.add_argument(
        "--model",
        choices=MODELS,
        default=os.environ.get("MODEL") or "tuned",
        help="tuned: train each size, and fit the linear model; linear: only the linear model, in seconds ($MODEL)",
    )
    return parser


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe has no curve: its answers are not decoded, or training needs several machines."""
    if TASKS[recipe.task.task_name].OBJECTIVE == "prefer":
        raise RecipeError(
            f"task.kind: given {recipe.task.kind}; a curve needs answers that are decoded: classification, extraction "
            "or generation",
            code="INS-R006",
        )
    if recipe.accelerate.num_machines > 1:
        raise RecipeError(
            f"accelerate.num_machines: given {recipe.accelerate.num_machines}; a curve trains on one machine; set 1",
            code="INS-R006",
        )


def build_settings(loaded: LoadedRecipe, data: Path, dataset: EvalDataset) -> CurveSettings:
    """Return the settings of a curve. Raise RecipeError if there are too few train rows."""
    recipe = loaded.recipe
    train_rows = len(train_subset.select_train_rows(dataset.train, recipe))
    return CurveSettings(
        recipe=loaded.name,
        data=data,
        metric=deciding_metric(loaded),
        target_gain=recipe.curve.target_gain,
        alpha=recipe.curve.alpha,
        train_rows=train_rows,
        validation_rows=len(dataset.test),
        planned_sizes=points.plan_sizes(train_rows, recipe.curve.points),
    )


def train_curve(
    arguments: argparse.Namespace,
    recipe: Recipe,
    settings: CurveSettings,
    dataset: EvalDataset,
    linear: LearningCurve,
) -> int:
    """Train each size, the largest first; only two if their answer is clear. Write the results after each size."""
    order = train_subset.order_train_rows(dataset.train, recipe)
    tuned: LearningCurve | None = None
    recipe_folder, is_stopped = settings.data.parent.parent, False
    for number, size in enumerate(reversed(settings.planned_sizes), start=1):
        print(f"curve     {number} of {len(settings.planned_sizes)}: {size:,} rows", file=sys.stderr, flush=True)
        trained = Run(training.train_subset(arguments, None if size == settings.train_rows else size))
        point, rows = points.read_trained_point(trained, dataset, order[:size], settings.metric)
        if tuned is None:
            base_name = PromptSpec.read(trained.folder / "adapter").base.name
            tuned = LearningCurve(f"adapter on {base_name}", [], rows)
        tuned = tuned.with_point(point)
        is_stopped = number < len(settings.planned_sizes) and conclusion.is_clear(
            tuned, settings.target_gain, settings.alpha
        )
        is_last = is_stopped or number == len(settings.planned_sizes)
        # The linear model is shown on the rows that the tuned model is scored on.
        curves = {"tuned": tuned, "linear": linear.restrict([row["id"] for row in rows])}
        code = report(recipe_folder, settings, curves, "curve", is_stopped=is_stopped, is_last=is_last)
        if is_last:
            return code
    return cli.OK


def report(
    recipe_folder: Path,
    settings: CurveSettings,
    curves: Mapping[str, LearningCurve],
    name: str,
    *,
    is_stopped: bool,
    is_last: bool = True,
) -> int:
    """Write <name>.json and <name>.html below the recipe's runs, print the summary if it is the last, return 0."""
    evaluated = {key: results.evaluate_curve(curve, settings) for key, curve in curves.items()}
    levels: Sequence[ApiLevel] = results.find_api_levels(recipe_folder, settings.data, settings.metric)
    payload = results.build_json(settings, evaluated, levels, is_stopped)
    atomic_files.write_json(recipe_folder / f"{name}.json", payload)
    atomic_files.write_text(recipe_folder / f"{name}.html", page.render_page(payload))
    if is_last:
        print(*wording.summary_lines(payload), sep="\n")
        for suffix in ("html", "json"):
            print(f"wrote     {os.path.relpath(recipe_folder / f'{name}.{suffix}')}")
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(main)
