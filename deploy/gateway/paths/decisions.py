"""POST /v1/decisions in OpenAI's format: choose a label of the task, with a probability for every label.

request   {"model": "classifier", "input": "where is my money", "questions": [{"type": "choice", "instructions": "...",
           "choices": [{"value": "refund_status"}, {"value": "delivery_delay"}, ...]},
           {"type": "predicate", "instructions": "refund_status"}]}
response  {"model": "classifier", "answers": [{"type": "choice", "name": null, "choice": "refund_status",
           "confidence": 0.93, "probabilities": [{"value": "refund_status", "probability": 0.97}, ...]},
           {"type": "predicate", "name": null, "probability": 0.97}], "usage": {...}}

The format is that of OpenAI's SDK (openai 3.54, resources/decisions.py).

Which questions are answered: deploy/gateway/paths/label_questions.py. Instructions of a choice are ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.answers.local_model import EngineConnection
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import invalid_request
from deploy.answers.task import Task
from deploy.gateway.paths import json_body, label_questions
from deploy.gateway.paths.label_questions import CHOICES_RANGE, MAX_QUESTIONS
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits

PATH = "/v1/decisions"
KEYS = ("model", "input", "questions", "private", "prompt_cache_key", "prompt_cache_options", "safety_identifier")


async def answer_questions(
    body: bytes, deployment: Deployment, engine: EngineConnection, model: str, limits: Limits, monitor: Monitor
) -> dict[str, Any]:
    """Return the decision on a request. Raise RequestError for a question that the model was not trained for."""
    payload = await json_body.read_object(body)
    questions = _parse_questions(payload, deployment.task)
    probabilities, tokens = await label_questions.score_input(deployment, engine, payload["input"], limits, monitor)
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
    label_questions.check_request(payload, task, KEYS, "input")
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
    kind = question.get("type")
    if not isinstance(question.get("name"), str | None):
        return "name is a text"
    if kind == "predicate":
        return label_questions.find_statement_problem(question.get("instructions"), labels, "predicate")
    if kind != "choice":
        return f"the model was trained to choose a label, and not for questions of type {str(kind)[:40]!r}"
    choices = question.get("choices")
    if not isinstance(choices, list):
        return f"choices is a list of {CHOICES_RANGE[0]} to {CHOICES_RANGE[1]} choices"
    values = [choice.get("value") if isinstance(choice, dict) else None for choice in choices]
    return label_questions.find_choice_problem(values, labels)


def _build_answer(question: Mapping[str, Any], probabilities: Mapping[str, float]) -> dict[str, Any]:
    name = question.get("name")
    if question["type"] == "predicate":
        return {"type": "predicate", "name": name, "probability": probabilities[question["instructions"].strip()]}
    choice = label_questions.choose([entry["value"] for entry in question["choices"]], probabilities)
    return {
        "type": "choice",
        "name": name,
        "choice": choice.label,
        "confidence": choice.certainty,
        "probabilities": [
            {"value": value, "probability": probability} for value, probability in choice.probabilities.items()
        ],
    }
