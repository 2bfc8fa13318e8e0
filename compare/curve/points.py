"""The points of a learning curve: the same metric of the same validation rows at each number of train rows.

    5,184 train rows, 5 sizes  -> 324, 648, 1,296, 2,592, 5,184

The subsets are nested: those of insource/tasks/train_subset.py, which training uses too. Test rows are not read.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compare.eval_dataset import EvalDataset, cluster_ids
from compare.records import SystemAnswer
from compare.scoring import predictions
from compare.sweep import Variant, evaluate_variant
from compare.systems import linear_baseline
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.stats.metric_stats import MetricStats
from insource.system import atomic_files
from insource.tasks import TASKS, train_subset
from insource.tasks.data_row import Rows
from insource.tracking.data_report import DataReport
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run

# Smaller subsets are mostly noise: with 20 rows a label of the demo has two.
MIN_TRAIN_ROWS = 20


@dataclass(frozen=True)
class CurvePoint:
    """The metric of a model that was trained on a subset."""

    train_rows: int
    stats: MetricStats
    """Of the scored validation rows."""
    missing_labels: int = 0
    """Labels of the task without a row in the subset."""
    run_id: str | None = None
    training_seconds: float | None = None
    all_rows_value: float | None = None
    """The metric of all validation rows, where only a part of them is scored here."""


@dataclass(frozen=True)
class LearningCurve:
    """The points of one model, smallest first, on the same validation rows."""

    title: str
    points: Sequence[CurvePoint]
    rows: Rows

    @property
    def clusters(self) -> list[str | None] | None:
        """Return the group of each validation row, None if no row has a group."""
        return cluster_ids(self.rows)

    @property
    def largest(self) -> CurvePoint:
        """Return the point with the most train rows."""
        return self.points[-1]

    def with_point(self, point: CurvePoint) -> "LearningCurve":
        """Return the curve with one more point."""
        return replace(self, points=sorted([*self.points, point], key=lambda other: other.train_rows))

    def restrict(self, row_ids: Sequence[str]) -> "LearningCurve":
        """Return the curve on only these validation rows, in this order. Raise KeyError if a row is missing."""
        index_by_id = {row["id"]: index for index, row in enumerate(self.rows)}
        indices = [index_by_id[row_id] for row_id in row_ids]
        points = [replace(point, stats=point.stats.subset(indices)) for point in self.points]
        return replace(self, points=points, rows=[self.rows[index] for index in indices])


def plan_sizes(train_rows: int, points: int) -> list[int]:
    """Return the sizes, smallest first: all rows, a half, a quarter and so on, down to MIN_TRAIN_ROWS.

    Raise RecipeError if there are fewer than two.
    """
    sizes = [train_rows >> halvings for halvings in range(points) if train_rows >> halvings >= MIN_TRAIN_ROWS]
    if len(sizes) < 2:
        raise RecipeError(
            f"a learning curve needs at least {2 * MIN_TRAIN_ROWS} train rows, and there are {train_rows}; label more "
            "rows, or reduce data.split.test",
            code="INS-C013",
        )
    return sizes[::-1]


def load_curve_dataset(recipe: Recipe, data: Path) -> EvalDataset:
    """Return the dataset of a folder of prepared data, with validation rows as `test`. It needs no trained run.

    Raise StageError if there are no validation rows.
    """
    report, task = DataReport.read(data), TASKS[recipe.task.task_name]
    spec = task.make_spec(recipe.task, report.label_descriptions, report.may_be_empty)
    if hasattr(spec, "normalize_labels"):
        spec = replace(spec, normalize_labels=recipe.data.normalize_labels)
    train, validation = (list(atomic_files.read_jsonl(data / f"{name}.jsonl")) for name in ("train", "validation"))
    if not validation:
        raise StageError(
            f"{data / 'validation.jsonl'} has no rows to score; give data.split.validation a fraction", code="INS-D027"
        )
    return EvalDataset(task, spec, PromptSpec(max_answer_tokens=0), train, [], validation)


def fit_linear_point(dataset: EvalDataset, subset: Sequence[int], metric: str) -> CurvePoint:
    """Return the point of the linear model, fitted on the train rows with these indices."""
    part = replace(dataset, train=[dataset.train[index] for index in subset])
    with warnings.catch_warnings():
        # A small subset may have nearly as many labels as rows, which scikit-learn takes for a regression.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        fitted = linear_baseline.predict_dataset(part)
    answers = [SystemAnswer(row["id"], prediction.output) for row, prediction in zip(part.test, fitted, strict=True)]
    parsed = [predictions.parse_answer(part, answer) for answer in answers]
    return CurvePoint(len(subset), part.compute_metric_stats(part.test, parsed)[metric], count_missing_labels(part))


def fit_linear_curve(dataset: EvalDataset, recipe: Recipe, sizes: Sequence[int], metric: str) -> LearningCurve:
    """Return the curve of the linear model."""
    order = train_subset.order_train_rows(dataset.train, recipe)
    # In the order of the file, as training reads a subset.
    points = [fit_linear_point(dataset, sorted(order[:size]), metric) for size in sizes]
    title = "TF-IDF + logistic regression" if dataset.task.HAS_LABELS else "answer of the most similar train row"
    return LearningCurve(title, points, dataset.test)


def count_missing_labels(dataset: EvalDataset) -> int:
    """Return the number of labels without a train row; 0 for tasks without labels."""
    if not dataset.task.HAS_LABELS:
        return 0
    targets = [row["target"] for row in dataset.train]
    present = {label for target in targets for label in ([target] if isinstance(target, str) else target)}
    return len(set(dataset.spec.labels) - present)


def read_trained_point(run: Run, dataset: EvalDataset, subset: Sequence[int], metric: str) -> tuple[CurvePoint, Rows]:
    """Return the point of a trained run, and the validation rows that it is scored on: those whose answers it keeps."""
    trained = evaluate_variant(Variant(run.id, ()), run)
    missing = count_missing_labels(replace(dataset, train=[dataset.train[index] for index in subset]))
    point = CurvePoint(
        len(subset),
        trained.metric_stats[metric],
        missing,
        run.id,
        trained.training_seconds,
        trained.headline_metrics[metric],
    )
    return point, trained.rows
