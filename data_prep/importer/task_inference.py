"""What task the rows are, and why: by their answers alone.

few short answers that come again and again   classification
JSON arrays of such                           classification, several labels a row
JSON objects of one shape                     extraction, with the schema of that shape
two answers of which one is preferred         preference
anything else                                 generation
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.importer import schema_inference
from data_prep.importer.survey import Answers
from insource.config.errors import RecipeError
from insource.tasks.labels import clean_label

# So many of the answers must be JSON objects, or labels; the rest are rows that do not fit.
MOST = 0.9
LABELS_IN_RECIPE = 20
# A label needs rows to learn from and rows to be judged by; of small files fewer.
ROWS_A_LABEL, ROWS_A_LABEL_OF_FEW, FEW_ROWS = 10, 4, 500
MOST_LABELS = 1000

Kind = Literal["classification", "extraction", "generation", "preference"]


@dataclass(frozen=True)
class Task:
    """A task, and by what it was told."""

    kind: Kind
    why: str
    labels: tuple[str, ...] = ()
    """As the recipe lists them; () where they are found in the rows."""
    found_labels: int = 0
    rare: int = 0
    """Labels with too few rows to learn and to judge them."""
    least_rows: int = 0
    """Rows that a label needs."""
    many: bool = False
    """Whether a row has several labels."""
    json_schema: dict[str, Any] | None = None
    leaves_out: bool = False
    """extraction: whether answers leave out what a document does not give."""

    @property
    def variant(self) -> str:
        """Returns the name of the module of tasks/ that does it."""
        return "multilabel" if self.many else self.kind


def task_of(answers: Answers, preferences: int) -> Task:
    """Returns the task. Raises RecipeError where there is nothing to learn: all answers are the same."""
    if preferences:
        return Task("preference", f"{preferences:,} pairs of a preferred and another answer")
    why_not = ""
    if answers.objects >= MOST * answers.rows:
        try:
            made = schema_inference.of_record(answers.shape)
        except schema_inference.NoShapeError as error:
            why_not = f"; they are JSON objects, but no recipe can say their schema: {error}"
        else:
            told = f"{answers.objects:,} of {answers.rows:,} answers are JSON objects of one shape"
            return Task("extraction", told, json_schema=made, leaves_out=schema_inference.leaves_out(answers.shape))
    if answers.lists >= MOST * answers.rows and 2 <= len(answers.listed) <= MOST_LABELS:
        told = f"{answers.lists:,} of {answers.rows:,} answers are JSON arrays of {len(answers.listed)} labels"
        return Task("classification", told, found_labels=len(answers.listed), many=True)
    return _of_texts(answers) or Task("generation", f"{answers.rows:,} answers are texts of their own{why_not}")


def _of_texts(answers: Answers) -> Task | None:
    """A classification, if so many of the answers are labels."""
    least = ROWS_A_LABEL if answers.rows >= FEW_ROWS else ROWS_A_LABEL_OF_FEW
    frequent = Counter({key: rows for key, rows in answers.short.items() if rows >= least})
    if len(answers.short) == 1 and answers.short.total() == answers.rows:
        (label,) = answers.spelt.values()
        raise RecipeError(f"all {answers.rows:,} answers are {label!r}: there is nothing to learn from them")
    # Answers that come once are labels of a small file, or texts of their own: the more rows, the clearer.
    if len(frequent) < 2 or frequent.total() < MOST * answers.rows or len(frequent) > MOST_LABELS:
        return None
    rare = len(answers.short) - len(frequent)
    told = f"{frequent.total():,} of {answers.rows:,} answers are one of {len(frequent)} short texts"
    if len(frequent) <= LABELS_IN_RECIPE:
        labels = tuple(clean_label(answers.spelt[key]) for key, _ in frequent.most_common())
        return Task("classification", told, labels, len(frequent), rare, least)
    return Task("classification", told, (), len(frequent), rare, least)
