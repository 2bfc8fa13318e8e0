"""`python -m bench.tuned_curve classifier --rows 1024`: what `make curve` predicts for a tuned model, against the gain.

    data        rows            predicted   real   error   intervals that hold it
    classifier  1,024->2,048    +4.1        +3.3   1.2     9 of 10

For each seed (data.split.seed and train.seed) it trains on n/4, n/2, n and 2n rows, nested, as `make curve` does. The
curve to n rows predicts from one half of the scored validation rows; the real gain of 2n rows is measured on the other
half. The halves are by the keyed hash of the splits, so that groups stay together but for one at the boundary. Finished
trainings are found again: the same command resumes. It writes bench/results/tuned_curve.json after each seed.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import docs_tables, machine
from bench.curve import ALPHA, DOCS, TARGET_GAIN, Prediction, make_prediction, results_table
from compare.curve import training
from compare.curve.points import LearningCurve, load_curve_dataset, read_trained_point
from compare.sweep import deciding_metric
from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.stats import paired
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.tasks import train_subset
from insource.tracking.run import Run

RESULTS = Path(__file__).parent / "results" / "tuned_curve.json"
SIZES = 3
"""Sizes of a curve, the largest n rows: as many as the power law is fitted to."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tuned_curve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="classifier")
    parser.add_argument("set", nargs="*", metavar="key=value", help="recipe keys, such as train.num_train_epochs=1")
    parser.add_argument("--rows", type=int, default=1024, help="n, the rows of the largest size of the curve")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sizes", type=int, default=SIZES, help="sizes of the curve: n, n/2, n/4 ...; at least 2")
    parser.add_argument("--hardware", default="cpu")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write-docs", action="store_true", help="put the last results into docs/curve.md and end")
    arguments = parser.parse_intermixed_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "tuned_curve", arguments.results, results_table)
        return cli.OK
    measured: list[Prediction] = []
    results: dict[str, Any] = {}
    started_at = time.monotonic()
    for seed in range(arguments.seeds):
        prediction, metric, n_validation = measure(arguments, seed)
        measured.append(prediction)
        results = {
            **machine.describe_call(describe_command(arguments)),
            "metric": metric,
            "points": arguments.sizes,
            "alpha": ALPHA,
            "target_gain": TARGET_GAIN,
            "validation_rows": n_validation,
            "predictions": [asdict(prediction) for prediction in measured],
        }
        arguments.results.parent.mkdir(exist_ok=True)
        atomic_files.write_json(arguments.results, results)
        log_line(f"seed {seed}: {time.monotonic() - started_at:.0f} s")
    print(results_table(results))
    return cli.OK


def describe_command(arguments: argparse.Namespace) -> str:
    """Return the command with the name of the recipe, and without paths."""
    settings = [setting for setting in arguments.set if "/" not in setting]
    words = [Path(arguments.recipe).stem, *settings, f"--rows {arguments.rows}", f"--seeds {arguments.seeds}"]
    return " ".join(["python -m bench.tuned_curve", *words, f"--sizes {arguments.sizes}"])


def measure(arguments: argparse.Namespace, seed: int) -> tuple[Prediction, str, int]:
    """Return the prediction of a seed beside the real gain, the metric, and the rows that it was predicted from.

    Raise RecipeError if there are fewer than 2n train rows.
    """
    settings = [*arguments.set, f"data.split.seed={seed}", f"train.seed={seed}"]
    call = argparse.Namespace(recipe=arguments.recipe, set=settings, hardware=arguments.hardware, runs=arguments.runs)
    loaded = load(arguments.recipe, settings, arguments.hardware)
    recipe, metric, n_rows = loaded.recipe, deciding_metric(loaded), arguments.rows
    dataset = load_curve_dataset(recipe, training.prepare_data(call))
    if len(dataset.train) < 2 * n_rows:
        raise RecipeError(
            f"--rows: given {n_rows}, allowed: at most half of {len(dataset.train):,} train rows", code="INS-R011"
        )
    order = train_subset.order_train_rows(dataset.train, recipe)
    sizes = [n_rows >> halvings for halvings in reversed(range(arguments.sizes))]
    curve: LearningCurve | None = None
    for size in [*sizes, 2 * n_rows]:
        trained = Run(training.train_subset(call, None if size == len(dataset.train) else size))
        point, rows = read_trained_point(trained, dataset, order[:size], metric)
        curve = (curve or LearningCurve(loaded.name, [], rows)).with_point(point)
    assert curve is not None
    ids = [curve.rows[index]["id"] for index in train_subset.order_train_rows(curve.rows, recipe)]
    predicting, judging = curve.restrict(ids[: len(ids) // 2]), curve.restrict(ids[len(ids) // 2 :])
    return predict_gain(loaded.name, seed, predicting, judging), metric, len(predicting.rows)


def predict_gain(name: str, seed: int, predicting: LearningCurve, judging: LearningCurve) -> Prediction:
    """Return the gain that all points but the largest predict, and that of the largest on the other rows."""
    largest, doubled = judging.points[-2:]
    real = paired.compute_paired_difference(doubled.stats, largest.stats, judging.clusters, permutations=999)
    return make_prediction(LearningCurve(name, predicting.points[:-1], predicting.rows), seed, real)


if __name__ == "__main__":
    cli.run_cli(main)
