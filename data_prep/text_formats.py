"""CSV, TSV, JSON and JSONL to rows, each with the file and the line where it stands.

    in   text,category\\r\\n"Where is\\nmy card?",card_arrival\\r\\n
    out  {"kind": "csv", "encoding": "utf-8", "delimiter": ",", "line_ends": {"crlf": 2, "lf": 1}, ...} and
         SourceRow("train.csv", 2, {"text": "Where is\\nmy card?", "category": "card_arrival"}, None)

A row that cannot be read is yielded with the reason and without values, so that nothing is lost in silence; a file
that cannot be read at all is refused. Rows stream: what is in memory is a row, or of JSON, the file.
"""

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any

from data_prep import json_layouts
from data_prep.encoding import Text, detect, has_half, lines
from data_prep.source_row import About, BadRowError, SourceFile, SourceRow
from recipes.errors import RecipeError
from recipes.schema_data import Source

FIELD_CHARACTERS = 10_000_000
JSON_BYTES = 512 << 20
NO_HEADER = "does the file lack a header? data.source.header names its columns, such as [label, title, text]"
DELIMITERS = (",", ";", "\t", "|")
TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def read(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    """Returns what was found out about the file, and its rows, as data_prep.read.read does."""
    text = detect(file, source.encoding)
    about: About = {"kind": file.kind} | ({"compression": file.compression} if file.compression else {})
    more, rows = FORMATS[file.kind](file, text, source, columns)
    return about | text.about() | more, rows


def _csv(file: SourceFile, text: Text, source: Source, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    """RFC 4180, with any line ends: newline="" leaves bare newlines inside quotes as they are."""
    content = lines(file, text, newline="")
    # Excel writes sep=; as a line of its own above the header, and takes it as an order.
    first = next(content, "")
    ordered = re.fullmatch(r'"?sep=(.)"?[\r\n]*', first, re.IGNORECASE)
    content = content if ordered else chain([first], content)
    sample, content = _sample(content)
    if source.delimiter != "auto" and file.kind == "csv":
        delimiter = source.delimiter
    elif ordered:
        delimiter = ordered[1]
    else:
        delimiter = "\t" if file.kind == "tsv" else _delimiter(sample, source.quotes, columns)
    if delimiter in '"\r\n':
        raise RecipeError(f"data.source.delimiter: {delimiter!r} ends lines or quotes fields; give what stands between")
    csv.field_size_limit(FIELD_CHARACTERS)
    reader = _reader(content, delimiter, source.quotes, strict=True)
    rows = _numbered(file, reader, 1 if ordered else 0)
    if source.header is not None:
        return {"delimiter": delimiter, "columns": source.header}, _csv_rows(file, text, source.header, rows)
    header_line, header = next(rows, (1, []))
    if not any(name.strip() for name in header):
        raise RecipeError(f"{file.name}:{header_line}: the file has no header line; its first line names the columns")
    # A column without a name is the index that pandas writes, or a delimiter too many.
    named = [name if name.strip() else f"column {number}" for number, name in enumerate(header, start=1)]
    if len(set(named)) < len(named):
        twice = ", ".join(repr(name[:40]) for name in sorted({name for name in named if named.count(name) > 1})[:5])
        hint = f"; {NO_HEADER}" if not looks_like_names(named) else ""
        raise RecipeError(f"{file.name}:{header_line}: column {twice} stands there twice; rename one{hint}")
    about: About = {"delimiter": delimiter, "columns": named}
    if named != header:
        about["unnamed_columns"] = [number for number, name in enumerate(header, start=1) if not name.strip()]
    return about, _csv_rows(file, text, named, rows)


def looks_like_names(header: Collection[str]) -> bool:
    """Returns whether the cells of a first line may be names of columns: short, and no numbers."""
    return all(len(name) <= 60 and not re.fullmatch(r"[-+]?[0-9.,:/ -]+", name) for name in header)


def _csv_rows(
    file: SourceFile, text: Text, header: list[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[SourceRow]:
    for line, fields in rows:
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            yield SourceRow(file.name, line, {}, problem + (" (NUL bytes)" if "\0" in fields[0] else ""))
        elif text.halves and has_half("".join(fields)):
            yield SourceRow(file.name, line, {}, "half of a surrogate pair, which is no character")
        else:
            yield SourceRow(file.name, line, dict(zip(header, fields, strict=True)))


def _numbered(file: SourceFile, reader: Any, above: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank with the line where each starts."""
    while True:
        line = above + reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise RecipeError(f"{file.name}:{line}: not CSV: {_csv_mistake(str(error))}") from None
        if fields is None:
            return
        if fields:
            yield line, fields


def _csv_mistake(told: str) -> str:
    """What the csv module says, in words about the file."""
    hint = "or set data.source.quotes: false if a quote is a character like any other"
    if "unexpected end" in told:
        return f"a quote that opens in this row is never closed ({told}); close it, {hint}"
    if "field larger" in told:
        size = f"{FIELD_CHARACTERS:,}"
        return f"a field of more than {size} characters; is a quote in this row never closed? Close it, {hint}"
    return f"a quoted field of this row goes on after its quote ({told}); double the quotes inside it, {hint}"


def _reader(content: Any, delimiter: str, quotes: bool, strict: bool) -> Any:
    return csv.reader(
        content, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=strict
    )


def _sample(content: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """The first lines, and all of them: enough to see a header, and not more than fits."""
    sample: list[str] = []
    for line in islice(content, 20):
        sample.append(line)
        if sum(map(len, sample)) > 1 << 20:
            break
    return sample, chain(sample, content)


def _delimiter(sample: list[str], quotes: bool, columns: Collection[str]) -> str:
    """The delimiter under which the header has the recipe's columns; else the one that rows agree on, or a comma."""

    def plausible(delimiter: str) -> tuple[int, bool, int]:
        rows: list[list[str]] = []
        with suppress(csv.Error):
            for row in _reader(sample, delimiter, quotes, strict=False):
                rows += [row] if row else []
        header = rows[0] if rows else []
        agree = len(header) > 1 and all(len(row) == len(header) for row in rows[:-1])
        return len(set(columns) & set(header)), agree, len(header)

    return max(DELIMITERS, key=plausible)


def _jsonl(file: SourceFile, text: Text, source: Source, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    return {}, _jsonl_rows(file, text)


def _jsonl_rows(file: SourceFile, text: Text) -> Iterator[SourceRow]:
    # A bare carriage return ends a line only in a file that has no other line ends.
    newline = "\r" if set(text.scan.line_ends) == {"cr"} else "\n"
    for number, line in enumerate(lines(file, text, newline), start=1):
        if not line.strip():
            continue
        try:
            values = _object_of(STRICT.decode(line), "\\u" in line or text.halves)
        except json.JSONDecodeError as error:
            cut = "; the last line is cut off" if not line.endswith(newline) else ""
            zeros = " (NUL bytes)" if "\0" in line else ""
            yield SourceRow(file.name, number, {}, f"not JSON: {error.msg} at column {error.colno}{zeros}{cut}")
        except (ValueError, RecursionError) as error:
            yield SourceRow(file.name, number, {}, _told(error))
        else:
            yield SourceRow(file.name, number, values)


def _json(file: SourceFile, text: Text, source: Source, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    """An array of objects, or an object that holds one: only the text of the file is in memory, not its values."""
    if text.scan.size_bytes > JSON_BYTES:
        raise RecipeError(
            f"{file.name}: JSON of more than {JSON_BYTES >> 20} MiB; convert it to JSONL, an object a line"
        )
    whole = "".join(lines(file, text, newline="", limit=JSON_BYTES + 1))
    with _json_refused(file.name):
        start = _skip(whole, 0)
        if whole[start : start + 1] == "{":
            if OBJECT_LINES.match(whole):
                return {"json_lines": True}, _jsonl_rows(file, text)
            array = _wrapped(file.name, whole, start)
            if array is None:
                return _laid_out(file.name, whole, columns)
            key, start = array
            return {"array": key}, _json_rows(file, text, whole, start)
        if whole[start : start + 1] == "[":
            return {}, _json_rows(file, text, whole, start)
    raise RecipeError(f"{file.name}:1: JSON, but no array of objects; write [{{...}}, {{...}}], or JSONL")


def _laid_out(name: str, whole: str, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    """The rows of an object without an array of objects, all of them in memory."""
    try:
        value = _object_of(STRICT.decode(whole), may_hold_halves=True)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{name}:1: {_told(error)}") from None
    layout, rows = json_layouts.rows_of(name, value, columns)
    return {"layout": layout}, (SourceRow(name, number, row) for number, row in enumerate(rows, start=1))


def _json_rows(file: SourceFile, text: Text, whole: str, start: int) -> Iterator[SourceRow]:
    with _json_refused(file.name):
        end = start + 1
        for number, (value, after) in enumerate(_elements(whole, start, _element), start=1):
            try:
                values = _object_of(value, text.halves or whole.find("\\u", end, after) >= 0)
            except ValueError as error:
                yield SourceRow(file.name, number, {}, _told(error))
            else:
                yield SourceRow(file.name, number, values)
            end = after
        if whole[_skip(whole, 0)] == "[":
            _check_end(whole, _skip(whole, end) + 1)


def _wrapped(name: str, text: str, at: int) -> tuple[str, int] | None:
    """The key of the one array of objects in the object at `at`, and where that array starts; None: it has none."""
    arrays: list[tuple[str, int]] = []
    empty: list[tuple[str, int]] = []
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = LENIENT.raw_decode(text, at)
        colon = _skip(text, at)
        if not isinstance(key, str) or text[colon : colon + 1] != ":":
            raise json.JSONDecodeError("Expecting a name and ':'", text, colon)
        start = end = _skip(text, colon + 1)
        if text[start : start + 1] == "[":
            held = set()
            end = start + 1
            for value, after in _elements(text, start, LENIENT.raw_decode):
                held.add(type(value))
                end = after
            if dict in held or not held:
                (arrays if held else empty).append((key, start))
            end = _skip(text, end) + 1
        else:
            end = LENIENT.raw_decode(text, start)[1]
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "}":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    _check_end(text, at + 1)
    arrays = arrays or empty
    if len(arrays) > 1:
        names = ", ".join(repr(key[:40]) for key, _ in arrays[:10])
        raise RecipeError(
            f"{name}:1: an object where one array of objects is looked for, and it has several, {names}; leave one"
        )
    return arrays[0] if arrays else None


def _elements(text: str, at: int, decode: Callable[[str, int], tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    """Yields each value of the array at `at` with the place after it. Raises JSONDecodeError."""
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        value, at = decode(text, at)
        yield value, at
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1)


def _element(text: str, at: int) -> tuple[Any, int]:
    """A value, or the ValueError that says what is wrong with it, and the place after it."""
    try:
        return STRICT.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        return error, LENIENT.raw_decode(text, at)[1]


def _check_end(text: str, at: int) -> None:
    if _skip(text, at) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, at))


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


@contextmanager
def _json_refused(name: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            hint = "; if each line is an object, name the file .jsonl"
        elif error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            hint = "; the file is cut off: copy it anew"
        else:
            hint = ""
        raise RecipeError(f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from None
    except RecursionError:
        raise RecipeError(f"{name}: JSON that is nested too deep; flatten it") from None


def _object_of(value: Any, may_hold_halves: bool) -> dict[str, Any]:
    """The value as a row. Raises BadRowError, or the ValueError that stands in its place."""
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict):
        raise BadRowError(f"a JSON {TYPES[type(value)]} where an object belongs")
    if may_hold_halves and has_half(json.dumps(value, ensure_ascii=False)):
        raise BadRowError("half of a surrogate pair, which is no character")
    return value


def _told(error: Exception) -> str:
    if isinstance(error, BadRowError):
        return str(error)
    return "nested too deep" if isinstance(error, RecursionError) else "a whole number of too many digits"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRowError(f"key {twice[:40]!r} stands there twice")
    return values


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadRowError(f"the number {digits[:20]} is too large")
    return number


def _no_number(name: str) -> Any:
    raise BadRowError(f"{name}, which is not JSON")


SPACE = re.compile(r"[ \t\n\r]*")
# An object on the first line, and another on the next: lines of JSON, whatever the file's name says.
OBJECT_LINES = re.compile(r"\s*\{[^\n]*\}[ \t\r]*\n\s*\{")
STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_number)
# Finds the end of a value that STRICT refused.
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)

FORMATS: dict[str, Callable[[SourceFile, Text, Source, Collection[str]], tuple[About, Iterator[SourceRow]]]] = {
    "csv": _csv,
    "tsv": _csv,
    "json": _json,
    "jsonl": _jsonl,
}
