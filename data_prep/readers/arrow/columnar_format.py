"""Rows of Arrow tables: Parquet files, data sets saved by `datasets`, and data sets of the hub.

in   {"text": "Where is my card?", "label": 11, "at": datetime(2024, 5, 1, 12, 0)}, label a ClassLabel
out  SourceRow("banking/train", 1, {"text": "Where is my card?", "label": "card_arrival", "at": "2024-05-01T12:00:00"})

`datasets` is imported only if a data set is loaded.
"""

import math
import os
from collections.abc import Callable, Collection, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.readers import limits
from data_prep.readers.arrow import cell_sizes, feature_decoders, parquet_footer
from data_prep.readers.encoding import as_recipe_errors, has_lone_surrogate
from data_prep.readers.source_row import BadRowError, Digits, FileInfo, SourceFile, SourceRow
from insource.config.errors import RecipeError, StageError
from insource.config.schema.source import Source

BATCH_ROWS = 500
# Errors of Arrow for damaged files: at once for the footer, during reading for a page.
READ_ERRORS = (pa.ArrowException, OSError, ValueError, IndexError, KeyError, OverflowError)
CONVERSION_ERRORS = (pa.ArrowException, ValueError, KeyError, OverflowError)


def read(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties of the table and its rows, as `data_prep.readers.read.read` does."""
    with as_recipe_errors(file.name):
        if file.kind == "parquet" and file.path.stat().st_size == 0:
            raise RecipeError(f"{file.name}: the file is empty", code="INS-D007")
    try:
        return _read_parquet(file, source, columns) if file.kind == "parquet" else _read_dataset(file, source, columns)
    except READ_ERRORS as error:
        raise _unreadable_error(file, error) from None


def list_hub_splits(source: Source) -> list[str]:
    """Return the split names of a hub data set. Raise StageError if it cannot be loaded."""
    return list(_load_from_hub(source.hub or "", source.config, source.revision))


def _read_parquet(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties and the rows of a Parquet file."""
    with pq.ParquetFile(file.path) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
    info, selected = _inspect_schema(file, schema, columns)
    footer, needed, size_limits = parquet_footer.read_footer(file.path), {*selected}, limits.make_limits(source)
    if oversized := cell_sizes.find_oversized_columns(
        footer, needed.difference(columns), file.path.stat().st_size, size_limits
    ):
        selected, needed = [name for name in selected if name not in oversized], needed - oversized
        info["columns_not_read"] = [*info.get("columns_not_read", []), *sorted(oversized)]
    cell_sizes.check_declared_sizes(file, footer, needed, size_limits)
    decoders = _make_decoders(feature_decoders.read_features(schema), selected, info)
    table = pq.ParquetFile(
        file.path, metadata=metadata, read_dictionary=cell_sizes.find_dictionary_columns(footer, needed)
    )
    batch_rows = cell_sizes.choose_batch_rows(footer, schema, needed, BATCH_ROWS, size_limits)
    return info, _read_rows(file, _read_batches(table, batch_rows, selected), decoders, size_limits)


def _make_decoders(
    description: dict[str, object], columns: list[str], info: FileInfo
) -> dict[str, feature_decoders.Decoder]:
    """Return the decoders of the columns to read, and list the columns with class labels in `info`."""
    features = {name: feature for name, feature in description.items() if name in columns}
    if names := feature_decoders.find_class_labels(features):
        info["class_labels"] = names
    return feature_decoders.make_decoders(features)


def _read_batches(table: pq.ParquetFile, batch_rows: int, columns: list[str]) -> Iterator[object]:
    """Yield the batches of a Parquet file, none across row groups.

    Each row group has its own dictionary, and Arrow does not join dictionaries inside lists or objects.
    """
    with table:
        for group in range(table.num_row_groups):
            yield from table.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns)


