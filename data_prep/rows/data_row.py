"""Source rows to data rows, or the reason why a row is unusable.

in   SourceRow("tickets.csv", 19, {"ticket_id": "T000017", "message": " My parcel\\r\\nis late",
                                   "queue": "delivery_delay", "customer_id": "C01294", "channel": "chat"})
out  Row("T000017", "My parcel\\nis late", "delivery_delay", "C01294", {"channel": "chat"}, ...)

Each row is processed independently, in any process. Personal data that the recipe redacts is removed here; no later
module has it.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from data_prep.readers import dotted_paths
from data_prep.readers.source_row import PROVENANCES, SourceRow
from data_prep.rows import slots
from data_prep.rows.columns import field_names, slice_columns
from data_prep.rows.timestamps import parse_epoch_seconds
from data_prep.rows.value_formats import parse_record_values
from insource.config.recipe import Recipe
from insource.tasks import TASKS
from insource.tasks.chat_messages import parse_conversation
from insource.tasks.extraction import parse_record
from insource.tasks.pii import inputs, redaction
from insource.tasks.source_record import SourceRecord, UnusableRowError, check_characters, to_text

VALUE_LOCATIONS = ("verbatim", "rewrapped", "elsewhere")
PLACEHOLDER = re.compile(r"\[[A-Z]+_[0-9]+\]")


@dataclass(frozen=True)
class Row:
    """A usable row.

    `target` is the text that the task's `normalize_target` returns; `time` is in seconds since 1970.
    """

    id: str
    text: str
    target: str
    references: tuple[str, ...]
    """Further correct answers, in the form of `target`."""
    group: str | None
    """None if the recipe has no group column or the value is empty."""
    slices: dict[str, str]
    time: float | None
    pii_kinds: frozenset[str]
    """Kinds of personal data in the text or in a free-text answer, before redaction."""
    system: str
    """The system prompt of a chat row; the recipe's instruction replaces it."""
    text_before_cleaning: str
    """The redacted text before cleaning. It shows how many test rows an exact comparison would have missed."""
    field_states: dict[str, str]
    """Extraction: whether each field is absent, empty, verbatim in the text, rewrapped there, or elsewhere."""
    cut_fields: frozenset[str]
    """Fields whose span in the text, as given by the source, begins or ends inside a word."""
    file: str
    line: int
    provenance: str = PROVENANCES[0]

    @property
    def answers(self) -> tuple[str, ...]:
        """Return all correct answers, the target first."""
        return self.target, *self.references


@dataclass(frozen=True)
class Rejected:
    """An unused row with the reason: `rejected` rows are unusable, `dropped` rows are excluded."""

    file: str
    line: int
    id: str | None
    reason: str
    detail: str
    kind: str = "rejected"

    def json(self) -> dict[str, Any]:
        """Return the entry of rejected.jsonl, without the text of the row."""
        return {
            "id": self.id,
            "file": self.file,
            "line": self.line,
            "kind": self.kind,
            "reason": self.reason,
            "detail": self.detail,
        }


def make_row(source: SourceRow, recipe: Recipe) -> Row | Rejected:
    """Return the cleaned and redacted row, or the reason why it is unusable."""
    columns, kinds = recipe.data.columns, recipe.privacy.redact
    default_id = source.id or f"{source.file}:{source.line}"
    row_id = to_text(source.values.get(columns.id)).strip() if columns.id else default_id
    row_id = redaction.pseudonymize(row_id, kinds)
    try:
        if source.problem:
            row_id = ""
            raise UnusableRowError("unreadable", source.problem)
        if not row_id:
            raise UnusableRowError("no_id", f"column {columns.id!r} is empty")
        check_characters("id", row_id)
        return _make_valid_row(source, row_id, recipe)
    except UnusableRowError as error:
        detail = redaction.redact(error.detail, kinds).text if kinds else error.detail
        return Rejected(
            source.file, source.line, _escape_surrogates(row_id) or None, error.reason, _escape_surrogates(detail)
        )


def _escape_surrogates(text: str) -> str:
    """Return the text with lone surrogates, which cannot be encoded, as escapes."""
    return text.encode(errors="backslashreplace").decode()


def _make_valid_row(source: SourceRow, row_id: str, recipe: Recipe) -> Row:
    """Return the row. Raise UnusableRowError with the reason if it is unusable."""
    values, split, kinds, task = source.values, recipe.data.split, recipe.privacy.redact, TASKS[recipe.task.task_name]
    record, cut_fields = _extract_source_record(values, recipe)
    raw, source_target = record.text, record.target
    schema, formats = recipe.task.json_schema, recipe.data.formats
    if schema is not None and (formats.decimal or formats.dates):
        parsed, *other_parsed = (
            parse_record_values(parse_record(answer), schema, formats)
            for answer in (source_target, *record.other_targets)
        )
        record = replace(record, target=parsed, other_targets=other_parsed)
    prepared = inputs.prepare_input(raw, kinds)
    check_characters("system prompt", record.system)
    check_characters("answer", [record.target, *record.other_targets])
    text, redactions, pii_kinds = prepared.text, prepared.redacted_values, set(prepared.pii_kinds)
    raw = text if kinds and pii_kinds else raw
    redact = (
        _make_redactor(text, redactions, kinds, pii_kinds)
        if task.IS_FREE_TEXT
        else partial(_apply_redactions, redactions)
    )
    values_by_slice = slice_values(values, record.target, recipe, redactions)
    target, *other_targets = dict.fromkeys(
        task.normalize_target(answer, recipe, redact) for answer in (record.target, *record.other_targets)
    )
    # JSON inside the answers is decoded now, with its escapes.
    check_characters("answer", [task.parse_target(answer) for answer in (target, *other_targets)])
    group = to_text(values.get(split.group)).strip() or None if split.group else None
    check_characters("group", group)
    for name, value in values_by_slice.items():
        check_characters(f"slice {name}", value)
    return Row(
        id=row_id,
        text=text,
        target=target,
        references=tuple(other_targets),
        group=group if group is None else redaction.pseudonymize(group, kinds),
        slices={name: redaction.pseudonymize(values_by_slice.get(name, ""), kinds) for name in recipe.data.slices},
        time=parse_row_time(values, recipe),
        pii_kinds=frozenset(pii_kinds),
        system=record.system,
        text_before_cleaning=raw,
        field_states=locate_fields(parse_record(source_target), json.loads(target), text)
        if field_names(recipe)
        else {},
        cut_fields=cut_fields,
        file=source.file,
        line=source.line,
        provenance=source.provenance,
    )


