"""POST /v1/feedback: right answers for earlier answers.

{"id": "AWrk3Xq0...", "answer": "refund_status"}   -> {"recorded": 1, "right": false}
{"feedback": [{"id": ..., "answer": ...}, ...]}    -> {"recorded": 2, "results": [{"right": true}, {"error": {...}}]}

`id` is an answer id (deploy/answers/answer_ids.py). `answer` has the format of the task's answers. Feedback is stored
by deploy/monitoring/feedback_record.py.
"""

import json
from collections.abc import Mapping
from typing import Any

from deploy.answers.local_model import LOCAL
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.answers.task import Task
from deploy.gateway.paths import json_body
from deploy.monitoring.feedback_record import Feedback, write_feedback
from deploy.monitoring.monitor import Monitor
from insource.config.errors import StageError
from insource.system.daemon_thread import run_in_thread
from insource.tasks.task_kind import DecodedTaskKind

PATH = "/v1/feedback"
MAX_ITEMS = 256
KEYS = ("id", "answer")


async def record_feedback(body: bytes, tasks: Mapping[str, Deployment], monitor: Monitor) -> dict[str, Any]:
    """Record the feedback of a request and return the JSON answer.

    Raise RequestError if the request, or its only item, is invalid.
    """
    payload = await json_body.read_object(body)
    is_batch = "feedback" in payload
    items = payload["feedback"] if is_batch else [payload]
    if is_batch and (len(payload) > 1 or not isinstance(items, list) or not items):
        raise invalid_request("a request has an id and an answer, or feedback: a list of them")
    if len(items) > MAX_ITEMS:
        raise RequestError(413, "request_too_large", f"{len(items):,} pieces of feedback were sent, {MAX_ITEMS} may be")
    results = [_parse_item(item, tasks) for item in items]
    if not is_batch and isinstance(results[0], RequestError):
        raise results[0]
    accepted = [result for result in results if isinstance(result, Feedback)]
    try:
        await run_in_thread(write_feedback, accepted)
    except StageError as error:
        raise RequestError(503, "overloaded_error", str(error), retry_seconds=60) from None
    for entry in accepted:
        answered_by = LOCAL if entry.record.local else "api"
        monitor.metrics.count_feedback(entry.deployment.task.name, answered_by, entry.is_correct)
    if not is_batch:
        return {"recorded": 1, "right": accepted[0].is_correct}
    replies = [
        {"error": result.json()} if isinstance(result, RequestError) else {"right": result.is_correct}
        for result in results
    ]
    return {"recorded": len(accepted), "results": replies}


def _parse_item(item: Any, tasks: Mapping[str, Deployment]) -> Feedback | RequestError:
    if not isinstance(item, dict) or set(item) != set(KEYS):
        return invalid_request("feedback is an object with id and answer")
    answer_id = item["id"]
    if not isinstance(answer_id, str) or not answer_id.isascii():
        return invalid_request("id is a text: the id of an answer (`id`, or the header X-Insource-Answer-Id)")
    opened = ((deployment, deployment.ids.open(answer_id)) for deployment in tasks.values())
    match = next(((deployment, record) for deployment, record in opened if record is not None), None)
    if match is None:
        return RequestError(404, "not_found_error", f"{answer_id[:24]!r} is the id of no answer of this gateway")
    deployment, record = match
    try:
        _check_encodable(item["answer"])
        value = parse_right_answer(deployment.task, item["answer"])
    except RequestError as error:
        return error
    return Feedback(deployment, record, deployment.ids.digest(deployment.task.equality_key(value)), value)


def _check_encodable(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid_request(
            "answer holds half a character (a surrogate, such as \\ud83d, without its other half)"
        ) from None


def parse_right_answer(task: Task, value: Any) -> Any:
    """Return a right answer as a value of the task, from a label, list of labels, record, text, or its JSON.

    Raise RequestError if it is not an answer of the task.
    """
    module, spec = task.dataset.task, task.dataset.spec
    if not isinstance(module, DecodedTaskKind):
        raise invalid_request(f"{task.name} is of kind preference, whose answers are neither right nor wrong")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        columns = task.recipe.data.columns
        text = module.make_answer_reader(spec, task.recipe.data.normalize_labels, columns.label_separator)(value)
    parsed = module.parse(spec, text)
    if parsed.problem is not None:
        raise invalid_request(f"answer is no answer of {task.name}: {parsed.problem}")
    return parsed.value
