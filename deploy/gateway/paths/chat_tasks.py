"""Chats that hold an input of a task.

Where the input stays on this machine and the wire can carry the task's constraint, vLLM gets the task's own request and
its answer passes, event by event. Else the answer is made as those of /v1/tasks are, and told on the client's wire.
"""

from collections import Counter

import msgspec
from aiohttp import web

from deploy.answers.local_model import LOCAL, Engine
from deploy.answers.task import Task
from deploy.gateway.paths import chat_request, chat_response, forwarding, json_body, router
from deploy.gateway.paths.router import Deployed
from deploy.monitoring.monitor import Watch
from insource.config.schema.serving_and_cost import Limits


def takes(deployed: Deployed, path: str, raw: bool) -> bool:
    """Returns whether chats on a path may hold inputs of a task (serve.chat)."""
    return path in chat_request.PATHS and not raw and deployed.task.recipe.serve.chat == "task"


async def chatted(
    engine: Engine,
    deployed: Deployed,
    request: web.Request,
    sent: bytes,
    of: forwarding.Names,
    limits: Limits,
    answered: Counter[str],
    watch: Watch,
) -> web.StreamResponse | None:
    """Returns the answer to a chat, None where it holds the task's own prompt and passes as it is. Raises RefusedError
    where there is no answer, and what passing.on raises; `answered` counts who answered, and why."""
    task, body = deployed.task, await json_body.read(sent)
    private = chat_request.asks_privacy(request.headers)
    asked = chat_request.of(body, task, private)
    if asked is None:
        return None
    given = await router.prepared(deployed, asked.text, asked.private, watch)
    if given.kept and not given.recorded and _carries(task, request.path):
        answered[f"{LOCAL}/{given.kept}"] += 1
        watch.passed(task, given.kept)
        passed = chat_request.passed(body, task, given, request.path, limits.answer_tokens)
        return await forwarding.on(engine.session, request, msgspec.json.encode(passed), of, engine.heard)
    outcome = await router.answered(engine, deployed, given, limits.answer_tokens, watch)
    answered[outcome.label] += 1
    return await chat_response.respond(request, request.path, asked, outcome, of.outside, of.version)


def _carries(task: Task, path: str) -> bool:
    """Returns whether vLLM holds an answer on a path to the task's schema: Anthropic's wire has no grammar."""
    free_text = task.material.prompt["grammar"] is None
    return free_text or (path == chat_request.COMPLETIONS and task.grammar is not None)
