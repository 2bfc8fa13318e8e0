"""The rows of a file of answers, whatever its format: the objects or columns that it has, and where each stands.

answers.jsonl     (17, {"id": "T000017", "output": "Delivery-Delay", "cost_usd": 0.0004})
answers.csv       (18, {"id": "T000017", "output": "Delivery-Delay", "cost_usd": 0.0004})    figures are read as numbers
answers.parquet   (16, {"id": "T000017", "output": None, "cost_usd": None})                  null, or the NaN of pandas

Bytes, CSV, JSON and Parquet are read as those of data files are (data_prep/readers/read.py). JSONL is read here,
because a figure that is NaN is to be named with its key.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.readers import read as data_files
from data_prep.readers.encoding import TextDecoding, detect_encoding, has_lone_surrogate, read_lines
from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.readers.sources import detect_kind
from insource.config.errors import RecipeError
from insource.config.schema.source import Source

REQUIRED_COLUMNS = ("id", "output")
MAX_SHOWN_CHARACTERS = 80
ENCODING_KEY = "encoding of this baseline (compare.baselines)"
# What data preparation would set instead, and a baseline cannot.
_DATA_SOURCE_HINT = re.compile(r", or set data\.source\.\w+: .*")
TABLE_FORMATS = ("csv", "tsv")
ROW_FORMATS = ("json", "parquet", "xlsx")


@dataclass(frozen=True)
class AnswerRow:
    """One row of the file."""

    number: int
    """Of the line; of JSON, Parquet and workbooks, of the row."""
    where: str
    """As messages name it: answers.csv:18."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class AnswerRows:
    """The rows of a file, read as they are taken."""

    rows: Iterator[AnswerRow]
    unit: str
    """What `number` counts: line or row."""
    guessed_encoding: str | None
    """The encoding, where the bytes do not say it for sure."""
    has_objects: bool = True
    """Whether the format can hold a record as an object; a table holds it as its JSON."""


def read_answer_rows(path: Path, encoding: str, numeric_columns: Collection[str]) -> AnswerRows:
    """Returns the rows of a file. `numeric_columns`: the columns that hold numbers. Raises RecipeError naming file and
    line of what cannot be read, at once or while rows are taken."""
    kind, compression = detect_kind(path) or ("jsonl", None)
    file = SourceFile("answers", path, str(path), kind, compression)
    unit = "row" if kind in ROW_FORMATS else "line"
    try:
        if kind in ("parquet", "xlsx"):
            _, rows = data_files.read(file, Source(path=str(path)), [*REQUIRED_COLUMNS, *numeric_columns])
            return AnswerRows(_check_rows(file, rows), unit, None)
        text = detect_encoding(file, encoding, ENCODING_KEY, row_is=None if kind == "json" else "line")
        guessed_encoding = text.encoding if text.guessed else None
        if kind in ("jsonl", "txt"):
            return AnswerRows(_parse_objects(file, text), unit, guessed_encoding)
        _, rows = data_files.TEXT_READERS[kind](
            file, text, Source(path=str(path)), [*REQUIRED_COLUMNS, *numeric_columns]
        )
    except RecipeError as error:
        raise _rephrase_error(error) from None
    answer_rows = _check_rows(file, rows)
    return AnswerRows(
        _parse_numbers(answer_rows, numeric_columns) if kind in TABLE_FORMATS else answer_rows,
        unit,
        guessed_encoding,
        kind not in TABLE_FORMATS,
    )


def _check_rows(file: SourceFile, rows: Iterator[SourceRow]) -> Iterator[AnswerRow]:
    """Yields the rows of a reader of data files. Raises RecipeError for the first that cannot be used."""
    try:
        for row in rows:
            location = f"{file.path}:{row.line}"
            if row.problem is not None:
                hint = "; write null where a figure is not known" if "which is not JSON" in row.problem else ""
                raise RecipeError(f"{location}: {row.problem}{hint}")
            if missing_columns := [name for name in REQUIRED_COLUMNS if name not in row.values]:
                raise RecipeError(
                    f"{location}: needs id and output, and has no {missing_columns[0]}: {', '.join(row.values)}"
                )
            yield AnswerRow(row.line, location, row.values)
    except RecipeError as error:
        raise _rephrase_error(error) from None


def _parse_numbers(rows: Iterator[AnswerRow], numeric_columns: Collection[str]) -> Iterator[AnswerRow]:
    """Yields rows whose figures are numbers; an empty cell says that a figure is not known."""
    for row in rows:
        parsed = {name: _parse_number(row.values[name]) for name in numeric_columns if name in row.values}
        # What is no text of a model is not known either.
        if not row.values.get("model_id", "x"):
            parsed["model_id"] = None
        yield replace(row, values={**row.values, **parsed})


def _parse_number(text: str) -> int | float | str | None:
    """Returns the number that a cell holds, None of an empty one; what is no number stays text, and is refused."""
    if not text.strip():
        return None
    # Python reads 1_000 as a number, and nobody who writes a table does.
    if "_" not in text:
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
    return text


def _parse_objects(file: SourceFile, text: TextDecoding) -> Iterator[AnswerRow]:
    """Yields the objects of JSONL. A bare carriage return ends a line only where nothing else does; U+2028, NEL and the
    like never do."""
    newline = "\r" if set(text.scan.line_ends) == {"cr"} else "\n"
    for number, line in enumerate(read_lines(file, text, newline), 1):
        if line.strip():
            location = f"{file.path}:{number}"
            yield AnswerRow(number, location, _parse_object(location, line))


def _parse_object(location: str, line: str) -> Mapping[str, Any]:
    requirement = f'{location}: needs a JSON object with "id" and "output", given {line.strip()[:MAX_SHOWN_CHARACTERS]}'
    try:
        row = json.loads(line, object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        raise RecipeError(f"{location}: key {error.args[0]!r} stands there twice; keep one of them") from None
    except (ValueError, RecursionError):
        raise RecipeError(requirement) from None
    if not isinstance(row, dict) or any(name not in row for name in REQUIRED_COLUMNS):
        raise RecipeError(requirement)
    if has_lone_surrogate(json.dumps([row["id"], row["output"]], ensure_ascii=False)):
        raise RecipeError(
            f"{location}: id {row['id']!r}: output holds half of a surrogate pair, which is no character; replace it"
        )
    return row


def _rephrase_error(error: RecipeError) -> RecipeError:
    return RecipeError(_DATA_SOURCE_HINT.sub("", str(error)))


class _DuplicateKeyError(Exception):
    """A key that an object has twice."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise _DuplicateKeyError(name)
        record[name] = value
    return record
