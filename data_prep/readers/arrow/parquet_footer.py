"""Footers of Parquet files, read in a separate process that PyArrow may crash.

PyArrow ends the process for some damaged footers (26.0.1: "terminate called after throwing an instance of
ParquetException").

`python -m data_prep.readers.arrow.parquet_footer` reads paths as JSON texts, one per line, and writes the declarations
of their footers, one per line:

    {"rows": 700, "chunks": [{"path": "text", "is_text": true, "has_variable_length": true, "is_repeated": false,
                              "encodings": ["PLAIN"], "unpacked_bytes": 5120, "packed_bytes": 93, "value_count": 700},
                             ...]}
"""

import atexit
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class ColumnChunk:
    """A column of a row group as stored; lists and objects have one per value inside."""

    path: str
    is_text: bool
    has_variable_length: bool
    is_repeated: bool
    """Whether a row may have several of the values."""
    encodings: frozenset[str]
    unpacked_bytes: int
    packed_bytes: int
    value_count: int

    def is_in(self, columns: set[str]) -> bool:
        """Return whether it is one of these columns or inside one."""
        names = self.path.split(".")
        return any(".".join(names[:end]) in columns for end in range(1, len(names) + 1))


@dataclass(frozen=True)
class Footer:
    """The declarations of a footer."""

    rows: int
    chunks: list[ColumnChunk]


class _FooterProcess:
    """The process that reads footers, started on demand and restarted after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def request(self, path: Path) -> Any:
        """Return the declarations of a file; None if the process crashed or cannot read it."""
        if self._process is None or self._process.poll() is not None:
            self.end()
            argv = [sys.executable, "-m", "data_prep.readers.arrow.parquet_footer"]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(argv, cwd=PROJECT_ROOT, **pipes)
            atexit.register(self.end)
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(str(path.absolute())).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self.end()
        return json.loads(line or b"null")

    def end(self) -> None:
        """End the process."""
        atexit.unregister(self.end)
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_FOOTER_PROCESS = _FooterProcess()


def read_footer(path: Path) -> Footer:
    """Return the declarations in the footer of a Parquet file. Raise ValueError if it is damaged."""
    payload = _FOOTER_PROCESS.request(path)
    if payload is None:
        raise ValueError("its footer is damaged")
    chunks = [ColumnChunk(**{**chunk, "encodings": frozenset(chunk["encodings"])}) for chunk in payload["chunks"]]
    return Footer(payload["rows"], chunks)


def parse_footer(path: str) -> dict[str, object]:
    """Return the declarations of a footer as JSON values. This may crash the process."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    leaves = [metadata.schema.column(index) for index in range(len(metadata.schema.names))]
    chunks = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for index, leaf in enumerate(leaves):
            chunk = group.column(index)
            chunks.append(
                {
                    "path": leaf.path,
                    "is_text": leaf.logical_type.type == "STRING",
                    "has_variable_length": leaf.physical_type == "BYTE_ARRAY",
                    "is_repeated": leaf.max_repetition_level > 0,
                    "encodings": list(chunk.encodings),
                    "unpacked_bytes": chunk.total_uncompressed_size,
                    "packed_bytes": chunk.total_compressed_size,
                    "value_count": chunk.num_values,
                }
            )
    return {"rows": metadata.num_rows, "chunks": chunks}


def main() -> None:
    """Answer paths from standard input until it ends."""
    for line in sys.stdin:
        try:
            payload = parse_footer(json.loads(line))
        except Exception:  # noqa: BLE001 (any error: the parent process reports the file)
            payload = None
        print(json.dumps(payload), flush=True)


if __name__ == "__main__":
    main()
