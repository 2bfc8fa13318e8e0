"""What the gateway notes of the answers that it gives: counts for Prometheus.

Nothing here waits or writes while a request is answered; what reads a disk runs in a thread.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploy.escalation import Escalation
from deploy.local import Judged
from deploy.metrics import NOBODY, Metrics, labels_of
from deploy.task import Task
from recipes.errors import StageError

if TYPE_CHECKING:
    from deploy.answering import Deployed, Outcome

LOCAL = "local"
"""The deployed version, as the one who answered."""


class Watch:
    """What is noted of answers."""

    def __init__(self) -> None:
        self.metrics = Metrics()

    def judged(self, task: Task, by: str, judged: Judged) -> None:
        """Notes an answer that was read by the task's schema, whether or not it is given."""
        self.metrics.checked(task.name, by, judged.parsed.problem)
        self.metrics.used(task.name, by, judged.answer.input_tokens, judged.answer.output_tokens)
        if by == LOCAL and judged.parsed.problem is None:
            self.metrics.said(task.name, judged.confidence, labels_of(judged.parsed.value, task.labels))

    def failed(self, task: Task, by: str, why: str) -> None:
        """Notes an API model that gave no valid answer."""
        self.metrics.checked(task.name, by, why)

    def answered(self, task: Task, outcome: "Outcome") -> None:
        """Notes what became of an input."""
        self.metrics.answered(task.name, outcome.answered_by, outcome.reason, outcome.degraded)

    def passed(self, task: Task, reason: str) -> None:
        """Notes a chat whose answer passes from vLLM to the client unread."""
        self.metrics.answered(task.name, LOCAL, reason)

    def refused(self, task: Task, status: int) -> None:
        """Notes an input that has an error for an answer."""
        self.metrics.answered(task.name, NOBODY, f"error_{status}")

    def exposition(self, tasks: "Mapping[str, Deployed]") -> bytes:
        """Returns the metrics as Prometheus reads them. For a thread: it reads what this month's calls did cost."""
        for name, one in tasks.items():
            if isinstance(one.escalation, Escalation) and (ledger := one.escalation.ledger):
                try:
                    self.metrics.spent(name, ledger.spent_usd(), ledger.limit_usd)
                except StageError:
                    continue  # the disk fails: what was read before stays, and the gateway says so where it spends
        return self.metrics.text()
