"""Answers of one segment on disk: one line each, flushed before it counts.

A process that is killed while it writes leaves a torn last line, which is cut off when the journal is opened. The
caller holds the lock of the folder (state.py), so that one process writes.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from insource.config.errors import StageError
from insource.system import append_only
from predict import prediction
from predict.prediction import Prediction


class Journal:
    """An open journal."""

    def __init__(self, path: Path) -> None:
        """Open a journal, and create it if it is missing. Raise StageError for a malformed complete line."""
        self.path = path
        self._file = path.open("ab+", buffering=0)
        self._file.seek(0)
        data = self._file.read()
        complete_bytes = data.rfind(b"\n") + 1
        if complete_bytes < len(data):
            append_only.cut_torn_line(self._file, path, len(data), complete_bytes)
        self._length: int | None = complete_bytes
        """Bytes of complete lines; None after a failed write, when nothing more can be appended."""
        self.predictions: Mapping[str, Prediction] = dict(
            self._read(number, line) for number, line in enumerate(data[:complete_bytes].splitlines(), start=1)
        )

    def _read(self, number: int, line: bytes) -> tuple[str, Prediction]:
        try:
            return prediction.from_journal_line(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            self.close()
            raise StageError(
                f"{self.path}:{number}: this line is not a recorded answer. Another program changed the file: remove "
                "the line; the next call requests its answer again",
                code="INS-A010",
            ) from None

    def append(self, predictions: Sequence[tuple[str, Prediction]]) -> None:
        """Write predictions with their keys and flush them to disk.

        Raise StageError if that fails: the partial write is cut off, and the journal accepts nothing more.
        """
        if self._length is None:
            raise StageError(f"{self.path}: answers can no longer be written", code="INS-X002")
        lines = [json.dumps(prediction.to_journal_line(*entry), ensure_ascii=False) + "\n" for entry in predictions]
        data = "".join(lines).encode("utf-8", "surrogatepass")
        try:
            append_only.append_bytes(self._file, data)
            self._length += len(data)
        except OSError as error:
            self._truncate()
            raise StageError(
                f"{self.path}: answers cannot be written: {error.strerror or error}", code="INS-X002"
            ) from None

    def _truncate(self) -> None:
        assert self._length is not None
        length, self._length = self._length, None
        # If this fails too, the torn line is the last one, and the next opening cuts it off.
        with suppress(OSError):
            self._file.truncate(length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
