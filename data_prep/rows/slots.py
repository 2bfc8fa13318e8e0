"""Records from lists of slots or from token tags.

columns   text: said    slots: {column: labels, name: slot, start: span.start, end: span.end}
in        {"said": "for 2 at 8 pm", "labels": [{"slot": "time", "span": {"start": 9, "end": 13}}]}
out       "for 2 at 8 pm" and {"time": "8 pm"}

columns   text: tokens    tags: tags
in        {"tokens": ["play", "nina", "simone"], "tags": ["O", "B-artist", "I-artist"]}
out       "play nina simone" and {"artist": "nina simone"}

A slot with several values becomes a list if the schema has an array; otherwise the row is unusable.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.readers.dotted_paths import MISSING, resolve_path
from insource.config.recipe import Recipe
from insource.config.schema.source import Slots
from insource.tasks.source_record import (
    SourceRecord,
    UnusableRowError,
    columns_to_rows,
    parse_list,
    read_text,
    to_text,
)
from insource.tasks.words import is_inside_word, join_tokens

OUTSIDE_TAGS = ("O", "")
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)


@dataclass(frozen=True)
class SlotRecord:
    """The source record of a row, and the fields with a value that begins or ends inside a word.

    Such a value suggests offsets that are off by one.
    """

    record: SourceRecord
    cut_fields: frozenset[str] = frozenset()


def extract(values: Mapping[str, object], recipe: Recipe) -> SlotRecord:
    """Return the text and the record of a source row. Raise UnusableRowError if slots or tags cannot be read."""
    columns, cut_fields = recipe.data.columns, set[str]()
    (column,) = columns.texts
    if columns.tags is not None:
        text, pairs = _join_tokens(values.get(column), values.get(columns.tags), columns.tags)
    else:
        assert columns.slots is not None
        slots = columns.slots
        entries = _parse_entries(values.get(slots.column), slots.column)
        if slots.column == column:
            text, pairs = _join_pieces(entries, slots)
        else:
            text = read_text(values.get(column), column)
            pairs = [
                _extract_slot(entry, number, text, slots, cut_fields) for number, entry in enumerate(entries, start=1)
            ]
    return SlotRecord(SourceRecord("", text, _build_record(pairs, recipe)), frozenset(cut_fields))


def extract_text(values: Mapping[str, object], recipe: Recipe) -> str:
    """Return the text of a source row, which may lack slots and tags. Raise UnusableRowError if it has no text."""
    columns = recipe.data.columns
    (column,) = columns.texts
    value = values.get(column)
    if columns.tags is not None:
        return value if isinstance(value, str) and parse_list(value) is None else join_tokens(_parse_tokens(value))[0]
    assert columns.slots is not None
    if columns.slots.column == column:
        return _join_pieces(_parse_entries(value, column), columns.slots)[0]
    return read_text(value, column)


def _build_record(pairs: Sequence[tuple[str, object]], recipe: Recipe) -> dict[str, Any]:
    """Return {field: value}. Raise UnusableRowError if a field that is no array has several values."""
    schema: Any = recipe.task.json_schema
    record: dict[str, Any] = {}
    pairs = [(name, value) for name, value in pairs if value is not None]
    for name in dict.fromkeys(name for name, _ in pairs):
        values = [value for slot, value in pairs if slot == name]
        kinds = schema["properties"].get(name, {}).get("type", ())
        if "array" in ([kinds] if isinstance(kinds, str) else kinds):
            record[name] = values
        elif all(value == values[0] for value in values):
            record[name] = values[0]
        else:
            examples = ", ".join(repr(to_text(value)[:40]) for value in values[:3])
            raise UnusableRowError(
                "bad_record",
                f"field {name} has {len(values)} values ({examples}), and its schema takes one; type: array",
            )
    return record


def _parse_entries(value: object, column: str) -> list[Any]:
    """Return the entries of a list, of its JSON, or of columns of equal length; [] for an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    entries = parse_list(value)
    if entries is None and isinstance(value, dict) and (rows := columns_to_rows(value)) is not None:
        return rows
    if entries is None:
        raise UnusableRowError(
            "bad_slots", f"column {column!r}: a list of slots is needed, given {to_text(value)[:40]}"
        )
    return entries


