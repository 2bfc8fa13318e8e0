"""Distribution of the answers to calibration rows: `calibration` in routing.json, deployed with it.

{"rows": 403, "confidences": {"974": 12, "998": 201}, "answers": {"delivery_delay": 31, "refund_status": 27}}

Confidences are in thousandths. For tasks with labels it also counts each answer. Only valid answers count.
deploy/drift.py compares traffic with this profile: a threshold's guarantee assumes requests that are exchangeable with
these rows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compare.decision import routing_policy
from compare.eval_dataset import EvalDataset, cluster_ids
from compare.records import Scale, SystemResponses
from compare.scoring import confidence, predictions
from insource.tracking.scores.routing_result import AnswerCounts

ROUTING_KEY = "calibration"


@dataclass
class AnswerProfile:
    """Counts of answers by confidence and by content."""

    rows: int = 0
    """Rows with a valid answer."""
    confidences: Counter[int] = field(default_factory=Counter)
    """{thousandths: answers}, of those with a confidence."""
    answers: Counter[str] = field(default_factory=Counter)
    """{label or JSON array of labels: answers}; empty if a task has no labels."""

    def add(self, confidence: float | None, answer: str | None) -> None:
        """Add a valid answer. `answer` is its text if the task has labels, else None."""
        self.rows += 1
        if confidence is not None:
            self.confidences[round(1000 * confidence)] += 1
        if answer is not None:
            self.answers[answer] += 1

    def update(self, other: "AnswerProfile") -> None:
        """Add the counts of another profile."""
        self.rows += other.rows
        self.confidences.update(other.confidences)
        self.answers.update(other.answers)

    def summarize(self) -> AnswerCounts:
        """Return the record of routing.json."""
        confidences = {str(bucket): self.confidences[bucket] for bucket in sorted(self.confidences)}
        return AnswerCounts(rows=self.rows, confidences=confidences, answers=dict(sorted(self.answers.items())))

    def json(self) -> dict[str, Any]:
        """Return the profile as routing.json contains it."""
        return self.summarize().to_json()


def profile_from_json(payload: Mapping[str, Any]) -> AnswerProfile:
    """Return the profile of a file. Raise KeyError, TypeError or ValueError if it is not valid."""
    confidences = Counter({int(bucket): int(n) for bucket, n in payload["confidences"].items()})
    return AnswerProfile(
        int(payload["rows"]), confidences, Counter({str(answer): int(n) for answer, n in payload["answers"].items()})
    )


def build_profile(responses: SystemResponses, dataset: EvalDataset, tuned_scale: Scale | None) -> AnswerProfile:
    """Return the profile of a system's answers to the calibration rows.

    One row per group counts, as in the test of a threshold.
    """
    profile = AnswerProfile()
    if not responses.calibration_answers:
        return profile
    parsed = [predictions.parse_answer(dataset, answer) for answer in responses.calibration_answers]
    confidences = confidence.compute_confidences(responses, tuned_scale, responses.calibration_answers)
    counted = set(
        routing_policy.pick_one_per_group([row["id"] for row in dataset.calibration], cluster_ids(dataset.calibration))
    )
    for index, (answer, certainty) in enumerate(zip(parsed, confidences, strict=True)):
        if index in counted and answer.problem is None:
            has_labels = dataset.task.HAS_LABELS
            profile.add(certainty, str(dataset.task.answer_text(dataset.spec, answer.value)) if has_labels else None)
    return profile
