"""Chats in various formats, converted to the prompt text and the answer.

in   [{"role": "system", "content": "Route it."}, {"role": "user", "content": [{"type": "text", "text": "it is late"}]},
      {"role": "assistant", "content": "delivery_delay"}]                         OpenAI's format, TRL's, and
     [{"from": "human", "value": "it is late"}, {"from": "gpt", "value": "delivery_delay"}]        ShareGPT's
out  SourceRecord("Route it.", "it is late", "delivery_delay")

A tool call before the last turn is a line of the text: "assistant: look_up({"id": 7})".
"""

import json
import re
from collections.abc import Mapping, Sequence

from insource.tasks.source_record import SourceRecord, UnusableRowError, to_text

Messages = Sequence[Mapping[str, str]]

# ShareGPT's names of roles.
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
TEXT_PART_TYPES = ("text", "input_text", "output_text")
# Turns of a conversation that is one text, as in hh-rlhf.
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def parse_messages(value: object, column: str) -> Messages:
    """Return the messages of a column, a list or its JSON, as [{"role", "content"}, ...].

    A message with a tool call also has "call". Raises UnusableRowError with the turn and the problem.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnusableRowError("bad_messages", f"column {column!r} is text that is no JSON") from None
    if not isinstance(value, list) or not value:
        problem = "an empty list" if value == [] else "given none" if value is None else f"given {to_text(value)[:40]}"
        raise UnusableRowError("bad_messages", f"column {column!r}: a list of messages is needed, {problem}")
    return [_parse_message(raw, f"column {column!r}, turn {turn}") for turn, raw in enumerate(value, start=1)]


def parse_conversation(value: object, column: str) -> SourceRecord:
    """Return the record of a conversation that ends in an assistant's answer. Raises UnusableRowError."""
    messages = parse_messages(value, column)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UnusableRowError(
            "bad_messages", "the conversation has no user turn that an assistant turn answers at its end"
        )
    system, text = split_prompt(messages[:-1])
    return SourceRecord(system, text, read_answer(messages[-1]))


def read_answer(message: Mapping[str, str]) -> str:
    """Return the text of an answer. Raises UnusableRowError for a tool call, which is not text to learn."""
    if call := message.get("call"):
        raise UnusableRowError("tool_call", f"the answer is a call of a tool, {call[:40]}; answers are texts here")
    return message["content"]


def split_prompt(messages: Messages) -> tuple[str, str]:
    """Return the system prompt and the text of the other turns; `messages` does not include the answer.

    A single user turn becomes its text. Several turns have their role as prefix: "user: ...\\nassistant: ...". Raises
    UnusableRowError without a user turn.
    """
    system = "\n".join(message["content"] for message in messages if message["role"] in ("system", "developer"))
    turns = [message for message in messages if message["role"] not in ("system", "developer")]
    if not any(message["role"] == "user" for message in turns):
        raise UnusableRowError(
            "bad_messages", "the conversation has no user turn that an assistant turn answers at its end"
        )
    if len(turns) == 1:
        return system, turns[0]["content"]
    role_parts = (
        (message["role"], [part for part in (message["content"], message.get("call", "")) if part]) for message in turns
    )
    return system, "\n".join(f"{role}: {' '.join(parts)}" for role, parts in role_parts)


def parse_transcript(text: str) -> Messages:
    """Return the messages of a conversation in one text ("\\n\\nHuman: ...\\n\\nAssistant: ...", as in hh-rlhf).

    [] if the text is not such a conversation.
    """
    pieces = _SPEAKER.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": content} for name, content in zip(pieces[1::2], pieces[2::2], strict=True)]


def _parse_message(raw: object, location: str) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise UnusableRowError(
            "bad_messages", f"{location}: given {to_text(raw)[:40]}, allowed: an object of role and content"
        )
    role, content = raw.get("role", raw.get("from")), raw.get("content", raw.get("value"))
    if not isinstance(role, str) or not role:
        keys = ", ".join(map(str, raw))[:60]
        raise UnusableRowError(
            "bad_messages", f"{location}: no role; its keys are {keys or 'none'}, needed: role, content"
        )
    calls = raw.get("tool_calls") or ([{"function": raw["function_call"]}] if raw.get("function_call") else [])
    if not isinstance(calls, list):
        raise UnusableRowError("bad_messages", f"{location}: tool_calls is {to_text(calls)[:40]}, allowed: a list")
    message = {"role": ROLE_ALIASES.get(role, role)}
    if calls or role == "function_call":
        message["call"] = " ".join(map(_format_tool_call, calls)) or to_text(content)
    if content is None and "call" not in message:
        raise UnusableRowError("bad_messages", f"{location} ({role}): no content")
    return {**message, "content": "" if role == "function_call" else _content_text(content, location)}


def _content_text(content: object, location: str) -> str:
    """Return the text of a message's content: a text, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise UnusableRowError(
            "bad_messages", f"{location}: content is {to_text(content)[:40]}, allowed: text, or a list of parts"
        )
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in TEXT_PART_TYPES or not isinstance(text, str):
            raise UnusableRowError("bad_messages", f"{location}: a part of type {kind}; only text can be learnt from")
        texts.append(text)
    return "\n".join(texts)


def _format_tool_call(call: object) -> str:
    """Return a tool call as text: look_up({"id": 7})."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    if not isinstance(function, dict) or "name" not in function:
        return to_text(call)
    return f"{function['name']}({to_text(function.get('arguments', ''))})"
