"""The texts of a table on disk, in an Arrow file that every process can map into memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

TEXT_COLUMNS = ("id", "file", "text", "target", "references", "group", "slices", "key")
TEXT_SCHEMA = pa.schema([(name, pa.string()) for name in TEXT_COLUMNS])


class ArrowTexts:
    """The memory-mapped Arrow file of a table."""

    def __init__(self, folder: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow")))
        sizes = np.fromfile(folder / "batch_rows.i64", dtype=np.int64)
        self._ends = np.cumsum(sizes)
        self._batch: tuple[int, Any] = (-1, None)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (index of the first row, batch) in row order."""
        start = 0
        for index in range(self._reader.num_record_batches):
            yield start, self._reader.get_batch(index)
            start = int(self._ends[index])

    def value(self, column: str, row: int) -> str:
        """Return the text of one row in one column."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        if self._batch[0] != index:
            self._batch = index, self._reader.get_batch(index)
        batch = self._batch[1]
        start = int(self._ends[index]) - batch.num_rows
        return str(batch.column(column)[row - start].as_py())


def write_keys(folder: Path, chunks: Iterable[list[str]]) -> None:
    """Write the duplicate keys of rows as the files of a table that has only this column."""
    schema = pa.schema([("key", pa.string())])
    with (
        pa.OSFile(str(folder / "texts.arrow"), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
        (folder / "batch_rows.i64").open("wb") as sizes,
    ):
        for keys in chunks:
            writer.write_batch(pa.record_batch({"key": keys}, schema=schema))
            sizes.write(np.int64(len(keys)).tobytes())
