"""Records that come as a list of slots, or as tags of tokens, to records.

columns   text: said    slots: {column: labels, name: slot, start: span.start, end: span.end}
in        {"said": "for 2 at 8 pm", "labels": [{"slot": "time", "span": {"start": 9, "end": 13}}]}
out       "for 2 at 8 pm" and {"time": "8 pm"}

columns   text: tokens    tags: tags
in        {"tokens": ["play", "nina", "simone"], "tags": ["O", "B-artist", "I-artist"]}
out       "play nina simone" and {"artist": "nina simone"}

A slot of several values is a list where the schema has an array; where it has none, the row cannot be used.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.readers.dotted_paths import MISSING, resolve_path
from insource.config.recipe import Recipe
from insource.config.schema.data import Slots
from insource.tasks.source_record import SourceRecord, UnusableRowError, columns_to_rows, parse_list, to_text
from insource.tasks.source_record import read_text as text_of_column
from insource.tasks.words import is_inside_word, join_tokens

OUTSIDE_TAGS = ("O", "")
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)


@dataclass(frozen=True)
class SlotRecord:
    """What a row gives, and the fields of which a value begins or ends inside a word: the places may be off by one."""

    given: SourceRecord
    cut: frozenset[str] = frozenset()


def extract(values: Mapping[str, Any], recipe: Recipe) -> SlotRecord:
    """Returns the text and the record of a source row. Raises UnusableRowError where slots or tags cannot be read."""
    columns, cut = recipe.data.columns, set[str]()
    (column,) = columns.texts
    if columns.tags is not None:
        text, found = _join_tokens(values.get(column), values.get(columns.tags), columns.tags)
    else:
        assert columns.slots is not None
        slots = columns.slots
        entries = _parse_entries(values.get(slots.column), slots.column)
        if slots.column == column:
            text, found = _join_pieces(entries, slots)
        else:
            text = text_of_column(values.get(column), column)
            found = [_extract_slot(entry, at, text, slots, cut) for at, entry in enumerate(entries, start=1)]
    return SlotRecord(SourceRecord("", text, _build_record(found, recipe)), frozenset(cut))


def extract_text(values: Mapping[str, Any], recipe: Recipe) -> str:
    """Returns the text of a source row without slots or tags: they need not be there. Raises UnusableRowError."""
    columns = recipe.data.columns
    (column,) = columns.texts
    value = values.get(column)
    if columns.tags is not None:
        return value if isinstance(value, str) and parse_list(value) is None else join_tokens(_parse_tokens(value))[0]
    assert columns.slots is not None
    if columns.slots.column == column:
        return _join_pieces(_parse_entries(value, column), columns.slots)[0]
    return text_of_column(value, column)


def _build_record(found: Sequence[tuple[str, Any]], recipe: Recipe) -> dict[str, Any]:
    schema: Any = recipe.task.json_schema
    record: dict[str, Any] = {}
    found = [(name, value) for name, value in found if value is not None]
    for name in dict.fromkeys(name for name, _ in found):
        several = [value for one, value in found if one == name]
        kinds = schema["properties"].get(name, {}).get("type", ())
        if "array" in ([kinds] if isinstance(kinds, str) else kinds):
            record[name] = several
        elif all(value == several[0] for value in several):
            record[name] = several[0]
        else:
            told = ", ".join(repr(to_text(value)[:40]) for value in several[:3])
            raise UnusableRowError(
                "bad_record", f"field {name} has {len(several)} values ({told}), and its schema takes one; type: array"
            )
    return record


def _parse_entries(value: Any, column: str) -> list[Any]:
    """The entries of a list, of its JSON, or of columns of equal length; none where there is nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    found = parse_list(value)
    if found is None and isinstance(value, dict) and (rows := columns_to_rows(value)) is not None:
        return rows
    if found is None:
        raise UnusableRowError(
            "bad_slots", f"column {column!r}: a list of slots is needed, given {to_text(value)[:40]}"
        )
    return found