def _read_dataset(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties and the rows of a saved or a hub data set."""
    if file.kind == "hub":
        split = file.name.removeprefix(f"{source.hub}/")
        data = _load_from_hub(source.hub or "", source.config, source.revision)[split]
    else:
        data = _import_datasets().load_from_disk(str(file.path), keep_in_memory=False)
    info, selected = _inspect_schema(file, data.features.arrow_schema, columns)
    decoders = _make_decoders(data.features.to_dict(), selected, info)
    tables = data.select_columns(selected).with_format("arrow").iter(BATCH_ROWS)
    batches = (batch for table in tables for batch in table.to_batches())
    return info, _read_rows(file, batches, decoders, limits.make_limits(source))


def _import_datasets() -> Any:
    """Return the module `datasets`, imported without telemetry."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import datasets

    return datasets


@cache
def _load_from_hub(name: str, config: str | None, revision: str | None) -> Any:
    """Return the splits of a hub data set, from the user's cache or the hub.

    Raise StageError if it cannot be loaded.
    """
    datasets = _import_datasets()
    try:
        return datasets.load_dataset(name, name=config, revision=revision, streaming=False)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(
            f"data.source.hub: {name} at {revision} could not be loaded: {message}\n"
            "  Tried: this user's cache, then the hub. Instead set data.source.path to a folder that `datasets` "
            "saved, or to CSV, JSONL or Parquet files.",
            code="INS-D006",
        ) from None


def _inspect_schema(file: SourceFile, schema: pa.Schema, columns: Collection[str]) -> tuple[FileInfo, list[str]]:
    """Return the detected properties of a schema and the columns to read: all but unneeded binary ones."""
    names = list(schema.names)
    if len(set(names)) < len(names):
        duplicates = sorted({name for name in names if names.count(name) > 1})
        raise RecipeError(
            f"{file.name}: column {', '.join(map(repr, duplicates))} occurs twice; rename one", code="INS-D015"
        )
    unread = [field.name for field in schema if field.name not in columns and _holds_bytes(field.type)]
    info: FileInfo = {"kind": file.kind, "columns": names} | ({"columns_not_read": unread} if unread else {})
    return info, [name for name in names if name not in unread]


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a type consists of binary values only."""
    child_types = [kind.field(number).type for number in range(kind.num_fields)]
    return "binary" in str(kind) and (not child_types or any(map(_holds_bytes, child_types)))


def _read_rows(
    file: SourceFile,
    batches: Iterator[object],
    decoders: dict[str, feature_decoders.Decoder],
    size_limits: limits.Limits,
) -> Iterator[SourceRow]:
    """Yield the rows of the batches. Raise RecipeError if the file is damaged."""
    number = 0
    try:
        for batch in cell_sizes.split_batches(file, batches, size_limits):
            for values in _to_python_rows(batch):
                number += 1
                try:
                    row = _decode_row(values, decoders)
                except BadRowError as error:
                    yield SourceRow(file.name, number, {}, str(error))
                else:
                    yield SourceRow(file.name, number, row)
    except READ_ERRORS as error:
        raise _unreadable_error(file, error, f":{number + 1}") from None


def _to_python_rows(batch: pa.RecordBatch) -> list[dict[str, object] | BadRowError]:
    """Return the rows of a batch; a row that Python cannot represent does not affect the others."""
    try:
        return list(batch.to_pylist())
    except CONVERSION_ERRORS:
        return [_to_python_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _to_python_row(row: pa.RecordBatch) -> dict[str, object] | BadRowError:
    """Return the only row of a batch, or the problem of its first unconvertible column."""
    values = {}
    for name in row.schema.names:
        try:
            values[name] = row.column(name).to_pylist()[0]
        except CONVERSION_ERRORS as error:
            return BadRowError(f"column {name!r} holds what is no value of its type ({error})")
    return values


def _decode_row(
    values: dict[str, object] | BadRowError, decoders: dict[str, feature_decoders.Decoder]
) -> dict[str, object]:
    """Return the row with decoded JSON values. Raise BadRowError with the column if one cannot be decoded."""
    if isinstance(values, BadRowError):
        raise values
    row = {}
    for name, value in values.items():
        try:
            row[name] = to_json_value(decoders[name](value) if name in decoders else value)
        except BadRowError as error:
            raise BadRowError(f"column {name!r} holds {error}") from None
    return row


def to_json_value(value: object) -> object:
    """Return a table value as a JSON value. Raise BadRowError for other values, such as bytes and infinity."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise BadRowError("half of a surrogate pair")
        return value
    if isinstance(value, float):
        # pandas writes missing values in numeric columns as NaN.
        if math.isinf(value):
            raise BadRowError("infinity")
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {str(name): to_json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, timedelta):
        return f"PT{Decimal(value // timedelta(microseconds=1)) / 1_000_000:f}S"
    for kind, text in TEXT_CONVERTERS.items():
        if isinstance(value, kind):
            return text(value)
    raise BadRowError("bytes, no text" if isinstance(value, bytes) else f"a {type(value).__name__}")


TEXT_CONVERTERS: dict[type, Callable[[Any], str]] = {
    datetime: lambda value: str(value.isoformat()),
    date: lambda value: str(value.isoformat()),
    time: lambda value: str(value.isoformat()),
    Decimal: lambda value: Digits(f"{value:f}"),
    UUID: str,
}


def _unreadable_error(file: SourceFile, error: Exception, location: str = "") -> RecipeError:
    """Return the error for a damaged file."""
    expected = "Parquet" if file.kind == "parquet" else "a data set that `datasets` saved"
    message = (str(error) or type(error).__name__).splitlines()[0]
    return RecipeError(
        f"{file.name}{location}: not {expected}, or a damaged one ({message}); write it again", code="INS-D012"
    )
