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
from insource.config.schema.source import Source

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
        self, location: str, subject: str = "a row", advice: str = "split it", size: int | None = None
    ) -> RecipeError:
        """Returns the error of a row, or a part of one, that is too large; without `size`, its end was not read."""
        return _limit_error(location, subject, size, self.row, advice, ROW_LIMIT_KEY)

    def unpacked_refused(self, location: str, subject: str, advice: str, size: int | None = None) -> RecipeError:
        """Returns the error of what is too large as one piece."""
        return _limit_error(location, subject, size, self.unpacked, advice, UNPACKED_LIMIT_KEY)

    def packed_too_much(self, size: int, stored_bytes: int, max_ratio: int) -> bool:
        """Returns whether `size` bytes out of `stored_bytes` ones are more than may be."""
        return size > self.unpacked and size > max_ratio * stored_bytes


def make_limits(source: Source) -> Limits:
    """Returns the limits that a recipe sets."""
    return Limits(source.max_row_mib * MIB, source.max_unpacked_mib * MIB)


DEFAULT_LIMITS = make_limits(Source(path="rows"))


def estimate_bytes(value: Any) -> int:
    """Returns about how many bytes a value takes: the characters of its texts, and 8 for anything else in it."""
    total, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Mapping):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
            total += 8
        else:
            total += 8
    return total


def enforce_limits(rows: Iterable[SourceRow], file: SourceFile, limits: Limits) -> Iterator[SourceRow]:
    """Yields the rows of a file. Raises RecipeError for one that is too large, and where all rows so far are far larger
    than the file that they came from."""
    stored_bytes = file.path.stat().st_size if file.path.is_file() else None
    total = 0
    for row in rows:
        size = estimate_bytes(row.values)
        if size > limits.row:
            column = max(row.values, key=lambda name: estimate_bytes(row.values[name]))
            raise limits.row_refused(f"{row.file}:{row.line}", f"a row, mostly column {column[:40]!r},", size=size)
        total += size + ROW_OVERHEAD_BYTES
        if stored_bytes is not None and limits.packed_too_much(total, stored_bytes, MAX_FILE_RATIO):
            raise file_ratio_error(f"{row.file}:{row.line}", limits, stored_bytes)
        yield row


def file_ratio_error(
    location: str, limits: Limits, stored_bytes: int, rows: str = "rows", size: int | None = None
) -> RecipeError:
    """Returns the error of a file whose rows are far larger than it is."""
    subject = f"{rows}, more than {MAX_FILE_RATIO:,} times a file of {stored_bytes:,} bytes,"
    return limits.unpacked_refused(location, subject, "check where it is from", size)


def split_into_chunks(items: Iterable[T], max_items: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yields the items in lists of at most `max_items`, and of about PIECE_BYTES at most."""
    chunk: list[T] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if len(chunk) == max_items or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _limit_error(location: str, subject: str, size: int | None, limit: int, advice: str, key: str) -> RecipeError:
    size_text = (
        f"{subject} of more than {limit / MIB:,.0f} MiB" if size is None else f"{subject} of {_format_mib(size)} MiB"
    )
    suggested = 2 * limit if size is None else size
    comparison = "" if size is None else f", more than {limit / MIB:,.0f}"
    return RecipeError(f"{location}: {size_text}{comparison}; {advice}, or set {key}: {math.ceil(suggested / MIB)}")


def _format_mib(size: int) -> str:
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"
