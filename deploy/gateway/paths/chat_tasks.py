"""Chats that contain an input of a task.

The input is answered as by /v1/tasks, in the client's API format. Only a stream, or an answer with log-probabilities,
is forwarded from vLLM as it is, if the input must be answered locally and the API format supports the task's
constraint.
"""

from collections import Counter

import msgspec
from aiohttp import web

from deploy.answers.local_model import LOCAL, EngineConnection
from deploy.answers.outcome import Deployment
from deploy.answers.task import Task
from deploy.gateway.paths import chat_request, chat_response, forwarding, json_body, router
from deploy.monitoring.monitor import Monitor
from insource.config.schema.serving_and_cost import Limits


def accepts_tasks(deployment: Deployment, path: str, raw: bool) -> bool:
    """Return whether chats on a path may contain inputs of a task (serve.chat)."""
    return path in chat_request.CHAT_PATHS and not raw and deployment.task.recipe.serve.chat == "task"


async def answer_chat(
    engine: EngineConnection,
    deployment: Deployment,
    request: web.Request,
    raw_body: bytes,
    names: forwarding.ModelNames,
    limits: Limits,
    outcome_counts: Counter[str],
    monitor: Monitor,
) -> web.StreamResponse | None:
    """Return the answer to a chat, None if it contains the task's own prompt and is forwarded unchanged.

    `outcome_counts` counts answers by system and reason. Raise RequestError if there is no answer, and the errors of
    `forwarding.forward`.
    """
    task, body = deployment.task, await json_body.read_object(raw_body)
    private = chat_request.has_private_header(request.headers)
    chat = chat_request.parse_chat(body, task, private)
    if chat is None:
        return None
    prepared = await router.prepare_input(deployment, chat.text, chat.private, monitor)
    local_reason = None if prepared.recorded else prepared.local_reason
    if local_reason and chat.needs_engine_response and _supports_constraint(task, request.path):
        outcome_counts[f"{LOCAL}/{local_reason}"] += 1
        monitor.record_forwarded(task, local_reason)
        forwarded_body = chat_request.build_forwarded_body(body, task, prepared, request.path, limits.answer_tokens)
        return await forwarding.forward(
            engine.session, request, msgspec.json.encode(forwarded_body), names, engine.on_data
        )
    outcome = await router.answer_input(engine, deployment, prepared, limits.answer_tokens, monitor)
    outcome_counts[outcome.route] += 1
    return await chat_response.send_outcome(request, request.path, chat, outcome, names.public_name, names.version)


def _supports_constraint(task: Task, path: str) -> bool:
    """Return whether vLLM can constrain an answer on a path to the task's schema: Anthropic's format has no grammar."""
    free_text = task.dataset.prompt.grammar is None
    return free_text or (path == chat_request.COMPLETIONS_PATH and task.grammar is not None)
