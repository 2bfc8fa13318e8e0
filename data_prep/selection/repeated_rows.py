"""Texts that repeat an earlier text or a reference text, exactly or nearly.

    references   "where is my card", "I want my money back"
    texts        "Where is my card?", "card lost", "the card was lost yesterday in a bus", "CARD LOST!"
    repeats      Repeat(row=0, reference=0, other=None, similarity=1.0), Repeat(row=3, reference=None, other=1, ...)

Two texts are the same by the duplicate key of data preparation, and near by its sketches and its Jaccard threshold
(`data_prep/dedup/near.py`). Sketches and keys are on disk, in a temporary folder. References are never removed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_prep import minhash
from data_prep.arrays import Array
from data_prep.arrow_texts import write_keys
from data_prep.dedup.drops import TEST, TRAIN
from data_prep.dedup.near import find_near_duplicates
from data_prep.parallel import WorkerPool
from insource.config.schema.data import Deduplicate
from insource.text.split_hash import hash_texts
from insource.text.text_keys import duplicate_key

SKETCH_ROWS = 2000


@dataclass(frozen=True)
class Repeat:
    """A text that repeats a reference text or an earlier text."""

    row: int
    reference: int | None
    """Index of the reference; None if it repeats another text."""
    other: int | None
    """Index of the earlier text; None if it repeats a reference."""
    similarity: float
    """Jaccard similarity; 1.0 if the duplicate keys are equal."""


def find_repeats(
    texts: Sequence[str], references: Sequence[str], settings: Deduplicate | None = None
) -> dict[int, Repeat]:
    """Return {index of a text: what it repeats}. A reference has precedence over an earlier text.

    `settings` are those of data.deduplicate; without them, its defaults.
    """
    settings = settings or Deduplicate()
    keys = [duplicate_key(text) for text in [*references, *texts]]
    n_references = len(references)
    repeats, kept = _find_equal(keys, n_references)
    if settings.near < 1 and kept[n_references:].any():
        splits = np.where(np.arange(len(keys)) < n_references, TEST, TRAIN)
        with TemporaryDirectory(prefix="insource-") as name:
            folder = Path(name)
            _write_sketches(folder, keys, settings)
            ranks, targets = np.arange(len(keys)), np.zeros(len(keys), np.int64)
            pool = WorkerPool(1)
            for near in find_near_duplicates(folder, splits, targets, ranks, kept, settings, pool):
                repeats[near.row] = (near.reason_row, near.similarity)
    return {row - n_references: _make_repeat(row, *repeats[row], n_references) for row in sorted(repeats)}


def _make_repeat(row: int, other: int, similarity: float, n_references: int) -> Repeat:
    if other < n_references:
        return Repeat(row - n_references, other, None, similarity)
    return Repeat(row - n_references, None, other - n_references, similarity)


def _find_equal(keys: Sequence[str], n_references: int) -> tuple[dict[int, tuple[int, float]], Array]:
    """Return {index: (index of the first row with its key, 1.0)} of texts, and which rows are left (bool)."""
    repeats: dict[int, tuple[int, float]] = {}
    kept = np.ones(len(keys), np.bool_)
    first_rows: dict[int, int] = {}
    for row, key_hash in enumerate(hash_texts(keys, 0).tolist()):
        first = first_rows.setdefault(key_hash, row)
        if first != row:
            kept[row] = False
            if row >= n_references:
                repeats[row] = (first, 1.0)
    return repeats, kept


def _write_sketches(folder: Path, keys: Sequence[str], settings: Deduplicate) -> None:
    """Write the files that `find_near_duplicates` reads."""
    write_keys(folder, _chunks(keys))
    with minhash.SketchFiles(folder, settings) as files:
        for chunk in _chunks(keys):
            files.add(*minhash.sketch(chunk, settings))


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), SKETCH_ROWS):
        yield list(keys[start : start + SKETCH_ROWS])
