"""POST /v1/tasks/<recipe>: inputs of a task in, valid answers out.

{"input": "where is my money"}            -> {"task", "version", "answer": "refund_status", "confidence": 0.97, ...}
{"inputs": ["...", ...], "private": true} -> {"task", "version", "answers": [{"answer": ...} or {"error": {...}}, ...]}

An input is a text, an object of the task's text columns, or a list of messages. Of several inputs one that has no
answer has an error in its place.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from deploy.answers.local_model import EngineConnection
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.answers.task import extract_text
from deploy.gateway.paths import json_body, router
from deploy.gateway.paths.chat_request import parse_private
from deploy.gateway.paths.router import Deployment, Outcome
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits

PREFIX = "/v1/tasks/"
MAX_INPUTS = 256
_KEYS = ("input", "inputs", "private")


async def answer_inputs(
    body: bytes, deployed: Deployment, engine: EngineConnection, private: bool, limits: Limits, watch: Monitor
) -> tuple[dict[str, Any], list[Outcome]]:
    """Returns the answer to a request, and what became of its inputs. Raises RefusedError where it is wrong, or its
    only input has no answer.

    `private`: whether its headers say so. At most `limits.sequences` inputs are on their way at once.
    """
    asked = await json_body.read_object(body)
    several, private = _validate(asked), private or parse_private(asked.get("private"))
    task = deployed.task
    head = {"task": task.name, "version": task.version}

    async def one(value: Any) -> Outcome:
        given = await router.prepare_input(deployed, extract_text(task, value), private, watch)
        return await router.answer_input(engine, deployed, given, limits.answer_tokens, watch)

    if not several:
        outcome = await one(asked["input"])
        return head | outcome.json(), [outcome]
    room = asyncio.Semaphore(limits.sequences)

    async def in_turn(value: Any) -> Outcome | RequestError:
        async with room:
            try:
                return await one(value)
            except RequestError as error:
                return error

    found = await asyncio.gather(*map(in_turn, asked["inputs"]))
    told = [{"error": one.json()} if isinstance(one, RequestError) else one.json() for one in found]
    return head | {"answers": told}, [one for one in found if isinstance(one, Outcome)]


def _validate(asked: Mapping[str, Any]) -> bool:
    """Returns whether a request has several inputs. Raises RefusedError where it is wrong."""
    if unknown := sorted(asked.keys() - set(_KEYS)):
        raise invalid_request(f"there is no key {unknown[0][:40]!r}; there are {', '.join(_KEYS)}")
    if ("input" in asked) == ("inputs" in asked):
        raise invalid_request("a request has either input or inputs")
    if "input" in asked:
        return False
    inputs = asked["inputs"]
    if not isinstance(inputs, list) or not inputs:
        raise invalid_request("inputs is a list of one input or more")
    if len(inputs) > MAX_INPUTS:
        raise RequestError(413, "request_too_large", f"{len(inputs):,} inputs were sent, and {MAX_INPUTS} may be")
    return True
