"""The rows of a file of answers in any format: objects or columns, with their positions.

answers.jsonl     (17, {"id": "T000017", "output": "Delivery-Delay", "cost_usd": 0.0004})
answers.csv       (18, {"id": "T000017", "output": "Delivery-Delay", "cost_usd": 0.0004})    numbers are parsed
answers.parquet   (16, {"id": "T000017", "output": None, "cost_usd": None})                  null, or the NaN of pandas

Bytes, CSV, JSON and Parquet are read like those of data files (data_prep/readers/read.py). JSONL is read in this
module, because the error for a NaN must name its key.
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
# Advice in errors of data preparation that does not apply to a baseline.
_DATA_SOURCE_HINT = re.compile(r", or set data\.source\.\w+: .*")
TABLE_FORMATS = ("csv", "tsv")
ROW_FORMATS = ("json", "parquet", "xlsx")


@dataclass(frozen=True)
class AnswerRow:
    """One row of the file."""

    number: int
    """The line number; for JSON, Parquet and workbooks the row number."""
    location: str
    """The position in messages: answers.csv:18."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class AnswerRows:
    """The rows of a file, read lazily."""

    rows: Iterator[AnswerRow]
    unit: str
    """The unit of `number`: line or row."""
    guessed_encoding: str | None
    """The encoding, if it was guessed from the bytes."""
    has_objects: bool = True
    """Whether the format can contain a record as an object. A table contains its JSON text."""


def read_answer_rows(path: Path, encoding: str, numeric_columns: Collection[str]) -> AnswerRows:
    """Return the rows of a file. `numeric_columns` are the columns with numbers.

    Raise RecipeError with file and line of a row that cannot be read, in this call or during iteration.
    """
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
    """Yield the rows of a data file reader. Raise RecipeError for the first unusable row."""
    try:
        for row in rows:
            location = f"{file.path}:{row.line}"
            if row.problem is not None:
                hint = "; write null where a figure is not known" if "which is not JSON" in row.problem else ""
                raise RecipeError(f"{location}: {row.problem}{hint}", code="INS-C007")
            if missing_columns := [name for name in REQUIRED_COLUMNS if name not in row.values]:
                raise RecipeError(
                    f"{location}: needs id and output, but has no {missing_columns[0]}: {', '.join(row.values)}",
                    code="INS-C007",
                )
            yield AnswerRow(row.line, location, row.values)
    except RecipeError as error:
        raise _rephrase_error(error) from None


def _parse_numbers(rows: Iterator[AnswerRow], numeric_columns: Collection[str]) -> Iterator[AnswerRow]:
    """Yield the rows with parsed numbers. An empty cell is an unknown number."""
    for row in rows:
        parsed = {name: _parse_number_cell(row.values[name]) for name in numeric_columns if name in row.values}
        # An empty model_id is unknown.
        if not row.values.get("model_id", "x"):
            parsed["model_id"] = None
        yield replace(row, values={**row.values, **parsed})


def _parse_number_cell(text: str) -> int | float | str | None:
    """Return the number in a cell, None for an empty cell. Other text is returned unchanged and rejected later."""
    if not text.strip():
        return None
    # Python parses 1_000 as a number; tables do not use that notation.
    if "_" not in text:
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
    return text


def _parse_objects(file: SourceFile, decoding: TextDecoding) -> Iterator[AnswerRow]:
    """Yield the objects of JSONL.

    A carriage return ends a line only if no other line end occurs. U+2028, NEL and the like never end a line.
    """
    newline = "\r" if set(decoding.scan.line_ends) == {"cr"} else "\n"
    for number, line in enumerate(read_lines(file, decoding, newline), 1):
        if line.strip():
            location = f"{file.path}:{number}"
            yield AnswerRow(number, location, _parse_object(location, line))


def _parse_object(location: str, line: str) -> Mapping[str, object]:
    requirement = f'{location}: needs a JSON object with "id" and "output", given {line.strip()[:MAX_SHOWN_CHARACTERS]}'
    try:
        row = json.loads(line, object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        raise RecipeError(
            f"{location}: key {error.args[0]!r} occurs twice; keep one of them", code="INS-C007"
        ) from None
    except (ValueError, RecursionError):
        raise RecipeError(requirement, code="INS-C007") from None
    if not isinstance(row, dict) or any(name not in row for name in REQUIRED_COLUMNS):
        raise RecipeError(requirement, code="INS-C007")
    if has_lone_surrogate(json.dumps([row["id"], row["output"]], ensure_ascii=False)):
        raise RecipeError(
            f"{location}: id {row['id']!r}: output has half of a surrogate pair, which is not a character; replace it",
            code="INS-C007",
        )
    return row


def _rephrase_error(error: RecipeError) -> RecipeError:
    return error.with_message(_DATA_SOURCE_HINT.sub("", str(error)))


class _DuplicateKeyError(Exception):
    """A duplicate key in an object."""


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise _DuplicateKeyError(name)
        record[name] = value
    return record
