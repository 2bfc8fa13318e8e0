"""How large are the cells of an Arrow table, before they become values of Python, and those of a Parquet file, before
they are read?

A Parquet file keeps a text that many rows have once, in a dictionary, and so it is read: a batch takes its dictionary
and a number a row. Then a batch is cut into pieces of limits.PIECE_BYTES, by the sizes that its cells have as texts.

    in   500 rows whose `text` is one text of 5 MiB, in a file of 6 KB
    out  250 pieces of two rows; and where a row may have 4 MiB, an error that names row 1 and column `text`
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.readers.arrow.parquet_footer import ColumnChunk, Footer
from data_prep.readers.limits import (
    CHUNK_BYTES,
    MAX_COLUMN_RATIO,
    MAX_FILE_RATIO,
    ROW_OVERHEAD_BYTES,
    Limits,
    file_ratio_error,
)
from data_prep.readers.source_row import SourceFile

Sizes = npt.NDArray[np.int64]

NUMBER_BYTES = 8
# Encodings of pages that Arrow can read as a dictionary and a number a row.
DICTIONARY_ENCODINGS = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
# Those of pages that are no smaller than their texts; all others name a text, or its beginning, many times.
FULL_SIZE_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}


def check_declared_sizes(file: SourceFile, declared: Footer, wanted: set[str], limits: Limits) -> None:
    """Returns nothing where a Parquet file does not declare more than may be unpacked, nor far more rows than fit into
    it. Raises RecipeError naming the column."""
    stored = file.path.stat().st_size
    if limits.packed_too_much(size := declared.rows * ROW_OVERHEAD_BYTES, stored, MAX_FILE_RATIO):
        raise file_ratio_error(file.name, limits, stored, f"{declared.rows:,} rows", size)
    for part in declared.parts:
        size, packed = _declared_bytes(part), min(part.packed, stored)
        if part.is_in(wanted) and limits.packed_too_much(size, packed, MAX_COLUMN_RATIO):
            what = f"column {part.path!r} declares {packed:,} packed bytes that make a part"
            raise limits.unpacked_refused(file.name, what, "write it in smaller row groups", size)


def find_oversized_columns(declared: Footer, columns: set[str], stored: int, limits: Limits) -> set[str]:
    """Returns those of some columns that declare more than may be unpacked, such as the masks of a tokenized file."""
    large = [
        one
        for one in declared.parts
        if limits.packed_too_much(_declared_bytes(one), min(one.packed, stored), MAX_COLUMN_RATIO)
    ]
    return {name for name in columns if any(part.is_in({name}) for part in large)}


def _declared_bytes(part: ColumnChunk) -> int:
    return max(part.unpacked, part.values * NUMBER_BYTES if part.repeated else 0)


def find_dictionary_columns(declared: Footer, wanted: set[str]) -> list[str]:
    """Returns the columns of texts, also inside of lists and objects, that a Parquet file keeps in dictionaries."""
    encodings = _collect_encodings([part for part in declared.parts if part.text and part.is_in(wanted)])
    return [name for name, found in encodings.items() if found <= DICTIONARY_ENCODINGS and found - FULL_SIZE_ENCODINGS]


def choose_batch_rows(declared: Footer, schema: Any, wanted: set[str], most: int, limits: Limits) -> int:
    """Returns how many rows of a Parquet file may be read at once: `most`, but for cells that can be large although
    their pages are not."""
    widest = max((_fixed_width_bytes(schema.field(name).type) for name in wanted), default=1)
    parts = [part for part in declared.parts if part.bytes and part.is_in(wanted)]
    unsafe = {name for name, found in _collect_encodings(parts).items() if found - FULL_SIZE_ENCODINGS}
    unsafe -= {*find_dictionary_columns(declared, wanted)}
    # Of a page that is large as soon as one cell is, each row may take all that the page declares.
    largest = max((part.unpacked for part in parts if part.path in unsafe), default=1)
    return max(1, min(most, CHUNK_BYTES // max(widest, 1), limits.unpacked // max(largest, 1)))


def split_batches(file: SourceFile, batches: Iterator[Any], limits: Limits) -> Iterator[Any]:
    """Yields the batches in pieces of about PIECE_BYTES, dictionaries as the texts that they stand for.

    Raises RecipeError for a row that is too large, naming it and its largest column, and ArrowInvalid where a
    dictionary has not what a row names.
    """
    before = 0
    for batch in batches:
        for column in batch.columns:
            if _decoded_type(column.type) != column.type:
                column.validate(full=True)
        by_column = {name: estimate_value_bytes(batch.column(at)) for at, name in enumerate(batch.schema.names)}
        rows = np.sum(list(by_column.values()), axis=0) if by_column else np.zeros(batch.num_rows, np.int64)
        if len(large := np.flatnonzero(rows > limits.row)):
            at = int(large[0])
            name = max(by_column, key=lambda one: by_column[one][at])
            place = f"{file.name}:{before + at + 1}"
            raise limits.row_refused(place, f"a row, mostly column {name!r},", size=int(rows[at]))
        start = 0
        for end in _find_chunk_ends(rows):
            yield _decode_dictionaries(batch.slice(start, end - start))
            start = end
        before += batch.num_rows


def estimate_value_bytes(array: Any) -> Sizes:
    """Returns about how many bytes each value of an array takes: texts theirs, numbers eight."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return estimate_value_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        of_index = np.append(estimate_value_bytes(array.dictionary), 0)
        indices = array.indices.cast(pa.int64()).fill_null(len(of_index) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(of_index[indices], np.int64)
    if _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return np.asarray(pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_struct(kind):
        parts = [estimate_value_bytes(one) for one in array.flatten()]
        return np.sum(parts, axis=0) if parts else np.zeros(len(array), np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        inside = (
            estimate_value_bytes(array.keys) + estimate_value_bytes(array.items)
            if pa.types.is_map(kind)
            else estimate_value_bytes(array.values)
        )
        sums = np.concatenate([[0], np.cumsum(inside)])
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]] + NUMBER_BYTES, np.int64)
    return np.full(len(array), _fixed_width_bytes(kind), np.int64)


def _decode_dictionaries(batch: Any) -> Any:
    """The batch with its dictionaries as the texts that they stand for: these are quicker to take out."""
    every = pa.array(range(batch.num_rows))
    arrays = []
    for one in batch.columns:
        kind = _decoded_type(one.type)
        # take: a slice of a list still has what is inside of all lists, which a cast would write out.
        arrays.append(one if kind == one.type else one.take(every).cast(kind))
    return pa.record_batch(arrays, names=batch.schema.names)


def _decoded_type(kind: Any) -> Any:
    """The type with the values of its dictionaries in their place."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_decoded_type(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_decoded_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_decoded_type(kind.value_type)))
    return kind


def _find_chunk_ends(rows: Sizes) -> Iterator[int]:
    """Where a batch is cut: behind rows that take PIECE_BYTES together, and at its end."""
    size = 0
    if int(rows.sum()) >= CHUNK_BYTES:
        for at, one in enumerate(rows[:-1], start=1):
            size += int(one)
            if size >= CHUNK_BYTES:
                yield at
                size = 0
    if len(rows):
        yield len(rows)


def _collect_encodings(parts: list[ColumnChunk]) -> dict[str, set[str]]:
    """The encodings of each column, in all row groups."""
    found: dict[str, set[str]] = {}
    for part in parts:
        found.setdefault(part.path, set()).update(part.encodings)
    return found


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _fixed_width_bytes(kind: Any) -> int:
    """Bytes of a value of fixed width, of others a number's."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _fixed_width_bytes(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    return NUMBER_BYTES
