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

from data_prep.readers.dotted_paths import MISSING, inside
from insource.config.recipe import Recipe
from insource.config.schema.data import Slots
from insource.tasks.source_record import Given, UnusableRowError, cell, list_of, rows_of_columns
from insource.tasks.source_record import text_of as text_of_column
from insource.tasks.words import breaks_word, joined

OUTSIDE = ("O", "")
_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """What a row gives, and the fields of which a value begins or ends inside a word: the places may be off by one."""

    given: Given
    cut: frozenset[str] = frozenset()


def given(values: Mapping[str, Any], recipe: Recipe) -> Found:
    """Returns the text and the record of a source row. Raises UnusableRowError where slots or tags cannot be read."""
    columns, cut = recipe.data.columns, set[str]()
    (column,) = columns.texts
    if columns.tags is not None:
        text, found = _of_tags(values.get(column), values.get(columns.tags), columns.tags)
    else:
        assert columns.slots is not None
        slots = columns.slots
        entries = _entries(values.get(slots.column), slots.column)
        if slots.column == column:
            text, found = _of_pieces(entries, slots)
        else:
            text = text_of_column(values.get(column), column)
            found = [_slot(entry, at, text, slots, cut) for at, entry in enumerate(entries, start=1)]
    return Found(Given("", text, _record(found, recipe)), frozenset(cut))


def text_of(values: Mapping[str, Any], recipe: Recipe) -> str:
    """Returns the text of a source row without slots or tags: they need not be there. Raises UnusableRowError."""
    columns = recipe.data.columns
    (column,) = columns.texts
    value = values.get(column)
    if columns.tags is not None:
        return value if isinstance(value, str) and list_of(value) is None else joined(_words(value))[0]
    assert columns.slots is not None
    if columns.slots.column == column:
        return _of_pieces(_entries(value, column), columns.slots)[0]
    return text_of_column(value, column)


def _record(found: Sequence[tuple[str, Any]], recipe: Recipe) -> dict[str, Any]:
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
            told = ", ".join(repr(cell(value)[:40]) for value in several[:3])
            raise UnusableRowError(
                "bad_record", f"field {name} has {len(several)} values ({told}), and its schema takes one; type: array"
            )
    return record


def _entries(value: Any, column: str) -> list[Any]:
    """The entries of a list, of its JSON, or of columns of equal length; none where there is nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    found = list_of(value)
    if found is None and isinstance(value, dict) and (rows := rows_of_columns(value)) is not None:
        return rows
    if found is None:
        raise UnusableRowError("bad_slots", f"column {column!r}: a list of slots is needed, given {cell(value)[:40]}")
    return found


def _slot(entry: Any, at: int, text: str, slots: Slots, cut: set[str]) -> tuple[str, Any]:
    """The name and the value of an entry."""
    name = inside(entry, slots.name)
    if name is None or name is MISSING or isinstance(name, list | dict) or not cell(name).strip():
        raise UnusableRowError("bad_slots", f"slot {at} has no {slots.name!r}: {cell(entry)[:60]}")
    name = cell(name).strip()
    if slots.value is not None:
        value = inside(entry, slots.value)
        if value is MISSING:
            raise UnusableRowError("bad_slots", f"slot {at} ({name}) has no {slots.value!r}: {cell(entry)[:60]}")
        return name, value
    assert slots.start is not None and slots.end is not None
    start, end = inside(entry, slots.start), inside(entry, slots.end)
    first, last = 0 if start in (None, MISSING) else _place(start), _place(end)
    if first is None or last is None:
        raise UnusableRowError("bad_slots", f"slot {at} ({name}) has no place in the text: {cell(entry)[:60]}")
    last += slots.end_inclusive
    if not 0 <= first < last <= len(text):
        told = f"slot {at} ({name}) is said to stand from {first} to {last} of {len(text)} characters"
        raise UnusableRowError("bad_slots", told)
    if breaks_word(text, first) or breaks_word(text, last):
        cut.add(name)
    return name, text[first:last]


def _place(value: Any) -> int | None:
    """A place as a whole number; None where it is none."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = whole and value == int(value)
    return int(value) if whole else None


def _of_pieces(entries: Sequence[Any], slots: Slots) -> tuple[str, list[tuple[str, Any]]]:
    """The text that pieces make up, and those of them that have a name."""
    texts, found = [], []
    for at, entry in enumerate(entries, start=1):
        piece, name = inside(entry, slots.value or ""), inside(entry, slots.name)
        if not isinstance(piece, str):
            raise UnusableRowError("bad_slots", f"piece {at} has no text in {slots.value!r}: {cell(entry)[:60]}")
        texts.append(piece)
        if name not in (None, MISSING, ""):
            found.append((cell(name), piece))
    return "".join(texts), found


def _of_tags(tokens: Any, tags: Any, column: str) -> tuple[str, list[tuple[str, Any]]]:
    """The text of tokens, and the values of their tags."""
    words, text = _words(tokens), ""
    names = tags.split() if isinstance(tags, str) and list_of(tags) is None else list_of(tags)
    if names is None or len(names) != len(words):
        count = "no" if names is None else len(names)
        raise UnusableRowError("bad_tags", f"{len(words)} tokens, and {count} tags in column {column!r}")
    if isinstance(tokens, str) and list_of(tokens) is None:
        text, places = tokens, [(one.start(), one.end()) for one in re.finditer(r"\S+", tokens)]
    else:
        text, places = joined(words)
    return text, [(name, text[places[first][0] : places[last][1]]) for name, first, last in _spans(names)]


def _words(tokens: Any) -> list[str]:
    found = list_of(tokens)
    if found is None:
        return tokens.split() if isinstance(tokens, str) else []
    if wrong := [one for one in found if not isinstance(one, str)]:
        raise UnusableRowError("bad_text", f"a token is {cell(wrong[0])[:40] or 'null'}, and a token is a text")
    return found


def _spans(tags: Sequence[Any]) -> Iterator[tuple[str, int, int]]:
    """Yields (name, first token, last token) of tags in IOB, IOB2, IOBES or BILOU, or of names without a prefix."""
    begun: tuple[str, int] | None = None
    ended = False
    for at, (prefix, name) in enumerate([*map(_tag, tags), ("O", "")]):
        if begun is not None and (ended or prefix in "OBSU" or name != begun[0]):
            yield (*begun, at - 1)
            begun = None
        if begun is None and prefix != "O":
            begun = (name, at)
        ended = prefix in "ELSU"


def _tag(tag: Any) -> tuple[str, str]:
    """The prefix and the name of a tag; a name alone is inside of its slot."""
    if tag is not None and not isinstance(tag, str):
        raise UnusableRowError("bad_tags", f"a tag is {cell(tag)[:40]}, and a tag is a text, such as B-artist or O")
    if tag is None or tag.strip() in OUTSIDE:
        return "O", ""
    found = _TAG.fullmatch(tag.strip())
    return (found[1], found[2]) if found else ("I", tag.strip())
