"""`python -m bench.curve`: what `make curve` predicts for twice the labels, against what they really bring.

    data        rows          predicted   real   error   interval holds it   width
    classifier  1,600->3,200  +1.6        +1.4   0.6     90% of 10           2.9

The model is the linear one (TF-IDF + logistic regression). For each seed, 500 rows are drawn as validation rows and the
others are ordered, both by the keyed hash of that seed. The curve has five sizes up to n rows. The real gain is that of
a model with 2n rows, on all test rows, which neither the curve nor its models read. It writes bench/results/curve.json.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import docs_tables, machine
from compare.curve.conclusion import classify_doubling, estimate_doubling, fit_curve, is_clear
from compare.curve.points import CurvePoint, LearningCurve, fit_linear_point, load_curve_dataset
from compare.eval_dataset import EvalDataset
from data_prep import prepare
from insource.config import cli
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.stats import paired
from insource.stats.metric_stats import mean_metric
from insource.stats.paired import PairedDifference
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.tasks import train_subset
from insource.tasks.data_row import DataRow, Rows

RESULTS = Path(__file__).parent / "results" / "curve.json"
DOCS = machine.ROOT / "docs" / "curve.md"
METRIC, POINTS, ALPHA, TARGET_GAIN = "accuracy", 5, 0.05, 0.01
VALIDATION_ROWS = 500
# The curve ends at these parts of the rows; the real gain is measured with twice as many.
LARGEST_SHARES = (2, 4, 8)


@dataclass(frozen=True)
class Prediction:
    """One predicted gain beside the real one."""

    data: str
    seed: int
    train_rows: int
    gain: float
    low: float
    high: float
    real: float
    """On the test rows."""
    real_low: float
    real_high: float
    conclusion: str
    stops_after: int
    """Sizes that the stopping rule would have trained."""

    @property
    def holds_real(self) -> bool:
        """Return whether the interval contains the real gain."""
        return self.low <= self.real <= self.high


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.curve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--validation-rows", type=int, default=VALIDATION_ROWS)
    parser.add_argument("--max-rows", type=int, help="train on at most this many rows")
    parser.add_argument("--banking77-rows", type=int, help="the same for Banking77, whose 77 labels take longer")
    parser.add_argument("--banking77", type=Path, default=os.environ.get("BANKING77") or None)
    parser.add_argument("--points", type=Path, help="keep which answers are right here, and go on from there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write-docs", action="store_true", help="put the last results into docs/curve.md and end")
    arguments = parser.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "curve", arguments.results, results_table)
        return cli.OK
    settings = {"classifier": list[str]()}
    if arguments.banking77:
        settings["banking77"] = [f"data.source.{name}={arguments.banking77 / name}.csv" for name in ("train", "test")]
    measured: list[Prediction] = []
    started_at = time.monotonic()
    for name, overrides in settings.items():
        recipe = load(name, overrides, "cpu").recipe
        with tempfile.TemporaryDirectory() as folder:
            data, _ = prepare.main(recipe, Path(folder))
            dataset, pool = load_curve_dataset(recipe, data), read_pool(data)
            test = list(atomic_files.read_jsonl(data / "test.jsonl"))
        for seed in range(arguments.seeds):
            max_rows = arguments.banking77_rows if name == "banking77" else arguments.max_rows
            measured += measure(name, replace(dataset, train=pool), test, recipe, seed, max_rows, arguments)
            log_line(f"{name} seed {seed}: {time.monotonic() - started_at:.0f} s")
    banking = " --banking77 FOLDER" if arguments.banking77 else ""
    banking += f" --banking77-rows {arguments.banking77_rows}" if arguments.banking77_rows else ""
    limit = f" --max-rows {arguments.max_rows}" if arguments.max_rows else ""
    results = {
        **machine.describe_call(f"python -m bench.curve --seeds {arguments.seeds}{limit}{banking}"),
        "metric": METRIC,
        "points": POINTS,
        "alpha": ALPHA,
        "target_gain": TARGET_GAIN,
        "validation_rows": arguments.validation_rows,
        "predictions": [asdict(prediction) for prediction in measured],
    }
    arguments.results.parent.mkdir(exist_ok=True)
    atomic_files.write_json(arguments.results, results)
    print(results_table(results))
    return cli.OK


def read_pool(data: Path) -> list[DataRow]:
    """Return all rows but the test rows."""
    return [
        row
        for name in ("train", "validation", "calibration")
        for row in atomic_files.read_jsonl(data / f"{name}.jsonl")
    ]


def measure(
    name: str,
    dataset: EvalDataset,
    test: Rows,
    recipe: Recipe,
    seed: int,
    max_rows: int | None,
    arguments: argparse.Namespace,
) -> list[Prediction]:
    """Return a prediction for each of LARGEST_SHARES. `dataset.train` are all rows but the test rows."""
    order = train_subset.order_train_rows(dataset.train, recipe, seed)
    validation = [dataset.train[index] for index in order[: arguments.validation_rows]]
    train = order[arguments.validation_rows :][:max_rows]
    scored = replace(dataset, test=[*validation, *test])
    sizes = {len(train) >> halvings for halvings in range(max(LARGEST_SHARES).bit_length() + POINTS - 1)}
    points = {size: fit_or_read_point(scored, train[:size], name, seed, arguments.points) for size in sorted(sizes)}
    on_validation = range(len(validation))
    on_test = range(len(validation), len(scored.test))

    def restrict(point: CurvePoint, rows: range) -> CurvePoint:
        return replace(point, stats=point.stats.subset(rows))

    results = []
    for share in LARGEST_SHARES:
        largest, doubled = len(train) // share, 2 * len(train) // share
        curve_sizes = [largest >> halvings for halvings in reversed(range(POINTS))]
        curve = LearningCurve(name, [restrict(points[size], on_validation) for size in curve_sizes], validation)
        real = paired.compute_paired_difference(
            restrict(points[doubled], on_test).stats,
            restrict(points[largest], on_test).stats,
            LearningCurve(name, [], test).clusters,
            permutations=999,
        )
        results.append(make_prediction(curve, seed, real))
    return results


def make_prediction(curve: LearningCurve, seed: int, real: PairedDifference) -> Prediction:
    """Return the gain that a curve predicts for twice the rows of its largest size, beside the real gain."""
    doubling = estimate_doubling(curve, fit_curve(curve), ALPHA)
    return Prediction(
        data=curve.title,
        seed=seed,
        train_rows=curve.points[-1].train_rows,
        gain=doubling.gain,
        low=doubling.low,
        high=doubling.high,
        real=real.delta,
        real_low=real.low,
        real_high=real.high,
        conclusion=classify_doubling(doubling, TARGET_GAIN),
        stops_after=count_trained_sizes(curve),
    )


def fit_or_read_point(
    dataset: EvalDataset, subset: Sequence[int], name: str, seed: int, folder: Path | None
) -> CurvePoint:
    """Return the point of the linear model on a subset. With a folder its right answers are kept there as a file."""
    path = folder / f"{name}-{seed}-{len(subset)}.npy" if folder else None
    if path and path.exists() and len(right := np.load(path)) == len(dataset.test):
        return CurvePoint(len(subset), mean_metric(right.astype(float)))
    point = fit_linear_point(dataset, sorted(subset), METRIC)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, point.stats.row_stats[:, 0].astype(bool))
    return point


def count_trained_sizes(curve: LearningCurve) -> int:
    """Return the number of sizes that the stopping rule of `make curve` trains."""
    is_clear_at_once = is_clear(replace(curve, points=curve.points[-2:]), TARGET_GAIN, ALPHA)
    return 2 if is_clear_at_once else len(curve.points)


def results_table(results: dict[str, Any]) -> str:
    """Return the Markdown table of a curve.json of this bench."""
    lines = [
        "| data | rows | predicted gain | real gain | mean absolute error | intervals that hold the real gain | mean "
        "width | helps / enough / undecided | wrong of those decided | sizes trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    predictions = [Prediction(**prediction) for prediction in results["predictions"]]
    for data, train_rows in dict.fromkeys((prediction.data, prediction.train_rows) for prediction in predictions):
        group = [
            prediction for prediction in predictions if (prediction.data, prediction.train_rows) == (data, train_rows)
        ]
        lines.append(_table_row(data, train_rows, group, results["target_gain"], results["points"]))
    rows = f"{results['validation_rows']} validation rows, intervals at {1 - results['alpha']:.0%}"
    lines += [
        "",
        f"`{results['command']}`, {rows}, {results['hardware']}, {results['date']}. "
        "Gains are in points of accuracy, means over the seeds.",
    ]
    return "\n".join(lines)


def _table_row(data: str, train_rows: int, group: Sequence[Prediction], target_gain: float, n_sizes: int) -> str:
    def points(values: Sequence[float]) -> str:
        return f"{100 * float(np.mean(values)):.1f}"

    conclusions = [prediction.conclusion for prediction in group]
    wrong = sum(
        (prediction.conclusion == "helps") != (prediction.real >= target_gain)
        for prediction in group
        if prediction.conclusion != "undecided"
    )
    cells = [
        data,
        f"{train_rows:,} → {2 * train_rows:,}",
        points([prediction.gain for prediction in group]),
        points([prediction.real for prediction in group]),
        points([abs(prediction.gain - prediction.real) for prediction in group]),
        f"{sum(prediction.holds_real for prediction in group)} of {len(group)}",
        points([prediction.high - prediction.low for prediction in group]),
        " / ".join(str(conclusions.count(name)) for name in ("helps", "enough", "undecided")),
        f"{wrong} of {len(group) - conclusions.count('undecided')}",
        f"{np.mean([prediction.stops_after for prediction in group]):.1f} of {n_sizes}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run_cli(main)
