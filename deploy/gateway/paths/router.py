"""Answer one input of a task: by the deployed version, or by the API model if the confidence is too low.

reason                      answered by
confident                   the deployed version, with a confidence at or above the threshold of routing.json
below_threshold             the API model
own_answer_invalid          the API model: the deployed version's answer does not fit the schema
private, personal_data      the deployed version: the request sets private, or the input has personal data
data_may_not_leave,         the deployed version: the recipe forbids API calls, names no API model or sets no
no_api_model, no_budget,    budget, or there is no threshold for the recipe's target
no_threshold
before_switch               the API model, with route.mirror; the deployed version answers off the client's path
api_failed, over_budget,    the deployed version despite a low confidence (degraded: true), if the recipe has
api_answer_invalid          route.when_api_fails: local
"""

from dataclasses import replace

from deploy.answers import local_model, personal_data
from deploy.answers.answer_ids import AnswerRecord
from deploy.answers.escalation import OVER_BUDGET, REFUSED, Escalation, NoEscalation
from deploy.answers.local_model import LOCAL, EngineConnection, ScoredAnswer
from deploy.answers.outcome import Deployment, Outcome, PreparedInput
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from deploy.monitoring.metrics import NOBODY
from deploy.monitoring.monitor import Monitor
from insource.system.daemon_thread import run_in_thread

CONFIDENT, BEFORE_SWITCH = "confident", "before_switch"
"""Reasons of answers that the threshold keeps, and of those of the API model while route.mirror is set."""
THREAD_MIN_CHARACTERS = 2048
"""Longer inputs are prepared in a thread, so that other requests do not wait."""


async def prepare_input(deployment: Deployment, raw_text: str, private: bool, monitor: Monitor) -> PreparedInput:
    """Return a cleaned input with its routing. Raise RequestError if data preparation would reject it."""
    if len(raw_text) > THREAD_MIN_CHARACTERS:
        prepared = await run_in_thread(_prepare, deployment, raw_text, private)
    else:
        prepared = _prepare(deployment, raw_text, private)
    return replace(prepared, recorded=monitor.traffic.sample(deployment.task, private))


def _prepare(deployment: Deployment, raw_text: str, private: bool) -> PreparedInput:
    task = deployment.task
    task_input = task.prepare(raw_text)
    if private:
        return PreparedInput(task_input, "private")
    if isinstance(deployment.escalation, NoEscalation):
        return PreparedInput(task_input, deployment.escalation.reason)
    has_personal_data = task.recipe.route.personal_data == "local" and personal_data.find_kinds(raw_text)
    return PreparedInput(task_input, "personal_data" if has_personal_data else None)


async def answer_input(
    engine: EngineConnection, deployment: Deployment, prepared: PreparedInput, max_tokens: int | None, monitor: Monitor
) -> Outcome:
    """Return the valid answer to an input, and record it in `monitor`. Raise RequestError if there is none."""
    try:
        outcome = await _answer(engine, deployment, prepared, max_tokens, monitor)
    except RequestError as error:
        monitor.metrics.count_answer(deployment.task.name, NOBODY, f"error_{error.status}")
        raise
    task, mirrored = deployment.task, outcome.reason == BEFORE_SWITCH and monitor.mirror.sample(deployment.task)
    record = AnswerRecord(
        task.deployment_id,
        deployment.ids.digest(task.equality_key(outcome.value)),
        local=outcome.answered_by == LOCAL,
        kept=outcome.reason == CONFIDENT,
        mirrored=mirrored,
        recorded=prepared.recorded,
        confidence=outcome.local_confidence,
    )
    answer_id, name = deployment.ids.seal(record)
    monitor.record_outcome(task, outcome)
    if prepared.recorded:
        monitor.record_traffic(deployment, prepared.task_input, outcome, name)
    if mirrored:
        monitor.mirror.start(engine, deployment, prepared.task_input, name, record.digest, max_tokens)
    return replace(outcome, id=answer_id)


