"""Source rows to data rows, or the reason why not.

in   SourceRow("tickets.csv", 19, {"ticket_id": "T000017", "message": " My parcel\\r\\nis late",
                                   "queue": "delivery_delay", "customer_id": "C01294", "channel": "chat"})
out  Row("T000017", "My parcel\\nis late", "delivery_delay", "C01294", {"channel": "chat"}, ...)

A row is decided by itself alone, in any process. Personal data that the recipe redacts is gone from here on: nothing
after this module ever holds it.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep import dotted
from data_prep.csv_format import NO_HEADER, looks_like_names
from data_prep.formats import read_record
from data_prep.source_row import SourceRow
from data_prep.times import seconds_of
from recipes import schema_fields
from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_data import By
from tasks import KINDS, inputs, privacy
from tasks.chat import conversation
from tasks.extraction import given_record
from tasks.given import UnusableRowError, cell, check_characters

PLACES = ("verbatim", "rewrapped", "elsewhere")
# Of the columns that a file has, how many are shown, and of each how much.
SHOWN_COLUMNS, SHOWN_CHARACTERS = 20, 40
MISSING_SHOWN = 6
PLACEHOLDER = re.compile(r"\[[A-Z]+_[0-9]+\]")


@dataclass(frozen=True)
class Row:
    """One usable row. `target` is a text, as the task's target_text gives it; `time` is in seconds since 1970."""

    id: str
    text: str
    target: str
    references: tuple[str, ...]
    """Further right answers, as texts of the same form."""
    group: str | None
    slices: dict[str, str]
    time: float | None
    found: frozenset[str]
    """Kinds of personal data that stood in the text, or in a free-text answer, before they were redacted."""
    system: str
    """The system prompt that a chat row brought along; the recipe's instruction takes its place."""
    raw: str
    """The text before it was cleaned, but redacted: to tell how much of test a plain comparison would have missed."""
    states: dict[str, str]
    """extraction: of each field, whether it is absent, empty, verbatim in the text, rewrapped there, or elsewhere."""
    file: str
    line: int

    @property
    def answers(self) -> tuple[str, ...]:
        """Returns all right answers, the target first."""
        return self.target, *self.references


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why: `rejected` ones cannot be, `dropped` ones must not be."""

    file: str
    line: int
    id: str | None
    reason: str
    detail: str
    kind: str = "rejected"

    def json(self) -> dict[str, Any]:
        """The row as it stands in rejected.jsonl, without its text."""
        return {
            "id": self.id,
            "file": self.file,
            "line": self.line,
            "kind": self.kind,
            "reason": self.reason,
            "detail": self.detail,
        }


def needed_columns(recipe: Recipe, split: str) -> dict[str, str]:
    """Returns {recipe key: column} of all that a file of this split ("all" or its name) must have."""
    columns = recipe.data.columns
    needed: dict[str, str | None] = {"data.columns.id": columns.id}
    answer = KINDS[recipe.task.variant].answer_columns(recipe)
    if columns.messages is not None:
        needed["data.columns.messages"] = columns.messages
    else:
        several = len(columns.texts) > 1
        texts = {f"data.columns.text{f'[{at}]' if several else ''}": name for at, name in enumerate(columns.texts)}
        needed |= {**texts, **answer}
    if split in ("all", "train"):
        needed |= {"data.split.group": recipe.data.split.group, "data.split.time": recipe.data.split.time}
    needed |= {f"data.where.{column}": column for column in recipe.data.where}
    fields = fields_of(recipe)
    needed |= {f"data.slices.{name}": column for name, column in slice_columns(recipe).items() if column not in fields}
    return {key: column for key, column in needed.items() if column is not None}


def read_columns(recipe: Recipe, split: str) -> list[str]:
    """Returns the columns that a reader of a file of this split should look for: those that it must have, those of the
    fields of records, and what dotted names of either may begin with."""
    columns = [*needed_columns(recipe, split).values()]
    columns += fields_of(recipe) if recipe.data.columns.target is None else []
    return [*dict.fromkeys([*columns, *(root for column in columns for root in dotted.roots(column))])]


def check_columns(file: str, split: str, values: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises RecipeError naming every column of the recipe that a row of a file lacks, with the nearest that it has."""
    missing, present = [], list(values)
    for key, column in needed_columns(recipe, split).items():
        if column not in present:
            near = get_close_matches(column, [*present, *(dotted.names(values) if "." in column else ())], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            missing.append(f"  {key}: there is no column {column!r}{hint}")
    if missing:
        shown = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..." for name in present]
        more = f" and {len(shown) - SHOWN_COLUMNS} more" if len(shown) > SHOWN_COLUMNS else ""
        unnamed = [f"  and {len(missing) - MISSING_SHOWN} more"] if len(missing) > MISSING_SHOWN else []
        lines = [f"{file} lacks columns that the recipe names:", *missing[:MISSING_SHOWN], *unnamed]
        lines.append(f"  It has: {', '.join(shown[:SHOWN_COLUMNS])}{more}")
        if Path(file).suffix.lower() not in (".json", ".jsonl", ".ndjson", ".parquet") and not looks_like_names(
            present
        ):
            lines.append(f"  Its first line does not look like names of columns: {NO_HEADER}.")
        raise RecipeError("\n".join(lines))


def slice_columns(recipe: Recipe) -> dict[str, str]:
    """Returns the column, or the field of the record, behind each slice of the recipe."""
    return {name: one.by if isinstance(one, By) else one.not_in_train for name, one in recipe.data.slices.items()}


def fields_of(recipe: Recipe) -> list[str]:
    """Returns the fields of an extraction task, in the order of its schema; none for other kinds."""
    schema: Any = recipe.task.json_schema
    return list(schema["properties"]) if schema else []


def paths_of(recipe: Recipe) -> list[str]:
    """Returns the fields of an extraction task as the data page names them, in the order of its schema: objects and
    lists of objects, where they are not there, and the paths of the values in them."""
    values = schema_fields.paths(recipe.task.json_schema) if recipe.task.json_schema else []
    found = [[field, *(path for path in values if path.startswith(f"{field}."))] for field in fields_of(recipe)]
    return list(dict.fromkeys(chain.from_iterable(found)))


def row_of(source: SourceRow, recipe: Recipe) -> Row | Rejected:
    """Returns the row that a source row is, cleaned and redacted, or why it cannot be used."""
    columns, kinds = recipe.data.columns, recipe.privacy.redact
    row_id = cell(source.values.get(columns.id)).strip() if columns.id else f"{source.file}:{source.line}"
    row_id = privacy.pseudonym(row_id, kinds)
    try:
        if source.problem:
            row_id = ""
            raise UnusableRowError("unreadable", source.problem)
        if not row_id:
            raise UnusableRowError("no_id", f"column {columns.id!r} is empty")
        check_characters("id", row_id)
        return _usable(source, row_id, recipe)
    except UnusableRowError as why:
        detail = privacy.redact(why.detail, kinds).text if kinds else why.detail
        return Rejected(source.file, source.line, _storable(row_id) or None, why.reason, _storable(detail))


def _storable(text: str) -> str:
    """The text with halves of characters, which nothing can encode, as their escapes."""
    return text.encode(errors="backslashreplace").decode()


def _usable(source: SourceRow, row_id: str, recipe: Recipe) -> Row:
    values, split, kinds, task = source.values, recipe.data.split, recipe.privacy.redact, KINDS[recipe.task.variant]
    messages = recipe.data.columns.messages
    given = task.given(values, recipe) if messages is None else conversation(values.get(messages), messages)
    raw, written = given.text, given.target
    schema, formats = recipe.task.json_schema, recipe.data.formats
    if schema is not None and (formats.decimal or formats.dates):
        read, *more = (read_record(given_record(one), schema, formats) for one in (written, *given.others))
        given = replace(given, target=read, others=more)
    prepared = inputs.prepared(raw, kinds)
    check_characters("system prompt", given.system)
    check_characters("answer", [given.target, *given.others])
    text, hidden, found = prepared.text, prepared.hidden, set(prepared.found)
    raw = text if kinds and found else raw
    hide = _hiding(text, hidden, kinds, found) if task.FREE_TEXT else partial(_redacted, hidden)
    own = _own_values(values, given.target, recipe, hidden)
    target, *others = dict.fromkeys(task.target_text(one, recipe, hide) for one in (given.target, *given.others))
    # What stood there as JSON is read now, its escapes with it.
    check_characters("answer", [task.target_of(one) for one in (target, *others)])
    group = cell(values.get(split.group)).strip() or row_id if split.group else None
    check_characters("group", group)
    for name, value in own.items():
        check_characters(f"slice {name}", value)
    return Row(
        id=row_id,
        text=text,
        target=target,
        references=tuple(others),
        group=group if group is None else privacy.pseudonym(group, kinds),
        slices={name: privacy.pseudonym(own.get(name, ""), kinds) for name in recipe.data.slices},
        time=_time(values, recipe),
        found=frozenset(found),
        system=given.system,
        raw=raw,
        states=_states(given_record(written), json.loads(target), text) if fields_of(recipe) else {},
        file=source.file,
        line=source.line,
    )


def _time(values: Mapping[str, Any], recipe: Recipe) -> float | None:
    column = recipe.data.split.time
    if column is None or column not in values:
        return None
    return seconds_of(cell(values[column]), column, recipe.data.formats.dates.get(column))


def _hiding(text: str, hidden: Mapping[str, str], kinds: Collection[str], found: set[str]) -> Callable[[str], str]:
    """Returns what replaces personal data in a free-text answer, and adds the kinds that it meets to `found`.

    What stands in the text too gets the placeholder that it has there, anything else one that is not in use.
    """
    values, taken = dict(hidden), PLACEHOLDER.findall(text)

    def hide(answer: str) -> str:
        found.update(one.kind for one in privacy.find(answer))
        if not kinds:
            return answer
        # Numbers go on above those that stand before.
        before = " ".join([*taken, *values]) + "\n"
        redacted = privacy.redact(before + privacy.apply(values, answer), kinds)
        values.update(redacted.values)
        return redacted.text.removeprefix(before)

    return hide


def _states(given: Mapping[str, Any], record: Mapping[str, Any], text: str) -> dict[str, str]:
    """Where the value of each field stands: a value that is not in the text cannot be copied from it.

    A list stands where its entry stands that is hardest to find; a number also as the source writes it ("12.50"). What
    is in an object is a field of its own, by its path.
    """
    unwrapped = " ".join(text.split())
    states: dict[str, str] = {}
    for field, value in record.items():
        places: dict[str, list[str]] = {}
        for path, spellings in _spellings(field, value, given.get(field)):
            places.setdefault(path, []).append(_place(spellings, text, unwrapped))
        if not places:
            states[field] = "absent" if given.get(field) is None else "empty"
        states |= {path: max(found, key=PLACES.index) for path, found in places.items()}
    return states


def _spellings(path: str, value: Any, given: Any) -> Iterator[tuple[str, set[str]]]:
    """Yields the path of each value that is there, with its spellings: as the record and as the source writes it."""
    if isinstance(value, dict | list):
        given = dotted.opened(given)
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _spellings(f"{path}.{name}", inside, given.get(name) if isinstance(given, dict) else None)
    elif isinstance(value, list):
        as_given = given if isinstance(given, list) and len(given) == len(value) else value
        for inside, one in zip(value, as_given, strict=True):
            yield from _spellings(path, inside, one)
    elif value is not None:
        yield path, {str(value), *([] if given is None or isinstance(given, list | dict) else [str(given)])}


def _place(spellings: set[str], text: str, unwrapped: str) -> str:
    if any(one in text for one in spellings):
        return "verbatim"
    return "rewrapped" if any(" ".join(one.split()) in unwrapped for one in spellings) else "elsewhere"


def _redacted(hidden: Mapping[str, str], text: str) -> str:
    """What was redacted in the input is redacted here alike, for it cannot be copied from there any more."""
    return privacy.apply(hidden, text) if hidden else text


def _own_values(values: Mapping[str, Any], target: Any, recipe: Recipe, hidden: Mapping[str, str]) -> dict[str, str]:
    """Returns {slice: this row's value}, from the record where the slice names a field of it."""
    fields = set(fields_of(recipe))
    record = given_record(target) if fields else {}
    return {
        name: _redacted(hidden, cell(record.get(column) if column in fields else values.get(column))).strip()
        for name, column in slice_columns(recipe).items()
    }
