"""An input of a task to its answer: prepared, answered by the deployed version, and where that is not sure enough, by
the API model of the recipe, unless something keeps the input on this machine.

    reason                      answered by
    confident                   the deployed version, at or above the threshold of routing.json
    below_threshold             the API model
    own_answer_invalid          the API model: the deployed version's answer does not fit the schema
    private, personal_data      the deployed version: the request says so, or personal data is found in the input
    data_may_not_leave,         the deployed version: the recipe says so, names no API model, has no money for it, or
    no_api_model, no_budget,    there is no threshold that keeps the recipe's target
    no_threshold
    before_switch               the API model, with route.mirror, which has the deployed version asked aside
    api_failed, over_budget,    the deployed version, though it is not sure (degraded: true), where the recipe says
    api_answer_invalid          route.when_api_fails: local
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.answers import local_model, personal_data
from deploy.answers.answer_ids import AnswerIds, AnswerRecord
from deploy.answers.escalation import OVER_BUDGET, REFUSED, Escalation, NoEscalation
from deploy.answers.local_model import LOCAL, EngineConnection, ScoredAnswer
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from deploy.monitoring.monitor import Monitor
from insource.system.daemon_thread import run_in_thread
from insource.tasks.pii.inputs import Input

CONFIDENT, BEFORE_SWITCH = "confident", "before_switch"
"""The reasons for answers that the threshold keeps, and for those of the API model while route.mirror is set."""
THREAD_MIN_CHARACTERS = 2048
"""Longer inputs are prepared in a thread, so that others do not wait."""


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


async def prepare_input(deployed: Deployment, raw: str, private: bool, watch: Monitor) -> PreparedInput:
    """Returns an input as it is asked. Raises RefusedError where preparation would reject it."""
    if len(raw) > THREAD_MIN_CHARACTERS:
        found = await run_in_thread(_prepare, deployed, raw, private)
    else:
        found = _prepare(deployed, raw, private)
    return replace(found, recorded=watch.traffic.chosen(deployed.task, private))


def _prepare(deployed: Deployment, raw: str, private: bool) -> PreparedInput:
    task = deployed.task
    given = task.prepared(raw)
    if private:
        return PreparedInput(given, "private")
    if isinstance(deployed.escalation, NoEscalation):
        return PreparedInput(given, deployed.escalation.reason)
    found = task.recipe.route.personal_data == "local" and personal_data.find_kinds(raw)
    return PreparedInput(given, "personal_data" if found else None)


async def answer_input(
    engine: EngineConnection, deployed: Deployment, asked: PreparedInput, most_tokens: int | None, watch: Monitor
) -> Outcome:
    """Returns the valid answer to an input. Raises RefusedError where there is none. Either is noted by `watch`."""
    try:
        outcome = await _answer(engine, deployed, asked, most_tokens, watch)
    except RequestError as error:
        watch.refused(deployed.task, error.status)
        raise
    task, mirrored = deployed.task, outcome.reason == BEFORE_SWITCH and watch.mirror.chosen(deployed.task)
    told = AnswerRecord(
        task.deployment,
        deployed.ids.digest(task.identity(outcome.value)),
        local=outcome.answered_by == LOCAL,
        kept=outcome.reason == CONFIDENT,
        mirrored=mirrored,
        recorded=asked.recorded,
        confidence=outcome.local_confidence,
    )
    sealed, name = deployed.ids.seal(told)
    watch.answered(task, outcome)
    if asked.recorded:
        watch.record(deployed, asked.given, outcome, name)
    if mirrored:
        watch.mirror.start(engine, deployed, asked.given, name, told.digest, most_tokens)
    return replace(outcome, id=sealed)


async def _answer(
    engine: EngineConnection, deployed: Deployment, asked: PreparedInput, most_tokens: int | None, watch: Monitor
) -> Outcome:
    task, escalation = deployed.task, deployed.escalation
    if task.recipe.route.mirror and not asked.kept and isinstance(escalation, Escalation):
        return await _answer_before_switch(engine, task, escalation, asked, most_tokens, watch)
    own = await local_model.query_model(engine, task, asked.given, most_tokens)
    watch.judged(task, LOCAL, own, sample=not task.recipe.route.mirror)
    valid, threshold = own.parsed.problem is None, task.routing.threshold
    if asked.kept or isinstance(escalation, NoEscalation) or threshold is None:
        return _local_outcome(task, asked, own, asked.kept or "no_threshold")
    if valid and own.confidence is not None and own.confidence >= threshold:
        return _local_outcome(task, asked, own, CONFIDENT)
    theirs = await _query_api(task, escalation, asked, watch)
    if isinstance(theirs, ScoredAnswer):
        reason = "below_threshold" if valid else "own_answer_invalid"
        return _build_outcome(task, asked, theirs, own, escalation.name, reason)
    if task.recipe.route.when_api_fails == "error":
        raise _build_api_error(escalation, theirs, "the deployed model is not sure enough")
    return _local_outcome(task, asked, own, theirs, degraded=True)


async def _answer_before_switch(
    engine: EngineConnection,
    task: Task,
    escalation: Escalation,
    asked: PreparedInput,
    most_tokens: int | None,
    watch: Monitor,
) -> Outcome:
    """The API model's answer, whatever the deployed model would say; that is asked where the API model fails."""
    theirs = await _query_api(task, escalation, asked, watch)
    if isinstance(theirs, ScoredAnswer):
        return _build_outcome(task, asked, theirs, None, escalation.name, BEFORE_SWITCH)
    if task.recipe.route.when_api_fails == "error":
        raise _build_api_error(escalation, theirs, "the switch has not come (route.mirror)")
    own = await local_model.query_model(engine, task, asked.given, most_tokens)
    watch.judged(task, LOCAL, own, sample=False)
    return _local_outcome(task, asked, own, theirs, degraded=True)


