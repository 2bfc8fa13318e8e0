"""Chats that hold an input of a task.

Where the input stays on this machine and the wire can carry the task's constraint, vLLM gets the task's own request and
its answer passes, event by event. Else the answer is made as those of /v1/tasks are, and told on the client's wire.
"""

from collections import Counter

import msgspec
from aiohttp import web

from deploy.answers.local_model import LOCAL, EngineConnection
from deploy.answers.task import Task
from deploy.gateway.paths import chat_request, chat_response, forwarding, json_body, router
from deploy.gateway.paths.router import Deployment
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits


def accepts_tasks(deployed: Deployment, path: str, raw: bool) -> bool:
    """Returns whether chats on a path may hold inputs of a task (serve.chat)."""
    return path in chat_request.CHAT_PATHS and not raw and deployed.task.recipe.serve.chat == "task"


async def answer_chat(
    engine: EngineConnection,
    deployed: Deployment,
    request: web.Request,
    sent: bytes,
    of: forwarding.ModelNames,
    limits: Limits,
    answered: Counter[str],
    watch: Monitor,
) -> web.StreamResponse | None:
    """Returns the answer to a chat, None where it holds the task's own prompt and passes as it is. Raises RefusedError
    where there is no answer, and what passing.on raises; `answered` counts who answered, and why."""
    task, body = deployed.task, await json_body.read_object(sent)
    private = chat_request.has_private_header(request.headers)
    asked = chat_request.parse_chat(body, task, private)
    if asked is None:
        return None
    given = await router.prepare_input(deployed, asked.text, asked.private, watch)
    if given.kept and not given.recorded and _supports_constraint(task, request.path):
        answered[f"{LOCAL}/{given.kept}"] += 1
        watch.passed(task, given.kept)
        passed = chat_request.build_forwarded_body(body, task, given, request.path, limits.answer_tokens)
        return await forwarding.forward(engine.session, request, msgspec.json.encode(passed), of, engine.heard)
    outcome = await router.answer_input(engine, deployed, given, limits.answer_tokens, watch)
    answered[outcome.label] += 1
    return await chat_response.send_outcome(request, request.path, asked, outcome, of.outside, of.version)


def _supports_constraint(task: Task, path: str) -> bool:
    """Returns whether vLLM holds an answer on a path to the task's schema: Anthropic's wire has no grammar."""
    free_text = task.material.prompt["grammar"] is None
    return free_text or (path == chat_request.COMPLETIONS_PATH and task.grammar is not None)
