"""Questions about the labels of a task, as /v1/decisions and /v1/systemone ask them: which label, and how probable.

The deployed model was trained for one question. Choices must be labels of the task, all or some of them, and a
statement must be one label. Other questions are rejected with a reason. Only the deployed model answers; no request is
escalated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.answers.label_scores import score_labels
from deploy.answers.local_model import LOCAL, EngineConnection
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import invalid_request
from deploy.answers.task import Task, extract_text
from deploy.gateway.paths import router
from deploy.gateway.paths.chat_request import parse_private
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits
from insource.system.daemon_thread import run_in_thread

MAX_QUESTIONS, CHOICES_RANGE = 400, (2, 255)


@dataclass(frozen=True)
class Choice:
    """The answer to a question with choices."""

    label: str
    certainty: float
    """0 for equal probabilities, 1 for a certain label."""
    probabilities: Mapping[str, float]


def check_request(payload: Mapping[str, Any], task: Task, keys: Sequence[str], input_key: str) -> None:
    """Raise RequestError if a task has no labels, or if a request has other keys or no input.

    `private` may be sent, and changes nothing: no input leaves, and none is recorded.
    """
    if task.recipe.task.task_name != "classification":
        raise invalid_request(
            f"{task.name} chooses no label: it is of kind {task.recipe.task.task_name}; ask /v1/tasks"
        )
    if unknown := sorted(payload.keys() - set(keys)):
        raise invalid_request(f"there is no key {unknown[0][:40]!r}; there are {', '.join(keys)}")
    if input_key not in payload:
        raise invalid_request(f"{input_key} is missing")
    parse_private(payload.get("private"))


async def score_input(
    deployment: Deployment, engine: EngineConnection, value: object, limits: Limits, monitor: Monitor
) -> tuple[dict[str, float], int]:
    """Return the probability of every label for an input, and the number of tokens of its prompt.

    Raise RequestError if there is none.
    """
    task = deployment.task
    prepared = await router.prepare_input(deployment, extract_text(task, value), True, monitor)
    ids, tree = await run_in_thread(task.tokens.encode, prepared.task_input.text)
    probabilities, tokens = await score_labels(engine, tree, task.internal_name, ids, limits.sequences)
    monitor.metrics.count_tokens(task.name, LOCAL, tokens, None)
    return probabilities, tokens


def find_choice_problem(values: Sequence[object], labels: Mapping[str, str]) -> str | None:
    """Return why the model cannot choose among these values, None if it can."""
    minimum, maximum = CHOICES_RANGE
    if not minimum <= len(values) <= maximum:
        return f"{len(values)} choices were sent, and there may be {minimum} to {maximum}"
    if unknown := [value for value in values if not isinstance(value, str) or value not in labels]:
        return f"the model was not trained for the choice {str(unknown[0])[:80]!r}; {describe_labels(labels)}"
    if len(set(values)) < len(values):
        return "a choice stands in it twice"
    return None


def find_statement_problem(statement: object, labels: Mapping[str, str], kind: str) -> str | None:
    """Return why the model cannot judge a statement, None if it can. `kind` is the type of the question."""
    if isinstance(statement, str) and statement.strip() in labels:
        return None
    return (
        f"the model was trained to choose a label: the instructions of a {kind} are one of them; "
        f"{describe_labels(labels)}"
    )


def describe_labels(labels: Mapping[str, str]) -> str:
    """Return the labels for a message."""
    return f"the labels are {', '.join(labels)}"


def choose(values: Sequence[str], probabilities: Mapping[str, float]) -> Choice:
    """Return the choice among labels, with their probabilities normalized over them."""
    total = sum(probabilities[value] for value in values)
    normalized = {value: probabilities[value] / total if total else 1 / len(values) for value in values}
    label = max(normalized, key=normalized.__getitem__)
    return Choice(label, compute_certainty(list(normalized.values())), normalized)


def compute_certainty(probabilities: Sequence[float]) -> float:
    """Return 0 for equal probabilities and 1 for a certain option.

    It is one minus the entropy of the probabilities divided by the largest possible entropy.
    """
    entropy = -sum(probability * math.log(probability) for probability in probabilities if probability > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))
