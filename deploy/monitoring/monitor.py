"""What the gateway notes of the answers that it gives: counts for Prometheus, and what `make drift` looks at.

Nothing here waits or writes while a request is answered; what reads a disk runs in a thread.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.answers.answer_ids import AnswerRecord
from deploy.answers.escalation import Escalation
from deploy.answers.local_model import LOCAL, ScoredAnswer
from deploy.answers.task import Task
from deploy.monitoring import traffic_record
from deploy.monitoring.metrics import NOBODY, Metrics, filter_labels
from deploy.monitoring.mirror import Mirror
from deploy.monitoring.traffic_profiles import TrafficProfiles
from deploy.monitoring.traffic_record import TrafficRecord
from insource.config.errors import StageError
from insource.stats import drift
from insource.system.console_log import log_line
from insource.tasks.pii.inputs import Input
from insource.tracking.run import utc_timestamp

if TYPE_CHECKING:
    from deploy.gateway.paths.router import Deployment, Outcome

WRITE_INTERVAL_SECONDS = 0.5


class Monitor:
    """What is noted of answers."""

    def __init__(self, registry: Path | None = None) -> None:
        """`registry`: where what was observed is written, None: nowhere."""
        self.metrics = Metrics()
        self.observed = TrafficProfiles(registry)
        self.traffic = TrafficRecord()
        self.mirror = Mirror(self.metrics, self.judged)
        self._ended, self._writing, self._told = asyncio.Event(), asyncio.Lock(), False

    def judged(self, task: Task, by: str, judged: ScoredAnswer, sample: bool = True) -> None:
        """Notes an answer that was read by the task's schema, whether or not it is given.

        `sample`: whether `make drift` looks at it. While a share is mirrored, that is the sample, and other answers of
        the deployed model would bias it; what stays here then is counted as unread.
        """
        self.metrics.checked(task.name, by, judged.parsed.problem)
        self.metrics.used(task.name, by, judged.answer.input_tokens, judged.answer.output_tokens)
        if by == LOCAL and judged.parsed.problem is None:
            value = judged.parsed.value
            self.metrics.said(task.name, judged.confidence, filter_labels(value, task.labels))
            if sample and not judged.again:  # the comparison asks once: calibration rows have no second answers
                answer = task.text(value) if task.labels else None
                self.observed.of(task).add(judged.confidence, answer, len(task.labels or ()))

    def failed(self, task: Task, by: str, why: str) -> None:
        """Notes an API model that gave no valid answer."""
        self.metrics.checked(task.name, by, why)

    def answered(self, task: Task, outcome: "Outcome") -> None:
        """Notes what became of an input."""
        self.metrics.answered(task.name, outcome.answered_by, outcome.reason, outcome.degraded)
        seen = self.observed.of(task)
        seen.reasons[outcome.label] += 1
        if task.recipe.route.mirror and outcome.answered_by == LOCAL and not outcome.degraded:
            seen.unread += 1

    def passed(self, task: Task, reason: str) -> None:
        """Notes a chat whose answer passes from vLLM to the client unread."""
        self.metrics.answered(task.name, LOCAL, reason)
        seen = self.observed.of(task)
        seen.reasons[f"{LOCAL}/{reason}"] += 1
        seen.unread += 1

    def refused(self, task: Task, status: int) -> None:
        """Notes an input that has an error for an answer."""
        self.metrics.answered(task.name, NOBODY, f"error_{status}")

    def record(self, deployed: "Deployment", given: Input, outcome: "Outcome", name: str) -> None:
        """Has an answered input written into the record of traffic. `name`: of the answer's id."""
        one = traffic_record.RecordedAnswer(
            deployed.task,
            deployed.place,
            name,
            given.text,
            outcome.value,
            outcome.answered_by,
            outcome.reason,
            outcome.confidence,
            utc_timestamp(),
        )
        self.traffic.add(one)

    async def run(self) -> None:
        """Writes what is due until `close` is called."""
        while not self._ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), WRITE_INTERVAL_SECONDS)
            await self.write()

    async def write(self, at_once: bool = False) -> None:
        """Writes what is due, or `at_once` all that there is, behind what is being written. What fails is said once and
        tried again the next time."""
        async with self._writing:
            for what in (self.traffic.write, partial(self.observed.write, at_once)):
                try:
                    await what()
                except Exception as error:  # noqa: BLE001 (whatever it is, requests are answered and the rest is written)
                    if not self._told:
                        log_line(f"watch     not written: {type(error).__name__}: {error}")
                    self._told = True

    async def close(self) -> None:
        """Ends what is asked aside and `run`, and writes what is not written yet."""
        await self.mirror.close()
        self._ended.set()
        await self.write(at_once=True)

    def fed_back(self, task: Task, answered: AnswerRecord, right: bool) -> None:
        """Notes a right answer that came later."""
        self.metrics.fed_back(task.name, LOCAL if answered.local else "api", right)

    def drifted(self, tasks: "Mapping[str, Deployment]") -> None:
        """Sets how far the answers that this process saw today are from those to the calibration rows, where there are
        enough of them to say so."""
        found: dict[tuple[str, str, str], float] = {}
        for name, one in tasks.items():
            before, seen = one.task.routing.profile, self.observed.today(one.task)
            if before is None or seen.untold:
                continue
            now, version = seen.profile, one.task.version
            if before.confidences and now.confidences:
                found[name, version, "confidence"] = drift.ks_statistic(before.confidences, now.confidences)
            if before.answers and now.answers and not seen.others:
                found[name, version, "labels"] = drift.total_variation(before.answers, now.answers)
        self.metrics.drifted(found)

    def exposition(self, tasks: "Mapping[str, Deployment]") -> bytes:
        """Returns the metrics as Prometheus reads them. For a thread: it reads what this month's calls did cost."""
        for name, one in tasks.items():
            if isinstance(one.escalation, Escalation) and (ledger := one.escalation.ledger):
                try:
                    self.metrics.spent(name, ledger.spent_usd(), ledger.limit_usd)
                except StageError:
                    continue  # the disk fails: what was read before stays, and the gateway says so where it spends
        return self.metrics.text()
