"""A chat request that is taken as a task's input: `model: classifier`, and not the task's own prompt in it.

{"model": "classifier", "messages": [{"role": "user", "content": "where is my money"}], "stream": true}
->  the task's prompt with that input, its grammar, greedy decoding, room for the longest answer

The conversation becomes an input as preparation makes one of a chat: one user turn is its text, several bear their
roles, the system prompt is left out. What sets how to answer is the task's own; of the request's parameters those in
KEPT count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.answers.outcome import PreparedInput
from deploy.answers.request_errors import invalid_request
from deploy.answers.task import Task
from insource.backends.wire import openai_chat
from insource.tasks.chat_messages import Messages, parse_messages, split_prompt
from insource.tasks.source_record import UnusableRowError

COMPLETIONS_PATH, MESSAGES_PATH = "/v1/chat/completions", "/v1/messages"
CHAT_PATHS = (COMPLETIONS_PATH, MESSAGES_PATH)
RAW_SUFFIX = ":raw"
"""Behind a model's name: its requests pass as they are."""
PRIVATE_HEADER = "X-Insource-Private"
FORWARDED_PARAMETERS = ("stream", "stream_options", "logprobs", "top_logprobs", "user", "seed")


@dataclass(frozen=True)
class ChatRequest:
    """A chat request that holds a task's input."""

    text: str
    private: bool
    stream: bool
    with_usage: bool
    """Whether a stream of OpenAI's wire ends in the tokens that were used."""


def parse_chat(body: Mapping[str, Any], task: Task, private: bool) -> ChatRequest | None:
    """Returns a chat request as an input of the task, None where it holds the task's own prompt and passes as it is.

    `private`: whether its headers say so. Raises RefusedError where it asks for something else than the task's answer.
    """
    try:
        messages = parse_messages(body.get("messages"), "messages")
        if contains_prompt(messages, task):
            return None
        text = split_prompt(messages)[1]
    except UnusableRowError as error:
        message = error.detail.replace("column 'messages'", "messages")
        raise invalid_request(f"{message}; {task.name}{RAW_SUFFIX} passes a request as it is") from None
    _check_parameters(body, task)
    options = body.get("stream_options") or {}
    with_usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
    return ChatRequest(text, private or parse_private(body.get("private")), bool(body.get("stream")), with_usage)


def contains_prompt(messages: Messages, task: Task) -> bool:
    """Returns whether a message has the task's prompt in it: instruction, and labels or fields."""
    return any(task.head in message["content"].replace("\r\n", "\n") for message in messages)


def parse_private(value: Any) -> bool:
    """Returns what `private` says. Raises RefusedError where it is neither true nor false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("1", "true", "0", "false", ""):
        return value.strip().lower() in ("1", "true")
    raise invalid_request(f"private is {str(value)[:40]!r}, allowed: true or false")


def has_private_header(headers: Any) -> bool:
    """Returns whether any of the headers of that name says that an input is private. Raises RefusedError likewise."""
    # All of them are read: one that says neither is refused, wherever it stands.
    flags = [parse_private(value) for value in headers.getall(PRIVATE_HEADER, [])]
    return any(flags)


def build_forwarded_body(
    body: Mapping[str, Any], task: Task, prepared: PreparedInput, path: str, max_tokens: int | None
) -> dict[str, Any]:
    """Returns the request that vLLM gets in the place of a client's, on the same wire."""
    request = task.request(prepared.given, max_tokens)
    forwarded = openai_chat.build_body(task.backend(), request)
    del forwarded["logprobs"]
    if path == MESSAGES_PATH:
        forwarded["max_tokens"] = forwarded.pop("max_completion_tokens")
        return {**forwarded, "stream": bool(body.get("stream"))}
    return {**forwarded, **{name: body[name] for name in FORWARDED_PARAMETERS if name in body}}


def _check_parameters(body: Mapping[str, Any], task: Task) -> None:
    """Raises RefusedError where a request asks for what a task does not give."""
    hint = f"leave it out, or ask {task.name}{RAW_SUFFIX}"
    for name in ("tools", "functions"):
        if body.get(name):
            raise invalid_request(f"{name}: the task {task.name} calls none; {hint}")
    if body.get("n") not in (None, 1):
        raise invalid_request(f"n: the task {task.name} has one answer; {hint}")
    config = body.get("output_config")
    requested_format = body.get("response_format") or (config.get("format") if isinstance(config, dict) else None)
    kind = requested_format.get("type") if isinstance(requested_format, dict) else requested_format
    schema = task.material.prompt["output_schema"] or {}
    if kind not in (None, "text") and schema.get("type") != "object":
        raise invalid_request(f"response_format: the task {task.name} answers with no JSON object; {hint}")
