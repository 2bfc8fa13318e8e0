"""Record the gateway's answers: metrics for Prometheus, profiles for `make drift`, the traffic record.

Recording neither waits nor writes while a request is answered. Disk reads run in a thread.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from deploy.answers.escalation import Escalation
from deploy.answers.local_model import LOCAL, ScoredAnswer
from deploy.answers.outcome import Deployment, Outcome
from deploy.answers.task import Task
from deploy.monitoring.metrics import Metrics, filter_labels
from deploy.monitoring.mirror import Mirror
from deploy.monitoring.traffic_profiles import TrafficProfiles
from deploy.monitoring.traffic_record import RecordedAnswer, TrafficRecord
from insource.config.errors import StageError
from insource.stats import drift
from insource.system.console_log import log_line
from insource.system.timestamps import utc_timestamp
from insource.tasks.pii.inputs import CleanedInput

WRITE_INTERVAL_SECONDS = 0.5


class Monitor:
    """All records of one gateway."""

    def __init__(self, registry: Path | None = None) -> None:
        """`registry` is the folder for profiles, None to write none."""
        self.metrics = Metrics()
        self.profiles = TrafficProfiles(registry)
        self.traffic = TrafficRecord()
        self.mirror = Mirror(self.metrics, self.record_parsed)
        self._stopped, self._write_lock, self._failure_logged = asyncio.Event(), asyncio.Lock(), False

    def record_parsed(self, task: Task, answered_by: str, scored: ScoredAnswer, sample: bool = True) -> None:
        """Record an answer that was parsed by the task's schema, whether or not the client gets it.

        `sample` is whether it counts for `make drift`. With route.mirror the mirrored inputs are that sample. Other
        answers of the deployed model would bias it; those it gives locally count as unread.
        """
        self.metrics.count_checked_answer(task.name, answered_by, scored.parsed.problem)
        self.metrics.count_tokens(task.name, answered_by, scored.answer.input_tokens, scored.answer.output_tokens)
        if answered_by == LOCAL and scored.parsed.problem is None:
            value = scored.parsed.value
            self.metrics.count_prediction(task.name, scored.confidence, filter_labels(value, task.labels))
            # The comparison has no retries, so calibration rows have no such answers.
            if sample and not scored.is_retry:
                answer = task.answer_text(value) if task.labels else None
                self.profiles.profile_today(task).add(scored.confidence, answer, len(task.labels or ()))

    def record_outcome(self, task: Task, outcome: Outcome) -> None:
        """Record the outcome of an input."""
        self.metrics.count_answer(task.name, outcome.answered_by, outcome.reason, outcome.degraded)
        profile = self.profiles.profile_today(task)
        profile.reasons[outcome.route] += 1
        if task.recipe.route.mirror and outcome.answered_by == LOCAL and not outcome.degraded:
            profile.unread += 1

    def record_forwarded(self, task: Task, reason: str) -> None:
        """Record a chat whose answer is forwarded from vLLM to the client unread."""
        self.metrics.count_answer(task.name, LOCAL, reason)
        profile = self.profiles.profile_today(task)
        profile.reasons[f"{LOCAL}/{reason}"] += 1
        profile.unread += 1

    def record_traffic(self, deployment: Deployment, task_input: CleanedInput, outcome: Outcome, name: str) -> None:
        """Queue an answered input for the traffic record. `name` is that of the answer id."""
        self.traffic.add(RecordedAnswer(deployment, outcome, name, task_input.text, utc_timestamp()))

    async def run(self) -> None:
        """Write due records periodically until `close` is called."""
        while not self._stopped.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(WRITE_INTERVAL_SECONDS):
                    await self._stopped.wait()
            await self.write()

    async def write(self, write_all: bool = False) -> None:
        """Write due records, or all with `write_all`, after a write in progress.

        A failure is logged once and retried at the next write.
        """
        async with self._write_lock:
            for action in (self.traffic.write, partial(self.profiles.write, write_all)):
                try:
                    await action()
                except Exception as error:  # noqa: BLE001 (whatever it is, requests are answered and the rest is written)
                    if not self._failure_logged:
                        log_line(f"watch     not written: {type(error).__name__}: {error}")
                    self._failure_logged = True

    async def close(self) -> None:
        """Cancel mirrored inputs, stop `run`, and write all remaining records."""
        await self.mirror.close()
        self._stopped.set()
        await self.write(write_all=True)

    def update_drift(self, tasks: Mapping[str, Deployment]) -> None:
        """Set the drift metrics from the answers that this process saw today.

        A task without a calibration profile, or with too few answers today, gets no value.
        """
        distances: dict[tuple[str, str, str], float] = {}
        for name, deployment in tasks.items():
            calibration, traffic = deployment.task.routing.profile, self.profiles.read_today(deployment.task)
            if calibration is None or traffic.unusable_reason:
                continue
            current, version = traffic.profile, deployment.task.version
            if calibration.confidences and current.confidences:
                distance = drift.ks_statistic(calibration.confidences, current.confidences)
                distances[name, version, "confidence"] = distance
            if calibration.answers and current.answers and not traffic.others:
                distances[name, version, "labels"] = drift.total_variation(calibration.answers, current.answers)
        self.metrics.set_drift(distances)

    def render_metrics(self, tasks: Mapping[str, Deployment]) -> bytes:
        """Return the metrics in Prometheus' text format.

        Call it in a thread: it reads the cost of this month's API calls from disk.
        """
        for name, deployment in tasks.items():
            if isinstance(deployment.escalation, Escalation) and (ledger := deployment.escalation.ledger):
                try:
                    self.metrics.set_spend(name, ledger.spent_usd(), ledger.limit_usd)
                except StageError:
                    continue  # the disk fails: keep the last value; the error is logged where money is reserved
        return self.metrics.render()
