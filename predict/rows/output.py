"""Output files: a part for each segment, and all parts joined to one file.

.jsonl .ndjson   an object a row: the input's columns unchanged, then PREDICTION_COLUMNS of predict/prediction.py
.csv             one header; lists and objects are JSON, booleans are true and false, missing values are empty
.parquet         typed: records are structs by their schema, probabilities are a struct of labels

If the input has a column with the name of a prediction column, all prediction columns get COLUMN_PREFIX.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from insource.config.errors import RecipeError
from predict.prediction import PREDICTION_COLUMNS, Prediction
from predict.rows import column_types
from predict.rows.column_types import ColumnTypes

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
COLUMN_PREFIX = "predicted_"
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 50_000, 64 * 2**20


@dataclass(frozen=True)
class Layout:
    """The format of the output, and its columns."""

    format: str
    input_types: ColumnTypes
    names: Mapping[str, str]
    """{prediction column: its name in this output}."""
    answer_type: object
    """The Arrow type of answers."""
    labels: Sequence[str] = ()
    """The labels that have a probability."""

    @property
    def columns(self) -> list[str]:
        """Return the names of all columns in their order."""
        return [*self.input_types.names, *self.names.values()]


def output_format(output: Path) -> str:
    """Return the format of a file by its suffix. Raise RecipeError for an unknown suffix."""
    if output.suffix.lower() not in FORMATS:
        raise RecipeError(f"OUTPUT: given {output.name}, allowed suffixes: {', '.join(FORMATS)}", code="INS-P001")
    return FORMATS[output.suffix.lower()]


def make_layout(file_format: str, input_types: ColumnTypes, answer_type: object, labels: Sequence[str]) -> Layout:
    """Return the layout of an output with these input columns.

    Raise RecipeError if column names clash even with COLUMN_PREFIX.
    """
    columns = [name for name in PREDICTION_COLUMNS if name != "probabilities" or labels]
    prefix = COLUMN_PREFIX if set(columns) & set(input_types.names) else ""
    names = {name: f"{prefix}{name}" for name in columns}
    if clash := sorted(set(names.values()) & set(input_types.names)):
        raise RecipeError(
            f"INPUT: it has columns {', '.join(clash)}, which the output adds; rename them", code="INS-P003"
        )
    return Layout(file_format, input_types, names, answer_type, labels)


def write_part(path: Path, layout: Layout, rows: Sequence[tuple[Mapping[str, object], Prediction]]) -> None:
    """Write rows to a temporary file, flush it to disk and rename it to `path`."""
    temp_path = path.with_name(f".{path.name}")
    if layout.format == "parquet":
        _write_parquet(temp_path, layout, rows)
    else:
        text = "".join(_text_lines(layout, rows))
        temp_path.write_text(text, encoding="utf-8", newline="")
    _flush(temp_path)
    temp_path.replace(path)


def join_parts(
    parts: Iterator[Path],
    layout: Layout,
    output: Path,
    digest: str,
    before_replace: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write all parts as one file, atomically.

    `digest` is the prediction's and part of the temporary file's name, so that two predictions of one output do not
    collide. `before_replace` gets the complete temporary file just before it is renamed to `output`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    temp_path = output.with_name(f".{output.name}.{digest[:12]}.partial")
    try:
        if layout.format == "parquet":
            _join_parquet(parts, layout, temp_path)
        else:
            with temp_path.open("wb") as file:
                if layout.format == "csv":
                    file.write(_csv_text([layout.columns]).encode())
                for part in parts:
                    with part.open("rb") as part_file:
                        shutil.copyfileobj(part_file, file, 2**20)
        _flush(temp_path)
        before_replace(temp_path)
        temp_path.replace(output)
    finally:
        temp_path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _prediction_values(layout: Layout, prediction: Prediction) -> dict[str, object]:
    return {name: getattr(prediction, column) for column, name in layout.names.items()}


def _text_lines(layout: Layout, rows: Sequence[tuple[Mapping[str, object], Prediction]]) -> Iterator[str]:
    """Yield the rows as lines of CSV or JSON."""
    if layout.format == "csv":
        for columns, prediction in rows:
            values = {**columns, **_prediction_values(layout, prediction)}
            yield _csv_text([[csv_cell(values.get(name)) for name in layout.columns]])
        return
    for columns, prediction in rows:
        yield json.dumps({**columns, **_prediction_values(layout, prediction)}, ensure_ascii=False) + "\n"


def _csv_text(rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue()


def csv_cell(value: object) -> str:
    """Return a value as the text of a cell: missing values are empty, lists, objects and booleans are JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arrow_schema(layout: Layout) -> Any:
    types = {
        "answer": layout.answer_type,
        "confidence": pa.float64(),
        "abstain": pa.bool_(),
        "probabilities": pa.struct([(label, pa.float64()) for label in layout.labels]),
    }
    input_fields = [(name, layout.input_types.arrow_type(name)) for name in layout.input_types.names]
    prediction_fields = [(name, types.get(column, pa.string())) for column, name in layout.names.items()]
    return pa.schema([*input_fields, *prediction_fields])


def _write_parquet(path: Path, layout: Layout, rows: Sequence[tuple[Mapping[str, object], Prediction]]) -> None:
    schema = _arrow_schema(layout)
    values = {
        name: [layout.input_types.to_column_value(name, columns.get(name)) for columns, _ in rows]
        for name in layout.input_types.names
    }
    for column, name in layout.names.items():
        values[name] = [getattr(prediction, column) for _, prediction in rows]
    arrays = [column_types.to_arrow_array(values[field.name], field.type) for field in schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)


def _join_parquet(parts: Iterator[Path], layout: Layout, path: Path) -> None:
    """Write row groups of about ROW_GROUP_ROWS rows or ROW_GROUP_BYTES bytes, whichever comes first.

    Memory holds one row group.
    """
    with pq.ParquetWriter(path, _arrow_schema(layout)) as writer:
        tables: list[Any] = []
        for part in parts:
            tables.append(pq.read_table(part, schema=_arrow_schema(layout)))
            n_rows, n_bytes = sum(table.num_rows for table in tables), sum(table.nbytes for table in tables)
            if n_rows >= ROW_GROUP_ROWS or n_bytes >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(tables))
                tables = []
        if tables:
            writer.write_table(pa.concat_tables(tables))
