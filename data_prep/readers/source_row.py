"""What the rooms that read hand to each other: a file of a source, and a row of a file.

file    SourceFile("train", Path("banking77/train.csv"), "train.csv", "csv")
row     SourceRow("train.csv", 2, {"text": "Where is\\nmy card?", "category": "card_arrival"})
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What was found out about a file, as data.json tells it under "detected".
FileInfo = dict[str, Any]


# How data sets name their splits, and how we do.
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "calibration": "calibration",
    "test": "test",
}


class Digits(str):
    """A number of a typed column, in its digits as JSON writes them: data.formats says nothing of it."""

    __slots__ = ()


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, or one split of a data set; `split` is "all" where the source does not say."""

    split: str
    path: Path
    name: str
    """As in messages and row ids; no two files of a source share it."""
    kind: str
    compression: str | None = None
    documents: tuple[Path, ...] = ()
    """Of kind documents, where `path` is their folder: the files that are a text each."""
    array: str | None = None
    """Of kind json, where an object holds several splits: the key of this one."""


@dataclass(frozen=True)
class SourceRow:
    """One row of a source file; `problem` says why it cannot be used, or is None."""

    file: str
    line: int
    """Where the row starts; of Parquet, data sets and a JSON array, its number."""
    values: dict[str, Any]
    problem: str | None = None


class BadRowError(ValueError):
    """What is wrong with one row of a file that is otherwise in order."""
