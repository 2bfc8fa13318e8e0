"""Conversations from logs of API calls, one {"request": ..., "response": ...} per line.

in   {"request": {"model": "gpt-4o-mini", "messages": [...]}, "response": {"choices": [{"message": {...}}]}}
     {"request": {"model": "gpt-6-luna", "instructions": "Route it.", "input": "it is late"},
      "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "delivery_delay"}]}]}}
     {"request": {"model": "claude-haiku-4-5", "system": "Route it.", "messages": [...]},
      "response": {"type": "message", "content": [{"type": "text", "text": "delivery_delay"}]}}
out  ApiCall("gpt-4o-mini", [{"role": "system", ...}, {"role": "user", ...}, {"role": "assistant", ...}])

The formats are those that `model_dump()` writes in openai 3.54 (ChatCompletion, Response) and anthropic 2.12 (Message).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from insource.tasks.source_record import UnusableRowError, to_text

TRUNCATION_REASONS = ("length", "max_tokens", "model_context_window_exceeded", "max_output_tokens")
# Keys of a request whose earlier turns are stored at the provider (Responses API).
EARLIER_TURN_KEYS = ("previous_response_id", "conversation")
# Types of reasoning blocks, which are no part of the answer.
REASONING_TYPES = ("thinking", "redacted_thinking", "reasoning")


@dataclass(frozen=True)
class ApiCall:
    """An answered call: a conversation that ends in the answer."""

    model: str | None
    messages: list[dict[str, Any]]


def read_calls(values: Mapping[str, Any]) -> Iterator[ApiCall | UnusableRowError]:
    """Yield the call of a line, or its problem."""
    try:
        yield _make_call(_decode_if_json(values.get("request")), _decode_if_json(values.get("response")))
    except UnusableRowError as error:
        yield error


def _make_call(request: Any, response: Any) -> ApiCall:
    """Return the call. Raise UnusableRowError if it failed or is incomplete."""
    if isinstance(response, list) or (isinstance(response, str) and response.startswith("data:")):
        raise UnusableRowError("streamed", "the response is the chunks of a stream; log the message that they make")
    if response is None:
        raise UnusableRowError("failed_call", "the call has no response")
    if not isinstance(response, dict) or response.get("error"):
        raise UnusableRowError("failed_call", f"the call failed: {to_text(response)[:60]}")
    if not isinstance(request, dict):
        raise UnusableRowError("bad_request", f"the request is no object: {to_text(request)[:60]}")
    # Logs of raw HTTP requests have the body one level down.
    request, response = _unwrap_body(request), _unwrap_body(response)
    if earlier := next((name for name in EARLIER_TURN_KEYS if request.get(name)), None):
        raise UnusableRowError("earlier_turns", f"the request has {earlier}: its earlier turns are not in the log")
    model = request.get("model") or response.get("model")
    messages, answer = _request_messages(request), _response_message(response)
    if response.get("type") == "message" and messages and messages[-1].get("role") == "assistant":
        # Anthropic's model continues an answer that the request begins.
        begun = messages.pop().get("content")
        parts = [part.get("text") for part in begun] if isinstance(begun, list) else [begun]
        answer["content"] = "".join(map(to_text, [*parts, answer["content"]]))
    return ApiCall(model if isinstance(model, str) else None, [*messages, answer])


def _unwrap_body(message: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a request or a response: an object, or its JSON."""
    body = _decode_if_json(message.get("body"))
    return body if isinstance(body, dict) else message


def _request_messages(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a request, with its system prompt first."""
    system = request.get("system", request.get("instructions"))
    messages = [{"role": "system", "content": system}] if system else []
    raw_messages = request.get("messages", request.get("input"))
    if isinstance(raw_messages, str):
        return [*messages, {"role": "user", "content": raw_messages}]
    if not isinstance(raw_messages, list):
        raise UnusableRowError("bad_request", "the request has neither messages nor input")
    for message in raw_messages:
        if isinstance(message, dict) and "role" not in message:
            raise UnusableRowError(
                "tool_call", f"the request holds a {to_text(message.get('type', 'message without role'))}"
            )
    return messages + raw_messages


def _response_message(response: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer as a message, from the response format of each SDK.

    Raise UnusableRowError if there is no complete answer.
    """
    if choices := response.get("choices"):
        _check_complete(choices[0].get("finish_reason"))
        message = dict(choices[0].get("message") or {})
        if message.get("refusal"):
            raise UnusableRowError("refusal", "the model refused to answer")
        return {name: message[name] for name in ("content", "tool_calls", "function_call") if message.get(name)} | {
            "role": "assistant",
            "content": message.get("content") or "",
        }
    _check_complete(response.get("stop_reason") or (response.get("incomplete_details") or {}).get("reason"))
    if response.get("stop_reason") == "refusal":
        raise UnusableRowError("refusal", "the model refused to answer")
    blocks = response.get("output", response.get("content"))
    if not isinstance(blocks, list):
        raise UnusableRowError("no_answer", "the response has no choices, output or content")
    texts = []
    for block in blocks:
        kind = block.get("type")
        if kind in REASONING_TYPES:
            continue
        parts = block.get("content") if kind == "message" else [block]
        for part in parts or []:
            if part.get("type") == "refusal":
                raise UnusableRowError("refusal", "the model refused to answer")
            if part.get("type") not in ("text", "output_text"):
                raise UnusableRowError(
                    "tool_call", f"the answer holds a {to_text(part.get('type'))}; answers are texts here"
                )
            texts.append(to_text(part.get("text")))
    return {"role": "assistant", "content": "".join(texts)}


def _check_complete(reason: Any) -> None:
    """Raise UnusableRowError if the answer was truncated or filtered."""
    if reason in TRUNCATION_REASONS:
        raise UnusableRowError("cut", f"the answer was cut off ({reason})")
    if reason == "content_filter":
        raise UnusableRowError("refusal", "the answer was filtered")


def _decode_if_json(value: Any) -> Any:
    """Return the JSON value of a text; the text itself if it is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
