"""Record of some inputs that the gateway answers, as rows for data preparation; off by default.

serve: {record: {share: 0.05, days: 90}}

registry/<name>/traffic/2026-11-29.jsonl
{"id": "9f2c41a0b7e6d835", "message": "where is my money, [EMAIL_1]", "queue": "refund_status", "labelled_by": "local",
 "confidence": 0.974, "reason": "confident", "version": "3f2a90c17b5e44d0", "time": "2026-11-29T14:03:11Z"}

The columns of text, answer, id and time are the recipe's. Personal data of all kinds that the redactor finds is
replaced, regardless of privacy.redact. Private inputs are not recorded, nor inputs with personal data that the redactor
does not replace. Feedback on a recorded answer replaces its row by one with the right answer (`labelled_by: feedback`);
the old row is blanked. Files older than `days` are removed.
"""

import json
import os
import random
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from data_prep.rows.columns import field_names, needed_columns
from deploy.answers import personal_data
from deploy.answers.outcome import Deployment, Outcome
from deploy.answers.task import Task
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system import shared_jsonl
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from insource.system.timestamps import utc_timestamp
from insource.tasks.pii import redaction

FOLDER = "traffic"
FEEDBACK = "feedback"
MAX_WAITING_ROWS = 256
"""Maximum number of rows that wait to be written; further ones are skipped."""
_DESCRIPTION = "the record of traffic"
_RECORD_COLUMNS = ("labelled_by", "confidence", "reason", "version")


@dataclass(frozen=True)
class RecordedAnswer:
    """An answered input to record."""

    deployment: Deployment
    outcome: Outcome
    id: str
    """Name of the answer id, 16 hex digits."""
    text: str
    """The cleaned input, as sent to the model."""
    time: str


class TrafficRecord:
    """Rows that wait to be recorded."""

    def __init__(self) -> None:
        self._queue: deque[RecordedAnswer] = deque()
        self._retention_days: dict[Path, int] = {}
        self._cleaned_day = ""
        self._failure_logged = False

    def set_retention(self, registry_dir: Path, days: int) -> None:
        """Remove files in registry/<name> older than `days`, at the next `write` and then daily.

        This happens whether or not rows are recorded.
        """
        if self._retention_days.get(registry_dir) != days:
            self._retention_days[registry_dir], self._cleaned_day = days, ""

    def sample(self, task: Task, private: bool) -> bool:
        """Return whether to record an input, by chance."""
        fraction = task.recipe.serve.record.share
        return bool(fraction) and not private and random.random() < fraction and len(self._queue) < MAX_WAITING_ROWS

    def add(self, recorded: RecordedAnswer) -> None:
        """Queue an answer for the next `write`."""
        deployment = recorded.deployment
        self.set_retention(deployment.registry_dir, deployment.task.recipe.serve.record.days)
        self._queue.append(recorded)

    async def write(self) -> None:
        """Write waiting rows and remove old files. Log a failure once; its rows are lost, and later ones are tried."""
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        if today != self._cleaned_day:
            self._cleaned_day = today
            await self._try_write(_remove_old_files, dict(self._retention_days))
        if self._queue:
            waiting, self._queue = list(self._queue), deque()
            await self._try_write(_write_rows, waiting)

    async def _try_write(self, action: Callable[..., None], *args: object) -> None:
        try:
            await run_in_thread(action, *args)
        except Exception as error:  # noqa: BLE001 (what is written beside answers must not end with one bad row)
            if not self._failure_logged:
                is_described = isinstance(error, StageError)
                context = "" if is_described else f"{_DESCRIPTION} cannot be written: {type(error).__name__}: "
                log_line(f"record    {context}{error}")
            self._failure_logged = True


def _write_rows(waiting: list[RecordedAnswer]) -> None:
    for registry_dir in dict.fromkeys(recorded.deployment.registry_dir for recorded in waiting):
        group = [recorded for recorded in waiting if recorded.deployment.registry_dir == registry_dir]
        for day in dict.fromkeys(recorded.time[:10] for recorded in group):
            rows = [row for recorded in group if recorded.time[:10] == day and (row := build_row(recorded)) is not None]
            _append_rows(registry_dir / FOLDER / f"{day}.jsonl", rows)


def _remove_old_files(days: Mapping[Path, int]) -> None:
    """Remove files older than {registry folder: days}. Raise StageError if one cannot be removed."""
    failed = []
    for registry_dir, retention in days.items():
        oldest = f"{datetime.now(UTC) - timedelta(days=retention):%Y-%m-%d}"
        for path in (registry_dir / FOLDER).glob("*.jsonl"):
            if path.stem < oldest:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    failed.append(f"{path}: older than serve.record.days, and cannot be removed: {error.strerror}")
    if failed:
        raise StageError("; ".join(failed), code="INS-X002")


