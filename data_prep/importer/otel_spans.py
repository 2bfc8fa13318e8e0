"""Conversations from OpenTelemetry spans of model calls, as JSON lines.

in   {"name": "chat gpt-4o-mini", "attributes": {"gen_ai.request.model": "gpt-4o-mini",
      "gen_ai.system_instructions": "[{\\"type\\": \\"text\\", \\"content\\": \\"Route it.\\"}]",
      "gen_ai.input.messages": "[{\\"role\\": \\"user\\", \\"parts\\": [{\\"type\\": \\"text\\", ...}]}]",
      "gen_ai.output.messages": "[{\\"role\\": \\"assistant\\", \\"parts\\": [...], \\"finish_reason\\": \\"stop\\"}]"}}
     {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": ..., "value": {"stringValue": ...}}]}]}]}]}
out  ApiCall("gpt-4o-mini", [{"role": "system", ...}, {"role": "user", ...}, {"role": "assistant", ...}])

Source: OpenTelemetry semantic conventions for generative AI (development; the attributes since 1.37). The attributes
may be JSON texts or structured. They are read from spans and from the event gen_ai.client.inference.operation.details.
Spans of older versions of OpenLLMetry have numbered attributes instead: gen_ai.prompt.0.role and so on.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.importer.api_logs import ApiCall
from data_prep.readers.dotted_paths import parse_json_text
from insource.tasks.source_record import UnusableRowError, to_text

INPUT_KEY, OUTPUT_KEY, SYSTEM_KEY = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"
PROMPT_PREFIX, COMPLETION_PREFIX = "gen_ai.prompt.", "gen_ai.completion."
MODEL_KEYS = ("gen_ai.request.model", "gen_ai.response.model")


def read_calls(values: Mapping[str, Any]) -> Iterator[ApiCall | UnusableRowError]:
    """Yield the call of each span of a line, or its problem."""
    for span in _iterate_spans(values):
        try:
            yield _make_call(_collect_attributes(span))
        except UnusableRowError as error:
            yield error
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            # The error concerns one span; the next spans of the line may be valid.
            yield UnusableRowError("bad_log", f"not as an SDK writes it ({type(error).__name__}: {str(error)[:60]})")


def _iterate_spans(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the spans of a line."""
    if "resourceSpans" not in values:
        yield values
        return
    for resource in values["resourceSpans"] or []:
        for scope in resource.get("scopeSpans") or []:
            yield from scope.get("spans") or []


def _make_call(attributes: Mapping[str, Any]) -> ApiCall:
    """Return the call of a span. Raise UnusableRowError if it is no complete model call."""
    if f"{COMPLETION_PREFIX}0.role" in attributes or f"{COMPLETION_PREFIX}0.content" in attributes:
        return _make_numbered_call(attributes)
    if OUTPUT_KEY not in attributes or INPUT_KEY not in attributes:
        if not any(name.startswith("gen_ai.request.") for name in attributes):
            raise UnusableRowError("other_span", "the span is no call of a model")
        hint = "was OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT set?"
        raise UnusableRowError("no_content", f"the span has no {INPUT_KEY} and {OUTPUT_KEY}: {hint}")
    messages = [_make_message(message) for message in _parse_list(attributes[INPUT_KEY], INPUT_KEY)]
    if system := attributes.get(SYSTEM_KEY):
        messages.insert(0, {"role": "system", "content": _join_text_parts(_parse_list(system, SYSTEM_KEY))})
    outputs = _parse_list(attributes[OUTPUT_KEY], OUTPUT_KEY)
    if not outputs:
        raise UnusableRowError("no_answer", f"{OUTPUT_KEY} is empty")
    _check_complete(outputs[0].get("finish_reason"))
    return ApiCall(_find_model(attributes), [*messages, {**_make_message(outputs[0]), "role": "assistant"}])


