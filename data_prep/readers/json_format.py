"""Rows of JSON and JSONL files, each with its file and its line or number.

    in   {"text": "Where is my card?", "label": "card_arrival"}\n
    out  SourceRow("train.jsonl", 1, {"text": "Where is my card?", "label": "card_arrival"}, None)

A row that cannot be read is yielded with its problem and without values. JSONL streams, also if the file is named
.json. For JSON, the text of the file and one decoded row are in memory.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

from data_prep.readers import dotted_paths, json_layouts
from data_prep.readers.encoding import (
    LONE_SURROGATE_MESSAGE,
    TextDecoding,
    as_recipe_errors,
    has_lone_surrogate,
    open_text,
    read_lines,
)
from data_prep.readers.limits import Limits
from data_prep.readers.source_row import BadRowError, FileInfo, SourceFile, SourceRow
from insource.config.errors import RecipeError
from insource.config.schema.source import Source

# Estimated bytes per value of an object that is decoded at once; Python objects take a few times this.
VALUE_BYTES = 16
# Enough of a file to detect whether each line is an object.
HEAD_CHARACTERS = 1 << 20
Header = Sequence[str] | None
JSON_TYPE_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
CONVERT_TO_JSONL_HINT = "convert it to JSONL, an object a line"
# Matches up to and including a bracket or a string; possessive, so that the time is linear.
STRUCTURE_TOKEN = re.compile(r'[^"\[\]{}]*+([\[\]{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
WHITESPACE = re.compile(r"[ \t\n\r]*")
# An object on the first line and another on the next: JSON lines, whatever the suffix.
OBJECT_LINES = re.compile(r"\ufeff?\s*\{[^\n]*\}[ \t\r]*\n\s*\{")


def read(
    file: SourceFile, decoding: TextDecoding, source: Source, columns: Collection[str]
) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties besides the encoding, and the rows."""
    if file.kind == "jsonl":
        return {}, _read_jsonl(file, decoding, source.header)
    with as_recipe_errors(file.name), open_text(file, decoding, newline="") as stream:
        head = stream.read(HEAD_CHARACTERS)
    if OBJECT_LINES.match(head):
        return {"json_lines": True}, _read_jsonl(file, decoding, source.header)
    return _read_json(file, decoding, columns, source.header)


def read_json_text(file: SourceFile, decoding: TextDecoding) -> str:
    """Return the text of a JSON file. Raise RecipeError if it exceeds the limit."""
    if (size := decoding.scan.size_bytes) > decoding.limits.unpacked:
        raise decoding.limits.unpacked_error(file.name, "JSON", CONVERT_TO_JSONL_HINT, size)
    return "".join(read_lines(file, decoding, newline="", limit=size))


def _read_jsonl(file: SourceFile, decoding: TextDecoding, header: Header) -> Iterator[SourceRow]:
    """Yield one row per line that is not blank."""
    # A bare carriage return ends a line only if the file has no other line ends.
    newline = "\r" if set(decoding.scan.line_ends) == {"cr"} else "\n"
    for number, line in enumerate(read_lines(file, decoding, newline), start=1):
        if not line.strip():
            continue
        try:
            values = _to_row_values(STRICT_JSON.decode(line), "\\u" in line or decoding.has_lone_surrogates, header)
        except json.JSONDecodeError as error:
            cut_hint = "; the last line is cut off" if not line.endswith(newline) else ""
            nul_hint = " (NUL bytes)" if "\0" in line else ""
            # Some of json's messages end in "at".
            problem = f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{nul_hint}{cut_hint}"
            yield SourceRow(file.name, number, {}, problem)
        except (ValueError, RecursionError) as error:
            yield SourceRow(file.name, number, {}, _error_message(error))
        else:
            yield SourceRow(file.name, number, values)


def _read_json(
    file: SourceFile, decoding: TextDecoding, columns: Collection[str], header: Header
) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the rows of an array of objects, or of an object that contains one; the values are decoded one by one."""
    content = read_json_text(file, decoding)
    with _json_as_recipe_errors(file.name):
        start = _skip_whitespace(content, 0)
        if file.array is not None:
            members = _iterate_members(file.name, content, start, decoding.limits)
            start = next(member.start for member in members if member.key == file.array)
            return {"array": file.array}, _read_array(file, decoding, content, start, header)
        if content[start : start + 1] == "{":
            array = _find_array(file.name, content, start, columns, header, decoding.limits)
            if array is None:
                return _read_layout(file.name, content, columns, decoding.limits)
            key, start, unread = array
            info: FileInfo = {"array": key} | ({"arrays_not_read": unread} if unread else {})
            return info, _read_array(file, decoding, content, start, header)
        if content[start : start + 1] == "[":
            return {}, _read_array(file, decoding, content, start, header)
    raise RecipeError(
        f"{file.name}:1: JSON without an array of objects; write [{{...}}, {{...}}], or JSONL", code="INS-D017"
    )


def _read_layout(
    name: str, content: str, columns: Collection[str], limits: Limits
) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the rows of an object without an array of objects, with all rows in memory."""
    if (size := VALUE_BYTES * sum(map(content.count, ",[{"))) > limits.unpacked:
        raise limits.unpacked_error(name, "an object whose values take memory", CONVERT_TO_JSONL_HINT, size)
    try:
        value = _to_row_values(STRICT_JSON.decode(content), may_hold_surrogates=True)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{name}:1: {_error_message(error)}", code="INS-D016") from None
    layout, rows = json_layouts.extract_rows(name, value, columns)
    return {"layout": layout}, (SourceRow(name, number, row) for number, row in enumerate(rows, start=1))


