"""Source rows to data rows, or the reason why not.

in   SourceRow("tickets.csv", 19, {"ticket_id": "T000017", "message": " My parcel\\r\\nis late",
                                   "queue": "delivery_delay", "customer_id": "C01294", "channel": "chat"})
out  Row("T000017", "My parcel\\nis late", "delivery_delay", "C01294", {"channel": "chat"}, ...)

A row is decided by itself alone, in any process. Personal data that the recipe redacts is gone from here on: nothing
after this module ever holds it.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from data_prep.source_row import SourceRow
from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_data import By
from tasks import KINDS, privacy
from tasks.text import clean, label_key


@dataclass(frozen=True)
class Row:
    """One usable row. `target` is the label, or the record as canonical JSON; `time` is in seconds since 1970."""

    id: str
    text: str
    target: str
    group: str | None
    slices: dict[str, str]
    time: float | None
    found: frozenset[str]
    """Kinds of personal data that stood in the text before it was redacted."""
    system: str
    """The system prompt that a chat row brought along; the recipe's instruction takes its place."""
    raw: str
    """The text before it was cleaned, but redacted: to tell how much of test a plain comparison would have missed."""
    states: dict[str, str]
    """extraction: of each field, whether it is absent, empty, verbatim in the text, rewrapped there, or elsewhere."""
    file: str
    line: int


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


