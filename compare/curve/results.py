"""curve.json: every figure of a learning curve.

{"schema_version": 1, "recipe": "classifier", "created": "...", "data": "<digest>", "metric": "accuracy",
 "target_gain": 0.01, "alpha": 0.05, "train_rows": 5184, "validation_rows": 736, "scored_rows": 500, "clusters": 310,
 "planned_sizes": [324, 648, 1296, 2592, 5184], "stopped_early": false,
 "curves": {"tuned": {"title", "points": [...], "differences": [...], "law": {...}, "doubling": {...},
                      "conclusion": "helps | enough | undecided"},
            "linear": {...}},
 "api": [{"name", "title", "value", "low", "high", "n", "rows": "test", "run"}]}

A point: {"train_rows", "value", "low", "high", "method", "missing_labels", "run", "training_seconds",
          "all_rows_value"}

A difference is that of a size and the size before it, on the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from compare.curve.conclusion import (
    Conclusion,
    Doubling,
    classify_doubling,
    count_units,
    estimate_doubling,
    fit_curve,
)
from compare.curve.points import LearningCurve
from insource.stats import intervals, paired
from insource.stats.metric_stats import Array
from insource.stats.power_law import PowerLawFit
from insource.system.timestamps import utc_timestamp
from insource.tracking.run import Run
from insource.tracking.scores.comparison import read_scores

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CurveSettings:
    """What all figures of a curve share."""

    recipe: str
    data: Path
    metric: str
    target_gain: float
    alpha: float
    train_rows: int
    validation_rows: int
    planned_sizes: Sequence[int]


@dataclass(frozen=True)
class CurveResult:
    """A curve with its law and the conclusion; None where it has only one point."""

    curve: LearningCurve
    fit: PowerLawFit | None
    doubling: Doubling | None
    conclusion: Conclusion | None


@dataclass(frozen=True)
class ApiLevel:
    """The metric of an API model, from the newest comparison on the same prepared data."""

    name: str
    title: str
    value: float
    low: float
    high: float
    n: int
    """Test rows."""
    rows: Literal["test"]
    run: str
    """The id of the run that was compared."""


def evaluate_curve(curve: LearningCurve, settings: CurveSettings) -> CurveResult:
    """Return a curve with its law, the gain from doubling the rows, and the conclusion."""
    if len(curve.points) < 2:
        return CurveResult(curve, None, None, None)
    fit = fit_curve(curve)
    doubling = estimate_doubling(curve, fit, settings.alpha)
    return CurveResult(curve, fit, doubling, classify_doubling(doubling, settings.target_gain))


def find_api_levels(recipe_folder: Path, data: Path, metric: str) -> list[ApiLevel]:
    """Return the test figures of API models: of the newest run on these data whose comparison has complete ones.

    They are figures that a comparison has published; no row is read. Stand-ins on this machine are left out.
    """
    for path in sorted(recipe_folder.glob("*/scores.json"), reverse=True):
        run = Run(path.parent)
        if run.folder.is_symlink() or (run.folder / "data").resolve() != data.resolve():
            continue
        systems = read_scores(path).systems
        levels = [
            ApiLevel(name, system.title, value.value, value.ci_low, value.ci_high, system.n, "test", run.id)
            for name, system in systems.items()
            if system.kind == "closed"
            and system.complete
            and not system.stand_in
            and (value := system.metrics.get(metric)) is not None
        ]
        if levels:
            return levels
    return []


def build_json(
    settings: CurveSettings, results: Mapping[str, CurveResult], api_levels: Sequence[ApiLevel], stopped_early: bool
) -> dict[str, object]:
    """Return the content of curve.json. `results` are {"tuned" or "linear": result}, the first on the main model."""
    main = next(iter(results.values())).curve
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": settings.recipe,
        "created": utc_timestamp(),
        "data": settings.data.name,
        "metric": settings.metric,
        "target_gain": settings.target_gain,
        "alpha": settings.alpha,
        "train_rows": settings.train_rows,
        "validation_rows": settings.validation_rows,
        "scored_rows": len(main.rows),
        "clusters": None if main.clusters is None else count_units(main),
        "planned_sizes": list(settings.planned_sizes),
        "stopped_early": stopped_early,
        "curves": {name: _curve_to_json(result, settings.alpha) for name, result in results.items()},
        "api": [asdict(level) for level in api_levels],
    }


def _curve_to_json(result: CurveResult, alpha: float) -> dict[str, object]:
    curve, doubling = result.curve, result.doubling
    return {
        "title": curve.title,
        "points": [_point_to_json(curve, index, alpha) for index in range(len(curve.points))],
        "differences": [_difference_to_json(curve, index, alpha) for index in range(1, len(curve.points))],
        "law": None if result.fit is None else _law_to_json(result.fit, alpha),
        "doubling": None
        if doubling is None
        else {
            "train_rows": doubling.train_rows,
            "doubled_rows": doubling.doubled_rows,
            "gain": doubling.gain,
            "low": doubling.low,
            "high": doubling.high,
            "n": doubling.n,
            "sizes": doubling.sizes,
        },
        "conclusion": result.conclusion,
    }


def _point_to_json(curve: LearningCurve, index: int, alpha: float) -> dict[str, object]:
    point = curve.points[index]
    interval = intervals.compute_interval(point.stats, curve.clusters, alpha=alpha)
    return {
        "train_rows": point.train_rows,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "method": interval.method,
        "missing_labels": point.missing_labels,
        "run": point.run_id,
        "training_seconds": point.training_seconds,
        "all_rows_value": point.all_rows_value,
    }


def _difference_to_json(curve: LearningCurve, index: int, alpha: float) -> dict[str, object]:
    """Return the difference of a point and the point before it."""
    larger, smaller = curve.points[index], curve.points[index - 1]
    difference = paired.compute_paired_difference(larger.stats, smaller.stats, curve.clusters, alpha=alpha)
    return {
        "from": smaller.train_rows,
        "to": larger.train_rows,
        "delta": difference.delta,
        "low": difference.low,
        "high": difference.high,
        "p_value": difference.p_value,
        "test": difference.test,
        "n": difference.n,
    }


def _law_to_json(fit: PowerLawFit, alpha: float) -> dict[str, object]:
    """Return the parameters with intervals, and the fitted metric from the smallest fitted size to twice the largest.

    The law is error(n) = asymptote + scale * n ** -exponent; the fit keeps the scale at the largest size.
    """

    def quantiles(values: Array) -> list[float]:
        return [float(value) for value in np.quantile(values, [alpha / 2, 1 - alpha / 2])]

    sizes = np.geomspace(fit.sizes[0], 2 * fit.largest_size, 33)
    return {
        "sizes": list(fit.sizes),
        "asymptote": fit.asymptote,
        "asymptote_interval": quantiles(fit.asymptotes),
        "exponent": fit.exponent,
        "exponent_interval": quantiles(fit.exponents),
        "scale": fit.scale * fit.largest_size**fit.exponent,
        "line": [{"train_rows": float(size), "value": 1 - fit.compute_error(size)} for size in sizes],
    }
