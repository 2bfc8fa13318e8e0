"""CSV and TSV to rows, each with the file and the line where it stands.

    in   text,category\\r\\n"Where is\\nmy card?",card_arrival\\r\\n
    out  {"kind": "csv", "encoding": "utf-8", "delimiter": ",", "line_ends": {"crlf": 2, "lf": 1}, ...} and
         SourceRow("train.csv", 2, {"text": "Where is\\nmy card?", "category": "card_arrival"}, None)

A row that cannot be read is yielded with the reason and without values, so that nothing is lost in silence; a file
that cannot be read at all is refused. Rows stream: what is in memory is a row.
"""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from data_prep.readers.encoding import TextDecoding, has_lone_surrogate, read_lines
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
# What stands for a delimiter of several characters: the csv module takes one.
UNIT_SEPARATOR = "\x1f"


def read(
    file: SourceFile, text: TextDecoding, source: Source, columns: Collection[str]
) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Returns what was found out about the file beside its encoding, and its rows.

    RFC 4180, with any line ends: newline="" leaves bare newlines inside quotes as they are.
    """
    content = read_lines(file, text, newline="")
    # Excel writes sep=; as a line of its own above the header, and takes it as an order.
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
        raise RecipeError(f"data.source.delimiter: {delimiter!r} ends lines or quotes fields; give what stands between")
    info: FileInfo = {"delimiter": delimiter} | ({"quotes": source.quote} if source.quotes is not True else {})
    if len(delimiter) > 1:
        content = (line.replace(source.delimiter, UNIT_SEPARATOR) for line in content)
        delimiter = UNIT_SEPARATOR
    if source.escape is not None:
        info["escape"] = source.escape
        content = _double_literal_escapes(content, source.escape, {delimiter, source.quote or ""})
    csv.field_size_limit(text.limits.row)
    feed = _LineFeed(file, content, text.limits)
    rows = _number_rows(file, _make_reader(feed, delimiter, source, strict=True), feed, 1 if separator_match else 0)
    # An escape sign may stand before tabs and line ends of a field's own.
    may_join = delimiter == "\t" and source.quote is not None and source.escape is None
    if source.header is not None:
        first_rows = list(islice(rows, 1))
        for line, fields in first_rows:
            check_no_header(f"{file.name}:{line}", fields, source.header)
        return info | {"columns": source.header}, _read_rows(
            file, text, source, source.header, may_join, chain(first_rows, rows)
        )
    header_line, header = next(rows, (1, []))
    if not any(name.strip() for name in header):
        raise RecipeError(f"{file.name}:{header_line}: the file has no header line; its first line names the columns")
    names, unnamed = parse_header(f"{file.name}:{header_line}", header)
    return info | {"columns": names} | unnamed, _read_rows(file, text, source, names, may_join, rows)


def check_no_header(location: str, cells: Sequence[str], names: Sequence[str]) -> None:
    """Returns nothing where a first line is a row and no header. Raises RecipeError where it has, beside other short
    names, one of the `names` that the recipe gives in that very column."""
    matches = [cell.strip().casefold() == name.casefold() for cell, name in zip(cells, names, strict=False)]
    if any(matches) and looks_like_names(cells) and all(cell.strip() for cell in cells):
        raise RecipeError(
            f"{location}: the first line is a header itself ({', '.join(cells)[:80]}), and data.source.header "
            "makes it a "
            "row; leave data.source.header out, or the line"
        )


def parse_header(location: str, header: Sequence[str]) -> tuple[list[str], FileInfo]:
    """Returns the names of the columns that a header line gives, and which columns have none there.

    A column without a name is the index that pandas writes, or a delimiter too many. Raises RecipeError with the place
    of the header where two columns have one name.
    """
    names = [name if name.strip() else f"column {number}" for number, name in enumerate(header, start=1)]
    if len(set(names)) < len(names):
        duplicates = ", ".join(
            repr(name[:40]) for name in sorted({name for name in names if names.count(name) > 1})[:5]
        )
        hint = f"; {NO_HEADER_HINT}" if not looks_like_names(names) else ""
        raise RecipeError(f"{location}: column {duplicates} stands there twice; rename one{hint}")
    unnamed = [number for number, name in enumerate(header, start=1) if not name.strip()]
    return names, {"unnamed_columns": unnamed} if unnamed else {}


def looks_like_names(header: Collection[str]) -> bool:
    """Returns whether the cells of a first line may be names of columns: short, and no numbers."""
    return all(len(name) <= 60 and not re.fullmatch(r"[-+]?[0-9.,:/ -]+", name) for name in header)


def _read_rows(
    file: SourceFile,
    text: TextDecoding,
    source: Source,
    header: list[str],
    may_join: bool,
    rows: Iterator[tuple[int, list[str]]],
) -> Iterator[SourceRow]:
    null_marker = None if source.escape is None else f"{source.escape}N"
    rest_is_text = source.delimiter == " " and source.quote is None
    for line, fields in rows:
        if may_join and _swallows_rows(fields, len(header)):
            yield SourceRow(file.name, line, {}, SWALLOWED_ROWS_HINT)
            continue
        if null_marker in fields:
            fields = ["" if field == null_marker else field for field in fields]
        if rest_is_text and len(fields) > len(header):
            fields = [*fields[: len(header) - 1], " ".join(fields[len(header) - 1 :])]
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            yield SourceRow(file.name, line, {}, problem + (" (NUL bytes)" if "\0" in fields[0] else ""))
        elif text.halves and has_lone_surrogate("".join(fields)):
            yield SourceRow(file.name, line, {}, "half of a surrogate pair, which is no character")
        else:
            yield SourceRow(file.name, line, dict(zip(header, fields, strict=True)))


class _LineFeed:
    """The lines as the csv module takes them: a row may go on over any number of them inside of quotes."""

    def __init__(self, file: SourceFile, lines: Iterator[str], limits: Limits) -> None:
        self.line, self.characters = 1, 0
        """Where the row starts that is read now, and what of it was read."""
        self._file, self._lines, self._limits = file, lines, limits

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.characters += len(line)
            if self.characters > self._limits.row:
                subject = "not CSV: a field or a row"
                raise self._limits.row_refused(
                    f"{self._file.name}:{self.line}", subject, f"{UNCLOSED_QUOTE_HINT}; split the row"
                )
            yield line


def _swallows_rows(fields: list[str], columns: int) -> bool:
    """Whether a field of tabs and line ends has as many tabs in each line as rows that an unclosed quote joined."""
    for index, field in enumerate(fields):
        if "\t" in field and "\n" in field:
            first, *between, last = [line.count("\t") for line in field.split("\n")]
            if first == columns - 1 - index and last == index and {*between} <= {columns - 1}:
                return True
    return False


def _double_literal_escapes(content: Iterator[str], escape: str, special: Collection[str]) -> Iterator[str]:
    """The lines with each escape sign doubled that stands before no sign of CSV: it is a character there, as in C:\\new
    and \\N."""
    pair = re.compile(re.escape(escape) + r"([\s\S]?)")
    escapable = {escape, "\r", "\n", *special} - {""}
    return (pair.sub(lambda match: match[0] if match[1] in escapable else escape + match[0], line) for line in content)


def _number_rows(file: SourceFile, reader: Any, feed: _LineFeed, skipped_lines: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank with the line where each starts."""
    while True:
        line = feed.line = skipped_lines + reader.line_num + 1
        feed.characters = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise RecipeError(f"{file.name}:{line}: not CSV: {_explain_csv_error(str(error))}") from None
        if fields is None:
            return
        if fields:
            yield line, fields


