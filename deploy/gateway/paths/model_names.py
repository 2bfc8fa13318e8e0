"""Replace model names in requests and answers, and change no other byte.

{"model": "classifier", "messages": [...]}  ->  {"model": "classifier@3f2a90c17b5e44d0", "messages": [...]}

Bodies are parsed one level deep, and the values are kept as bytes (msgspec.Raw). So large bodies cost little, and no
number, text or escape is rewritten.
"""

import math
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

Fields = Mapping[str, msgspec.Raw]

_FIELDS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_MULTIPLE_PROMPTS = re.compile(rb'\s*\[\s*["\[]')
# Before a value, and after it.
_KEY = re.compile(rb'\s*"[^"\\]*(?:\\.[^"\\]*)*"\s*:\s*', re.DOTALL)
_SEPARATOR = re.compile(rb"\s*([,}])")


class LineTooLongError(Exception):
    """A line of a stream is longer than allowed."""


def parse_fields(body: bytes) -> Fields:
    """Return the top level of a JSON object, with values as bytes. Raise ValueError if it is not an object."""
    try:
        return _FIELDS_DECODER.decode(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def has_duplicate_key(body: bytes, fields: Fields) -> bool:
    """Return whether the object in `body`, parsed into `fields`, has a key twice at its top level.

    The decoder keeps only the last value of such a key. Then the values do not follow each other in the body.
    """
    position, separator = body.index(b"{") + 1, b"}"
    for raw in fields.values():
        key, value = _KEY.match(body, position), bytes(raw).strip()
        if key is None or not body.startswith(value, key.end()):
            return True
        end = _SEPARATOR.match(body, key.end() + len(value))
        if end is None:
            return True
        position, separator = end.end(), end[1]
    return separator != b"}"


def read_value(fields: Fields, key: str) -> Any:
    """Return a text or number, None if it is missing or of another type.

    Raise ValueError for an invalid text, such as an unpaired surrogate.
    """
    raw = bytes(fields[key]).lstrip() if key in fields else b""
    if not raw or raw[:1] in b"[{":
        return None
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def read_number(fields: Fields, key: str) -> float | None:
    """Return a number as vLLM parses it ("3" and 3.0 are 3), None if there is none, infinity if it is too large."""
    try:
        value = read_value(fields, key)
    except ValueError:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def read_usage(answer: bytes) -> tuple[int, int]:
    """Return the input and output tokens of an answer in OpenAI's or Anthropic's format; 0 if it has none."""
    try:
        usage = parse_fields(bytes(parse_fields(answer)["usage"]))
    except (ValueError, KeyError):
        return 0, 0
    input_tokens, output_tokens = (
        read_number(usage, openai) or read_number(usage, anthropic) or 0.0
        for openai, anthropic in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    return int(input_tokens), int(output_tokens)


def count_prompts(fields: Fields) -> int:
    """Return the number of prompts in a request.

    A list of texts or of lists has several, a list of numbers is one prompt.
    """
    raw = bytes(fields.get("prompt", b""))
    return len(_ITEMS_DECODER.decode(raw)) if _MULTIPLE_PROMPTS.match(raw) else 1


def replace_values(fields: Fields, **values: Any) -> bytes:
    """Return an object as JSON with some values replaced."""
    return msgspec.json.encode(
        {**fields, **{key: msgspec.Raw(msgspec.json.encode(value)) for key, value in values.items()}}
    )


def restore_name(answer: bytes, internal_name: str, public_name: str) -> bytes:
    """Return an answer with the model name that the client sent.

    The name is in the key `model` of the answer, or of the message that starts a stream of Anthropic's format. Content
    that is not JSON is returned unchanged.
    """
    try:
        fields = parse_fields(answer)
        if read_value(fields, "model") == internal_name:
            return replace_values(fields, model=public_name)
        if read_value(fields, "type") == "message_start" and "message" in fields:
            message = parse_fields(bytes(fields["message"]))
            if read_value(message, "model") == internal_name:
                return replace_values(fields, message=msgspec.Raw(replace_values(message, model=public_name)))
    except ValueError:
        return answer
    return answer


async def restore_name_in_stream(
    chunks: AsyncIterator[bytes], internal_name: str, public_name: str, max_bytes: int
) -> AsyncIterator[bytes]:
    """Yield the complete lines of a stream of events as they arrive, with the client's model name.

    Raise LineTooLongError for a line of more than `max_bytes` bytes.
    """
    pending = bytearray()
    async for chunk in chunks:
        *complete, tail = chunk.split(b"\n")
        if complete:
            lines = [bytes(pending) + complete[0], *complete[1:]]
            pending = bytearray(tail)
            yield b"".join(_restore_line(line, internal_name, public_name) + b"\n" for line in lines)
        else:
            pending += tail
        if len(pending) > max_bytes:
            raise LineTooLongError(f"more than {max_bytes:,} bytes")
    if pending:
        yield _restore_line(bytes(pending), internal_name, public_name)


def _restore_line(line: bytes, internal_name: str, public_name: str) -> bytes:
    if not line.startswith(b"data:"):
        return line
    data = line[len(b"data:") :].strip()
    restored = restore_name(data, internal_name, public_name)
    return line if restored is data else b"data: " + restored