def check_recordable(recipe: Recipe) -> None:
    """Raise RecipeError if inputs are to be recorded and the rows could not be read by the recipe.

    Either rows cannot have its format, or one of its columns would contain something else in the record.
    """
    if not (fraction := recipe.serve.record.share):
        return
    columns, where = recipe.data.columns, recipe.data.where
    unsupported = {"task.kind": recipe.task.kind} if recipe.task.kind == "preference" else columns.slot_columns
    recorded_columns = {
        *_RECORD_COLUMNS,
        *(column for key, column in _recipe_columns(recipe).items() if not key.startswith("data.where.")),
    }
    lists = [name for name, condition in where.items() if isinstance(condition, list) and name not in recorded_columns]
    unsupported |= {f"data.where.{name}": "a list" for name in lists}
    for key, setting in unsupported.items():
        raise RecipeError(
            f"{key}: given {setting!r}, but the record of serve.record.share {fraction:g} cannot contain answers "
            "in that form; record nothing (serve.record.share: 0)",
            code="INS-G008",
        )
    row_ids, times = id_column(recipe), time_column(recipe)
    reserved = [(key, column, {*_RECORD_COLUMNS, row_ids, times}) for key, column in _recipe_columns(recipe).items()]
    reserved += [("data.columns.id", row_ids, {*_RECORD_COLUMNS, times})]
    reserved += [("data.split.time", times, {*_RECORD_COLUMNS})]
    for key, column, reserved_columns in reserved:
        if column in reserved_columns and not key.startswith(("data.where.", "data.slices.")):
            raise RecipeError(
                f"{key}: given {column!r}, but the record of serve.record.share {fraction:g} uses this column name "
                "itself; rename it, or record nothing (serve.record.share: 0)",
                code="INS-G008",
            )


def _recipe_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the recipe's columns in a recorded row, without ids and times."""
    needed = needed_columns(recipe, "all")
    if (
        recipe.task.task_name == "extraction"
        and recipe.data.columns.messages is None
        and not _has_record_column(recipe)
    ):
        needed |= {f"task.json_schema.properties.{field}": field for field in field_names(recipe)}
    return {key: column for key, column in needed.items() if key not in ("data.columns.id", "data.split.time")}


def _has_record_column(recipe: Recipe) -> bool:
    columns = recipe.data.columns
    return bool(columns.target or columns.targets or columns.slot_columns)


def build_row(recorded: RecordedAnswer) -> dict[str, object] | None:
    """Return an answer as a row of the recipe's columns.

    Return None if input or answer contain personal data that is not replaced, or an unpaired surrogate.
    """
    task, outcome = recorded.deployment.task, recorded.outcome
    redacted = redaction.redact(recorded.text, redaction.PII_KINDS)

    def hide(text: str) -> str:
        return redaction.redact(redaction.redact_values(redacted.values, text), redaction.PII_KINDS).text

    value = outcome.value if task.labels else map_texts(outcome.value, hide)
    cells = build_input_and_answer(task, redacted.text, value)
    if not _is_recordable(cells):
        return None
    return {
        **_fill_missing_columns(task.recipe, recorded.id),
        id_column(task.recipe): recorded.id,
        **cells,
        "labelled_by": outcome.answered_by,
        "confidence": outcome.confidence,
        "reason": outcome.reason,
        "version": task.version,
        **_build_time_cell(task.recipe, recorded.time),
    }


def _fill_missing_columns(recipe: Recipe, name: str) -> dict[str, object]:
    """Return the columns that the recipe needs and inputs lack.

    They are null, except for the values that `where` requires; each row is a group of its own.
    """
    empty: dict[str, Any] = dict.fromkeys(_recipe_columns(recipe).values())
    group = recipe.data.split.group
    return empty | recipe.data.where | ({group: name} if group else {})


def _build_time_cell(recipe: Recipe, time: str) -> dict[str, str]:
    """Return a time in the recipe's time column and format."""
    column = time_column(recipe)
    date_format = recipe.data.formats.dates.get(column) if recipe.data.split.time else None
    return {column: datetime.fromisoformat(time).strftime(date_format) if date_format else time}


