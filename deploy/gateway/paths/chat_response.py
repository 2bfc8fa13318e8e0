"""Format the answer of a task for chat clients of OpenAI and Anthropic: complete, or as a stream of events."""

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from deploy.answers.outcome import VERSION_HEADER, Outcome
from deploy.gateway.paths import forwarding
from deploy.gateway.paths.chat_request import COMPLETIONS_PATH, ChatRequest

ANSWERED_BY_HEADER, REASON_HEADER = "X-Insource-Answered-By", "X-Insource-Reason"
CONFIDENCE_HEADER, ID_HEADER = "X-Insource-Confidence", "X-Insource-Answer-Id"


async def send_outcome(
    request: web.Request, path: str, chat: ChatRequest, outcome: Outcome, model: str, version: str
) -> web.StreamResponse:
    """Send an answer in the API format of the path. Return the response."""
    headers = {
        VERSION_HEADER: version,
        ANSWERED_BY_HEADER: outcome.answered_by,
        REASON_HEADER: outcome.reason,
        ID_HEADER: outcome.id,
    }
    if outcome.confidence is not None:
        headers[CONFIDENCE_HEADER] = f"{outcome.confidence:.6f}"
    if not chat.stream:
        payload = build_completion(outcome, model) if path == COMPLETIONS_PATH else build_message(outcome, model)
        return await forwarding.send_json(request, payload, headers)
    build_events = build_completion_events if path == COMPLETIONS_PATH else build_message_events
    return await forwarding.send_events(request, build_events(outcome, model, chat.with_usage), headers)


def build_completion(outcome: Outcome, model: str) -> dict[str, Any]:
    """Return a chat completion. The outcome is in its key `insource`."""
    message = {"role": "assistant", "content": outcome.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = _build_completion_head("chat.completion", model)
    return {**head, "choices": [choice], "usage": _build_usage(outcome), "insource": outcome.json()}


def build_completion_events(outcome: Outcome, model: str, with_usage: bool) -> bytes:
    """Return a chat completion as a stream of chunks."""
    head = _build_completion_head("chat.completion.chunk", model)

    def chunk(delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    events = [chunk({"role": "assistant", "content": ""}), chunk({"content": outcome.text}), chunk({}, "stop")]
    events += [{**head, "choices": [], "usage": _build_usage(outcome)}] if with_usage else []
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def build_message(outcome: Outcome, model: str) -> dict[str, Any]:
    """Return a message in Anthropic's format."""
    input_tokens, output_tokens = outcome.usage
    return {
        **_build_message_head(model),
        "content": [{"type": "text", "text": outcome.text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
        "insource": outcome.json(),
    }


def build_message_events(outcome: Outcome, model: str, with_usage: bool) -> bytes:
    """Return a message in Anthropic's format as a stream of events, which always includes the usage."""
    input_tokens, output_tokens = outcome.usage
    message = {**_build_message_head(model), "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"usage": {"input_tokens": input_tokens, "output_tokens": 0}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": outcome.text}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": output_tokens},
        },
        {"type": "message_stop"},
    ]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def _build_completion_head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _build_message_head(model: str) -> dict[str, Any]:
    name = f"msg_{secrets.token_hex(12)}"
    return {"id": name, "type": "message", "role": "assistant", "model": model, "stop_sequence": None}


def _build_usage(outcome: Outcome) -> dict[str, int]:
    input_tokens, output_tokens = outcome.usage
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
