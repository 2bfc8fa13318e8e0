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
    body: bytes, deployed: Deployment, engine: EngineConnection, model: str, limits: Limits, watch: Monitor
) -> dict[str, Any]:
    """Returns the decision on a request. Raises RefusedError where it asks for what the model was not trained for."""
    asked = await json_body.read_object(body)
    task = deployed.task
    questions = _validate(asked, task)
    given = await router.prepare_input(deployed, extract_text(task, asked["input"]), True, watch)
    ids, tree = await run_in_thread(task.tokens.of, given.given.text)
    chances, tokens = await score_labels(engine, tree, task.inside, ids, limits.sequences)
    return {
        "model": model,
        "answers": [_build_answer(one, chances) for one in questions],
        "usage": {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens,
        },
    }


async def score_labels(
    engine: EngineConnection, tree: LabelTree, model: str, prompt_ids: Sequence[int], at_once: int
) -> tuple[dict[str, float], int]:
    """Returns the probability of each label behind a prompt, and how many tokens that has; vLLM is asked `at_once`
    requests at a time. Raises RefusedError."""
    room = asyncio.Semaphore(at_once)

    async def next_of(at: TokenIds, tokens: Sequence[int]) -> dict[int, float]:
        async with room:
            return await _query_next_token(engine, model, [*prompt_ids, *at], tokens)

    asked = [
        (at, tokens[first : first + MAX_LOGPROB_TOKENS])
        for at, tokens in tree.choices.items()
        for first in range(0, len(tokens), MAX_LOGPROB_TOKENS)
    ]
    found = await asyncio.gather(*(next_of(at, tokens) for at, tokens in asked))
    told: dict[TokenIds, dict[int, float]] = {}
    for (at, _), one in zip(asked, found, strict=True):
        told.setdefault(at, {}).update(one)
    return tree.probabilities(told), len(prompt_ids)


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
        async with engine.session.post("/v1/completions", json=body) as answer:
            said = await answer.json(content_type=None)
    except (ClientError, ValueError, RuntimeError) as error:  # RuntimeError: the session ended with its vLLM
        raise RequestError(503, "overloaded_error", f"the model broke off: {type(error).__name__}", 5) from None
    if answer.status >= 500:
        raise RequestError(503, "overloaded_error", "the model fails", 5)
    engine.heard()
    if answer.status != 200:
        raise EngineRequestError(answer.status, said)
    try:
        (top,) = said["choices"][0]["logprobs"]["top_logprobs"]
        named = {int(name.rpartition(":")[2]): float(value) for name, value in top.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(502, "api_error", f"the model's answer cannot be read: {type(error).__name__}") from None
    return {token: named.get(token, -math.inf) for token in tokens}


def _validate(asked: Mapping[str, Any], task: Task) -> Sequence[Mapping[str, Any]]:
    """Returns the questions. Raises RefusedError saying which of them cannot be answered, and why."""
    if task.recipe.task.variant != "classification":
        raise invalid_request(f"{task.name} chooses no label: it is of kind {task.recipe.task.variant}; ask /v1/tasks")
    if unknown := sorted(asked.keys() - set(_KEYS)):
        raise invalid_request(f"there is no key {unknown[0][:40]!r}; there are {', '.join(_KEYS)}")
    if "input" not in asked:
        raise invalid_request("input is missing")
    questions = asked.get("questions")
    if not isinstance(questions, list) or not 1 <= len(questions) <= MAX_QUESTIONS:
        raise invalid_request(f"questions is a list of 1 to {MAX_QUESTIONS} questions")
    for number, one in enumerate(questions):
        if told := _find_problem(one, task.material.spec.labels):
            raise invalid_request(f"questions[{number}]: {told}")
    return questions


def _find_problem(question: Any, labels: Mapping[str, str]) -> str | None:
    """Returns why a question cannot be answered, None where it can."""
    if not isinstance(question, dict):
        return "a question is an object"
    kind, there = question.get("type"), f"the labels are {', '.join(labels)}"
    if not isinstance(question.get("name"), str | None):
        return "name is a text"
    if kind == "predicate":
        asked = question.get("instructions")
        if not isinstance(asked, str) or asked.strip() not in labels:
            return f"the model was trained to choose a label: the instructions of a predicate are one of them; {there}"
        return None
    if kind != "choice":
        return f"the model was trained to choose a label, and not for questions of type {str(kind)[:40]!r}"
    choices = question.get("choices")
    if not isinstance(choices, list) or not CHOICES_RANGE[0] <= len(choices) <= CHOICES_RANGE[1]:
        return f"choices is a list of {CHOICES_RANGE[0]} to {CHOICES_RANGE[1]} choices"
    values = [one.get("value") if isinstance(one, dict) else None for one in choices]
    if wrong := [value for value in values if not isinstance(value, str) or value not in labels]:
        return f"the model was not trained for the choice {str(wrong[0])[:80]!r}; {there}"
    if len(set(values)) < len(values):
        return "a choice stands in it twice"
    return None


def _build_answer(question: Mapping[str, Any], chances: Mapping[str, float]) -> dict[str, Any]:
    name = question.get("name")
    if question["type"] == "predicate":
        return {"type": "predicate", "name": name, "probability": chances[question["instructions"].strip()]}
    values = [one["value"] for one in question["choices"]]
    total = sum(chances[value] for value in values)
    told = {value: chances[value] / total if total else 1 / len(values) for value in values}
    return {
        "type": "choice",
        "name": name,
        "choice": max(told, key=told.__getitem__),
        "confidence": compute_certainty(list(told.values())),
        "probabilities": [{"value": value, "probability": chance} for value, chance in told.items()],
    }


def compute_certainty(probabilities: Sequence[float]) -> float:
    """Returns 0 where all options are as probable, 1 where one is certain: one minus the share of the greatest entropy
    that theirs has."""
    entropy = -sum(one * math.log(one) for one in probabilities if one > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))