def _make_numbered_call(attributes: Mapping[str, Any]) -> ApiCall:
    """Return the call of a span with numbered attributes. Raise UnusableRowError if it is no complete one."""
    prompt, answers = _collect_numbered(attributes, PROMPT_PREFIX), _collect_numbered(attributes, COMPLETION_PREFIX)
    if not prompt:
        raise UnusableRowError("no_content", f"the span has no {PROMPT_PREFIX}0.content")
    _check_complete(answers[0].get("finish_reason"))
    messages = [*prompt, answers[0] | {"role": "assistant"}]
    if any(name.startswith(("tool_calls.", "function_call.")) for message in messages for name in message):
        raise UnusableRowError("tool_call", "the conversation holds a tool_call; only texts can be learnt from")
    return ApiCall(
        _find_model(attributes),
        [
            {"role": message.get("role", "user"), "content": _parse_parts(message.get("content"))}
            for message in messages
        ],
    )


def _parse_parts(content: Any) -> Any:
    """Return the parts in a JSON text; a content that is no list of parts unchanged."""
    parts = parse_json_text(content)
    is_parts = isinstance(parts, list) and all(isinstance(part, dict) and "type" in part for part in parts)
    return parts if is_parts and parts else content


def _collect_numbered(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Return [{"role": ..., "content": ...}] of the attributes <prefix><number>.<name>, by number."""
    messages: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        number, _, name = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and number.isdecimal():
            messages.setdefault(int(number), {})[name] = value
    return [messages[number] for number in sorted(messages)]


def _check_complete(reason: Any) -> None:
    """Raise UnusableRowError if the answer was truncated or filtered."""
    if reason in ("length", "content_filter", "error"):
        raise UnusableRowError("cut" if reason == "length" else "refusal", f"the answer ended by {reason}")


def _find_model(attributes: Mapping[str, Any]) -> str | None:
    """Return the model of a span."""
    return next((attributes[name] for name in MODEL_KEYS if isinstance(attributes.get(name), str)), None)


def _make_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of a span as role and text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UnusableRowError("bad_messages", f"a message of a span has no role: {to_text(message)[:60]}")
    return {"role": message["role"], "content": _join_text_parts(message.get("parts") or [])}


def _join_text_parts(parts: Any) -> str:
    """Return the text of the parts of a message. Raise UnusableRowError for parts that are no text."""
    texts = []
    for part in parts if isinstance(parts, list) else [parts]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "reasoning":
            continue
        if kind in ("tool_call", "tool_call_response", "server_tool_call", "server_tool_call_response"):
            raise UnusableRowError("tool_call", f"the conversation holds a {kind}; only texts can be learnt from")
        if kind != "text":
            raise UnusableRowError("no_text", f"a part of type {kind}; only text can be learnt from")
        texts.append(to_text(part.get("content")))
    return "\n".join(texts)


def _parse_list(value: Any, name: str) -> list[Any]:
    """Return the list in an attribute, structured or as JSON. Raise UnusableRowError if it is no list."""
    parsed = parse_json_text(value)
    if not isinstance(parsed, list):
        raise UnusableRowError("bad_messages", f"{name} is no list: {to_text(value)[:60]}")
    return parsed


def _collect_attributes(span: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a span and of its events."""
    attributes: dict[str, Any] = {}
    for record in [*(span.get("events") or []), span]:
        raw_attributes = record.get("attributes") or {}
        if isinstance(raw_attributes, dict):
            attributes |= raw_attributes
        else:
            attributes |= {
                pair["key"]: _decode_value(pair.get("value") or {}) for pair in raw_attributes if "key" in pair
            }
    return attributes


def _decode_value(typed_value: Mapping[str, Any]) -> Any:
    """Return a value of OTLP JSON: {"stringValue": "x"}, {"arrayValue": {"values": [...]}}, {"kvlistValue": {...}}."""
    if "arrayValue" in typed_value:
        return [_decode_value(item) for item in typed_value["arrayValue"].get("values") or []]
    if "kvlistValue" in typed_value:
        return {
            pair["key"]: _decode_value(pair.get("value") or {})
            for pair in typed_value["kvlistValue"].get("values") or []
        }
    return next(iter(typed_value.values()), None)
