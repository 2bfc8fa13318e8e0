"""Memory limits: the size of a row, and of data that must be decompressed as one piece.

A file of a kilobyte can decompress to gigabytes: .gz and .zst files, workbooks and Parquet pages. The dictionaries of
Parquet and the shared texts of a workbook can also repeat one text many times. Declared sizes are checked before
reading. Other sizes are measured in chunks of CHUNK_BYTES.

    data.source.max_row_mib        one row, of any format
    data.source.max_unpacked_mib   data read as one piece: JSON, a workbook; a Parquet column of a row group that is
                                   compressed more than MAX_COLUMN_RATIO; a file compressed more than MAX_FILE_RATIO
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from data_prep.readers.source_row import SourceFile, SourceRow
from insource.config.errors import RecipeError
from insource.config.schema.source import Source

T = TypeVar("T")

MIB = 1 << 20
# Comparing a duplicate key takes memory of up to a hundred times its length (minhash.py).
CHUNK_BYTES = 8 << 20
MAX_COLUMN_RATIO, MAX_FILE_RATIO = 100, 1000
# Bytes of a row besides its texts (row_table.py).
ROW_OVERHEAD_BYTES = 80
ROW_LIMIT_KEY, UNPACKED_LIMIT_KEY = "data.source.max_row_mib", "data.source.max_unpacked_mib"


@dataclass(frozen=True)
class Limits:
    """Maximum bytes, or characters of text, of a row and of data decompressed as one piece."""

    row: int
    unpacked: int

    def row_error(
        self, location: str, subject: str = "a row", advice: str = "split it", size: int | None = None
    ) -> RecipeError:
        """Return the error for a row, or part of one, that is too large. Without `size` its end was not read."""
        return _limit_error(location, subject, size, self.row, advice, ROW_LIMIT_KEY)

    def unpacked_error(self, location: str, subject: str, advice: str, size: int | None = None) -> RecipeError:
        """Return the error for data that is too large as one piece."""
        return _limit_error(location, subject, size, self.unpacked, advice, UNPACKED_LIMIT_KEY)

    def exceeds_ratio(self, size: int, stored_bytes: int, max_ratio: int) -> bool:
        """Return whether `size` bytes from `stored_bytes` exceed both the limit and the ratio."""
        return size > self.unpacked and size > max_ratio * stored_bytes


def make_limits(source: Source) -> Limits:
    """Return the limits of a recipe's source."""
    return Limits(source.max_row_mib * MIB, source.max_unpacked_mib * MIB)


DEFAULT_LIMITS = make_limits(Source(path="rows"))


def estimate_bytes(value: object) -> int:
    """Return the approximate size of a value: the characters of its texts, and 8 for every other item."""
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
    """Yield the rows of a file.

    Raise RecipeError if a row is too large, or if the rows so far are far larger than the file.
    """
    stored_bytes = file.path.stat().st_size if file.path.is_file() else None
    total = 0
    for row in rows:
        size = estimate_bytes(row.values)
        if size > limits.row:
            column = max(row.values, key=lambda name: estimate_bytes(row.values[name]))
            raise limits.row_error(f"{row.file}:{row.line}", f"a row, mostly column {column[:40]!r},", size=size)
        total += size + ROW_OVERHEAD_BYTES
        if stored_bytes is not None and limits.exceeds_ratio(total, stored_bytes, MAX_FILE_RATIO):
            raise file_ratio_error(f"{row.file}:{row.line}", limits, stored_bytes)
        yield row


def file_ratio_error(
    location: str, limits: Limits, stored_bytes: int, rows: str = "rows", size: int | None = None
) -> RecipeError:
    """Return the error for a file with rows far larger than the file."""
    subject = f"{rows}, more than {MAX_FILE_RATIO:,} times a file of {stored_bytes:,} bytes,"
    return limits.unpacked_error(location, subject, "check where it is from", size)


def split_into_chunks(items: Iterable[T], max_items: int, measure: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in lists of at most `max_items` and about CHUNK_BYTES."""
    chunk: list[T] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += measure(item)
        if len(chunk) == max_items or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _limit_error(location: str, subject: str, size: int | None, limit: int, advice: str, key: str) -> RecipeError:
    """Return the error with the size, the limit and the value to set."""
    size_text = (
        f"{subject} of more than {limit / MIB:,.0f} MiB" if size is None else f"{subject} of {_format_mib(size)} MiB"
    )
    suggested = 2 * limit if size is None else size
    comparison = "" if size is None else f", more than {limit / MIB:,.0f}"
    return RecipeError(
        f"{location}: {size_text}{comparison}; {advice}, or set {key}: {math.ceil(suggested / MIB)}", code="INS-D019"
    )


def _format_mib(size: int) -> str:
    """Return a size in MiB, with one decimal below 100."""
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"
