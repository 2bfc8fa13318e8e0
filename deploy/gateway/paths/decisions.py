"""POST /v1/decisions as OpenAI's SDK sends it (openai 3.54, resources/decisions.py): the task's own choice, with a
probability for every label.

asked     {"model": "classifier", "input": "where is my money", "questions": [{"type": "choice", "instructions": "...",
           "choices": [{"value": "refund_status"}, {"value": "delivery_delay"}, ...]},
           {"type": "predicate", "instructions": "refund_status"}]}
answered  {"model": "classifier", "answers": [{"type": "choice", "name": null, "choice": "refund_status", "confidence":
           0.93, "probabilities": [{"value": "refund_status", "probability": 0.97}, ...]},
           {"type": "predicate", "name": null, "probability": 0.97}], "usage": {...}}

The deployed model was trained for one question. Choices have to be labels of the task, all or some of them, and a
predicate the label that it asks for; anything else is refused in words. Instructions of a choice are not read. The
answer is the deployed model's own: nothing is escalated.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import ClientError

from deploy.answers.label_tree import LabelTree, TokenIds
from deploy.answers.local_model import EngineConnection, EngineRequestError
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.answers.task import Task, extract_text
from deploy.gateway.paths import json_body, router
from deploy.gateway.paths.router import Deployment
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits
from insource.system.daemon_thread import run_in_thread

PATH = "/v1/decisions"
MAX_QUESTIONS, CHOICES_RANGE = 400, (2, 255)
MAX_LOGPROB_TOKENS = 128
"""vLLM 0.32 tells the probabilities of so many tokens at most in one request."""
_KEYS = ("model", "input", "questions", "prompt_cache_key", "prompt_cache_options", "safety_identifier")


async def answer_questions(
    body: bytes, deployment: Deployment, engine: EngineConnection, model: str, limits: Limits, monitor: Monitor
) -> dict[str, Any]:
    """Returns the decision on a request. Raises RefusedError where it asks for what the model was not trained for."""
    payload = await json_body.read_object(body)
    task = deployment.task
    questions = _validate(payload, task)
    prepared = await router.prepare_input(deployment, extract_text(task, payload["input"]), True, monitor)
    ids, tree = await run_in_thread(task.tokens.of, prepared.given.text)
    probabilities, tokens = await score_labels(engine, tree, task.inside, ids, limits.sequences)
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


async def score_labels(
    engine: EngineConnection, tree: LabelTree, model: str, prompt_ids: Sequence[int], max_concurrent: int
) -> tuple[dict[str, float], int]:
    """Returns the probability of each label behind a prompt, and how many tokens that has; vLLM is asked
    `max_concurrent` requests at a time. Raises RefusedError."""
    slots = asyncio.Semaphore(max_concurrent)

    async def query_prefix(prefix: TokenIds, tokens: Sequence[int]) -> dict[int, float]:
        async with slots:
            return await _query_next_token(engine, model, [*prompt_ids, *prefix], tokens)

    chunks = [
        (prefix, tokens[start : start + MAX_LOGPROB_TOKENS])
        for prefix, tokens in tree.choices.items()
        for start in range(0, len(tokens), MAX_LOGPROB_TOKENS)
    ]
    results = await asyncio.gather(*(query_prefix(prefix, tokens) for prefix, tokens in chunks))
    log_probabilities: dict[TokenIds, dict[int, float]] = {}
    for (prefix, _), result in zip(chunks, results, strict=True):
        log_probabilities.setdefault(prefix, {}).update(result)
    return tree.probabilities(log_probabilities), len(prompt_ids)


async def _query_next_token(
    engine: EngineConnection, model: str, ids: Sequence[int], tokens: Sequence[int]
) -> dict[int, float]:
    """The log-probabilities of tokens that may come next."""
    body = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 0,
        "logprob_token_ids": list(tokens),
        "return_tokens_as_token_ids": True,
    }
    try:
        async with engine.session.post("/v1/completions", json=body) as response:
            payload = await response.json(content_type=None)
    except (ClientError, ValueError, RuntimeError) as error:  # RuntimeError: the session ended with its vLLM
        raise RequestError(503, "overloaded_error", f"the model broke off: {type(error).__name__}", 5) from None
    if response.status >= 500:
        raise RequestError(503, "overloaded_error", "the model fails", 5)
    engine.heard()
    if response.status != 200:
        raise EngineRequestError(response.status, payload)
    try:
        (top,) = payload["choices"][0]["logprobs"]["top_logprobs"]
        by_token = {int(name.rpartition(":")[2]): float(value) for name, value in top.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(502, "api_error", f"the model's answer cannot be read: {type(error).__name__}") from None
    return {token: by_token.get(token, -math.inf) for token in tokens}


def _validate(payload: Mapping[str, Any], task: Task) -> Sequence[Mapping[str, Any]]:
    """Returns the questions. Raises RefusedError saying which of them cannot be answered, and why."""
    if task.recipe.task.variant != "classification":
        raise invalid_request(f"{task.name} chooses no label: it is of kind {task.recipe.task.variant}; ask /v1/tasks")
    if unknown := sorted(payload.keys() - set(_KEYS)):
        raise invalid_request(f"there is no key {unknown[0][:40]!r}; there are {', '.join(_KEYS)}")
    if "input" not in payload:
        raise invalid_request("input is missing")
    questions = payload.get("questions")
    if not isinstance(questions, list) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise invalid_request(f"questions is a list of 1 to {MAX_QUESTIONS} questions")
    for number, question in enumerate(questions):
        if problem := _find_problem(question, task.material.spec.labels):
            raise invalid_request(f"questions[{number}]: {problem}")
    return questions


def _find_problem(question: Any, labels: Mapping[str, str]) -> str | None:
    """Returns why a question cannot be answered, None where it can."""
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
    """Returns 0 where all options are as probable, 1 where one is certain: one minus the share of the greatest entropy
    that theirs has."""
    entropy = -sum(probability * math.log(probability) for probability in probabilities if probability > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))
