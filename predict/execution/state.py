"""Progress of a prediction on disk: a folder for each combination of rows, model and columns.

runs/<recipe>/.predict/<digest>/
    000012.jsonl   the answers of a segment in progress (journal.py)
    000012.part    the rows of a finished segment, in the format of the output
    000012.json    {"rows": 5000, "refused": {"no_text": 2}, "abstained": 31}, written last: the segment is finished
    output         {"path": ..., "sha256": ...} of the output, written just before the output gets its name
    fresh          exists since a call with FRESH=1: the progress here is newer than an existing output
    .lock          locked by the process that works on the folder

The folder is removed once the output is written.
"""

import fcntl
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.system import atomic_files
from predict.prediction import Prediction
from predict.rows import output
from predict.rows.output import Layout


@dataclass
class RowCounts:
    """Counts of rows by outcome."""

    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """{refusal code: rows}."""
    abstained: int = 0

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a segment."""
        self.rows += counts["rows"]
        self.refused.update(counts["refused"])
        self.abstained += counts["abstained"]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {"rows": self.rows, "refused": dict(sorted(self.refused.items())), "abstained": self.abstained}


class PredictionState:
    """The segments of one prediction."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout

    def journal_path(self, number: int) -> Path:
        """Return the path of a segment's journal."""
        return self.folder / f"{number:06d}.jsonl"

    def is_done(self, number: int) -> bool:
        """Return whether a segment's part of the output is on disk."""
        return self._counts_path(number).is_file()

    def counts(self) -> RowCounts:
        """Return the row counts of all finished segments."""
        counts = RowCounts()
        for path in sorted(self.folder.glob("[0-9]*.json")):
            counts.add(atomic_files.read_json(path))
        return counts

    def write_segment(self, number: int, rows: Sequence[tuple[Mapping[str, Any], Prediction]]) -> None:
        """Write the rows of a segment with their predictions and counts, and remove its journal."""
        output.write_part(self.folder / f"{number:06d}.part", self.layout, rows)
        refused = Counter(prediction.refused.partition(":")[0] for _, prediction in rows if prediction.refused)
        counts = RowCounts(len(rows), refused, sum(prediction.abstain is True for _, prediction in rows))
        atomic_files.write_json(self._counts_path(number), counts.to_json())
        self.journal_path(number).unlink(missing_ok=True)

    def parts(self) -> Iterator[Path]:
        """Yield the parts of the output in their order."""
        yield from sorted(self.folder.glob("[0-9]*.part"))

    def record_pending_output(self, path: Path, temp_path: Path) -> None:
        """Record path and hash of the file that is about to become the output."""
        atomic_files.write_json(
            self.folder / "output", {"path": str(path.resolve()), "sha256": atomic_files.sha256(temp_path)}
        )

    def is_pending_output(self, path: Path) -> bool:
        """Return whether a file is the output of a call that was killed before it wrote <output>.about.json."""
        if not path.is_file() or not (self.folder / "output").is_file():
            return False
        recorded = atomic_files.read_json(self.folder / "output")
        return bool(recorded["path"] == str(path.resolve()) and recorded["sha256"] == atomic_files.sha256(path))

    def has_unfinished_fresh_call(self) -> bool:
        """Return whether the progress belongs to an unfinished call with FRESH=1."""
        return (self.folder / "fresh").is_file()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def lock(self, fresh: bool) -> Iterator[None]:
        """Create the folder if it is missing, and lock it for this process; the lock ends with the process.

        `fresh` drops earlier progress once: a resumed call drops nothing. Raise StageError if another process holds the
        lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StageError(
                    "another process predicts these rows; wait for it, or end it", code="INS-X003"
                ) from None
            if fresh and not self.has_unfinished_fresh_call():
                for path in self.folder.glob("[0-9]*"):
                    path.unlink()
                (self.folder / "fresh").touch()
            yield

    def _counts_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"