async def _query_api(task: Task, escalation: Escalation, asked: PreparedInput, watch: Monitor) -> ScoredAnswer | str:
    theirs = await escalation.ask(asked.given)
    if isinstance(theirs, ScoredAnswer):
        watch.judged(task, escalation.name, theirs)
    else:
        watch.failed(task, escalation.name, theirs)
    return theirs


def _build_api_error(escalation: Escalation, theirs: str, why_asked: str) -> RequestError:
    """What is told where nothing but the API model may answer and it does not, `theirs` saying why."""
    whys = {
        OVER_BUDGET: "this month's route.usd_per_month is used up",
        REFUSED: f"{escalation.name} refuses this input",
    }
    why = whys.get(theirs, f"{escalation.name} does not answer")
    told = f"{why_asked}, and {why} ({theirs}; route.when_api_fails: error)"
    if theirs == OVER_BUDGET:
        return RequestError(429, "rate_limit_error", told, retry_seconds=3600)
    return RequestError(503, "overloaded_error", told, retry_seconds=10)


def _local_outcome(task: Task, asked: PreparedInput, own: ScoredAnswer, reason: str, degraded: bool = False) -> Outcome:
    """The deployed version's answer. Raises RefusedError where it does not fit the task's schema."""
    if own.parsed.problem is not None:
        told = f"the model's answer does not fit the task's schema: {own.parsed.problem}"
        raise RequestError(422, "invalid_answer_error", told)
    return _build_outcome(task, asked, own, own, LOCAL, reason, degraded)


def _build_outcome(
    task: Task,
    asked: PreparedInput,
    taken: ScoredAnswer,
    own: ScoredAnswer | None,
    by: str,
    reason: str,
    degraded: bool = False,
) -> Outcome:
    given, counted = asked.given, (own or taken).answer
    return Outcome(
        value=taken.parsed.value,
        text=task.text(taken.parsed.value),
        confidence=taken.confidence,
        local_confidence=own.confidence if own else None,
        answered_by=by,
        reason=reason,
        degraded=degraded,
        redacted=tuple(sorted(given.found & set(task.recipe.privacy.redact))),
        usage=(counted.input_tokens or 0, counted.output_tokens or 0),
    )
