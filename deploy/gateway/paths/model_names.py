"""Names of models in requests and answers: one is put for the other where a name stands, and nowhere else.

{"model": "classifier", "messages": [...]}  ->  {"model": "classifier@3f2a90c17b5e44d0", "messages": [...]}

Bodies are read one level deep and kept as the bytes that they are (msgspec.Raw), so that large ones cost next to
nothing and no number, text or escape is written otherwise than it came.
"""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

Fields = Mapping[str, msgspec.Raw]

_FIELDS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_MULTIPLE_PROMPTS = re.compile(rb'\s*\[\s*["\[]')


class LineTooLongError(Exception):
    """A line of a stream is longer than allowed."""


def parse_fields(body: bytes) -> Fields:
    """Returns the top level of a JSON object, its values as they stand. Raises ValueError where it is none."""
    try:
        return _FIELDS_DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_value(fields: Fields, key: str) -> Any:
    """Returns a value that may be a text or a number, None where there is none or it is something else.

    Raises ValueError for a text that is none, such as half a surrogate.
    """
    raw = bytes(fields[key]).lstrip() if key in fields else b""
    if not raw or raw[:1] in b"[{":
        return None
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


def read_number(fields: Fields, key: str) -> float | None:
    """Returns a number as vLLM reads it, which takes "3" and 3.0 for 3; None where there is none."""
    try:
        return float(read_value(fields, key))
    except (TypeError, ValueError):
        return None


def read_usage(answer: bytes) -> tuple[int, int]:
    """Returns how many tokens an answer read and wrote, on OpenAI's or Anthropic's wire; 0 where it does not say."""
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
    """Returns how many prompts a request has: a list of texts or of lists are several, a list of numbers is one."""
    raw = bytes(fields.get("prompt", b""))
    return len(_ITEMS_DECODER.decode(raw)) if _MULTIPLE_PROMPTS.match(raw) else 1


def replace_values(fields: Fields, **values: Any) -> bytes:
    """Returns an object as JSON with some of its values replaced."""
    return msgspec.json.encode(
        {**fields, **{key: msgspec.Raw(msgspec.json.encode(value)) for key, value in values.items()}}
    )


def restore_name(answer: bytes, internal_name: str, public_name: str) -> bytes:
    """Returns an answer with the name of the model as the client gave it: the key `model` of the answer itself, or of
    the message that Anthropic's wire begins a stream with. What is not JSON comes back as it is."""
    try:
        fields = parse_fields(answer)
        if _read_model(fields) == internal_name:
            return replace_values(fields, model=public_name)
        if read_value(fields, "type") == "message_start" and "message" in fields:
            message = parse_fields(bytes(fields["message"]))
            if _read_model(message) == internal_name:
                return replace_values(fields, message=msgspec.Raw(replace_values(message, model=public_name)))
    except ValueError:
        return answer
    return answer


async def restore_name_in_stream(
    chunks: AsyncIterator[bytes], internal_name: str, public_name: str, max_bytes: int
) -> AsyncIterator[bytes]:
    """Yields the whole lines of a stream of events as they come, with the name put back.

    Raises LineTooLongError for a line of more than `max_bytes` bytes.
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


def _read_model(fields: Fields) -> Any:
    return read_value(fields, "model")
