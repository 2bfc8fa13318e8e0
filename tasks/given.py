"""What a source row gives a task: an input and a target, as they stand there; or why it gives none.

in   {"messages": [{"role": "system", "content": "Route it."}, {"role": "user", "content": "my parcel is late"},
                   {"role": "assistant", "content": "delivery_delay"}]}
out  Given("Route it.", "my parcel is late", "delivery_delay")
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.text import clean

Messages = Sequence[Mapping[str, str]]


class UnusableRowError(Exception):
    """Why a row cannot be used: the reason that is counted, and the detail that is told."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Given:
    """The parts of a row before anything is cleaned. `system` is the system prompt that a chat row brought along."""

    system: str
    text: str
    target: Any


def cell(value: object) -> str:
    """Returns a value of a source as the text of a column; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def free_text(value: object, what: str) -> str:
    """Returns a free-text answer, clean. Raises UnusableRowError where it is none, or is empty."""
    if value is not None and not isinstance(value, str):
        raise UnusableRowError("bad_answer", f"the {what} is no text: {cell(value)[:40]}")
    check_characters(f"{what}", value or "")
    if not (text := clean(value or "")):
        raise UnusableRowError("no_answer", f"the {what} is empty")
    return text


def check_characters(what: str, text: str) -> None:
    """Returns nothing where a text can be stored. Raises UnusableRowError over NUL bytes and halves of characters."""
    if "\x00" in text:
        raise UnusableRowError("nul_byte", f"the {what} holds a NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRowError("lone_surrogate", f"the {what} holds half a character ({error.reason})") from None


def messages_of(value: Any, column: str) -> Messages:
    """Returns the chat messages that a column holds, as a list or as its JSON. Raises UnusableRowError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnusableRowError("bad_messages", f"column {column!r} is text that is no JSON") from None
    fits = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
    if not fits:
        raise UnusableRowError("bad_messages", f"column {column!r} is no list of {{role, content}}")
    return value  # type: ignore[no-any-return]


def conversation(value: Any, column: str) -> Given:
    """Returns what a conversation gives that ends in the assistant's answer. Raises UnusableRowError."""
    messages = messages_of(value, column)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UnusableRowError(
            "bad_messages", "the conversation has no user turn that an assistant turn answers at its end"
        )
    system, text = asked(messages[:-1])
    return Given(system, text, messages[-1]["content"])


def asked(messages: Messages) -> tuple[str, str]:
    """Returns the system prompt, and what was said up to the answer, of messages without that answer.

    One user turn is its text; of several turns each bears its role, as in "user: ...\\nassistant: ...". Raises
    UnusableRowError where no user says anything.
    """
    system = "\n".join(one["content"] for one in messages if one["role"] in ("system", "developer"))
    turns = [one for one in messages if one["role"] not in ("system", "developer")]
    if not any(one["role"] == "user" for one in turns):
        raise UnusableRowError(
            "bad_messages", "the conversation has no user turn that an assistant turn answers at its end"
        )
    if len(turns) == 1:
        return system, turns[0]["content"]
    return system, "\n".join(f"{one['role']}: {one['content']}" for one in turns)
