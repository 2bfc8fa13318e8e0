"""The routing policy on data: what it promises, and what rows that chose nothing show, for bench.routing.

    data        model                            promised          test rows   kept    right
    Banking77   TF-IDF + logistic regression     more than 95.0%   3,080       83.1%   96.4% (95.6 to 97.1)

The linear model stands in for a tuned one on Banking77 and on the demo tickets, and is named so. A finished run brings
its own routing.json. Resplits draw calibration rows anew from calibration and test rows together, whole groups each:
how often the rest then misses the target, which has a chance of its own beside that of the threshold.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare.decision import routing_policy
from compare.eval_dataset import cluster_ids
from compare.scoring.confidence import Scale
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
    """Returns a row for each data set and each run; one that is not here is left out, and a line says so."""
    found = [measure_linear_model("demo tickets", "classifier", [])]
    if (banking77 / "train.csv").is_file():
        sources = [f"data.source.{name}={banking77 / name}.csv" for name in ("train", "test")]
        found.append(measure_linear_model("Banking77", "banking77", sources))
    else:
        print(f"Banking77 is not at {banking77}: --banking77 FOLDER, or BANKING77=FOLDER", file=sys.stderr)
    return found + [read_run(folder) for folder in runs]


def measure_linear_model(name: str, recipe: str, changes: Sequence[str], resplits: int = RESPLITS) -> Row:
    """Returns what the policy does with the answers of a linear model to the rows of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(recipe, changes, "cpu").recipe
        data, _ = prepare.main(loaded, Path(folder))
        splits = {
            split: list(atomic_files.read_jsonl(data / f"{split}.jsonl"))
            for split in ("train", "validation", "calibration", "test")
        }
    train = splits.pop("train")
    asked = [row for rows in splits.values() for row in rows]
    guesses = linear_baseline.predict_answers(train, asked, [row["target"] for row in train], labelled=True)
    right = [float(one.output == row["target"]) for one, row in zip(guesses, asked, strict=True)]
    likely = [one.log_probability or 0.0 for one in guesses]
    n = len(splits["validation"])
    platt = calibration.fit_platt(likely[:n], [bool(one) for one in right[:n]])
    assert platt is not None, "the linear model has some validation rows right, and some wrong"
    confidences = [platt.confidence(one) for one in likely]
    scale = Scale(platt, "answer", confidences[:n], right[:n])
    rest = routing_policy.CalibrationAnswers(
        [row["id"] for row in asked[n:]], confidences[n:], right[n:], cluster_ids(asked[n:])
    )
    wanted, first = loaded.route, len(splits["calibration"])
    every = np.arange(len(rest.ids))
    found = routing_policy.fit_policy(scale, select_rows(rest, every[:first]), wanted)
    missed = list(iter_resplits(scale, rest, first, wanted, resplits))
    return {
        **promised_figures(name, LINEAR_MODEL_NAME, found.json()),
        **realized_figures(found.threshold, select_rows(rest, every[first:])),
        "resplits": resplits,
        "missed": sum(missed) / resplits,
    }


def iter_resplits(
    scale: Scale, rows: routing_policy.CalibrationAnswers, n: int, wanted: Route, times: int, seed: int = 1
) -> Iterator[bool]:
    """Yields whether the rows that are not drawn for calibration miss the target, for each draw of whole groups of
    about n rows."""
    groups = rows.groups or [None] * len(rows.ids)
    numbers = np.unique([f"row {at}" if one is None else f"group {one}" for at, one in enumerate(groups)],
                        return_inverse=True)[1]  # fmt: skip
    sizes, right = np.bincount(numbers), np.asarray(rows.right)
    confidences = routing_policy.confidence_array(rows.confidences)
    for number in range(times):
        order = np.random.default_rng([seed, number]).permutation(len(sizes))
        chosen = order[: int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1]
        drawn = np.isin(numbers, chosen)
        found = routing_policy.fit_policy(scale, select_rows(rows, np.flatnonzero(drawn)), wanted)
        stays = ~drawn & (confidences >= found.threshold) if found.threshold is not None else ~drawn & False
        yield bool(stays.any() and right[stays].mean() <= (wanted.target_accuracy or 0.0))


def select_rows(rows: routing_policy.CalibrationAnswers, at: Any) -> routing_policy.CalibrationAnswers:
    """Returns the rows of these numbers."""
    groups = None if rows.groups is None else [rows.groups[one] for one in at]
    return routing_policy.CalibrationAnswers(
        [rows.ids[one] for one in at], [rows.confidences[one] for one in at], [rows.right[one] for one in at], groups
    )


def read_run(folder: Path) -> Row:
    """Returns what the routing.json of a finished run says."""
    told, scores = atomic_files.read_json(folder / "routing.json"), atomic_files.read_json(folder / "scores.json")
    test = told["test"] or {}
    kept, right = test.get("kept") or {}, test.get("right_of_kept") or {}
    seen = {"test_rows": test.get("rows"), "kept": kept.get("value"), "right": right.get("value")}
    name = f"{scores['recipe']}, by {told['score']['of'] if told['score'] else 'no confidence'}"
    model = f"{scores['systems']['tuned']['title']} of {scores['base']['name']}"
    ends = {"ci_low": right.get("ci_low"), "ci_high": right.get("ci_high")}
    return {**promised_figures(name, model, told), **seen, **ends, "resplits": None, "missed": None}


def promised_figures(name: str, model: str, told: Mapping[str, Any]) -> Row:
    """Returns what a routing.json promises."""
    keys = ("target_accuracy", "confidence", "calibration_rows", "left_out_rows", "threshold", "coverage", "accuracy")
    more = {key: told[key] for key in (*keys, "why_none", "rows_needed")}
    sequence = told["sequence"] or {}
    return {"data": name, "model": model, "validation_rows": dict(sequence).get("validation_rows"), **more}


def realized_figures(threshold: float | None, test: routing_policy.CalibrationAnswers) -> Row:
    """Returns what a threshold keeps of test rows, and how much of it is right, with its interval."""
    nothing = {"kept": None, "right": None, "ci_low": None, "ci_high": None}
    stays = routing_policy.confidence_array(test.confidences) >= (threshold or 0.0)
    if threshold is None or not stays.any():
        return {"test_rows": len(test.ids), **nothing}
    mine = select_rows(test, np.flatnonzero(stays))
    found = intervals.compute_interval(mean_metric(mine.right), mine.groups)
    return {
        "test_rows": len(test.ids),
        "kept": float(stays.mean()),
        "right": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
    }


def results_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    heads = ["data", "model", "promised right", "calibration rows", "kept", "right", "test rows", "kept", "right"]
    lines = [f"| {' | '.join([*heads, f'missed in {RESPLITS:,} resplits'])} |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        wanted = f"more than {row['target_accuracy']:.1%}" if row["target_accuracy"] else "as the baseline"
        told = [row["data"], row["model"], wanted, f"{row['calibration_rows']:,}"]
        told += [
            _format_fraction(row["coverage"]),
            _format_fraction(row["accuracy"]),
            f"{row['test_rows'] or 0:,}",
            _format_fraction(row["kept"]),
        ]
        ends = "" if row["right"] is None else f" ({100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f})"
        told += [_format_fraction(row["right"]) + ends, _format_fraction(row["missed"])]
        lines.append(f"| {' | '.join(told)} |")
    without = [row for row in rows if row["why_none"]]
    return lines + [line for row in without for line in ("", f"{row['data']}, no threshold: {row['why_none']}.")]


def _format_fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