def _read_array(
    file: SourceFile, decoding: TextDecoding, content: str, start: int, header: Header
) -> Iterator[SourceRow]:
    """Yield the elements of the array at `start` as rows."""
    with _json_as_recipe_errors(file.name):
        end = start + 1
        for number, (value, value_end) in enumerate(
            _iterate_elements(file.name, content, start, _decode_element, decoding.limits), start=1
        ):
            try:
                values = _to_row_values(
                    value, decoding.has_lone_surrogates or content.find("\\u", end, value_end) >= 0, header
                )
            except ValueError as error:
                yield SourceRow(file.name, number, {}, _error_message(error))
            else:
                yield SourceRow(file.name, number, values)
            end = value_end
        if content[_skip_whitespace(content, 0)] == "[":
            _check_end(content, _skip_whitespace(content, end) + 1)


def _find_array(
    name: str, text: str, offset: int, columns: Collection[str], header: Header, limits: Limits
) -> tuple[str, int, list[str]] | None:
    """Return (key, start, keys of the other arrays) of the array of rows in the object at `offset`.

    Return None if it has none, or if its columns show that the object is a row: an invoice with line items, a chat with
    messages. Of several arrays, the one whose objects have the columns is used. Raise RecipeError if several do.
    """
    members = [*_iterate_members(name, text, offset, limits)]
    row_types = {dict} if header is None else {dict, list}
    matches = _match_columns([member.key for member in members], columns)
    if any(matches) and matches >= max(
        _match_columns(keys, columns) for keys in [set[str](), *(member.item_keys for member in members)]
    ):
        return None
    arrays = [member for member in members if member.item_types and row_types & member.item_types] or [
        member for member in members if member.item_types == set()
    ]
    array_matches = [_match_columns(member.item_keys, columns) for member in arrays]
    best = [
        member
        for member, matched in zip(arrays, array_matches, strict=True)
        if any(matched) and matched == max(array_matches)
    ]
    if len(best) == 1:
        arrays = [best[0], *(member for member in arrays if member is not best[0])]
    elif len(arrays) > 1:
        names = ", ".join(repr(member.key[:40]) for member in arrays[:10])
        raise RecipeError(
            f"{name}:1: one array of objects is needed, but the object has several, {names}; keep one", code="INS-D017"
        )
    return (arrays[0].key, arrays[0].start, [member.key for member in arrays[1:]]) if arrays else None


def list_arrays(file: SourceFile, text: str, limits: Limits) -> list[str]:
    """Return the keys of the arrays of objects or arrays in a JSON object, in its order; [] for other values.

    Raise JSONDecodeError or RecursionError if the text is not JSON.
    """
    offset = _skip_whitespace(text, 0)
    if text[offset : offset + 1] != "{":
        return []
    return [
        member.key
        for member in _iterate_members(file.name, text, offset, limits)
        if member.item_types is not None and (not member.item_types or member.item_types & {dict, list})
    ]


class _Member(NamedTuple):
    """A member of a JSON object, without its value."""

    key: str
    start: int
    """The offset of the value."""
    item_types: set[type] | None
    """The types of the items of an array; None for a value of another type."""
    item_keys: set[str]
    """The keys of the objects in an array."""


def _iterate_members(name: str, text: str, offset: int, limits: Limits) -> Iterator[_Member]:
    """Yield the members of the object at `offset`.

    Raise JSONDecodeError, and RecipeError for a value larger than a row may be.
    """
    offset = _skip_whitespace(text, offset + 1)
    while text[offset : offset + 1] != "}":
        key, offset = LENIENT_JSON.raw_decode(text, offset)
        colon = _skip_whitespace(text, offset)
        if not isinstance(key, str) or text[colon : colon + 1] != ":":
            raise json.JSONDecodeError("Expecting a name and ':'", text, colon)
        start = end = _skip_whitespace(text, colon + 1)
        item_types: set[type] | None = None
        item_keys: set[str] = set()
        if text[start : start + 1] == "[":
            item_types, end = set(), start + 1
            for item, item_end in _iterate_elements(name, text, start, LENIENT_JSON.raw_decode, limits):
                item_types.add(type(item))
                item_keys.update(item if isinstance(item, dict) else ())
                end = item_end
            end = _skip_whitespace(text, end) + 1
        else:
            # A table by columns (df.to_json()) is no row: the estimated size of its values counts, as in _read_layout.
            estimated_bytes = VALUE_BYTES * sum(text.count(character, start) for character in ",[{")
            if estimated_bytes > limits.unpacked and not _ends_within(text, start, limits.row):
                raise limits.row_error(f"{name}:1", f"key {key[:40]!r}")
            end = LENIENT_JSON.raw_decode(text, start)[1]
        yield _Member(key, start, item_types, item_keys)
        offset = _skip_whitespace(text, end)
        if text[offset : offset + 1] == ",":
            offset = _skip_whitespace(text, offset + 1)
        elif text[offset : offset + 1] != "}":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, offset)
    _check_end(text, offset + 1)


