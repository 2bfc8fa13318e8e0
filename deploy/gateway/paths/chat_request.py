"""A chat request taken as an input of a task: `model: classifier`, without the task's own prompt.

{"model": "classifier", "messages": [{"role": "user", "content": "where is my money"}], "stream": true}
->  the task's prompt with that input, its grammar, greedy decoding, tokens for the longest answer

The conversation becomes an input as in data preparation. One user turn is the text, several turns get their roles, and
the system prompt is dropped. Decoding settings are the task's own; of the request's parameters only those in
FORWARDED_PARAMETERS are used.
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
"""Suffix of a model name whose requests are forwarded unchanged."""
PRIVATE_HEADER = "X-Insource-Private"
FORWARDED_PARAMETERS = ("stream", "stream_options", "logprobs", "top_logprobs", "user", "seed")


@dataclass(frozen=True)
class ChatRequest:
    """A chat request with an input of a task."""

    text: str
    private: bool
    stream: bool
    with_usage: bool
    """True if a stream in OpenAI's format ends with the number of tokens."""
    with_log_probabilities: bool

    @property
    def needs_engine_response(self) -> bool:
        """True if only vLLM's own response has what the client wants: an answer token by token."""
        return self.stream or self.with_log_probabilities


def parse_chat(body: Mapping[str, Any], task: Task, private: bool) -> ChatRequest | None:
    """Return the task input in a chat request, None if the request has the task's own prompt.

    A request with the task's own prompt is forwarded unchanged. `private` is whether the headers mark the input as
    private. Raise RequestError if it requests more than the task's answer.
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
    is_private = private or parse_private(body.get("private"))
    return ChatRequest(text, is_private, bool(body.get("stream")), with_usage, bool(body.get("logprobs")))


def contains_prompt(messages: Messages, task: Task) -> bool:
    """Return whether a message contains the task's prompt: instruction, and labels or fields."""
    return any(task.prompt_head in message["content"].replace("\r\n", "\n") for message in messages)


def parse_private(value: Any) -> bool:
    """Return the value of `private`. Raise RequestError if it is neither true nor false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("1", "true", "0", "false", ""):
        return value.strip().lower() in ("1", "true")
    raise invalid_request(f"private is {str(value)[:40]!r}, allowed: true or false")


def has_private_header(headers: Any) -> bool:
    """Return whether any private header is true. Raise RequestError if one is neither true nor false."""
    # All headers are read, so that an invalid one is rejected in any position.
    flags = [parse_private(value) for value in headers.getall(PRIVATE_HEADER, [])]
    return any(flags)


def build_forwarded_body(
    body: Mapping[str, Any], task: Task, prepared: PreparedInput, path: str, max_tokens: int | None
) -> dict[str, Any]:
    """Return the request to send to vLLM for a client's request, in the same API format."""
    request = task.request(prepared.task_input, max_tokens)
    forwarded = openai_chat.build_body(task.backend(), request)
    del forwarded["logprobs"]
    if path == MESSAGES_PATH:
        forwarded["max_tokens"] = forwarded.pop("max_completion_tokens")
        return {**forwarded, "stream": bool(body.get("stream"))}
    return {**forwarded, **{name: body[name] for name in FORWARDED_PARAMETERS if name in body}}


def _check_parameters(body: Mapping[str, Any], task: Task) -> None:
    """Raise RequestError if a request uses parameters that a task does not support."""
    hint = f"leave it out, or ask {task.name}{RAW_SUFFIX}"
    for name in ("tools", "functions"):
        if body.get(name):
            raise invalid_request(f"{name}: the task {task.name} calls none; {hint}")
    if body.get("n") not in (None, 1):
        raise invalid_request(f"n: the task {task.name} has one answer; {hint}")
    config = body.get("output_config")
    requested_format = body.get("response_format") or (config.get("format") if isinstance(config, dict) else None)
    kind = requested_format.get("type") if isinstance(requested_format, dict) else requested_format
    schema = task.dataset.prompt.output_schema or {}
    if kind not in (None, "text") and schema.get("type") != "object":
        raise invalid_request(f"response_format: the task {task.name} answers with no JSON object; {hint}")
