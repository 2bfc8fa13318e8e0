"""The texts of a table on disk: an Arrow file that any process may map into its memory, and read from anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

TEXT_COLUMNS = ("id", "file", "text", "target", "references", "group", "slices", "key")
TEXT_SCHEMA = pa.schema([(name, pa.string()) for name in TEXT_COLUMNS])


class ArrowTexts:
    """The Arrow file of a table, mapped into memory: any process may open it."""

    def __init__(self, folder: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow")))
        sizes = np.fromfile(folder / "batch_rows.i64", dtype=np.int64)
        self._ends = np.cumsum(sizes)
        self._batch: tuple[int, Any] = (-1, None)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (number of its first row, batch) in the order of the rows."""
        start = 0
        for index in range(self._reader.num_record_batches):
            yield start, self._reader.get_batch(index)
            start = int(self._ends[index])

    def value(self, column: str, row: int) -> str:
        """Returns one text of one row."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        if self._batch[0] != index:
            self._batch = index, self._reader.get_batch(index)
        batch = self._batch[1]
        start = int(self._ends[index]) - batch.num_rows
        return str(batch.column(column)[row - start].as_py())
