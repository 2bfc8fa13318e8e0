"""Records of one answered input: the deployment, the prepared input, the outcome."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.answers.answer_ids import AnswerIds
from deploy.answers.escalation import Escalation, NoEscalation
from deploy.answers.task import Task
from insource.tasks.pii.inputs import Input

VERSION_HEADER = "X-Insource-Version"
"""Response header with the version of the deployed model."""


@dataclass(frozen=True)
class Deployment:
    """A deployed version of a task, and what answers beside it."""

    task: Task
    escalation: Escalation | NoEscalation
    place: Path
    """registry/<name>, where feedback and what was observed are kept."""
    ids: AnswerIds = field(default_factory=AnswerIds)
    deployed_at: int = 0
    """When it became current, in nanoseconds since 1970."""


@dataclass(frozen=True)
class PreparedInput:
    """An input as it is asked, and why it stays on this machine."""

    given: Input
    kept: str | None
    """A reason, None where it may be escalated."""
    recorded: bool = False
    """Whether it is to stand in the record of traffic."""


@dataclass(frozen=True)
class Outcome:
    """What became of an input."""

    value: Any
    """The label, the labels, the record, the text: as the task's schema has it."""
    text: str
    confidence: float | None
    local_confidence: float | None
    """Of the deployed version's answer, whoever answered."""
    answered_by: str
    reason: str
    degraded: bool = False
    redacted: tuple[str, ...] = ()
    """Kinds of personal data that were replaced in the input."""
    usage: tuple[int, int] = field(default=(0, 0))
    """Tokens that the deployed version read and wrote, or the API model where it alone was asked."""
    id: str = ""
    """By which feedback finds it (deploy/answers/answer_ids.py)."""

    @property
    def label(self) -> str:
        """Returns who answered and why, as the access log counts it."""
        return f"{self.answered_by}/{self.reason}"

    def json(self) -> dict[str, Any]:
        """Returns what an answer says of it."""
        return {
            "id": self.id,
            "answer": self.value,
            "confidence": self.confidence,
            "local_confidence": self.local_confidence,
            "answered_by": self.answered_by,
            "reason": self.reason,
            "degraded": self.degraded,
            "redacted": list(self.redacted),
        }
