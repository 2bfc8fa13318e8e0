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
from insource.config.schema.data import Source

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
    first = next(content, "")
    ordered = re.fullmatch(r'"?sep=(.)"?[\r\n]*', first, re.IGNORECASE)
    content = content if ordered else chain([first], content)
    sample, content = _take_sample(content)
    if source.delimiter != "auto" and file.kind != "tsv":
        delimiter = source.delimiter
    elif ordered:
        delimiter = ordered[1]
    else:
        delimiter = "\t" if file.kind == "tsv" else _detect_delimiter(sample, source, columns)
    if delimiter in ("\r", "\n", source.quote):
        raise RecipeError(f"data.source.delimiter: {delimiter!r} ends lines or quotes fields; give what stands between")
    about: FileInfo = {"delimiter": delimiter} | ({"quotes": source.quote} if source.quotes is not True else {})
    if len(delimiter) > 1:
        content = (line.replace(source.delimiter, UNIT_SEPARATOR) for line in content)
        delimiter = UNIT_SEPARATOR
    if source.escape is not None:
        about["escape"] = source.escape
        content = _double_literal_escapes(content, source.escape, {delimiter, source.quote or ""})
    csv.field_size_limit(text.limits.row)
    fed = _LineFeed(file, content, text.limits)
    rows = _number_rows(file, _make_reader(fed, delimiter, source, strict=True), fed, 1 if ordered else 0)
    # An escape sign may stand before tabs and line ends of a field's own.
    joins = delimiter == "\t" and source.quote is not None and source.escape is None
    if source.header is not None:
        opening = list(islice(rows, 1))
        for line, fields in opening:
            check_no_header(f"{file.name}:{line}", fields, source.header)
        return about | {"columns": source.header}, _read_rows(
            file, text, source, source.header, joins, chain(opening, rows)
        )
    header_line, header = next(rows, (1, []))
    if not any(name.strip() for name in header):
        raise RecipeError(f"{file.name}:{header_line}: the file has no header line; its first line names the columns")
    named, unnamed = parse_header(f"{file.name}:{header_line}", header)
    return about | {"columns": named} | unnamed, _read_rows(file, text, source, named, joins, rows)


def check_no_header(place: str, first: Sequence[str], names: Sequence[str]) -> None:
    """Returns nothing where a first line is a row and no header. Raises RecipeError where it has, beside other short
    names, one of the `names` that the recipe gives in that very column."""
    same = [one.strip().casefold() == name.casefold() for one, name in zip(first, names, strict=False)]
    if any(same) and looks_like_names(first) and all(one.strip() for one in first):
        raise RecipeError(
            f"{place}: the first line is a header itself ({', '.join(first)[:80]}), and data.source.header makes it a "
            "row; leave data.source.header out, or the line"
        )


def parse_header(place: str, header: Sequence[str]) -> tuple[list[str], FileInfo]:
    """Returns the names of the columns that a header line gives, and which columns have none there.

    A column without a name is the index that pandas writes, or a delimiter too many. Raises RecipeError with the place
    of the header where two columns have one name.
    """
    named = [name if name.strip() else f"column {number}" for number, name in enumerate(header, start=1)]
    if len(set(named)) < len(named):
        twice = ", ".join(repr(name[:40]) for name in sorted({name for name in named if named.count(name) > 1})[:5])
        hint = f"; {NO_HEADER_HINT}" if not looks_like_names(named) else ""
        raise RecipeError(f"{place}: column {twice} stands there twice; rename one{hint}")
    unnamed = [number for number, name in enumerate(header, start=1) if not name.strip()]
    return named, {"unnamed_columns": unnamed} if unnamed else {}


def looks_like_names(header: Collection[str]) -> bool:
    """Returns whether the cells of a first line may be names of columns: short, and no numbers."""
    return all(len(name) <= 60 and not re.fullmatch(r"[-+]?[0-9.,:/ -]+", name) for name in header)


def _read_rows(
    file: SourceFile,
    text: TextDecoding,
    source: Source,
    header: list[str],
    joins: bool,
    rows: Iterator[tuple[int, list[str]]],
) -> Iterator[SourceRow]:
    nothing = None if source.escape is None else f"{source.escape}N"
    rest_is_text = source.delimiter == " " and source.quote is None
    for line, fields in rows:
        if joins and _swallows_rows(fields, len(header)):
            yield SourceRow(file.name, line, {}, SWALLOWED_ROWS_HINT)
            continue
        if nothing in fields:
            fields = ["" if one == nothing else one for one in fields]
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
                what = "not CSV: a field or a row"
                raise self._limits.row_refused(
                    f"{self._file.name}:{self.line}", what, f"{UNCLOSED_QUOTE_HINT}; split the row"
                )
            yield line


def _swallows_rows(fields: list[str], columns: int) -> bool:
    """Whether a field of tabs and line ends has as many tabs in each line as rows that an unclosed quote joined."""
    for at, one in enumerate(fields):
        if "\t" in one and "\n" in one:
            first, *between, last = [line.count("\t") for line in one.split("\n")]
            if first == columns - 1 - at and last == at and {*between} <= {columns - 1}:
                return True
    return False


def _double_literal_escapes(content: Iterator[str], sign: str, special: Collection[str]) -> Iterator[str]:
    """The lines with each escape sign doubled that stands before no sign of CSV: it is a character there, as in C:\\new
    and \\N."""
    pair = re.compile(re.escape(sign) + r"([\s\S]?)")
    kept = {sign, "\r", "\n", *special} - {""}
    return (pair.sub(lambda found: found[0] if found[1] in kept else sign + found[0], line) for line in content)


def _number_rows(file: SourceFile, reader: Any, fed: _LineFeed, above: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank with the line where each starts."""
    while True:
        line = fed.line = above + reader.line_num + 1
        fed.characters = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise RecipeError(f"{file.name}:{line}: not CSV: {_explain_csv_error(str(error))}") from None
        if fields is None:
            return
        if fields:
            yield line, fields


def _explain_csv_error(told: str) -> str:
    """What the csv module says, in words about the file."""
    hint = "or set data.source.quotes: false if a quote is a character like any other, or data.source.escape: '\\' "
    hint += "if that stands before it"
    if "unexpected end" in told:
        return f"a quote that opens in this row is never closed ({told}); close it, {hint}"
    return f"a quoted field of this row goes on after its quote ({told}); double the quotes inside it, {hint}"


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

    return max((one for one in DELIMITERS if one != source.quote), key=plausible)