def _extract_source_record(values: Mapping[str, object], recipe: Recipe) -> tuple[SourceRecord, frozenset[str]]:
    """Return the source record of a row, and the fields whose spans cut words."""
    messages = recipe.data.columns.messages
    if recipe.data.columns.slot_columns:
        slot_record = slots.extract(values, recipe)
        return slot_record.record, slot_record.cut_fields
    if messages is not None:
        return parse_conversation(values.get(messages), messages), frozenset()
    return TASKS[recipe.task.task_name].read_source_row(values, recipe), frozenset()


def parse_row_time(values: Mapping[str, object], recipe: Recipe) -> float | None:
    """Return the time of a row in seconds since 1970; None without a time column."""
    column = recipe.data.split.time
    if column is None or column not in values:
        return None
    return parse_epoch_seconds(to_text(values[column]), column, recipe.data.formats.dates.get(column))


def _make_redactor(
    text: str, redactions: Mapping[str, str], kinds: Collection[str], pii_kinds: set[str]
) -> Callable[[str], str]:
    """Return a function that redacts free-text answers and adds the kinds that it finds to `pii_kinds`.

    A value that occurs in the text gets the placeholder of the text; other values get unused placeholders.
    """
    values, placeholders = dict(redactions), PLACEHOLDER.findall(text)

    def redact(answer: str) -> str:
        pii_kinds.update(match.kind for match in redaction.find_pii(answer))
        if not kinds:
            return answer
        # Placeholder numbers continue after those in use.
        context = " ".join([*placeholders, *values]) + "\n"
        redacted = redaction.redact(context + redaction.redact_values(values, answer), kinds)
        values.update(redacted.values)
        return redacted.text.removeprefix(context)

    return redact


def locate_fields(source_record: Mapping[str, object], record: Mapping[str, object], text: str) -> dict[str, str]:
    """Return the state of each field: a value that does not occur in the text cannot be copied from it.

    The state of a list is that of its least similar item. A number is also compared as written in the source ("12.50").
    Values inside an object are separate fields, named by their paths.
    """
    unwrapped = " ".join(text.split())
    states: dict[str, str] = {}
    for field, value in record.items():
        locations: dict[str, list[str]] = {}
        for path, spellings in _iterate_spellings(field, value, source_record.get(field)):
            locations.setdefault(path, []).append(_locate_value(spellings, text, unwrapped))
        if not locations:
            states[field] = "absent" if source_record.get(field) is None else "empty"
        states |= {path: max(path_locations, key=VALUE_LOCATIONS.index) for path, path_locations in locations.items()}
    return states


def _iterate_spellings(path: str, value: object, source_value: object) -> Iterator[tuple[str, set[str]]]:
    """Yield (path, spellings) of each value that is not null: the spelling of the record and that of the source."""
    if isinstance(value, dict | list):
        source_value = dotted_paths.parse_json_text(source_value)
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _iterate_spellings(
                f"{path}.{name}", item, source_value.get(name) if isinstance(source_value, dict) else None
            )
    elif isinstance(value, list):
        source_items = source_value if isinstance(source_value, list) and len(source_value) == len(value) else value
        for item, source_item in zip(value, source_items, strict=True):
            yield from _iterate_spellings(path, item, source_item)
    elif value is not None:
        is_scalar = source_value is not None and not isinstance(source_value, list | dict)
        yield path, {str(value), str(source_value if is_scalar else value)}


def _locate_value(spellings: set[str], text: str, unwrapped: str) -> str:
    """Return "verbatim", "rewrapped" or "elsewhere" for the spellings of a value. `unwrapped` has single spaces."""
    if any(spelling in text for spelling in spellings):
        return "verbatim"
    return "rewrapped" if any(" ".join(spelling.split()) in unwrapped for spelling in spellings) else "elsewhere"


def _apply_redactions(redactions: Mapping[str, str], text: str) -> str:
    """Return the text with the redactions of the input, because these values cannot be copied from it."""
    return redaction.redact_values(redactions, text) if redactions else text


def slice_values(
    values: Mapping[str, object], target: object, recipe: Recipe, redactions: Mapping[str, str]
) -> dict[str, str]:
    """Return {slice: value of this row}, from the record if the slice names a field."""
    fields = set(field_names(recipe))
    record = parse_record(target) if fields else {}
    return {
        name: _apply_redactions(
            redactions, to_text(record.get(column) if column in fields else values.get(column))
        ).strip()
        for name, column in slice_columns(recipe).items()
    }
