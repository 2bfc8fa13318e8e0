"""Messages as Anthropic defined them, through its SDK: Anthropic, and vLLM's `/v1/messages`. No log-probabilities."""

from typing import TYPE_CHECKING, Any

from backends.exchange import Backend, Received, Request, Usage
from backends.schemas import unwrapped, wrapped

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types import Message

_FINISHED = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


def client(backend: Backend) -> "AsyncAnthropic":
    """Returns the SDK's client; retries are ours (ask.py), so that each attempt is seen."""
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(
        api_key=backend.api_key, base_url=backend.base_url, timeout=backend.timeout_seconds, max_retries=0
    )


def body(backend: Backend, request: Request) -> dict[str, Any]:
    """Returns the request as it is sent; the constraint goes as a JSON Schema, which is all that this wire knows."""
    system = "\n\n".join(message["content"] for message in request.messages if message["role"] == "system")
    asked: dict[str, Any] = {
        "model": backend.model,
        "messages": [dict(message) for message in request.messages if message["role"] != "system"],
        "max_tokens": request.max_tokens,
    }
    if system:
        asked["system"] = system
    if backend.temperature is not None:
        asked["temperature"] = backend.temperature
    if backend.structured == "json_schema" and request.constraint.json_schema is not None:
        schema = wrapped(request.constraint.json_schema)
        asked["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return asked


async def send(client: "AsyncAnthropic", backend: Backend, request: Request) -> Received:
    """Returns the answer of one attempt. Raises the SDK's errors, and ValueError where the answer is none."""
    from anthropic.types import Message

    message = await client.post("/v1/messages", cast_to=Message, body=body(backend, request))
    return _received(message, backend, request)


def _received(message: "Message", backend: Backend, request: Request) -> Received:
    text, usage = "".join(block.text for block in message.content if block.type == "text"), message.usage
    if backend.structured == "json_schema" and request.constraint.json_schema is not None:
        text = unwrapped(request.constraint.json_schema, text)
    # input_tokens leaves out what was read from, or written to, the cache.
    cached = usage.cache_read_input_tokens or 0
    return Received(
        output=text,
        model_id=message.model,
        usage=Usage(
            input_tokens=usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cache_read_input_tokens,
        ),
        finish_reason=_FINISHED.get(message.stop_reason or "", message.stop_reason or "unknown"),
    )