def _extract_slot(entry: Any, at: int, text: str, slots: Slots, cut: set[str]) -> tuple[str, Any]:
    """The name and the value of an entry."""
    name = resolve_path(entry, slots.name)
    if name is None or name is MISSING or isinstance(name, list | dict) or not to_text(name).strip():
        raise UnusableRowError("bad_slots", f"slot {at} has no {slots.name!r}: {to_text(entry)[:60]}")
    name = to_text(name).strip()
    if slots.value is not None:
        value = resolve_path(entry, slots.value)
        if value is MISSING:
            raise UnusableRowError("bad_slots", f"slot {at} ({name}) has no {slots.value!r}: {to_text(entry)[:60]}")
        return name, value
    assert slots.start is not None and slots.end is not None
    start, end = resolve_path(entry, slots.start), resolve_path(entry, slots.end)
    first, last = 0 if start in (None, MISSING) else _parse_offset(start), _parse_offset(end)
    if first is None or last is None:
        raise UnusableRowError("bad_slots", f"slot {at} ({name}) has no place in the text: {to_text(entry)[:60]}")
    last += slots.end_inclusive
    if not 0 <= first < last <= len(text):
        told = f"slot {at} ({name}) is said to stand from {first} to {last} of {len(text)} characters"
        raise UnusableRowError("bad_slots", told)
    if is_inside_word(text, first) or is_inside_word(text, last):
        cut.add(name)
    return name, text[first:last]


def _parse_offset(value: Any) -> int | None:
    """A place as a whole number; None where it is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = whole and value == int(value)
    return int(value) if whole else None


def _join_pieces(entries: Sequence[Any], slots: Slots) -> tuple[str, list[tuple[str, Any]]]:
    """The text that pieces make up, and those of them that have a name."""
    texts, found = [], []
    for at, entry in enumerate(entries, start=1):
        piece, name = resolve_path(entry, slots.value or ""), resolve_path(entry, slots.name)
        if not isinstance(piece, str):
            raise UnusableRowError("bad_slots", f"piece {at} has no text in {slots.value!r}: {to_text(entry)[:60]}")
        texts.append(piece)
        if name not in (None, MISSING, ""):
            found.append((to_text(name), piece))
    return "".join(texts), found


def _join_tokens(tokens: Any, tags: Any, column: str) -> tuple[str, list[tuple[str, Any]]]:
    """The text of tokens, and the values of their tags."""
    words, text = _parse_tokens(tokens), ""
    names = tags.split() if isinstance(tags, str) and parse_list(tags) is None else parse_list(tags)
    if names is None or len(names) != len(words):
        count = "no" if names is None else len(names)
        raise UnusableRowError("bad_tags", f"{len(words)} tokens, and {count} tags in column {column!r}")
    if isinstance(tokens, str) and parse_list(tokens) is None:
        text, places = tokens, [(one.start(), one.end()) for one in re.finditer(r"\S+", tokens)]
    else:
        text, places = join_tokens(words)
    return text, [(name, text[places[first][0] : places[last][1]]) for name, first, last in _iterate_spans(names)]


def _parse_tokens(tokens: Any) -> list[str]:
    found = parse_list(tokens)
    if found is None:
        return tokens.split() if isinstance(tokens, str) else []
    if wrong := [one for one in found if not isinstance(one, str)]:
        raise UnusableRowError("bad_text", f"a token is {to_text(wrong[0])[:40] or 'null'}, and a token is a text")
    return found


def _iterate_spans(tags: Sequence[Any]) -> Iterator[tuple[str, int, int]]:
    """Yields (name, first token, last token) of tags in IOB, IOB2, IOBES or BILOU, or of names without a prefix."""
    begun: tuple[str, int] | None = None
    ended = False
    for at, (prefix, name) in enumerate([*map(_parse_tag, tags), ("O", "")]):
        if begun is not None and (ended or prefix in "OBSU" or name != begun[0]):
            yield (*begun, at - 1)
            begun = None
        if begun is None and prefix != "O":
            begun = (name, at)
        ended = prefix in "ELSU"


def _parse_tag(tag: Any) -> tuple[str, str]:
    """The prefix and the name of a tag; a name alone is inside of its slot."""
    if tag is not None and not isinstance(tag, str):
        raise UnusableRowError("bad_tags", f"a tag is {to_text(tag)[:40]}, and a tag is a text, such as B-artist or O")
    if tag is None or tag.strip() in OUTSIDE_TAGS:
        return "O", ""
    found = _TAG.fullmatch(tag.strip())
    return (found[1], found[2]) if found else ("I", tag.strip())
