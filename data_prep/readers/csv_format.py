"""Rows of CSV and TSV files, each with its file and line.

    in   text,category\\r\\n"Where is\\nmy card?",card_arrival\\r\\n
    out  {"kind": "csv", "encoding": "utf-8", "delimiter": ",", "line_ends": {"crlf": 2, "lf": 1}, ...} and
         SourceRow("train.csv", 2, {"text": "Where is\\nmy card?", "category": "card_arrival"}, None)

A row that cannot be read is yielded with its problem and without values, so that no row is lost silently. A file that
cannot be read raises an error. Rows stream: one row at a time is in memory.
"""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from data_prep.readers.encoding import LONE_SURROGATE_MESSAGE, TextDecoding, has_lone_surrogate, read_lines
from data_prep.readers.limits import Limits
from data_prep.readers.source_row import FileInfo, SourceFile, SourceRow
from insource.config.errors import RecipeError
from insource.config.schema.source import Source

SWALLOWED_ROWS_HINT = (
    "a quoted field goes on over what looks like rows of its own; write it without tabs, or set data.source.quotes: "
    "false if a quote is a character like any other"
)
NO_HEADER_HINT = "does the file lack a header? data.source.header names its columns, such as [label, title, text]"
DELIMITERS = (",", ";", "\t", "|")
UNCLOSED_QUOTE_HINT = (
    "is a quote in it never closed? Close it, or set quotes: false if a quote is a character like any other"
)
# Replaces a delimiter of several characters, because the csv module takes one character.
UNIT_SEPARATOR = "\x1f"


def read(
    file: SourceFile, decoding: TextDecoding, source: Source, columns: Collection[str]
) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties besides the encoding, and the rows.

    The format is RFC 4180 with any line ends; newline="" keeps bare newlines inside quotes.
    """
    content = read_lines(file, decoding, newline="")
    # Excel writes sep=; as a line above the header, and obeys it when reading.
    first_line = next(content, "")
    separator_match = re.fullmatch(r'"?sep=(.)"?[\r\n]*', first_line, re.IGNORECASE)
    content = content if separator_match else chain([first_line], content)
    sample, content = _take_sample(content)
    if source.delimiter != "auto" and file.kind != "tsv":
        delimiter = source.delimiter
    elif separator_match:
        delimiter = separator_match[1]
    else:
        delimiter = "\t" if file.kind == "tsv" else _detect_delimiter(sample, source, columns)
    if delimiter in ("\r", "\n", source.quote):
        raise RecipeError(
            f"data.source.delimiter: {delimiter!r} ends lines or quotes fields; give the character between fields",
            code="INS-R004",
        )
    info: FileInfo = {"delimiter": delimiter} | ({"quotes": source.quote} if source.quotes is not True else {})
    if len(delimiter) > 1:
        content = (line.replace(source.delimiter, UNIT_SEPARATOR) for line in content)
        delimiter = UNIT_SEPARATOR
    if source.escape is not None:
        info["escape"] = source.escape
        content = _double_literal_escapes(content, source.escape, {delimiter, source.quote or ""})
    csv.field_size_limit(decoding.limits.row)
    feed = _LineFeed(file, content, decoding.limits)
    rows = _number_rows(file, _make_reader(feed, delimiter, source, strict=True), feed, 1 if separator_match else 0)
    # An escape character may precede tabs and line ends inside a field.
    detect_joined_rows = delimiter == "\t" and source.quote is not None and source.escape is None
    if source.header is not None:
        first_rows = list(islice(rows, 1))
        for line, fields in first_rows:
            check_no_header(f"{file.name}:{line}", fields, source.header)
        return info | {"columns": source.header}, _read_rows(
            file, decoding, source, source.header, detect_joined_rows, chain(first_rows, rows)
        )
    header_line, header = next(rows, (1, []))
    if not any(name.strip() for name in header):
        raise RecipeError(
            f"{file.name}:{header_line}: the file has no header line; its first line names the columns", code="INS-D014"
        )
    names, unnamed = parse_header(f"{file.name}:{header_line}", header)
    return info | {"columns": names} | unnamed, _read_rows(file, decoding, source, names, detect_joined_rows, rows)


def check_no_header(location: str, cells: Sequence[str], names: Sequence[str]) -> None:
    """Raise RecipeError if a first line is a header although the recipe names the columns.

    It is a header if all cells look like names, and one equals the name that the recipe gives to that column.
    """
    matches = [cell.strip().casefold() == name.casefold() for cell, name in zip(cells, names, strict=False)]
    if any(matches) and looks_like_names(cells) and all(cell.strip() for cell in cells):
        raise RecipeError(
            f"{location}: the first line is a header itself ({', '.join(cells)[:80]}), but data.source.header "
            "makes it a row; remove data.source.header, or this line",
            code="INS-D014",
        )


def parse_header(location: str, header: Sequence[str]) -> tuple[list[str], FileInfo]:
    """Return the column names of a header line, and the numbers of the unnamed columns.

    An unnamed column is the index that pandas writes, or an extra delimiter. Raise RecipeError with the location if two
    columns have the same name.
    """
    names = [name if name.strip() else f"column {number}" for number, name in enumerate(header, start=1)]
    if len(set(names)) < len(names):
        duplicates = ", ".join(
            repr(name[:40]) for name in sorted({name for name in names if names.count(name) > 1})[:5]
        )
        hint = f"; {NO_HEADER_HINT}" if not looks_like_names(names) else ""
        raise RecipeError(f"{location}: column {duplicates} occurs twice; rename one{hint}", code="INS-D015")
    unnamed = [number for number, name in enumerate(header, start=1) if not name.strip()]
    return names, {"unnamed_columns": unnamed} if unnamed else {}


def looks_like_names(header: Collection[str]) -> bool:
    """Return whether the cells of a first line may be column names: short, and not numbers."""
    return all(len(name) <= 60 and not re.fullmatch(r"[-+]?[0-9.,:/ -]+", name) for name in header)


def _read_rows(
    file: SourceFile,
    decoding: TextDecoding,
    source: Source,
    header: list[str],
    detect_joined_rows: bool,
    rows: Iterator[tuple[int, list[str]]],
) -> Iterator[SourceRow]:
    """Yield the rows with the column names of `header`.

    With `detect_joined_rows`, a field that seems to contain complete rows is a problem (see `_swallows_rows`).
    """
    null_marker = None if source.escape is None else f"{source.escape}N"
    rest_is_text = source.delimiter == " " and source.quote is None
    for line, fields in rows:
        if detect_joined_rows and _swallows_rows(fields, len(header)):
            yield SourceRow(file.name, line, {}, SWALLOWED_ROWS_HINT)
            continue
        if null_marker in fields:
            fields = ["" if field == null_marker else field for field in fields]
        if rest_is_text and len(fields) > len(header):
            fields = [*fields[: len(header) - 1], " ".join(fields[len(header) - 1 :])]
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            yield SourceRow(file.name, line, {}, problem + (" (NUL bytes)" if "\0" in fields[0] else ""))
        elif decoding.has_lone_surrogates and has_lone_surrogate("".join(fields)):
            yield SourceRow(file.name, line, {}, LONE_SURROGATE_MESSAGE)
        else:
            yield SourceRow(file.name, line, dict(zip(header, fields, strict=True)))


class _LineFeed:
    """The lines for the csv module; a row may span any number of lines inside quotes.

    Raise RecipeError if a row is larger than the limit.
    """

    def __init__(self, file: SourceFile, lines: Iterator[str], limits: Limits) -> None:
        self.line, self.characters = 1, 0
        """Start line of the current row, and the characters of it read so far."""
        self._file, self._lines, self._limits = file, lines, limits

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.characters += len(line)
            if self.characters > self._limits.row:
                subject = "not CSV: a field or a row"
                raise self._limits.row_error(
                    f"{self._file.name}:{self.line}", subject, f"{UNCLOSED_QUOTE_HINT}; split the row"
                )
            yield line


def _swallows_rows(fields: list[str], columns: int) -> bool:
    """Return whether a field seems to contain rows joined by an unclosed quote: its lines have as many tabs as rows."""
    for index, field in enumerate(fields):
        if "\t" in field and "\n" in field:
            first, *between, last = [line.count("\t") for line in field.split("\n")]
            if first == columns - 1 - index and last == index and {*between} <= {columns - 1}:
                return True
    return False


def _double_literal_escapes(content: Iterator[str], escape: str, special: Collection[str]) -> Iterator[str]:
    """Yield the lines with each literal escape character doubled.

    It is literal if it precedes no character that is special in CSV, as in C:\\new and \\N.
    """
    pair = re.compile(re.escape(escape) + r"([\s\S]?)")
    escapable = {escape, "\r", "\n", *special} - {""}
    return (pair.sub(lambda match: match[0] if match[1] in escapable else escape + match[0], line) for line in content)


def _number_rows(file: SourceFile, reader: Any, feed: _LineFeed, skipped_lines: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (start line, fields) of the rows that are not blank."""
    while True:
        line = feed.line = skipped_lines + reader.line_num + 1
        feed.characters = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise RecipeError(
                f"{file.name}:{line}: not CSV: {_explain_csv_error(str(error))}", code="INS-D013"
            ) from None
        if fields is None:
            return
        if fields:
            yield line, fields