def _extract_slot(entry: object, number: int, text: str, slots: Slots, cut_fields: set[str]) -> tuple[str, object]:
    """Return the name and the value of an entry."""
    name = resolve_path(entry, slots.name)
    if name is None or name is MISSING or isinstance(name, list | dict) or not to_text(name).strip():
        raise UnusableRowError("bad_slots", f"slot {number} has no {slots.name!r}: {to_text(entry)[:60]}")
    name = to_text(name).strip()
    if slots.value is not None:
        value = resolve_path(entry, slots.value)
        if value is MISSING:
            raise UnusableRowError("bad_slots", f"slot {number} ({name}) has no {slots.value!r}: {to_text(entry)[:60]}")
        return name, value
    assert slots.start is not None and slots.end is not None
    start, end = resolve_path(entry, slots.start), resolve_path(entry, slots.end)
    text_start, text_end = 0 if start in (None, MISSING) else _parse_offset(start), _parse_offset(end)
    if text_start is None or text_end is None:
        raise UnusableRowError("bad_slots", f"slot {number} ({name}) has no place in the text: {to_text(entry)[:60]}")
    text_end += slots.end_inclusive
    if not 0 <= text_start < text_end <= len(text):
        message = f"slot {number} ({name}) is given as {text_start} to {text_end} of {len(text)} characters"
        raise UnusableRowError("bad_slots", message)
    if is_inside_word(text, text_start) or is_inside_word(text, text_end):
        cut_fields.add(name)
    return name, text[text_start:text_end]


def _parse_offset(value: Any) -> int | None:
    """Return an offset as an integer; None if it is not one."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    is_whole = is_whole and value == int(value)
    return int(value) if is_whole else None


def _join_pieces(entries: Sequence[object], slots: Slots) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text that the pieces form, and the named pieces."""
    texts, pairs = [], []
    for number, entry in enumerate(entries, start=1):
        piece, name = resolve_path(entry, slots.value or ""), resolve_path(entry, slots.name)
        if not isinstance(piece, str):
            raise UnusableRowError("bad_slots", f"piece {number} has no text in {slots.value!r}: {to_text(entry)[:60]}")
        texts.append(piece)
        if name not in (None, MISSING, ""):
            pairs.append((to_text(name), piece))
    return "".join(texts), pairs


def _join_tokens(tokens: object, tags: object, column: str) -> tuple[str, list[tuple[str, object]]]:
    """Return the text of the tokens, and (name, value) of each tagged span."""
    words, text = _parse_tokens(tokens), ""
    names = tags.split() if isinstance(tags, str) and parse_list(tags) is None else parse_list(tags)
    if names is None or len(names) != len(words):
        count = "no" if names is None else len(names)
        raise UnusableRowError("bad_tags", f"{len(words)} tokens, and {count} tags in column {column!r}")
    if isinstance(tokens, str) and parse_list(tokens) is None:
        text, spans = tokens, [(match.start(), match.end()) for match in re.finditer(r"\S+", tokens)]
    else:
        text, spans = join_tokens(words)
    return text, [(name, text[spans[first][0] : spans[last][1]]) for name, first, last in _iterate_spans(names)]


def _parse_tokens(tokens: object) -> list[str]:
    """Return the tokens of a list, of its JSON, or of a text separated by spaces."""
    parsed = parse_list(tokens)
    if parsed is None:
        return tokens.split() if isinstance(tokens, str) else []
    if invalid := [token for token in parsed if not isinstance(token, str)]:
        raise UnusableRowError("bad_text", f"a token is {to_text(invalid[0])[:40] or 'null'}, and a token is a text")
    return parsed


def _iterate_spans(tags: Sequence[object]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, first token, last token) of tags in IOB, IOB2, IOBES or BILOU, or of names without a prefix."""
    open_span: tuple[str, int] | None = None
    was_end = False
    for index, (prefix, name) in enumerate([*map(_parse_tag, tags), ("O", "")]):
        if open_span is not None and (was_end or prefix in "OBSU" or name != open_span[0]):
            yield (*open_span, index - 1)
            open_span = None
        if open_span is None and prefix != "O":
            open_span = (name, index)
        was_end = prefix in "ELSU"


def _parse_tag(tag: object) -> tuple[str, str]:
    """Return the prefix and the name of a tag; a name without a prefix has the prefix "I"."""
    if tag is not None and not isinstance(tag, str):
        raise UnusableRowError("bad_tags", f"a tag is {to_text(tag)[:40]}, and a tag is a text, such as B-artist or O")
    if tag is None or tag.strip() in OUTSIDE_TAGS:
        return "O", ""
    match = _TAG.fullmatch(tag.strip())
    return (match[1], match[2]) if match else ("I", tag.strip())
