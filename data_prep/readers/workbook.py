"""Rows of Excel workbooks (.xlsx, .xlsm): one sheet, whose first nonempty row has the column names.

in   | text                | label        | paid  | at (a date)  | total (12.1, stored as 12.100000000000001) |
out  SourceRow("tickets.xlsx", 2, {"text": "My parcel is late", "label": "delivery_delay", "paid": 12.1, ...})

Cells have the value that Excel computed last; macros and links are not followed. openpyxl reads row by row. The parts
that it loads into memory or trusts are measured first: a small zip archive of XML can be very large.
"""

import math
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, time
from typing import Any
from xml.parsers import expat

from openpyxl import load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from data_prep.readers import limits
from data_prep.readers.arrow.columnar_format import to_json_value
from data_prep.readers.csv_format import check_no_header, parse_header
from data_prep.readers.encoding import as_recipe_errors, has_lone_surrogate, join_surrogates
from data_prep.readers.source_row import BadRowError, FileInfo, SourceFile, SourceRow
from insource.config.errors import RecipeError
from insource.config.schema.source import Source
from insource.tasks.source_record import to_text

BLOCK_BYTES = 1 << 18
# The limits of Excel are 1,048,576 rows of 16,384 cells; a cell is a few XML elements.
MAX_ROWS = 1 << 20
MAX_ROW_ELEMENTS = 1 << 17
MAX_CONTENT_ELEMENTS, MAX_OTHER_ELEMENTS = 8_000_000, 500_000
OLE_SIGNATURE = b"\xd0\xcf\x11\xe0"
CELL_ERRORS = ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A", "#GETTING_DATA", "#SPILL!", "#CALC!")
ESCAPED_CHARACTER = re.compile("_x([0-9A-Fa-f]{4})_")
# Excel displays no more digits of a number.
SIGNIFICANT_DIGITS = 15
# Errors of zipfile, the XML parsers and openpyxl for damaged or nonstandard workbooks.
READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    expat.ExpatError,
    InvalidFileException,
    SyntaxError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
)