def _explain_csv_error(message: str) -> str:
    """Return an error message of the csv module in terms of the file."""
    hint = (
        "or set data.source.quotes: false if a quote is a character like any other, "
        "or data.source.escape: '\\' if that stands before it"
    )
    if "unexpected end" in message:
        return f"a quote that opens in this row is never closed ({message}); close it, {hint}"
    return f"a quoted field of this row goes on after its quote ({message}); double the quotes inside it, {hint}"


def _make_reader(content: Any, delimiter: str, source: Source, strict: bool) -> Any:
    """Return a reader of the csv module with the recipe's quotes and escapes."""
    quoting: dict[str, Any] = {"quotechar": source.quote} if source.quote else {"quoting": csv.QUOTE_NONE}
    return csv.reader(content, delimiter=delimiter, escapechar=source.escape, strict=strict, **quoting)


def _take_sample(content: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """Return up to 20 lines or about 1 MiB, and an iterator over all lines."""
    sample: list[str] = []
    for line in islice(content, 20):
        sample.append(line)
        if sum(map(len, sample)) > 1 << 20:
            break
    return sample, chain(sample, content)


def _detect_delimiter(sample: list[str], source: Source, columns: Collection[str]) -> str:
    """Return the most plausible delimiter, a comma if there is no difference.

    With `source.header` it is the one that gives most rows the right number of fields. Otherwise it is the one whose
    header has most of the recipe's columns, then one under which all rows have as many fields as the header.
    """

    def score_delimiter(delimiter: str) -> tuple[int, bool, int]:
        rows: list[list[str]] = []
        with suppress(csv.Error):
            for row in _make_reader(sample, delimiter, source, strict=False):
                rows += [row] if row else []
        if source.header is not None:
            return sum(len(row) == len(source.header) for row in rows), False, 0
        header = rows[0] if rows else []
        agree = len(header) > 1 and all(len(row) == len(header) for row in rows[:-1])
        return len(set(columns) & set(header)), agree, len(header)

    return max((candidate for candidate in DELIMITERS if candidate != source.quote), key=score_delimiter)