def _match_columns(keys: Collection[str], columns: Collection[str]) -> list[bool]:
    """Return for each column whether an object with these keys has it or may reach it (bool list)."""
    return [any(name in keys for name in (column, *dotted_paths.list_roots(column))) for column in columns]


def _iterate_elements(
    name: str, text: str, offset: int, decode: Callable[[str, int], tuple[object, int]], limits: Limits
) -> Iterator[tuple[object, int]]:
    """Yield (value, end) of each element of the array at `offset`.

    Raise JSONDecodeError, and RecipeError for a value larger than a row may be.
    """
    offset = _skip_whitespace(text, offset + 1)
    if text[offset : offset + 1] == "]":
        return
    for number in count(1):
        if not _ends_within(text, offset, limits.row):
            raise limits.row_error(f"{name}:{number}")
        value, offset = decode(text, offset)
        yield value, offset
        offset = _skip_whitespace(text, offset)
        if text[offset : offset + 1] == "]":
            return
        if text[offset : offset + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, offset)
        offset = _skip_whitespace(text, offset + 1)


def _ends_within(text: str, start: int, max_characters: int) -> bool:
    """Return whether the value at `start` has at most `max_characters`.

    Decoded, it may take thirty times as many bytes. Invalid JSON returns True, because the decoder reports it.
    """
    if len(text) - start <= max_characters or text[start] not in '[{"':
        return True
    offset, depth = start, 0
    while offset - start <= max_characters:
        token = STRUCTURE_TOKEN.match(text, offset)
        if not token:
            return True
        offset, depth = token.end(), depth + {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[1][0], 0)
        if depth <= 0:
            return offset - start <= max_characters
    return False


def _decode_element(text: str, offset: int) -> tuple[object, int]:
    """Return the value, or the ValueError with its problem, and its end."""
    try:
        return STRICT_JSON.raw_decode(text, offset)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        return error, LENIENT_JSON.raw_decode(text, offset)[1]


def _check_end(text: str, offset: int) -> None:
    """Raise JSONDecodeError if more than white space follows."""
    if _skip_whitespace(text, offset) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip_whitespace(text, offset))


def _skip_whitespace(text: str, offset: int) -> int:
    """Return the offset of the next character that is not white space."""
    match = WHITESPACE.match(text, offset)
    return match.end() if match else offset


@contextmanager
def _json_as_recipe_errors(name: str) -> Iterator[None]:
    """Convert JSON errors to RecipeError with the line and a hint."""
    try:
        yield
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            hint = "; if each line is an object, name the file .jsonl"
        elif error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            hint = "; the file is cut off: copy it again"
        else:
            hint = ""
        raise RecipeError(
            f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}", code="INS-D016"
        ) from None
    except RecursionError:
        raise RecipeError(f"{name}: the JSON is nested too deeply; flatten it", code="INS-D016") from None


def _to_row_values(value: object, may_hold_surrogates: bool, header: Header = None) -> dict[str, object]:
    """Return the value as a row; `header` names the items of an array.

    Raise BadRowError if it is no row, and the value itself if it is a ValueError.
    """
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, list) and header is not None:
        if len(value) != len(header):
            raise BadRowError(f"{len(value)} values where data.source.header has {len(header)} names")
        value = dict(zip(header, value, strict=True))
    if not isinstance(value, dict):
        hint = "; data.source.header names the values of arrays" if isinstance(value, list) else ""
        raise BadRowError(f"a JSON {JSON_TYPE_NAMES[type(value)]} where an object belongs{hint}")
    if may_hold_surrogates and has_lone_surrogate(json.dumps(value, ensure_ascii=False)):
        raise BadRowError(LONE_SURROGATE_MESSAGE)
    return value


def _error_message(error: Exception) -> str:
    """Return the problem of a row."""
    if isinstance(error, BadRowError):
        return str(error)
    return "nested too deep" if isinstance(error, RecursionError) else "a whole number of too many digits"


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object. Raise BadRowError if a key occurs twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise BadRowError(f"key {duplicate[:40]!r} occurs twice")
    return values


def _parse_finite_float(digits: str) -> float:
    """Return the number. Raise BadRowError if it is infinite."""
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadRowError(f"the number {digits[:20]} is too large")
    return number


def _reject_constant(name: str) -> object:
    """Raise BadRowError: NaN and Infinity are not JSON."""
    raise BadRowError(f"{name}, which is not JSON")


STRICT_JSON = json.JSONDecoder(
    object_pairs_hook=_reject_duplicate_keys, parse_float=_parse_finite_float, parse_constant=_reject_constant
)
# Finds the end of a value that STRICT_JSON rejected.
LENIENT_JSON = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
