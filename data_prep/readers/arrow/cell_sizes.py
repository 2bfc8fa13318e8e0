"""Sizes of Arrow cells before conversion to Python values, and of Parquet columns before reading.

Parquet stores a text that many rows share once, in a dictionary. It is read in that form: a batch has its dictionary
and one index per row. Batches are then split into pieces of limits.CHUNK_BYTES, by the decoded sizes.

    in   500 rows whose `text` is one text of 5 MiB, in a file of 6 KB
    out  250 pieces of two rows; with a row limit of 4 MiB, an error that names row 1 and column `text`
"""

from collections.abc import Iterator

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
# Page encodings that Arrow can read as a dictionary and an index per row.
DICTIONARY_ENCODINGS = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
# Page encodings no smaller than their texts; all others may refer to a text, or to its beginning, many times.
FULL_SIZE_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}


def check_declared_sizes(file: SourceFile, footer: Footer, columns: set[str], limits: Limits) -> None:
    """Check the declared sizes of a Parquet file.

    Raise RecipeError with the column if more is declared than may be decompressed, or far more rows than fit into the
    file.
    """
    stored_bytes = file.path.stat().st_size
    if limits.exceeds_ratio(size := footer.rows * ROW_OVERHEAD_BYTES, stored_bytes, MAX_FILE_RATIO):
        raise file_ratio_error(file.name, limits, stored_bytes, f"{footer.rows:,} rows", size)
    for chunk in footer.chunks:
        size, packed_bytes = _declared_bytes(chunk), min(chunk.packed_bytes, stored_bytes)
        if chunk.is_in(columns) and limits.exceeds_ratio(size, packed_bytes, MAX_COLUMN_RATIO):
            subject = f"column {chunk.path!r} declares {packed_bytes:,} packed bytes that make a part"
            raise limits.unpacked_error(file.name, subject, "write it in smaller row groups", size)


def find_oversized_columns(footer: Footer, columns: set[str], stored_bytes: int, limits: Limits) -> set[str]:
    """Return those of `columns` that declare more than may be decompressed, such as the masks of a tokenized file."""
    oversized = [
        chunk
        for chunk in footer.chunks
        if limits.exceeds_ratio(_declared_bytes(chunk), min(chunk.packed_bytes, stored_bytes), MAX_COLUMN_RATIO)
    ]
    return {name for name in columns if any(chunk.is_in({name}) for chunk in oversized)}


def _declared_bytes(chunk: ColumnChunk) -> int:
    """Return the declared size of a column chunk in bytes."""
    return max(chunk.unpacked_bytes, chunk.value_count * NUMBER_BYTES if chunk.is_repeated else 0)


def find_dictionary_columns(footer: Footer, columns: set[str]) -> list[str]:
    """Return the text columns, also inside lists and objects, that a Parquet file stores as dictionaries."""
    encodings = _collect_encodings([chunk for chunk in footer.chunks if chunk.is_text and chunk.is_in(columns)])
    return [
        name
        for name, column_encodings in encodings.items()
        if column_encodings <= DICTIONARY_ENCODINGS and column_encodings - FULL_SIZE_ENCODINGS
    ]