def _is_recordable(cells: Mapping[str, object]) -> bool:
    """Return whether input and answer contain no personal data, including in numbers, and can be encoded as UTF-8."""
    texts = [json.dumps(cells, ensure_ascii=False), *_iter_texts(cells)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return not any(personal_data.find_kinds(text) for text in texts)


def _iter_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _iter_texts(item)


def id_column(recipe: Recipe) -> str:
    """Return the column of row ids: the recipe's, by default "id"."""
    return recipe.data.columns.id or "id"


def time_column(recipe: Recipe) -> str:
    """Return the column of times: the recipe's, by default "time"."""
    return recipe.data.split.time or "time"


def build_input_and_answer(task: Task, text: str, value: Any) -> dict[str, object]:
    """Return an input and its answer in the columns that the recipe reads them from.

    The first of several text columns gets all of the text, because its original columns are unknown.
    """
    recipe = task.recipe
    columns, kind = recipe.data.columns, recipe.task.task_name
    if columns.messages is not None:
        answer = task.answer_text(value)
        return {columns.messages: [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}
    row: dict[str, Any] = dict.fromkeys(columns.texts, "")
    row[columns.texts[0]] = text
    if columns.label_columns is not None:
        return row | {name: int(name in value) for name in columns.label_columns}
    if kind in ("classification", "multilabel"):
        return row | {columns.label: value}
    if kind == "extraction" and not _has_record_column(recipe):
        return row | dict.fromkeys(field_names(recipe)) | dict(value)
    if columns.targets:
        return row | ({columns.targets: [value]} if isinstance(columns.targets, str) else {columns.targets[0]: value})
    return row | {columns.target or "target": value}


def map_texts(value: object, hide: Callable[[str], str]) -> object:
    """Return an answer with `hide` applied to each text in it."""
    if isinstance(value, Mapping):
        return {name: map_texts(item, hide) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(item, hide) for item in value]
    return hide(value) if isinstance(value, str) else value


def correct_rows(task: Task, registry_dir: Path, day: int, correct_answers: Mapping[str, object]) -> None:
    """Replace recorded rows by rows with the right answers.

    `correct_answers` maps names of answer ids (deploy/answers/answer_ids.py) to right answers, for answers given on
    `day`. A row stays unchanged if its columns differ from the task's, or if the right answer contains personal data:
    the input has numbered placeholders, and which one stands for that data is unknown. Call it in a thread. Raise
    StageError if the file cannot be written.
    """
    path = registry_dir / FOLDER / f"{datetime.fromtimestamp(day * 86_400, UTC):%Y-%m-%d}.jsonl"
    if not path.is_file():
        return
    with shared_jsonl.open_locked(path, _DESCRIPTION) as file:
        recorded_rows = _find_rows(path, id_column(task.recipe), correct_answers)
        corrected = {
            name: row
            for name, rows in recorded_rows.items()
            if (row := _correct_row(task, name, rows[-1].row, correct_answers[name]))
        }
        shared_jsonl.append_lines(file, list(corrected.values()), _DESCRIPTION)
        # A process killed between append and blanking leaves old rows before the last one.
        old_rows = [row for name, rows in recorded_rows.items() for row in (rows if name in corrected else rows[:-1])]
        _blank_rows(path, old_rows)


@dataclass(frozen=True)
class _LocatedRow:
    """A row with its position in the file, in bytes, without the line end."""

    row: dict[str, Any]
    start: int
    size: int


def _find_rows(path: Path, id_name: str, names: Collection[str]) -> dict[str, list[_LocatedRow]]:
    """Return the recorded rows of each answer, in file order."""
    located: dict[str, list[_LocatedRow]] = {}
    start = 0
    with path.open("rb") as lines:
        for line in lines:
            with suppress(ValueError):
                row = json.loads(line)
                name = str(row.get(id_name)).partition("-")[0] if isinstance(row, dict) else ""
                if name in names:
                    located.setdefault(name, []).append(_LocatedRow(row, start, len(line.rstrip(b"\n"))))
            start += len(line)
    return located


def _correct_row(task: Task, name: str, row: Mapping[str, object], value: object) -> dict[str, object] | None:
    """Return the row with the right answer, None to keep the row."""
    try:
        cells = build_input_and_answer(task, read_input_text(task, row), value)
    except (KeyError, IndexError, TypeError):
        return None
    if cells.keys() - row.keys() or not _is_recordable(cells):
        return None
    if row.get("labelled_by") == FEEDBACK and row.items() >= cells.items():
        return None
    changes = {id_column(task.recipe): f"{name}-{FEEDBACK}-{secrets.token_hex(4)}", "labelled_by": FEEDBACK}
    return {**row, **cells, **changes, "confidence": None, **_build_time_cell(task.recipe, utc_timestamp())}


def _blank_rows(path: Path, rows: Sequence[_LocatedRow]) -> None:
    """Overwrite rows with blanks. Raise StageError if the file cannot be written."""
    try:
        with path.open("r+b", buffering=0) as file:
            for row in rows:
                os.pwrite(file.fileno(), b" " * row.size, row.start)
    except OSError as error:
        raise shared_jsonl.write_error(path, _DESCRIPTION, error) from None


def read_input_text(task: Task, row: Mapping[str, Any]) -> str:
    """Return the input of a recorded row."""
    columns = task.recipe.data.columns
    text = row[columns.messages][0]["content"] if columns.messages else row[columns.texts[0]]
    return str(text)


def _append_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Append rows to a file that only this user can read. Raise StageError if it cannot be written."""
    if not rows:
        return
    with shared_jsonl.open_locked(path, _DESCRIPTION) as file:
        shared_jsonl.restrict_to_owner(file, _DESCRIPTION)
        shared_jsonl.append_lines(file, rows, _DESCRIPTION)