class UnusableRowError(Exception):
    """Why a row cannot be used: the reason that is counted, and the detail that is told."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def needed_columns(recipe: Recipe, split: str) -> dict[str, str]:
    """Returns {recipe key: column} of all that a file of this split ("all" or its name) must have."""
    columns, task = recipe.data.columns, recipe.task
    needed: dict[str, str | None] = {"data.columns.id": columns.id}
    if columns.messages is not None:
        needed["data.columns.messages"] = columns.messages
    else:
        needed["data.columns.text"] = columns.text
        if task.kind == "classification":
            needed["data.columns.label"] = columns.label
        elif columns.target is not None:
            needed["data.columns.target"] = columns.target
    if split in ("all", "train"):
        needed |= {"data.split.group": recipe.data.split.group, "data.split.time": recipe.data.split.time}
    fields = fields_of(recipe)
    needed |= {f"data.slices.{name}": column for name, column in slice_columns(recipe).items() if column not in fields}
    return {key: column for key, column in needed.items() if column is not None}


def check_columns(file: str, split: str, present: Collection[str], recipe: Recipe) -> None:
    """Raises RecipeError naming every column of the recipe that a file lacks, with the nearest that it has."""
    missing = []
    for key, column in needed_columns(recipe, split).items():
        if column not in present:
            near = get_close_matches(column, list(present), 1)
            missing.append(f"  {key}: there is no column {column!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if missing:
        raise RecipeError(
            "\n".join([f"{file} lacks columns that the recipe names:", *missing, f"  It has: {', '.join(present)}"])
        )


def slice_columns(recipe: Recipe) -> dict[str, str]:
    """Returns the column, or the field of the record, behind each slice of the recipe."""
    return {name: one.by if isinstance(one, By) else one.not_in_train for name, one in recipe.data.slices.items()}


def fields_of(recipe: Recipe) -> list[str]:
    """Returns the fields of an extraction task, in the order of its schema; none for other kinds."""
    schema: Any = recipe.task.json_schema
    return list(schema["properties"]) if schema else []


def row_of(source: SourceRow, recipe: Recipe) -> Row | Rejected:
    """Returns the row that a source row is, cleaned and redacted, or why it cannot be used."""
    columns, kinds = recipe.data.columns, recipe.privacy.redact
    row_id = _text(source.values.get(columns.id)).strip() if columns.id else f"{source.file}:{source.line}"
    row_id = privacy.pseudonym(row_id, kinds)
    try:
        if source.problem:
            row_id = ""
            raise UnusableRowError("unreadable", source.problem)
        if not row_id:
            raise UnusableRowError("no_id", f"column {columns.id!r} is empty")
        return _usable(source, row_id, recipe)
    except UnusableRowError as why:
        detail = privacy.redact(why.detail, kinds).text if kinds else why.detail
        return Rejected(source.file, source.line, row_id or None, why.reason, detail)


def _usable(source: SourceRow, row_id: str, recipe: Recipe) -> Row:
    values, split, kinds = source.values, recipe.data.split, recipe.privacy.redact
    system, raw, target = _parts(values, recipe)
    text = clean(raw)
    if not text:
        raise UnusableRowError("no_text", "the text is empty")
    for what, checked in (("text", text), ("answer", target if isinstance(target, str) else json.dumps(target))):
        _check_characters(what, checked)
    found = privacy.find(text)
    hidden: Mapping[str, str] = {}
    if kinds and found:
        redacted = privacy.redact(text, kinds)
        text, hidden, raw = redacted.text, redacted.values, redacted.text
    own = _own_values(values, target, recipe, hidden)
    answer = _target(target, recipe, hidden)
    group = _text(values.get(split.group)).strip() or row_id if split.group else None
    return Row(
        id=row_id,
        text=text,
        target=answer,
        group=group if group is None else privacy.pseudonym(group, kinds),
        slices={name: privacy.pseudonym(own.get(name, ""), kinds) for name in recipe.data.slices},
        time=_time(_text(values.get(split.time)), split.time) if split.time and split.time in values else None,
        found=frozenset(one.kind for one in found),
        system=system,
        raw=raw,
        states=_states(_record(target), json.loads(answer), text) if fields_of(recipe) else {},
        file=source.file,
        line=source.line,
    )


def _parts(values: Mapping[str, Any], recipe: Recipe) -> tuple[str, str, Any]:
    """Returns the system prompt, the text as it was given, and the target as it was given."""
    columns, kind = recipe.data.columns, recipe.task.kind
    if columns.messages is not None:
        return _conversation(values.get(columns.messages), columns.messages)
    # A JSONL row may lack a column that the first row had.
    text = _text(values.get(columns.text))
    if kind == "classification":
        return "", text, _text(values.get(columns.label))
    if columns.target is not None:
        return "", text, values.get(columns.target)
    return "", text, {field: values[field] for field in fields_of(recipe) if field in values}


def _conversation(messages: Any, column: str) -> tuple[str, str, str]:
    """Returns system prompt, what was said before the last answer, and that answer.

    One user turn is its text; of several turns each bears its role, as in "user: ...\\nassistant: ...".
    """
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            raise UnusableRowError("bad_messages", f"column {column!r} is text that is no JSON") from None
    fits = isinstance(messages, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in messages
    )
    if not fits:
        raise UnusableRowError("bad_messages", f"column {column!r} is no list of {{role, content}}")
    system = "\n".join(one["content"] for one in messages if one["role"] in ("system", "developer"))
    turns = [one for one in messages if one["role"] not in ("system", "developer")]
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or not any(one["role"] == "user" for one in turns):
        raise UnusableRowError(
            "bad_messages", "the conversation has no user turn that an assistant turn answers at its end"
        )
    asked = turns[:-1]
    text = asked[0]["content"] if len(asked) == 1 else "\n".join(f"{one['role']}: {one['content']}" for one in asked)
    return system, text, turns[-1]["content"]


def _target(target: Any, recipe: Recipe, hidden: Mapping[str, str]) -> str:
    """Returns the label as it was written, or the record as canonical JSON."""
    task = recipe.task
    if task.kind == "classification":
        label = clean(target)
        if not label:
            raise UnusableRowError("no_label", "the label is empty")
        if task.labels != "auto" and label not in task.labels:
            same = [one for one in task.labels if label_key(one) == label_key(label)]
            if not (same and recipe.data.normalize_labels):
                near = get_close_matches(label, list(task.labels), 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UnusableRowError("unknown_label", f"{label!r} is not among task.labels{hint}")
        return label
    given = _record(target)
    kind = KINDS[task.kind]
    spec = kind.specify(task, {})
    try:
        record = kind.record(spec, {name: _redacted(value, hidden) for name, value in given.items()})
    except ValueError as error:
        raise UnusableRowError("bad_record", str(error)) from None
    return str(kind.answer(spec, record))


def _record(target: Any) -> dict[str, Any]:
    if isinstance(target, str) and target.strip():
        try:
            target = json.loads(target)
        except ValueError:
            raise UnusableRowError("bad_record", "the record is text that is no JSON") from None
    if not isinstance(target, dict):
        raise UnusableRowError("bad_record", f"the record is {'empty' if not target else 'no JSON object'}")
    return target


def _states(given: Mapping[str, Any], record: Mapping[str, Any], text: str) -> dict[str, str]:
    """Where the value of each field stands: a value that is not in the text cannot be copied from it."""
    unwrapped = " ".join(text.split())
    states = {}
    for field, value in record.items():
        if value is None:
            states[field] = "absent" if given.get(field) is None else "empty"
        elif str(value) in text:
            states[field] = "verbatim"
        else:
            states[field] = "rewrapped" if " ".join(str(value).split()) in unwrapped else "elsewhere"
    return states


def _redacted(value: Any, hidden: Mapping[str, str]) -> Any:
    """What was redacted in the text is redacted in the record alike, for it cannot be copied from there any more."""
    if not hidden:
        return value
    if isinstance(value, list):
        return [_redacted(one, hidden) for one in value]
    return privacy.apply(hidden, value) if isinstance(value, str) else value


def _own_values(values: Mapping[str, Any], target: Any, recipe: Recipe, hidden: Mapping[str, str]) -> dict[str, str]:
    """Returns {slice: this row's value}, from the record where the slice names a field of it."""
    fields = set(fields_of(recipe))
    record = _record(target) if fields else {}
    return {
        name: str(_redacted(_text(record.get(column) if column in fields else values.get(column)), hidden)).strip()
        for name, column in slice_columns(recipe).items()
    }


def _check_characters(what: str, text: str) -> None:
    if "\x00" in text:
        raise UnusableRowError("nul_byte", f"the {what} holds a NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRowError("lone_surrogate", f"the {what} holds half a character ({error.reason})") from None


def _time(text: str, column: str | None) -> float:
    """Seconds since 1970 of an ISO 8601 time, or of a number of seconds. Without a zone it is UTC."""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if math.isfinite(seconds):
            return seconds
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UnusableRowError(
            "bad_time", f"column {column!r} is neither an ISO 8601 time nor a number of seconds"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _text(value: object) -> str:
    """A value of a source as the text of a column; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
