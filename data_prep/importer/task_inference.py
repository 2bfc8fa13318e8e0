"""Inference of the task of rows from their answers.

few short answers that repeat                  classification
JSON arrays of such answers                    classification, several labels per row
JSON objects of one shape                      extraction, with a schema of that shape
two answers of which one is preferred          preference
anything else                                  generation
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.importer import schema_inference
from data_prep.importer.survey import AnswerStatistics
from insource.config.errors import RecipeError
from insource.text.labels import clean_label

# Minimum fraction of answers that are JSON objects, or labels; the other rows are unusable.
MIN_FITTING_FRACTION = 0.9
MAX_LABELS_IN_RECIPE = 20
# A label needs rows for training and for evaluation; in small files fewer.
MIN_ROWS_PER_LABEL, MIN_ROWS_PER_LABEL_OF_SMALL_FILE, SMALL_FILE_ROWS = 10, 4, 500
MAX_LABELS = 1000

TaskKindName = Literal["classification", "extraction", "generation", "preference"]


@dataclass(frozen=True)
class InferredTask:
    """A task and the reason for it."""

    kind: TaskKindName
    reason: str
    labels: tuple[str, ...] = ()
    """The labels that the recipe lists; () if it takes them from the rows."""
    n_labels: int = 0
    n_rare_labels: int = 0
    """Labels with too few rows for training and evaluation."""
    min_rows: int = 0
    """Minimum number of rows of a label."""
    has_label_sets: bool = False
    """Whether a row has several labels."""
    json_schema: dict[str, Any] | None = None
    omits_absent: bool = False
    """Extraction: whether answers omit fields that the document does not give."""

    @property
    def variant(self) -> str:
        """Return the name of the module in insource/tasks/."""
        return "multilabel" if self.has_label_sets else self.kind


def infer_task(answers: AnswerStatistics, preferences: int) -> InferredTask:
    """Return the task. Raise RecipeError if all answers are the same."""
    if preferences:
        return InferredTask("preference", f"{preferences:,} pairs of a preferred and another answer")
    extraction_note = ""
    if answers.object_rows >= MIN_FITTING_FRACTION * answers.rows:
        try:
            schema = schema_inference.infer_schema(answers.shape)
        except schema_inference.NoShapeError as error:
            extraction_note = f"; they are JSON objects, but no recipe can say their schema: {error}"
        else:
            reason = f"{answers.object_rows:,} of {answers.rows:,} answers are JSON objects of one shape"
            return InferredTask(
                "extraction",
                reason,
                json_schema=schema,
                omits_absent=schema_inference.omits_absent_fields(answers.shape),
            )
    if answers.list_rows >= MIN_FITTING_FRACTION * answers.rows and 2 <= len(answers.list_labels) <= MAX_LABELS:
        n_labels = len(answers.list_labels)
        reason = f"{answers.list_rows:,} of {answers.rows:,} answers are JSON arrays of {n_labels} labels"
        return InferredTask("classification", reason, n_labels=n_labels, has_label_sets=True)
    return _infer_classification(answers) or InferredTask(
        "generation", _explain_generation(answers) + extraction_note + _explain_json(answers)
    )


def _explain_generation(answers: AnswerStatistics) -> str:
    """Return why the answers are texts: what they have of labels, and what labels need."""
    short_rows, n_short = answers.short_answers.total(), len(answers.short_answers)
    if answers.too_many or short_rows < MIN_FITTING_FRACTION * answers.rows or 2 * n_short > answers.rows:
        return f"{answers.rows:,} answers are texts of their own"
    return (
        f"{answers.rows:,} answers are {n_short:,} different short texts, which are no labels: a label needs "
        f"{_min_rows_per_label(answers)} rows, and {MIN_FITTING_FRACTION:.0%} of the answers must be labels"
    )


def _explain_json(answers: AnswerStatistics) -> str:
    """Return what the JSON answers of a file lack that is no extraction; "" if there are few."""
    if answers.fenced_rows >= 0.5 * answers.rows:
        return (
            f"; {answers.fenced_rows:,} are JSON in a code fence: without the fences they would be records, but the "
            "model answers with them"
        )
    if 0.5 * answers.rows <= answers.object_rows < MIN_FITTING_FRACTION * answers.rows:
        return (
            f"; {answers.object_rows:,} are JSON objects, and for extraction {MIN_FITTING_FRACTION:.0%} must be: "
            "remove or correct the others"
        )
    return ""


def _min_rows_per_label(answers: AnswerStatistics) -> int:
    """Return the minimum number of rows of a label."""
    return MIN_ROWS_PER_LABEL if answers.rows >= SMALL_FILE_ROWS else MIN_ROWS_PER_LABEL_OF_SMALL_FILE


def _infer_classification(answers: AnswerStatistics) -> InferredTask | None:
    """Return a classification task if enough of the answers are labels, else None."""
    min_rows = _min_rows_per_label(answers)
    frequent = Counter({key: rows for key, rows in answers.short_answers.items() if rows >= min_rows})
    if len(answers.short_answers) == 1 and answers.short_answers.total() == answers.rows:
        (label,) = map(answers.most_frequent_spelling, answers.short_answers)
        raise RecipeError(
            f"all {answers.rows:,} answers are {label!r}; at least two different answers are needed", code="INS-D025"
        )
    # Answers that occur once are labels of a small file or free texts; with more rows the distinction is clearer.
    if len(frequent) < 2 or frequent.total() < MIN_FITTING_FRACTION * answers.rows or len(frequent) > MAX_LABELS:
        return None
    rare = len(answers.short_answers) - len(frequent)
    reason = f"{frequent.total():,} of {answers.rows:,} answers are one of {len(frequent)} short texts"
    if len(frequent) <= MAX_LABELS_IN_RECIPE:
        labels = tuple(clean_label(answers.most_frequent_spelling(key)) for key, _ in frequent.most_common())
        return InferredTask("classification", reason, labels, len(frequent), rare, min_rows)
    return InferredTask("classification", reason, (), len(frequent), rare, min_rows)
