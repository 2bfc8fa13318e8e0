"""How much of a source is in memory at once: a row, and what has to be unpacked as one piece.

A file of a kilobyte can hold gigabytes: packed (.gz, .zst, workbooks, the pages of Parquet), or because one text is
named many times (the dictionaries of Parquet, the shared texts of a workbook). What a file declares is checked before
it is read; what it does not declare is measured in batches of PIECE_BYTES.

    data.source.max_row_mib        one row, of any format
    data.source.max_unpacked_mib   what is read as one piece: JSON, a workbook; a column of a row group of Parquet that
                                   is packed more than COLUMN_TIMES; all of a file that is packed more than FILE_TIMES
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.readers.source_row import SourceFile, SourceRow
from insource.config.errors import RecipeError
from insource.config.schema.data import Source

T = TypeVar("T")

MIB = 1 << 20
# A duplicate key takes up to a hundred times its length while it is compared (near.py).
CHUNK_BYTES = 8 << 20
MAX_COLUMN_RATIO, MAX_FILE_RATIO = 100, 1000
# What a row takes beside its texts (table.py).
ROW_OVERHEAD_BYTES = 80
ROW_LIMIT_KEY, UNPACKED_LIMIT_KEY = "data.source.max_row_mib", "data.source.max_unpacked_mib"


@dataclass(frozen=True)
class Limits:
    """The most bytes, or characters of text, of a row and of what is unpacked as one piece."""

    row: int
    unpacked: int

    def row_refused(
        self, place: str, what: str = "a row", do: str = "split it", size: int | None = None
    ) -> RecipeError:
        """Returns the error of a row, or a part of one, that is too large; without `size`, its end was not read."""
        return _limit_error(place, what, size, self.row, do, ROW_LIMIT_KEY)

    def unpacked_refused(self, place: str, what: str, do: str, size: int | None = None) -> RecipeError:
        """Returns the error of what is too large as one piece."""
        return _limit_error(place, what, size, self.unpacked, do, UNPACKED_LIMIT_KEY)

    def packed_too_much(self, size: int, stored: int, times: int) -> bool:
        """Returns whether `size` bytes out of `stored` ones are more than may be."""
        return size > self.unpacked and size > times * stored


def make_limits(source: Source) -> Limits:
    """Returns the limits that a recipe sets."""
    return Limits(source.max_row_mib * MIB, source.max_unpacked_mib * MIB)


DEFAULT_LIMITS = make_limits(Source(path="rows"))


def estimate_bytes(value: Any) -> int:
    """Returns about how many bytes a value takes: the characters of its texts, and 8 for anything else in it."""
    found, left = 0, [value]
    while left:
        one = left.pop()
        if isinstance(one, str | bytes):
            found += len(one)
        elif isinstance(one, Mapping):
            left += one.keys()
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
            found += 8
        else:
            found += 8
    return found


def enforce_limits(rows: Iterable[SourceRow], file: SourceFile, limits: Limits) -> Iterator[SourceRow]:
    """Yields the rows of a file. Raises RecipeError for one that is too large, and where all rows so far are far larger
    than the file that they came from."""
    stored = file.path.stat().st_size if file.path.is_file() else None
    total = 0
    for row in rows:
        size = estimate_bytes(row.values)
        if size > limits.row:
            column = max(row.values, key=lambda name: estimate_bytes(row.values[name]))
            raise limits.row_refused(f"{row.file}:{row.line}", f"a row, mostly column {column[:40]!r},", size=size)
        total += size + ROW_OVERHEAD_BYTES
        if stored is not None and limits.packed_too_much(total, stored, MAX_FILE_RATIO):
            raise file_ratio_error(f"{row.file}:{row.line}", limits, stored)
        yield row


def file_ratio_error(
    place: str, limits: Limits, stored: int, rows: str = "rows", size: int | None = None
) -> RecipeError:
    """Returns the error of a file whose rows are far larger than it is."""
    what = f"{rows}, more than {MAX_FILE_RATIO:,} times a file of {stored:,} bytes,"
    return limits.unpacked_refused(place, what, "check where it is from", size)


def split_into_chunks(items: Iterable[T], most: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yields the items in lists of at most `most`, and of about PIECE_BYTES at most."""
    piece: list[T] = []
    size = 0
    for one in items:
        piece.append(one)
        size += size_of(one)
        if len(piece) == most or size >= CHUNK_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _limit_error(place: str, what: str, size: int | None, most: int, do: str, key: str) -> RecipeError:
    told = f"{what} of more than {most / MIB:,.0f} MiB" if size is None else f"{what} of {_format_mib(size)} MiB"
    wanted = 2 * most if size is None else size
    than = "" if size is None else f", more than {most / MIB:,.0f}"
    return RecipeError(f"{place}: {told}{than}; {do}, or set {key}: {math.ceil(wanted / MIB)}")


def _format_mib(size: int) -> str:
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"
