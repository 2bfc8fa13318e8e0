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

from deploy.answers.answer_ids import Answered
from deploy.answers.request_errors import RefusedError, invalid
from deploy.answers.task import Task
from deploy.gateway.paths import json_body
from deploy.gateway.paths.router import Deployed
from deploy.monitoring import traffic_record
from deploy.monitoring.monitor import Watch
from insource.config.errors import StageError
from insource.system import shared_jsonl
from insource.system.daemon_thread import in_thread
from insource.tracking.run import now

PATH = "/v1/feedback"
FOLDER = "feedback"
MOST = 256
_KEYS = ("id", "answer")
_WHAT = "feedback"


@dataclass(frozen=True)
class Given:
    """A right answer that was given for an answer."""

    deployed: Deployed
    answered: Answered
    digest: str
    """Of the right answer."""
    value: Any
    """The right answer."""

    @property
    def right(self) -> bool:
        """Returns whether what was answered is right."""
        return self.digest == self.answered.digest


async def answers(body: bytes, tasks: Mapping[str, Deployed], watch: Watch) -> dict[str, Any]:
    """Returns what was recorded. Raises RefusedError where a request, or its only piece of feedback, is wrong."""
    asked = await json_body.read(body)
    several = "feedback" in asked
    pieces = asked["feedback"] if several else [asked]
    if several and (len(asked) > 1 or not isinstance(pieces, list) or not pieces):
        raise invalid("a request has an id and an answer, or feedback: a list of them")
    if len(pieces) > MOST:
        raise RefusedError(413, "request_too_large", f"{len(pieces):,} pieces of feedback were sent, {MOST} may be")
    found = [_checked(one, tasks) for one in pieces]
    if not several and isinstance(found[0], RefusedError):
        raise found[0]
    given = [one for one in found if isinstance(one, Given)]
    try:
        await in_thread(_record, given)
    except StageError as error:
        raise RefusedError(503, "overloaded_error", str(error), retry_seconds=60) from None
    for one in given:
        watch.fed_back(one.deployed.task, one.answered, one.right)
    if not several:
        return {"recorded": 1, "right": given[0].right}
    told = [{"error": one.json()} if isinstance(one, RefusedError) else {"right": one.right} for one in found]
    return {"recorded": len(given), "results": told}


def _checked(piece: Any, tasks: Mapping[str, Deployed]) -> Given | RefusedError:
    if not isinstance(piece, dict) or set(piece) != set(_KEYS):
        return invalid("feedback is an object with id and answer")
    told = piece["id"]
    if not isinstance(told, str) or not told.isascii():
        return invalid("id is a text: the id of an answer (`id`, or the header X-Insource-Answer-Id)")
    opened = ((one, one.ids.open(told)) for one in tasks.values())
    deployed, answered = next(((one, found) for one, found in opened if found is not None), (None, None))
    if deployed is None or answered is None:
        return RefusedError(404, "not_found_error", f"{told[:24]!r} is the id of no answer of this gateway")
    try:
        _check_characters(piece["answer"])
        value = right_answer(deployed.task, piece["answer"])
    except RefusedError as error:
        return error
    return Given(deployed, answered, deployed.ids.digest(deployed.task.identity(value)), value)


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid("answer holds half a character (a surrogate, such as \\ud83d, without its other half)") from None


def right_answer(task: Task, value: Any) -> Any:
    """Returns a right answer that a client gives, as the task has it: a label, a list of labels, a record, a text, or
    its JSON. Raises RefusedError where the task has no such answer."""
    module, spec = task.material.module, task.material.spec
    if module.OBJECTIVE == "prefer":
        raise invalid(f"{task.name} is of kind preference, whose answers are neither right nor wrong")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        columns = task.recipe.data.columns
        text = module.given_answers(spec, task.recipe.data.normalize_labels, columns.label_separator)(value)
    parsed = module.parse(spec, text)
    if parsed.problem is not None:
        raise invalid(f"answer is no answer of {task.name}: {parsed.problem}")
    return parsed.value


def _record(given: list[Given]) -> None:
    """Writes feedback down. Raises StageError where that fails."""
    places = {one.deployed.place for one in given}
    for place in sorted(places):
        at = now()
        with shared_jsonl.opened(place / FOLDER / f"{at[:7]}.jsonl", _WHAT) as file:
            mine = [one for one in given if one.deployed.place == place]
            for number, one in enumerate(mine, 1):
                shared_jsonl.append(file, _line(one, at), _WHAT, flush=number == len(mine))
    recorded: dict[tuple[Path, int], dict[str, Given]] = {}
    for one in given:
        if one.answered.recorded:
            recorded.setdefault((one.deployed.place, one.answered.day), {})[one.answered.name] = one
    for (place, day), ones in recorded.items():
        right = {name: one.value for name, one in ones.items()}
        traffic_record.correct(next(iter(ones.values())).deployed.task, place, day, right)


def _line(one: Given, at: str) -> dict[str, object]:
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


def read(place: Path, deployment: str, since: datetime) -> list[Mapping[str, Any]]:
    """Returns the feedback below registry/<name> on answers of a deployment that came from then on, of each answer the
    last."""
    last: dict[str, Mapping[str, Any]] = {}
    for line in _lines(place):
        if line["deployment"] == deployment and datetime.fromisoformat(line["at"]) >= since:
            last[line["answer"]] = line
    return list(last.values())


def _lines(place: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted((place / FOLDER).glob("*.jsonl")):
        yield from (line for line in shared_jsonl.read(path) if isinstance(line, dict) and "deployment" in line)