def choose_batch_rows(footer: Footer, schema: pa.Schema, columns: set[str], max_rows: int, limits: Limits) -> int:
    """Return the number of rows to read at once.

    It is `max_rows`, or less if cells can be large although their pages are small.
    """
    widest = max((_fixed_width_bytes(schema.field(name).type) for name in columns), default=1)
    chunks = [chunk for chunk in footer.chunks if chunk.has_variable_length and chunk.is_in(columns)]
    unsafe = {
        name for name, column_encodings in _collect_encodings(chunks).items() if column_encodings - FULL_SIZE_ENCODINGS
    }
    unsafe -= {*find_dictionary_columns(footer, columns)}
    # The page of such a column is as large as its largest cell, and each row may have that cell.
    largest = max((chunk.unpacked_bytes for chunk in chunks if chunk.path in unsafe), default=1)
    return max(1, min(max_rows, CHUNK_BYTES // max(widest, 1), limits.unpacked // max(largest, 1)))


def split_batches(file: SourceFile, batches: Iterator[pa.RecordBatch], limits: Limits) -> Iterator[pa.RecordBatch]:
    """Yield the batches in pieces of about CHUNK_BYTES, with dictionaries decoded.

    Raise RecipeError with the row and its largest column if a row is too large. Raise ArrowInvalid if a row refers to a
    missing dictionary entry.
    """
    row_offset = 0
    for batch in batches:
        for column in batch.columns:
            if _decoded_type(column.type) != column.type:
                column.validate(full=True)
        column_sizes = {
            name: estimate_value_bytes(batch.column(index)) for index, name in enumerate(batch.schema.names)
        }
        row_sizes = np.sum(list(column_sizes.values()), axis=0) if column_sizes else np.zeros(batch.num_rows, np.int64)
        if len(oversized := np.flatnonzero(row_sizes > limits.row)):
            index = int(oversized[0])
            name = max(column_sizes, key=lambda key: column_sizes[key][index])
            location = f"{file.name}:{row_offset + index + 1}"
            raise limits.row_error(location, f"a row, mostly column {name!r},", size=int(row_sizes[index]))
        start = 0
        for end in _find_chunk_ends(row_sizes):
            yield _decode_dictionaries(batch.slice(start, end - start))
            start = end
        row_offset += batch.num_rows


def estimate_value_bytes(array: pa.Array) -> Sizes:
    """Return the approximate size of each value in bytes: the length of texts, eight for numbers."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return estimate_value_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        value_sizes = np.append(estimate_value_bytes(array.dictionary), 0)
        indices = array.indices.cast(pa.int64()).fill_null(len(value_sizes) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(value_sizes[indices], np.int64)
    if _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return np.asarray(pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_struct(kind):
        child_sizes = [estimate_value_bytes(child) for child in array.flatten()]
        return np.sum(child_sizes, axis=0) if child_sizes else np.zeros(len(array), np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        item_sizes = (
            estimate_value_bytes(array.keys) + estimate_value_bytes(array.items)
            if pa.types.is_map(kind)
            else estimate_value_bytes(array.values)
        )
        sums = np.concatenate([[0], np.cumsum(item_sizes)])
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]] + NUMBER_BYTES, np.int64)
    return np.full(len(array), _fixed_width_bytes(kind), np.int64)


def _decode_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with dictionaries decoded, because texts convert faster to Python."""
    all_rows = pa.array(range(batch.num_rows))
    arrays = []
    for column in batch.columns:
        kind = _decoded_type(column.type)
        # take, because a slice of a list keeps the items of all lists, and a cast would write them out.
        arrays.append(column if kind == column.type else column.take(all_rows).cast(kind))
    return pa.record_batch(arrays, names=batch.schema.names)


def _decoded_type(kind: pa.DataType) -> pa.DataType:
    """Return the type with dictionary types replaced by their value types."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_decoded_type(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_decoded_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_decoded_type(kind.value_type)))
    return kind


def _find_chunk_ends(row_sizes: Sizes) -> Iterator[int]:
    """Yield the row indices at which a batch is split: after every CHUNK_BYTES, and at its end."""
    size = 0
    if int(row_sizes.sum()) >= CHUNK_BYTES:
        for end, row_size in enumerate(row_sizes[:-1], start=1):
            size += int(row_size)
            if size >= CHUNK_BYTES:
                yield end
                size = 0
    if len(row_sizes):
        yield len(row_sizes)


def _collect_encodings(chunks: list[ColumnChunk]) -> dict[str, set[str]]:
    """Return {column: its encodings in all row groups}."""
    encodings: dict[str, set[str]] = {}
    for chunk in chunks:
        encodings.setdefault(chunk.path, set()).update(chunk.encodings)
    return encodings


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a type is a text type."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _fixed_width_bytes(kind: pa.DataType) -> int:
    """Return the bytes of a fixed-width value; those of a number for other types."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _fixed_width_bytes(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    return NUMBER_BYTES