def read(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties of the workbook and the rows of a sheet, as `readers/read.py` does."""
    warnings.filterwarnings("ignore", module=r"openpyxl\b")  # for unsupported styles and validations
    with as_recipe_errors(file.name):
        _check_archive(file, limits.make_limits(source))
        try:
            book = load_workbook(file.path, read_only=True, data_only=True, keep_links=False)
            name, line, header = _choose_sheet(file, book, source, columns)
        except READ_ERRORS as error:
            raise _unreadable_error(file, error) from None
    location = f"{file.name}:{line}"
    if not header:
        raise RecipeError(f"{location}: sheet {name!r} is empty", code="INS-D007")
    if source.header and len(header) > len(source.header):
        raise RecipeError(
            f"{location}: {len(header)} cells where data.source.header has {len(source.header)} names", code="INS-D014"
        )
    if source.header:
        check_no_header(location, header, source.header)
    names, unnamed = (source.header, FileInfo()) if source.header else parse_header(location, header)
    info: FileInfo = {"kind": file.kind, "sheet": name, "columns": names, **unnamed}
    if len(book.worksheets) > 1:
        info["sheets"] = book.sheetnames
    numbered_rows = _read_filled_rows(file, book[name], limits.make_limits(source))
    return info, _read_rows(file, book, numbered_rows, 0 if source.header else line, names, {*columns})


def _choose_sheet(file: SourceFile, book: Any, source: Source, columns: Collection[str]) -> tuple[str, int, list[str]]:
    """Return the sheet to read, the line of its first nonempty row, and that row.

    Raise RecipeError if no sheet or more than one sheet fits.
    """
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if source.sheet is not None and source.sheet not in sheets:
        raise RecipeError(
            f"{file.name}: there is no sheet {source.sheet!r} (data.source.sheet); {_format_sheet_names(sheets)}",
            code="INS-D018",
        )
    candidates = [source.sheet] if source.sheet else [name for name in sheets if sheets[name].sheet_state == "visible"]
    first_rows = {
        name: next(_read_filled_rows(file, sheets[name], limits.make_limits(source)), (1, ())) for name in candidates
    }
    headers = {name: (line, [to_text(cell) for cell in _trim_row(row)]) for name, (line, row) in first_rows.items()}
    filled = [name for name, (_, header) in headers.items() if header]
    if len(filled) > 1 and not source.header:
        max_matches = max(len({*headers[name][1]} & {*columns}) for name in filled)
        filled = [name for name in filled if len({*headers[name][1]} & {*columns}) == max_matches]
    if len(filled) > 1:
        raise RecipeError(
            f"{file.name}: several sheets have rows. Set data.source.sheet; {_format_sheet_names(filled)}",
            code="INS-D018",
        )
    if not candidates:
        problem = (
            f"no sheet of cells is visible; {_format_sheet_names(sheets)}"
            if sheets
            else "no sheet of cells can be read"
        )
        raise RecipeError(
            f"{file.name}: {problem}; set data.source.sheet, or save it again as .xlsx (not Strict Open XML)",
            code="INS-D018",
        )
    name = (filled or candidates)[0]
    return name, *headers[name]


def _format_sheet_names(sheets: Collection[str]) -> str:
    """Return the sheet names for a message, ten at most."""
    return f"it has {', '.join(map(repr, list(sheets)[:10]))}{', ...' if len(sheets) > 10 else ''}"


def _read_filled_rows(
    file: SourceFile, sheet: Any, size_limits: limits.Limits
) -> Iterator[tuple[int, Sequence[object]]]:
    """Yield (line, cells) of the nonempty rows.

    Raise RecipeError for a row that is too large, because many cells may share one text.
    """
    sheet.reset_dimensions()  # the stored dimensions are often wrong, and rows beyond them would be lost
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        if (size := sum(len(cell) for cell in row if isinstance(cell, str))) > size_limits.row:
            raise size_limits.row_error(f"{file.name}:{number}", size=size)
        if any(cell not in (None, "") for cell in row):
            yield number, row


def _trim_row(row: Sequence[object]) -> Sequence[object]:
    """Return the converted cells up to the last nonempty one."""
    end = next((index for index in range(len(row), 0, -1) if row[index - 1] not in (None, "")), 0)
    return [_convert_cell(cell) for cell in row[:end]]


def _read_rows(
    file: SourceFile,
    book: Any,
    numbered_rows: Iterator[tuple[int, Sequence[Any]]],
    header_line: int,
    header: list[str],
    columns: Collection[str],
) -> Iterator[SourceRow]:
    """Yield the rows after `header_line`."""
    number = header_line
    try:
        for number, row in numbered_rows:
            if number > header_line:
                yield _make_source_row(file, number, row, header, columns)
    except READ_ERRORS as error:
        raise _unreadable_error(file, error, f":{number + 1}") from None
    finally:
        book.close()


def _make_source_row(
    file: SourceFile, number: int, row: Sequence[object], header: list[str], columns: Collection[str]
) -> SourceRow:
    """Return the source row; a cell with an error or without a JSON value is its problem."""
    values: dict[str, Any] = {}
    for index, column in enumerate(header):
        value = row[index] if index < len(row) else None
        if value in CELL_ERRORS and column in columns:
            return SourceRow(file.name, number, {}, f"column {column!r} holds the error {value}; fix its formula")
        try:
            values[column] = None if value in CELL_ERRORS else _convert_cell(value)
        except BadRowError as error:
            return SourceRow(file.name, number, {}, f"column {column!r} holds {error}")
    return SourceRow(file.name, number, values)


def _convert_cell(value: object) -> object:
    """Return the cell as a JSON value: numbers with the digits that Excel displays, dates without a time as dates."""
    if isinstance(value, str):
        text = (
            join_surrogates(ESCAPED_CHARACTER.sub(lambda match: chr(int(match[1], 16)), value))
            if "_x" in value
            else value
        )
        if has_lone_surrogate(text):
            raise BadRowError("half of a surrogate pair")
        return text
    if isinstance(value, float) and math.isfinite(value):
        rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 10**SIGNIFICANT_DIGITS else rounded
    if isinstance(value, datetime) and value.time() == time():
        return to_json_value(value.date())
    return to_json_value(value)


def _check_archive(file: SourceFile, size_limits: limits.Limits) -> None:
    """Check that the parts of a workbook are XML without entities and within the limits. Raise RecipeError if not."""
    with file.path.open("rb") as stream:
        if stream.read(len(OLE_SIGNATURE)) == OLE_SIGNATURE:
            raise RecipeError(
                f"{file.name}: this is an old Excel workbook (.xls), or one with a password; save it as .xlsx without "
                "a password",
                code="INS-D008",
            )
    try:
        with zipfile.ZipFile(file.path) as archive:
            parts = archive.infolist()
            # Declared sizes are sufficient: zipfile reads no byte beyond them.
            if (size := sum(part.file_size for part in parts)) > size_limits.unpacked:
                raise size_limits.unpacked_error(file.name, "an unpacked workbook", "export it as CSV", size)
            for part in parts:
                # A workbook may use a part of any name as a sheet. A picture is no XML from its first byte on.
                is_xml = part.filename.endswith((".xml", ".rels"))
                with archive.open(part) as stream, suppress(*(() if is_xml else (expat.ExpatError,))):
                    _PartCounter(f"{file.name}: {part.filename}").read(stream)
    except READ_ERRORS as error:
        raise _unreadable_error(file, error) from None


class _PartCounter:
    """Number of elements and rows of a workbook part, from one pass over it."""

    def __init__(self, name: str) -> None:
        self.name, self.elements, self.row, self.in_row = name, 0, 0, 0
        content = "worksheets/" in name or "sharedStrings" in name
        self.max_elements = MAX_CONTENT_ELEMENTS if content else MAX_OTHER_ELEMENTS

    def read(self, stream: Any) -> None:
        """Parse the part. Raise RecipeError if it exceeds a limit."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start_element
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        while block := stream.read(BLOCK_BYTES):
            parser.Parse(block)
        parser.Parse(b"", True)

    def _refuse_doctype(self, *_: object) -> None:
        """Raise RecipeError for a document type declaration."""
        raise RecipeError(
            f"{self.name} has a document type, which is not allowed in a workbook; save it again", code="INS-D012"
        )

    def _start_element(self, tag: str, attributes: dict[str, str]) -> None:
        """Count an element. Raise RecipeError if it exceeds a limit."""
        self.elements += 1
        if tag.endswith("main row"):
            previous_row, self.row = self.row, int(attributes.get("r", self.row + 1))
            self.elements, self.in_row = self.elements - self.in_row, 0
            if not previous_row < self.row <= MAX_ROWS:
                raise RecipeError(
                    f"{self.name}: row {self.row} follows row {previous_row}, "
                    f"and rows go from 1 to {MAX_ROWS:,}; save it again",
                    code="INS-D012",
                )
        elif self.row:
            self.in_row += 1
            if self.in_row > MAX_ROW_ELEMENTS:
                raise RecipeError(
                    f"{self.name}: row {self.row} has more cells than Excel allows; save it again", code="INS-D012"
                )
        if self.elements > self.max_elements:
            raise RecipeError(
                f"{self.name} has more than {self.max_elements:,} elements; export the sheet as CSV", code="INS-D019"
            )


def _unreadable_error(file: SourceFile, error: Exception, location: str = "") -> RecipeError:
    """Return the error for a damaged workbook."""
    message = (str(error) or type(error).__name__).splitlines()[0]
    return RecipeError(
        f"{file.name}{location}: not an Excel workbook, or a damaged one ({message[:120]}); save it again",
        code="INS-D012",
    )
