"""The routing policy on data: its promised figures, and figures of rows that did not choose it, for bench.routing.

    data        model                            promised          test rows   kept    right
    Banking77   TF-IDF + logistic regression     more than 95.0%   3,080       83.1%   96.4% (95.6 to 97.1)

On Banking77 and the demo tickets a linear model replaces the tuned one, and the results name it so. A finished run
brings its own routing.json. Resplits draw new calibration rows from calibration and test rows together, in complete
groups. They count how often the remaining rows miss the target. The sample of remaining rows adds an error of its own
to that of the threshold.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare.decision import routing_policy
from compare.eval_dataset import cluster_ids
from compare.records import Scale
from compare.systems import linear_baseline
from data_prep import prepare
from insource.config.load import load
from insource.config.schema.serving_and_cost import Route
from insource.stats import calibration, intervals
from insource.stats.metric_stats import mean_metric
from insource.system import atomic_files

Row = dict[str, Any]
LINEAR_MODEL_NAME = "TF-IDF + logistic regression, in the place of the tuned model"
RESPLITS = 1000


def measure_all(banking77: Path, runs: Sequence[Path]) -> list[Row]:
    """Return a row for each data set and each run; report a missing data set on stderr and leave it out."""
    results = [measure_linear_model("demo tickets", "classifier", [])]
    if (banking77 / "train.csv").is_file():
        sources = [f"data.source.{name}={banking77 / name}.csv" for name in ("train", "test")]
        results.append(measure_linear_model("Banking77", "banking77", sources))
    else:
        print(f"Banking77 is not at {banking77}: --banking77 FOLDER, or BANKING77=FOLDER", file=sys.stderr)
    return results + [read_run(folder) for folder in runs]


def measure_linear_model(name: str, recipe: str, changes: Sequence[str]) -> Row:
    """Return the figures of the policy on a linear model's answers to the rows of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(recipe, changes, "cpu").recipe
        data, _ = prepare.main(loaded, Path(folder))
        splits = {
            split: list(atomic_files.read_jsonl(data / f"{split}.jsonl"))
            for split in ("train", "validation", "calibration", "test")
        }
    train = splits.pop("train")
    held_out_rows = [row for rows in splits.values() for row in rows]
    predictions = linear_baseline.predict_answers(train, held_out_rows, [row["target"] for row in train], labelled=True)
    correct = [
        float(prediction.output == row["target"]) for prediction, row in zip(predictions, held_out_rows, strict=True)
    ]
    log_probabilities = [prediction.log_probability or 0.0 for prediction in predictions]
    n = len(splits["validation"])
    platt = calibration.fit_platt(log_probabilities[:n], [bool(value) for value in correct[:n]])
    assert platt is not None, "the linear model has some validation rows right, and some wrong"
    confidences = [platt.confidence(log_probability) for log_probability in log_probabilities]
    scale = Scale(platt, "answer", confidences[:n], correct[:n])
    rest = routing_policy.CalibrationAnswers(
        [row["id"] for row in held_out_rows[n:]], confidences[n:], correct[n:], cluster_ids(held_out_rows[n:])
    )
    route, n_calibration = loaded.route, len(splits["calibration"])
    indices = np.arange(len(rest.ids))
    policy = routing_policy.fit_policy(scale, select_rows(rest, indices[:n_calibration]), route)
    missed = list(iter_resplits(scale, rest, n_calibration, route))
    return {
        **promised_figures(name, LINEAR_MODEL_NAME, policy.json()),
        **realized_figures(policy.threshold, select_rows(rest, indices[n_calibration:])),
        "resplits": RESPLITS,
        "missed": sum(missed) / RESPLITS,
    }


def iter_resplits(scale: Scale, rows: routing_policy.CalibrationAnswers, n: int, route: Route) -> Iterator[bool]:
    """Yield for each resplit whether the remaining rows miss the target.

    A resplit draws complete groups of about n rows for calibration.
    """
    groups = rows.groups or [None] * len(rows.ids)
    numbers = np.unique([f"row {index}" if group is None else f"group {group}" for index, group in enumerate(groups)],
                        return_inverse=True)[1]  # fmt: skip
    sizes, correct = np.bincount(numbers), np.asarray(rows.correct)
    confidences = routing_policy.confidence_array(rows.confidences)
    for number in range(RESPLITS):
        order = np.random.default_rng([1, number]).permutation(len(sizes))
        chosen = order[: int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1]
        is_calibration = np.isin(numbers, chosen)
        policy = routing_policy.fit_policy(scale, select_rows(rows, np.flatnonzero(is_calibration)), route)
        threshold = np.inf if policy.threshold is None else policy.threshold
        is_kept = ~is_calibration & (confidences >= threshold)
        yield bool(is_kept.any() and correct[is_kept].mean() <= (route.target_accuracy or 0.0))


