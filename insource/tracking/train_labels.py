"""Whose labels the train rows of a run have: those of the data, and those of a teacher (data.teacher).

data.json      "teacher": {"name": "openai:gpt-6-luna:decisions", "written": 210, "has_probabilities": true, ...}
header, card   210 of the 1,620 train labels are those of openai:gpt-6-luna:decisions, learnt as probabilities
"""

from dataclasses import dataclass
from pathlib import Path

from insource.config.recipe import Recipe
from insource.tracking.data_report import DataReport


@dataclass(frozen=True)
class TeacherShare:
    """The train labels of a teacher in prepared data."""

    name: str
    """Provider, model and API."""
    rows: int
    """Train rows with its labels."""
    train_rows: int
    """All train rows."""
    stand_in: bool
    """Whether a server on this machine stood in for the provider."""
    soft_labels: bool
    """Whether training uses its probabilities."""

    def sentence(self) -> str:
        """Return the sentence on these labels for header and model card."""
        stand_in = " (a stand-in on this machine)" if self.stand_in else ""
        labels_note = ", learnt as probabilities" if self.soft_labels else ""
        return f"{self.rows:,} of the {self.train_rows:,} train labels are those of {self.name}{stand_in}{labels_note}"


def read_teacher_share(recipe: Recipe, data: Path) -> TeacherShare | None:
    """Return the train labels of the recipe's teacher by data.json in `data`, None without a teacher."""
    if recipe.data.teacher is None:
        return None
    report = DataReport.read(data)
    teacher = report.teacher
    assert teacher is not None, "data.json of a recipe with data.teacher has a teacher"
    return TeacherShare(
        name=teacher.name,
        rows=teacher.written,
        train_rows=report.rows.written["train"],
        stand_in=teacher.stand_in,
        soft_labels=recipe.train.soft_labels and teacher.has_probabilities,
    )
