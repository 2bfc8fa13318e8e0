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
from data_prep.readers.encoding import Text, detect, has_half, lines
from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.readers.sources import kind_of
from insource.config.errors import RecipeError
from insource.config.schema.data import Source

NEEDED = ("id", "output")
SHOWN_CHARACTERS = 80
KEY = "encoding of this baseline (compare.baselines)"
# What data preparation would set instead, and a baseline cannot.
_OTHER_KEYS = re.compile(r", or set data\.source\.\w+: .*")
TABLES = ("csv", "tsv")
BY_NUMBER = ("json", "parquet", "xlsx")


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


def read(path: Path, encoding: str, figures: Collection[str]) -> AnswerRows:
    """Returns the rows of a file. `figures`: the columns that hold numbers. Raises RecipeError naming file and line of
    what cannot be read, at once or while rows are taken."""
    kind, compression = kind_of(path) or ("jsonl", None)
    file = SourceFile("answers", path, str(path), kind, compression)
    unit = "row" if kind in BY_NUMBER else "line"
    try:
        if kind in ("parquet", "xlsx"):
            _, rows = data_files.read(file, Source(path=str(path)), [*NEEDED, *figures])
            return AnswerRows(_checked(file, rows), unit, None)
        text = detect(file, encoding, KEY, row_is=None if kind == "json" else "line")
        guessed = text.encoding if text.guessed else None
        if kind in ("jsonl", "txt"):
            return AnswerRows(_objects(file, text), unit, guessed)
        _, rows = data_files.OF_TEXT[kind](file, text, Source(path=str(path)), [*NEEDED, *figures])
    except RecipeError as error:
        raise _told(error) from None
    found = _checked(file, rows)
    return AnswerRows(_numbers(found, figures) if kind in TABLES else found, unit, guessed, kind not in TABLES)


def _checked(file: SourceFile, rows: Iterator[SourceRow]) -> Iterator[AnswerRow]:
    """Yields the rows of a reader of data files. Raises RecipeError for the first that cannot be used."""
    try:
        for row in rows:
            where = f"{file.path}:{row.line}"
            if row.problem is not None:
                null = "; write null where a figure is not known" if "which is not JSON" in row.problem else ""
                raise RecipeError(f"{where}: {row.problem}{null}")
            if missing := [name for name in NEEDED if name not in row.values]:
                raise RecipeError(f"{where}: needs id and output, and has no {missing[0]}: {', '.join(row.values)}")
            yield AnswerRow(row.line, where, row.values)
    except RecipeError as error:
        raise _told(error) from None


def _numbers(rows: Iterator[AnswerRow], figures: Collection[str]) -> Iterator[AnswerRow]:
    """Yields rows whose figures are numbers; an empty cell says that a figure is not known."""
    for row in rows:
        told = {name: _number(row.values[name]) for name in figures if name in row.values}
        # What is no text of a model is not known either.
        if not row.values.get("model_id", "x"):
            told["model_id"] = None
        yield replace(row, values={**row.values, **told})


def _number(text: str) -> int | float | str | None:
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


def _objects(file: SourceFile, text: Text) -> Iterator[AnswerRow]:
    """Yields the objects of JSONL. A bare carriage return ends a line only where nothing else does; U+2028, NEL and the
    like never do."""
    newline = "\r" if set(text.scan.line_ends) == {"cr"} else "\n"
    for number, line in enumerate(lines(file, text, newline), 1):
        if line.strip():
            where = f"{file.path}:{number}"
            yield AnswerRow(number, where, _object(where, line))


def _object(where: str, line: str) -> Mapping[str, Any]:
    needs = f'{where}: needs a JSON object with "id" and "output", given {line.strip()[:SHOWN_CHARACTERS]}'
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except _TwiceError as error:
        raise RecipeError(f"{where}: key {error.args[0]!r} stands there twice; keep one of them") from None
    except (ValueError, RecursionError):
        raise RecipeError(needs) from None
    if not isinstance(row, dict) or any(name not in row for name in NEEDED):
        raise RecipeError(needs)
    if has_half(json.dumps([row["id"], row["output"]], ensure_ascii=False)):
        raise RecipeError(
            f"{where}: id {row['id']!r}: output holds half of a surrogate pair, which is no character; replace it"
        )
    return row


def _told(error: RecipeError) -> RecipeError:
    return RecipeError(_OTHER_KEYS.sub("", str(error)))


class _TwiceError(Exception):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(name)
        found[name] = value
    return found
