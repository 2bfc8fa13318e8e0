"""POST /v1/systemone in the format of TypeSafe's Jev: choose a label of the task, with a probability for every label.

request   {"model": "classifier", "state": "where is my money", "questions": {
           "queue": {"type": "choice", "instructions": "...", "criteria": {"refund_status": null, "other": null}},
           "late": {"type": "noul", "instructions": "delivery_delay"}}}
response  {"model": "classifier", "answers": {
           "queue": {"type": "choice", "choice": "refund_status", "confidence": 0.93,
                     "probabilities": {"refund_status": 0.97, "other": 0.03}},
           "late": {"type": "noul", "noul": 0.01}}, "usage": {"input_tokens": 61, "output_tokens": 0}}

The format is that of TypeSafe's SDK (typesafe-sdk 0.7.5), whose models are generated from its server's OpenAPI
description. Which questions are answered: deploy/gateway/paths/label_questions.py. Instructions of a choice and the
descriptions in `criteria` are ignored. Errors have the format of the other paths, which the SDK reads too.
"""

from collections.abc import Mapping
from typing import Any

from deploy.answers.local_model import EngineConnection
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import invalid_request
from deploy.answers.task import Task
from deploy.gateway.paths import json_body, label_questions
from deploy.gateway.paths.label_questions import MAX_QUESTIONS
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits

PATH = "/v1/systemone"
KEYS = ("model", "state", "questions", "private")


async def answer_questions(
    body: bytes, deployment: Deployment, engine: EngineConnection, model: str, limits: Limits, monitor: Monitor
) -> dict[str, Any]:
    """Return the answers to a request. Raise RequestError for a question that the model was not trained for."""
    payload = await json_body.read_object(body)
    questions = _parse_questions(payload, deployment.task)
    probabilities, tokens = await label_questions.score_input(deployment, engine, payload["state"], limits, monitor)
    answers = {name: _build_answer(question, probabilities) for name, question in questions.items()}
    return {"model": model, "answers": answers, "usage": {"input_tokens": tokens, "output_tokens": 0}}


def _parse_questions(payload: Mapping[str, Any], task: Task) -> Mapping[str, Mapping[str, Any]]:
    """Return the questions. Raise RequestError with the first one that cannot be answered, and why."""
    label_questions.check_request(payload, task, KEYS, "state")
    questions = payload.get("questions")
    if not isinstance(questions, dict) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise invalid_request(f"questions is an object of 1 to {MAX_QUESTIONS} questions")
    for name, question in questions.items():
        if problem := _find_problem(question, task.dataset.spec.labels):
            raise invalid_request(f"questions[{name[:40]!r}]: {problem}")
    return questions


def _find_problem(question: Any, labels: Mapping[str, str]) -> str | None:
    """Return why a question cannot be answered, None if it can."""
    if not isinstance(question, dict):
        return "a question is an object"
    kind = question.get("type")
    if kind == "noul":
        return label_questions.find_statement_problem(question.get("instructions"), labels, "noul")
    if kind != "choice":
        return f"the model was trained to choose a label, and not for questions of type {str(kind)[:40]!r}"
    criteria = question.get("criteria")
    if not isinstance(criteria, dict):
        return "criteria is an object whose keys are the choices"
    return label_questions.find_choice_problem(list(criteria), labels)


def _build_answer(question: Mapping[str, Any], probabilities: Mapping[str, float]) -> dict[str, Any]:
    if question["type"] == "noul":
        return {"type": "noul", "noul": probabilities[question["instructions"].strip()]}
    choice = label_questions.choose(list(question["criteria"]), probabilities)
    return {
        "type": "choice",
        "choice": choice.label,
        "confidence": choice.certainty,
        "probabilities": dict(choice.probabilities),
    }
