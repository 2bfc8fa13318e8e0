"""The records of the readers: a file of a source, and a row of a file.

file    SourceFile("train", Path("banking77/train.csv"), "train.csv", "csv")
row     SourceRow("train.csv", 2, {"text": "Where is\\nmy card?", "category": "card_arrival"})
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Detected properties of a file, the value of "detected" in data.json.
FileInfo = dict[str, Any]

# Suffixes of compressed text files.
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
# Split names of data sets, and the names used here.
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "calibration": "calibration",
    "test": "test",
}
# The split of files of data.source.labelled.
LABELLED = "labelled"
# The origin of a row's label: the recipe's own files, a person without or with a suggestion in view, or data.teacher.
PROVENANCES = ("source", "human", "human_suggested", "teacher")


class Digits(str):
    """A number of a typed column as JSON digits; data.formats does not apply to it."""

    __slots__ = ()


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, or one split of a data set; `split` is "all" without a given split.

    Files of data.source.labelled have the split LABELLED. Their rows go to train.
    """

    split: str
    path: Path
    name: str
    """The name in messages and row ids, unique within a source."""
    kind: str
    compression: str | None = None
    documents: tuple[Path, ...] = ()
    """Kind "documents": the files of the folder `path`, each of which is one text."""
    array: str | None = None
    """Kind "json" with several splits in one object: the key of this split."""


@dataclass(frozen=True)
class SourceRow:
    """One row of a source file; `problem` is the reason why it is unusable, or None."""

    file: str
    line: int
    """The line where the row starts; the row number in Parquet, data sets and JSON arrays."""
    values: dict[str, Any]
    problem: str | None = None
    id: str | None = None
    """The id of a row of a labelled file; None: data.columns.id, or file and line."""
    provenance: str = PROVENANCES[0]


class BadRowError(ValueError):
    """A problem of one row in an otherwise readable file."""
