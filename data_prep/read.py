"""Source files to rows, each with the file and the line where it stands.

    in   text,category\\r\\n"Where is\\nmy card?",card_arrival\\r\\n
    out  SourceRow("train.csv", 2, {"text": "Where is\\nmy card?", "category": "card_arrival"}, None)

A row that cannot be read is yielded with the reason and without values, so that nothing is lost in silence; a file
that cannot be read at all is refused.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.errors import RecipeError

FIELD_CHARACTERS = 10_000_000


@dataclass(frozen=True)
class SourceRow:
    """One row of a source file; `problem` says why it cannot be used, or is None."""

    file: str
    line: int
    values: dict[str, str]
    problem: str | None = None


def read(path: Path) -> Iterator[SourceRow]:
    """Yields the rows of a CSV or JSONL file. Raises RecipeError where the file cannot be read as such."""
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise RecipeError(f"{path}: unknown kind of file {path.suffix!r}; known: {', '.join(FORMATS)}")
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such file (data.source)")
    if path.stat().st_size == 0:
        raise RecipeError(f"{path}: the file is empty")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({_undecodable(path, error)}); convert it to UTF-8 first") from None


def _csv(path: Path) -> Iterator[SourceRow]:
    """RFC 4180, with any line ends: newline="" leaves bare newlines inside quotes as they are."""
    csv.field_size_limit(FIELD_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        header = _next(rows, path)
        if header is None:
            raise RecipeError(f"{path}: the file has no header line")
        if len(set(header)) < len(header):
            twice = sorted({name for name in header if header.count(name) > 1})
            raise RecipeError(f"{path}:1: column {', '.join(map(repr, twice))} stands there twice")
        while True:
            line = rows.line_num + 1
            fields = _next(rows, path)
            if fields is None:
                return
            if len(fields) == len(header):
                yield SourceRow(path.name, line, dict(zip(header, fields, strict=True)))
            elif fields:
                yield SourceRow(path.name, line, {}, f"{len(fields)} fields where the header has {len(header)}")


def _next(rows: Any, path: Path) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        raise RecipeError(f"{path}:{rows.line_num}: not CSV ({error})") from None


def _jsonl(path: Path) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                yield SourceRow(path.name, number, {}, f"not JSON: {error.msg} at column {error.colno}")
                continue
            if not isinstance(values, dict):
                yield SourceRow(path.name, number, {}, f"a JSON {type(values).__name__} where an object belongs")
                continue
            texts = {name: _text(value) for name, value in values.items()}
            yield SourceRow(path.name, number, texts)


def _text(value: object) -> str:
    """A JSON value as the text of a column; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _undecodable(path: Path, error: UnicodeDecodeError) -> str:
    """Where the first wrong byte of the file stands (a decoder counts from the start of its buffer)."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as found:
                return f"byte 0x{line[found.start]:02x} in line {number}"
    return error.reason


FORMATS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {".csv": _csv, ".jsonl": _jsonl}
