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

from data_prep.encoding import Text, has_half, lines
from data_prep.limits import Limits
from data_prep.source_row import About, SourceFile, SourceRow
from recipes.errors import RecipeError
from recipes.schema_data import Source

NO_HEADER = "does the file lack a header? data.source.header names its columns, such as [label, title, text]"
DELIMITERS = (",", ";", "\t", "|")
UNCLOSED = "is a quote in it never closed? Close it, or set quotes: false if a quote is a character like any other"
# What stands for a delimiter of several characters: the csv module takes one.
UNIT_SEPARATOR = "\x1f"


def read(file: SourceFile, text: Text, source: Source, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    """Returns what was found out about the file beside its encoding, and its rows.

    RFC 4180, with any line ends: newline="" leaves bare newlines inside quotes as they are.
    """
    content = lines(file, text, newline="")
    # Excel writes sep=; as a line of its own above the header, and takes it as an order.
    first = next(content, "")
    ordered = re.fullmatch(r'"?sep=(.)"?[\r\n]*', first, re.IGNORECASE)
    content = content if ordered else chain([first], content)
    sample, content = _sample(content)
    if source.delimiter != "auto" and file.kind != "tsv":
        delimiter = source.delimiter
    elif ordered:
        delimiter = ordered[1]
    else:
        delimiter = "\t" if file.kind == "tsv" else _delimiter(sample, source, columns)
    if delimiter in ("\r", "\n", source.quote):
        raise RecipeError(f"data.source.delimiter: {delimiter!r} ends lines or quotes fields; give what stands between")
    about: About = {"delimiter": delimiter} | ({"quotes": source.quote} if source.quotes is not True else {})
    if len(delimiter) > 1:
        content = (line.replace(source.delimiter, UNIT_SEPARATOR) for line in content)
        delimiter = UNIT_SEPARATOR
    csv.field_size_limit(text.limits.row)
    fed = _Fed(file, content, text.limits)
    rows = _numbered(file, _reader(fed, delimiter, source.quote, strict=True), fed, 1 if ordered else 0)
    if source.header is not None:
        return about | {"columns": source.header}, _rows(file, text, source.header, rows)
    header_line, header = next(rows, (1, []))
    if not any(name.strip() for name in header):
        raise RecipeError(f"{file.name}:{header_line}: the file has no header line; its first line names the columns")
    named, unnamed = column_names(f"{file.name}:{header_line}", header)
    return about | {"columns": named} | unnamed, _rows(file, text, named, rows)


def column_names(place: str, header: Sequence[str]) -> tuple[list[str], About]:
    """Returns the names of the columns that a header line gives, and which columns have none there.

    A column without a name is the index that pandas writes, or a delimiter too many. Raises RecipeError with the place
    of the header where two columns have one name.
    """
    named = [name if name.strip() else f"column {number}" for number, name in enumerate(header, start=1)]
    if len(set(named)) < len(named):
        twice = ", ".join(repr(name[:40]) for name in sorted({name for name in named if named.count(name) > 1})[:5])
        hint = f"; {NO_HEADER}" if not looks_like_names(named) else ""
        raise RecipeError(f"{place}: column {twice} stands there twice; rename one{hint}")
    unnamed = [number for number, name in enumerate(header, start=1) if not name.strip()]
    return named, {"unnamed_columns": unnamed} if unnamed else {}


def looks_like_names(header: Collection[str]) -> bool:
    """Returns whether the cells of a first line may be names of columns: short, and no numbers."""
    return all(len(name) <= 60 and not re.fullmatch(r"[-+]?[0-9.,:/ -]+", name) for name in header)


def _rows(
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


class _Fed:
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
                raise self._limits.row_refused(f"{self._file.name}:{self.line}", what, f"{UNCLOSED}; split the row")
            yield line


def _numbered(file: SourceFile, reader: Any, fed: _Fed, above: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank with the line where each starts."""
    while True:
        line = fed.line = above + reader.line_num + 1
        fed.characters = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise RecipeError(f"{file.name}:{line}: not CSV: {_mistake(str(error))}") from None
        if fields is None:
            return
        if fields:
            yield line, fields


def _mistake(told: str) -> str:
    """What the csv module says, in words about the file."""
    hint = "or set data.source.quotes: false if a quote is a character like any other"
    if "unexpected end" in told:
        return f"a quote that opens in this row is never closed ({told}); close it, {hint}"
    return f"a quoted field of this row goes on after its quote ({told}); double the quotes inside it, {hint}"


def _reader(content: Any, delimiter: str, quote: str | None, strict: bool) -> Any:
    if quote is None:
        return csv.reader(content, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=strict)
    return csv.reader(content, delimiter=delimiter, quotechar=quote, strict=strict)


def _sample(content: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """The first lines, and all of them: enough to see a header, and not more than fits."""
    sample: list[str] = []
    for line in islice(content, 20):
        sample.append(line)
        if sum(map(len, sample)) > 1 << 20:
            break
    return sample, chain(sample, content)


def _delimiter(sample: list[str], source: Source, columns: Collection[str]) -> str:
    """The delimiter under which the header has the recipe's columns, or most rows as many as `source.header`; else the
    one that rows agree on, or a comma."""

    def plausible(delimiter: str) -> tuple[int, bool, int]:
        rows: list[list[str]] = []
        with suppress(csv.Error):
            for row in _reader(sample, delimiter, source.quote, strict=False):
                rows += [row] if row else []
        if source.header is not None:
            return sum(len(row) == len(source.header) for row in rows), False, 0
        header = rows[0] if rows else []
        agree = len(header) > 1 and all(len(row) == len(header) for row in rows[:-1])
        return len(set(columns) & set(header)), agree, len(header)

    return max((one for one in DELIMITERS if one != source.quote), key=plausible)