async def _answer(
    engine: EngineConnection, deployment: Deployment, prepared: PreparedInput, max_tokens: int | None, monitor: Monitor
) -> Outcome:
    task, escalation = deployment.task, deployment.escalation
    if task.recipe.route.mirror and not prepared.local_reason and isinstance(escalation, Escalation):
        return await _answer_before_switch(engine, task, escalation, prepared, max_tokens, monitor)
    local_answer = await local_model.query_model(engine, task, prepared.task_input, max_tokens)
    monitor.record_parsed(task, LOCAL, local_answer, sample=not task.recipe.route.mirror)
    is_valid, threshold = local_answer.parsed.problem is None, task.routing.threshold
    if prepared.local_reason or isinstance(escalation, NoEscalation) or threshold is None:
        return _local_outcome(task, prepared, local_answer, prepared.local_reason or "no_threshold")
    if is_valid and local_answer.confidence is not None and local_answer.confidence >= threshold:
        return _local_outcome(task, prepared, local_answer, CONFIDENT)
    api_result = await _query_api(task, escalation, prepared, monitor)
    if isinstance(api_result, ScoredAnswer):
        reason = "below_threshold" if is_valid else "own_answer_invalid"
        return _build_outcome(task, prepared, api_result, local_answer, escalation.name, reason)
    if task.recipe.route.when_api_fails == "error":
        raise _build_api_error(escalation, api_result, "the deployed model is not sure enough")
    return _local_outcome(task, prepared, local_answer, api_result, degraded=True)


async def _answer_before_switch(
    engine: EngineConnection,
    task: Task,
    escalation: Escalation,
    prepared: PreparedInput,
    max_tokens: int | None,
    monitor: Monitor,
) -> Outcome:
    """Return the API model's answer, or if it fails the deployed version's."""
    api_result = await _query_api(task, escalation, prepared, monitor)
    if isinstance(api_result, ScoredAnswer):
        return _build_outcome(task, prepared, api_result, None, escalation.name, BEFORE_SWITCH)
    if task.recipe.route.when_api_fails == "error":
        raise _build_api_error(escalation, api_result, "the switch has not come (route.mirror)")
    local_answer = await local_model.query_model(engine, task, prepared.task_input, max_tokens)
    monitor.record_parsed(task, LOCAL, local_answer, sample=False)
    return _local_outcome(task, prepared, local_answer, api_result, degraded=True)


async def _query_api(
    task: Task, escalation: Escalation, prepared: PreparedInput, monitor: Monitor
) -> ScoredAnswer | str:
    api_result = await escalation.query(prepared.task_input)
    if isinstance(api_result, ScoredAnswer):
        monitor.record_parsed(task, escalation.name, api_result)
    else:
        monitor.metrics.count_checked_answer(task.name, escalation.name, api_result)
    return api_result


def _build_api_error(escalation: Escalation, failure: str, context: str) -> RequestError:
    """Return the error for an input that only the API model may answer. `failure` is why it did not."""
    reasons = {
        OVER_BUDGET: "this month's route.usd_per_month is used up",
        REFUSED: f"{escalation.name} refuses this input",
    }
    reason = reasons.get(failure, f"{escalation.name} does not answer")
    message = f"{context}, and {reason} ({failure}; route.when_api_fails: error)"
    if failure == OVER_BUDGET:
        return RequestError(429, "rate_limit_error", message, retry_seconds=3600)
    return RequestError(503, "overloaded_error", message, retry_seconds=10)


def _local_outcome(
    task: Task, prepared: PreparedInput, local_answer: ScoredAnswer, reason: str, degraded: bool = False
) -> Outcome:
    """Return the deployed version's answer. Raise RequestError if it does not fit the task's schema."""
    if local_answer.parsed.problem is not None:
        message = f"the model's answer does not fit the task's schema: {local_answer.parsed.problem}"
        raise RequestError(422, "invalid_answer_error", message)
    return _build_outcome(task, prepared, local_answer, local_answer, LOCAL, reason, degraded)


def _build_outcome(
    task: Task,
    prepared: PreparedInput,
    sent_answer: ScoredAnswer,
    local_answer: ScoredAnswer | None,
    answered_by: str,
    reason: str,
    degraded: bool = False,
) -> Outcome:
    """Return the outcome with the answer for the client. `local_answer` is the deployed version's, if it answered."""
    task_input, usage_answer = prepared.task_input, (local_answer or sent_answer).answer
    return Outcome(
        value=sent_answer.parsed.value,
        text=task.answer_text(sent_answer.parsed.value),
        confidence=sent_answer.confidence,
        local_confidence=local_answer.confidence if local_answer else None,
        answered_by=answered_by,
        reason=reason,
        degraded=degraded,
        redacted=tuple(sorted(task_input.pii_kinds & set(task.recipe.privacy.redact))),
        usage=(usage_answer.input_tokens or 0, usage_answer.output_tokens or 0),
    )
