"""POST /v1/feedback: what the right answer was, when somebody knows.

{"id": "AWrk3Xq0...", "answer": "refund_status"}   -> {"recorded": 1, "right": false}
{"feedback": [{"id": ..., "answer": ...}, ...]}    -> {"recorded": 2, "results": [{"right": true}, {"error": {...}}]}

`id` is that of an answer (deploy/answers/answer_ids.py), `answer` has the form of the task's answers. On disk:

registry/<name>/feedback/2026-11.jsonl
{"at": "...", "answer": "9f2c...", "deployment": "51ab...", "local": true, "kept": true, "mirrored": false,
 "confidence": 0.974, "right": false, "right_digest": "07be..."}

No answer stands there, only keyed digests. What is said of an answer last counts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.answers.answer_ids import AnswerRecord
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.answers.task import Task
from deploy.gateway.paths import json_body
from deploy.gateway.paths.router import Deployment
from deploy.monitoring import traffic_record
from deploy.monitoring.monitor import Monitor
from insource.config.errors import StageError
from insource.system import shared_jsonl
from insource.system.daemon_thread import run_in_thread
from insource.tracking.run import utc_timestamp

PATH = "/v1/feedback"
FOLDER = "feedback"
MAX_ITEMS = 256
_KEYS = ("id", "answer")
_DESCRIPTION = "feedback"


@dataclass(frozen=True)
class Feedback:
    """A right answer that was given for an answer."""

    deployed: Deployment
    answered: AnswerRecord
    digest: str
    """Of the right answer."""
    value: Any
    """The right answer."""

    @property
    def right(self) -> bool:
        """Returns whether what was answered is right."""
        return self.digest == self.answered.digest


async def record_feedback(body: bytes, tasks: Mapping[str, Deployment], watch: Monitor) -> dict[str, Any]:
    """Returns what was recorded. Raises RefusedError where a request, or its only piece of feedback, is wrong."""
    asked = await json_body.read_object(body)
    several = "feedback" in asked
    pieces = asked["feedback"] if several else [asked]
    if several and (len(asked) > 1 or not isinstance(pieces, list) or not pieces):
        raise invalid_request("a request has an id and an answer, or feedback: a list of them")
    if len(pieces) > MAX_ITEMS:
        raise RequestError(
            413, "request_too_large", f"{len(pieces):,} pieces of feedback were sent, {MAX_ITEMS} may be"
        )
    found = [_validate(one, tasks) for one in pieces]
    if not several and isinstance(found[0], RequestError):
        raise found[0]
    given = [one for one in found if isinstance(one, Feedback)]
    try:
        await run_in_thread(_write, given)
    except StageError as error:
        raise RequestError(503, "overloaded_error", str(error), retry_seconds=60) from None
    for one in given:
        watch.fed_back(one.deployed.task, one.answered, one.right)
    if not several:
        return {"recorded": 1, "right": given[0].right}
    told = [{"error": one.json()} if isinstance(one, RequestError) else {"right": one.right} for one in found]
    return {"recorded": len(given), "results": told}


def _validate(piece: Any, tasks: Mapping[str, Deployment]) -> Feedback | RequestError:
    if not isinstance(piece, dict) or set(piece) != set(_KEYS):
        return invalid_request("feedback is an object with id and answer")
    told = piece["id"]
    if not isinstance(told, str) or not told.isascii():
        return invalid_request("id is a text: the id of an answer (`id`, or the header X-Insource-Answer-Id)")
    opened = ((one, one.ids.open(told)) for one in tasks.values())
    deployed, answered = next(((one, found) for one, found in opened if found is not None), (None, None))
    if deployed is None or answered is None:
        return RequestError(404, "not_found_error", f"{told[:24]!r} is the id of no answer of this gateway")
    try:
        _check_encodable(piece["answer"])
        value = parse_right_answer(deployed.task, piece["answer"])
    except RequestError as error:
        return error
    return Feedback(deployed, answered, deployed.ids.digest(deployed.task.identity(value)), value)


def _check_encodable(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid_request(
            "answer holds half a character (a surrogate, such as \\ud83d, without its other half)"
        ) from None


def parse_right_answer(task: Task, value: Any) -> Any:
    """Returns a right answer that a client gives, as the task has it: a label, a list of labels, a record, a text, or
    its JSON. Raises RefusedError where the task has no such answer."""
    module, spec = task.material.module, task.material.spec
    if module.OBJECTIVE == "prefer":
        raise invalid_request(f"{task.name} is of kind preference, whose answers are neither right nor wrong")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        columns = task.recipe.data.columns
        text = module.make_answer_reader(spec, task.recipe.data.normalize_labels, columns.label_separator)(value)
    parsed = module.parse(spec, text)
    if parsed.problem is not None:
        raise invalid_request(f"answer is no answer of {task.name}: {parsed.problem}")
    return parsed.value


def _write(given: list[Feedback]) -> None:
    """Writes feedback down. Raises StageError where that fails."""
    places = {one.deployed.place for one in given}
    for place in sorted(places):
        at = utc_timestamp()
        with shared_jsonl.open_locked(place / FOLDER / f"{at[:7]}.jsonl", _DESCRIPTION) as file:
            mine = [one for one in given if one.deployed.place == place]
            for number, one in enumerate(mine, 1):
                shared_jsonl.append_line(file, _to_line(one, at), _DESCRIPTION, flush=number == len(mine))
    recorded: dict[tuple[Path, int], dict[str, Feedback]] = {}
    for one in given:
        if one.answered.recorded:
            recorded.setdefault((one.deployed.place, one.answered.day), {})[one.answered.name] = one
    for (place, day), ones in recorded.items():
        right = {name: one.value for name, one in ones.items()}
        traffic_record.correct_rows(next(iter(ones.values())).deployed.task, place, day, right)


def _to_line(one: Feedback, at: str) -> dict[str, object]:
    told = one.answered
    return {
        "at": at,
        "answer": told.name,
        "deployment": told.deployment,
        "local": told.local,
        "kept": told.kept,
        "mirrored": told.mirrored,
        "confidence": told.confidence,
        "right": one.right,
        "right_digest": one.digest,
    }


def read_feedback(place: Path, deployment: str, since: datetime) -> list[Mapping[str, Any]]:
    """Returns the feedback below registry/<name> on answers of a deployment that came from then on, of each answer the
    last."""
    last: dict[str, Mapping[str, Any]] = {}
    for line in _read_folder(place):
        if line["deployment"] == deployment and datetime.fromisoformat(line["at"]) >= since:
            last[line["answer"]] = line
    return list(last.values())


def _read_folder(place: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted((place / FOLDER).glob("*.jsonl")):
        yield from (line for line in shared_jsonl.read_lines(path) if isinstance(line, dict) and "deployment" in line)
