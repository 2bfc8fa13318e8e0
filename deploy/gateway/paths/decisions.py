"""POST /v1/decisions in OpenAI's format: choose a label of the task, with a probability for every label.

request   {"model": "classifier", "input": "where is my money", "questions": [{"type": "choice", "instructions": "...",
           "choices": [{"value": "refund_status"}, {"value": "delivery_delay"}, ...]},
           {"type": "predicate", "instructions": "refund_status"}]}
response  {"model": "classifier", "answers": [{"type": "choice", "name": null, "choice": "refund_status",
           "confidence": 0.93, "probabilities": [{"value": "refund_status", "probability": 0.97}, ...]},
           {"type": "predicate", "name": null, "probability": 0.97}], "usage": {...}}

The format is that of OpenAI's SDK (openai 3.54, resources/decisions.py).

The deployed model was trained for one question. Choices must be labels of the task, all or some of them. A predicate's
instructions must be one label. Other questions are rejected with a reason. Instructions of a choice are ignored. Only
the deployed model answers; no request is escalated.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.answers.label_scores import score_labels
from deploy.answers.local_model import EngineConnection
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import invalid_request
from deploy.answers.task import Task, extract_text
from deploy.gateway.paths import json_body, router
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits
from insource.system.daemon_thread import run_in_thread

PATH = "/v1/decisions"
MAX_QUESTIONS, CHOICES_RANGE = 400, (2, 255)
KEYS = ("model", "input", "questions", "prompt_cache_key", "prompt_cache_options", "safety_identifier")


async def answer_questions(
    body: bytes, deployment: Deployment, engine: EngineConnection, model: str, limits: Limits, monitor: Monitor
) -> dict[str, Any]:
    """Return the decision on a request. Raise RequestError for a question that the model was not trained for."""
    payload = await json_body.read_object(body)
    task = deployment.task
    questions = _parse_questions(payload, task)
    prepared = await router.prepare_input(deployment, extract_text(task, payload["input"]), True, monitor)
    ids, tree = await run_in_thread(task.tokens.encode, prepared.task_input.text)
    probabilities, tokens = await score_labels(engine, tree, task.internal_name, ids, limits.sequences)
    return {
        "model": model,
        "answers": [_build_answer(question, probabilities) for question in questions],
        "usage": {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens,
        },
    }


def _parse_questions(payload: Mapping[str, Any], task: Task) -> Sequence[Mapping[str, Any]]:
    """Return the questions. Raise RequestError with the first one that cannot be answered, and why."""
    if task.recipe.task.task_name != "classification":
        raise invalid_request(
            f"{task.name} chooses no label: it is of kind {task.recipe.task.task_name}; ask /v1/tasks"
        )
    if unknown := sorted(payload.keys() - set(KEYS)):
        raise invalid_request(f"there is no key {unknown[0][:40]!r}; there are {', '.join(KEYS)}")
    if "input" not in payload:
        raise invalid_request("input is missing")
    questions = payload.get("questions")
    if not isinstance(questions, list) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise invalid_request(f"questions is a list of 1 to {MAX_QUESTIONS} questions")
    for number, question in enumerate(questions):
        if problem := _find_problem(question, task.dataset.spec.labels):
            raise invalid_request(f"questions[{number}]: {problem}")
    return questions


def _find_problem(question: Any, labels: Mapping[str, str]) -> str | None:
    """Return why a question cannot be answered, None if it can."""
    if not isinstance(question, dict):
        return "a question is an object"
    kind, labels_note = question.get("type"), f"the labels are {', '.join(labels)}"
    if not isinstance(question.get("name"), str | None):
        return "name is a text"
    if kind == "predicate":
        instructions = question.get("instructions")
        if not isinstance(instructions, str) or instructions.strip() not in labels:
            return (
                "the model was trained to choose a label: the instructions of a predicate are one of them; "
                f"{labels_note}"
            )
        return None
    if kind != "choice":
        return f"the model was trained to choose a label, and not for questions of type {str(kind)[:40]!r}"
    choices = question.get("choices")
    if not isinstance(choices, list) or not CHOICES_RANGE[0] <= len(choices) <= CHOICES_RANGE[1]:
        return f"choices is a list of {CHOICES_RANGE[0]} to {CHOICES_RANGE[1]} choices"
    values = [choice.get("value") if isinstance(choice, dict) else None for choice in choices]
    if unknown := [value for value in values if not isinstance(value, str) or value not in labels]:
        return f"the model was not trained for the choice {str(unknown[0])[:80]!r}; {labels_note}"
    if len(set(values)) < len(values):
        return "a choice stands in it twice"
    return None


def _build_answer(question: Mapping[str, Any], probabilities: Mapping[str, float]) -> dict[str, Any]:
    name = question.get("name")
    if question["type"] == "predicate":
        return {"type": "predicate", "name": name, "probability": probabilities[question["instructions"].strip()]}
    values = [choice["value"] for choice in question["choices"]]
    total = sum(probabilities[value] for value in values)
    normalized = {value: probabilities[value] / total if total else 1 / len(values) for value in values}
    return {
        "type": "choice",
        "name": name,
        "choice": max(normalized, key=normalized.__getitem__),
        "confidence": compute_certainty(list(normalized.values())),
        "probabilities": [{"value": value, "probability": probability} for value, probability in normalized.items()],
    }


def compute_certainty(probabilities: Sequence[float]) -> float:
    """Return 0 for equal probabilities and 1 for a certain option.

    It is one minus the entropy of the probabilities divided by the largest possible entropy.
    """
    entropy = -sum(probability * math.log(probability) for probability in probabilities if probability > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))
