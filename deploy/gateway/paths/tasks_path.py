"""POST /v1/tasks/<recipe>: valid answers to inputs of a task.

{"input": "where is my money"}            -> {"task", "version", "answer": "refund_status", "confidence": 0.97, ...}
{"inputs": ["...", ...], "private": true} -> {"task", "version", "answers": [{"answer": ...} or {"error": {...}}, ...]}

An input is a text, an object of the task's text columns, or a list of messages. With several inputs, one without an
answer has an error instead.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from deploy.answers.local_model import EngineConnection
from deploy.answers.outcome import Deployment, Outcome
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.answers.task import extract_text
from deploy.gateway.paths import json_body, router
from deploy.gateway.paths.chat_request import parse_private
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits

PREFIX = "/v1/tasks/"
MAX_INPUTS = 256
KEYS = ("input", "inputs", "private")


async def answer_inputs(
    body: bytes, deployment: Deployment, engine: EngineConnection, private: bool, limits: Limits, monitor: Monitor
) -> tuple[dict[str, Any], list[Outcome]]:
    """Return the JSON answer to a request, and the outcomes of its inputs.

    `private` is whether its headers mark it as private. At most `limits.sequences` inputs are in flight at the same
    time. Raise RequestError if the request is invalid or its only input has no answer.
    """
    payload = await json_body.read_object(body)
    is_batch = _is_batch(payload)
    private = private or parse_private(payload.get("private"))
    task = deployment.task
    head = {"task": task.name, "version": task.version}

    async def answer_input(value: Any) -> Outcome:
        prepared = await router.prepare_input(deployment, extract_text(task, value), private, monitor)
        return await router.answer_input(engine, deployment, prepared, limits.answer_tokens, monitor)

    if not is_batch:
        outcome = await answer_input(payload["input"])
        return head | outcome.json(), [outcome]
    slots = asyncio.Semaphore(limits.sequences)

    async def answer_or_error(value: Any) -> Outcome | RequestError:
        async with slots:
            try:
                return await answer_input(value)
            except RequestError as error:
                return error

    results = await asyncio.gather(*map(answer_or_error, payload["inputs"]))
    replies = [{"error": result.json()} if isinstance(result, RequestError) else result.json() for result in results]
    return head | {"answers": replies}, [result for result in results if isinstance(result, Outcome)]


def _is_batch(payload: Mapping[str, Any]) -> bool:
    """Return whether a request has several inputs. Raise RequestError if it is invalid."""
    if unknown := sorted(payload.keys() - set(KEYS)):
        raise invalid_request(f"there is no key {unknown[0][:40]!r}; there are {', '.join(KEYS)}")
    if ("input" in payload) == ("inputs" in payload):
        raise invalid_request("a request has either input or inputs")
    if "input" in payload:
        return False
    inputs = payload["inputs"]
    if not isinstance(inputs, list) or not inputs:
        raise invalid_request("inputs is a list of one input or more")
    if len(inputs) > MAX_INPUTS:
        raise RequestError(413, "request_too_large", f"{len(inputs):,} inputs were sent, and {MAX_INPUTS} may be")
    return True
