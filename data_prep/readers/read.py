"""Read the rows of a source file of any format."""

from collections.abc import Callable, Collection, Iterator
from typing import Literal

from data_prep.readers import csv_format, json_format, limits, plain_text
from data_prep.readers.encoding import TextDecoding, check_fetched, detect_encoding
from data_prep.readers.source_row import FileInfo, SourceFile, SourceRow
from insource.config.schema.source import Source

RowReader = Callable[[SourceFile, TextDecoding, Source, Collection[str]], tuple[FileInfo, Iterator[SourceRow]]]

# Text formats; the other formats define their own encoding.
TEXT_READERS: dict[str, RowReader] = {
    "csv": csv_format.read,
    "tsv": csv_format.read,
    "json": json_format.read,
    "jsonl": json_format.read,
    "txt": plain_text.read,
}


def read(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties of the file, and its rows.

    `columns` are the columns that the recipe needs; they decide the delimiter. A row that cannot be read has a
    `problem`.

    Raise RecipeError if the file cannot be read, or if a row or the decompressed file exceeds the limits. Some errors
    occur only while the rows are read. Raise StageError if the hub does not answer.
    """
    info, rows = _read(file, source, columns)
    return info, limits.enforce_limits(rows, file, limits.make_limits(source))


def _read(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties and the rows, without limits on the rows."""
    if file.kind == "documents":
        return plain_text.read_documents(file, source)
    if file.kind not in ("hub", "dataset"):
        check_fetched(file)
    if file.kind in TEXT_READERS:
        decoding = detect_encoding(
            file, source.encoding, limits=limits.make_limits(source), row_is=_row_unit(file, source)
        )
        info: FileInfo = {"kind": file.kind} | ({"compression": file.compression} if file.compression else {})
        format_info, rows = TEXT_READERS[file.kind](file, decoding, source, columns)
        return info | decoding.file_info() | format_info, rows
    if file.kind == "xlsx":
        from data_prep.readers import workbook  # late: it imports openpyxl

        return workbook.read(file, source, columns)
    from data_prep.readers.arrow import columnar_format  # late: it imports Arrow

    return columnar_format.read(file, source, columns)


def _row_unit(file: SourceFile, source: Source) -> Literal["line", "file"] | None:
    """Return the unit that has at least one row: "line", "file", or None for JSON."""
    if file.kind == "txt" and source.sample_by == "document":
        return "file"
    return None if file.kind == "json" else "line"