def select_rows(rows: routing_policy.CalibrationAnswers, indices: Any) -> routing_policy.CalibrationAnswers:
    """Return the rows with these indices."""
    groups = None if rows.groups is None else [rows.groups[index] for index in indices]
    return routing_policy.CalibrationAnswers(
        [rows.ids[index] for index in indices],
        [rows.confidences[index] for index in indices],
        [rows.correct[index] for index in indices],
        groups,
    )


def read_run(folder: Path) -> Row:
    """Return the figures of a finished run's routing.json."""
    routing, scores = atomic_files.read_json(folder / "routing.json"), atomic_files.read_json(folder / "scores.json")
    test = routing["test"] or {}
    kept_figure, accuracy = test.get("kept") or {}, test.get("right_of_kept") or {}
    figures = {"test_rows": test.get("rows"), "kept": kept_figure.get("value"), "right": accuracy.get("value")}
    name = f"{scores['recipe']}, by {routing['score']['of'] if routing['score'] else 'no confidence'}"
    model = f"{scores['systems']['tuned']['title']} of {scores['base']['name']}"
    bounds = {"ci_low": accuracy.get("ci_low"), "ci_high": accuracy.get("ci_high")}
    return {**promised_figures(name, model, routing), **figures, **bounds, "resplits": None, "missed": None}


def promised_figures(name: str, model: str, routing: Mapping[str, Any]) -> Row:
    """Return the promised figures of a routing.json."""
    keys = ("target_accuracy", "confidence", "calibration_rows", "left_out_rows", "threshold", "coverage", "accuracy")
    extra = {key: routing[key] for key in (*keys, "why_none", "rows_needed")}
    sequence = routing["sequence"] or {}
    return {"data": name, "model": model, "validation_rows": dict(sequence).get("validation_rows"), **extra}


def realized_figures(threshold: float | None, test: routing_policy.CalibrationAnswers) -> Row:
    """Return the fraction of test rows that a threshold keeps, and their accuracy with its interval."""
    no_figures = {"kept": None, "right": None, "ci_low": None, "ci_high": None}
    is_kept = routing_policy.confidence_array(test.confidences) >= (threshold or 0.0)
    if threshold is None or not is_kept.any():
        return {"test_rows": len(test.ids), **no_figures}
    kept_rows = select_rows(test, np.flatnonzero(is_kept))
    interval = intervals.compute_interval(mean_metric(kept_rows.correct), kept_rows.groups)
    return {
        "test_rows": len(test.ids),
        "kept": float(is_kept.mean()),
        "right": interval.value,
        "ci_low": interval.low,
        "ci_high": interval.high,
    }


def results_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the results as lines of a Markdown table."""
    headers = ["data", "model", "promised right", "calibration rows", "kept", "right", "test rows", "kept", "right"]
    lines = [f"| {' | '.join([*headers, f'missed in {RESPLITS:,} resplits'])} |", "|---" * (len(headers) + 1) + "|"]
    for row in rows:
        promised = f"more than {row['target_accuracy']:.1%}" if row["target_accuracy"] else "as the baseline"
        cells = [row["data"], row["model"], promised, f"{row['calibration_rows']:,}"]
        cells += [
            _format_fraction(row["coverage"]),
            _format_fraction(row["accuracy"]),
            f"{row['test_rows'] or 0:,}",
            _format_fraction(row["kept"]),
        ]
        bounds = "" if row["right"] is None else f" ({100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f})"
        cells += [_format_fraction(row["right"]) + bounds, _format_fraction(row["missed"])]
        lines.append(f"| {' | '.join(cells)} |")
    unrouted_rows = [row for row in rows if row["why_none"]]
    return lines + [line for row in unrouted_rows for line in ("", f"{row['data']}, no threshold: {row['why_none']}.")]


def _format_fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
