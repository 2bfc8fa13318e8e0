"""Answers of the deployed version, requested and parsed as in the comparison, with at most one retry."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import ClientError

from compare.records import SystemAnswer
from deploy.answers.engine_pool import EngineSession
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from insource.backends.types import Backend, Completion, Request
from insource.backends.wire import openai_chat
from insource.backends.wire.engine_completion import convert_completion
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tasks.pii.inputs import CleanedInput

LOCAL = "local"
"""Name of the deployed version as the answering system."""
RETRY_TOKENS_FACTOR = 2
"""A truncated answer is retried with this many times the tokens."""
RETRYABLE_STATUSES = (408, 429)
"""Statuses of vLLM, or a proxy in front of it, after which the same request may succeed later."""
MISCONFIGURED_STATUSES = (401, 403, 404)
"""Statuses after which no request will succeed: a wrong key or a wrong model name."""
_MAX_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with its parsed value and confidence."""

    answer: SystemAnswer
    parsed: ParsedAnswer
    confidence: float | None
    is_retry: bool = False
    """True if it is the answer to a retry."""


@dataclass(frozen=True)
class EngineConnection:
    """Connection to the vLLM behind the gateway, or to several engines."""

    session: EngineSession
    on_data: Callable[[], None]
    """Called whenever vLLM sends data."""


class EngineRequestError(RequestError):
    """vLLM rejected a request.

    The message contains what concerns the client's own request. `engine_status` is the HTTP status of vLLM.
    """

    def __init__(self, engine_status: int, payload: object) -> None:
        message, self.engine_status = extract_message(payload), engine_status
        if engine_status in RETRYABLE_STATUSES:
            super().__init__(503, "overloaded_error", f"the model is busy: {message}", retry_seconds=5)
        elif engine_status in MISCONFIGURED_STATUSES:
            super().__init__(502, "api_error", f"the model's server answers {engine_status}: {message}")
        else:
            super().__init__(400, "invalid_request_error", f"the model refuses the input: {message}")


async def query_model(
    engine: EngineConnection, task: Task, task_input: CleanedInput, max_tokens: int | None
) -> ScoredAnswer:
    """Return the answer of the deployed version.

    An answer that does not fit the task's schema is retried once if something can be changed: with the grammar, or with
    more tokens. Raise RequestError if there is no answer.
    """
    request, backend = task.request(task_input, max_tokens), task.backend()
    answer = await _query(engine, task, backend, request)
    if answer.parsed.problem is None:
        return answer
    retry_backend = task.backend(constrained=True)
    retry_tokens = request.max_tokens * (RETRY_TOKENS_FACTOR if answer.parsed.problem == TRUNCATED else 1)
    retry_request = replace(request, max_tokens=min(retry_tokens, max_tokens or retry_tokens))
    if (retry_backend, retry_request) == (backend, request):
        return answer
    try:
        retry_answer = await _query(engine, task, retry_backend, retry_request)
    except RequestError as error:
        if error.status != 400:  # more tokens than the context length allows
            raise
        return answer
    # The comparison has no retries, so neither scale nor threshold is valid for the answer to one.
    return replace(retry_answer, confidence=None, is_retry=True) if retry_answer.parsed.problem is None else answer


async def _query(engine: EngineConnection, task: Task, backend: Backend, request: Request) -> ScoredAnswer:
    completion = await _send(engine, backend, request)
    answer = to_system_answer(completion)
    parsed = task.parse(answer)
    return ScoredAnswer(answer, parsed, task.confidence(answer) if parsed.problem is None else None)


def to_system_answer(completion: Completion) -> SystemAnswer:
    """Return a completion as the answer record of the comparison."""
    log_probability = completion.log_probability
    return SystemAnswer(
        id="input",
        output=completion.output,
        finish_reason=completion.finish_reason or "stop",
        model_id=completion.model_id,
        log_probability=log_probability if log_probability is None or math.isfinite(log_probability) else None,
        field_log_probability=completion.field_log_probability,
        input_tokens=completion.usage.input_tokens,
        output_tokens=completion.usage.output_tokens,
        probabilities=completion.probabilities,
    )


async def _send(engine: EngineConnection, backend: Backend, request: Request) -> Completion:
    payload = await post_to_engine(engine, "/v1/chat/completions", openai_chat.build_body(backend, request))
    try:
        return openai_chat.parse_completion(convert_completion(payload), backend, request)
    except (ValueError, AttributeError, TypeError) as error:
        raise unreadable_answer(error) from None


async def post_to_engine(engine: EngineConnection, path: str, body: Mapping[str, object]) -> Any:
    """Return the JSON answer of vLLM to a request. Raise RequestError if there is none, or if it is an error."""
    try:
        async with engine.session.post(path, json=body) as response:
            payload = await response.json(content_type=None)
    except (ClientError, ValueError, RuntimeError) as error:  # RuntimeError: the session was closed with its vLLM
        message = f"the model broke off: {type(error).__name__}"
        raise RequestError(503, "overloaded_error", message, retry_seconds=5) from None
    if response.status >= 500:
        raise RequestError(503, "overloaded_error", "the model fails", retry_seconds=5)
    engine.on_data()
    if response.status != 200:
        raise EngineRequestError(response.status, payload)
    return payload


def unreadable_answer(error: Exception) -> RequestError:
    """Return the error for an answer of vLLM in another format (502)."""
    return RequestError(502, "api_error", f"the model's answer cannot be read: {type(error).__name__}")


def extract_message(payload: object) -> str:
    """Return the message of an error response of vLLM."""
    message = payload.get("error", payload) if isinstance(payload, dict) else payload
    message = message.get("message", message) if isinstance(message, dict) else message
    return str(message)[:_MAX_MESSAGE_CHARACTERS]