def _explain_csv_error(message: str) -> str:
    """What the csv module says, in words about the file."""
    hint = "or set data.source.quotes: false if a quote is a character like any other, or data.source.escape: '\\' "
    hint += "if that stands before it"
    if "unexpected end" in message:
        return f"a quote that opens in this row is never closed ({message}); close it, {hint}"
    return f"a quoted field of this row goes on after its quote ({message}); double the quotes inside it, {hint}"


def _make_reader(content: Any, delimiter: str, source: Source, strict: bool) -> Any:
    quoting: dict[str, Any] = {"quotechar": source.quote} if source.quote else {"quoting": csv.QUOTE_NONE}
    return csv.reader(content, delimiter=delimiter, escapechar=source.escape, strict=strict, **quoting)


def _take_sample(content: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """The first lines, and all of them: enough to see a header, and not more than fits."""
    sample: list[str] = []
    for line in islice(content, 20):
        sample.append(line)
        if sum(map(len, sample)) > 1 << 20:
            break
    return sample, chain(sample, content)


def _detect_delimiter(sample: list[str], source: Source, columns: Collection[str]) -> str:
    """The delimiter under which the header has the recipe's columns, or most rows as many as `source.header`; else the
    one that rows agree on, or a comma."""

    def plausible(delimiter: str) -> tuple[int, bool, int]:
        rows: list[list[str]] = []
        with suppress(csv.Error):
            for row in _make_reader(sample, delimiter, source, strict=False):
                rows += [row] if row else []
        if source.header is not None:
            return sum(len(row) == len(source.header) for row in rows), False, 0
        header = rows[0] if rows else []
        agree = len(header) > 1 and all(len(row) == len(header) for row in rows[:-1])
        return len(set(columns) & set(header)), agree, len(header)

    return max((candidate for candidate in DELIMITERS if candidate != source.quote), key=plausible)
