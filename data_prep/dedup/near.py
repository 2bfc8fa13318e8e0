"""Near-duplicates: MinHash finds candidates, and the exact Jaccard similarity decides.

Texts are compared by their duplicate keys (`insource/text/text_keys.py`), which ignore case and punctuation. A train
row is dropped if it is near a row of test, calibration or validation, whatever its label. It is also dropped if it is
near another train row of the same label.

Held-out rows are never dropped. No model learns from them, so near-duplicates among them do no harm. Dropping them
would make calibration differ from test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import minhash
from data_prep.arrays import Array
from data_prep.arrow_texts import ArrowTexts
from data_prep.dedup.drops import TRAIN
from data_prep.parallel import WorkerPool
from insource.config.schema.data import Deduplicate

# Standard deviations by which the sketches may underestimate a pair that is still compared.
SKETCH_MARGIN_DEVIATIONS = 5.0
CHUNK_ROWS = 4000


@dataclass(frozen=True)
class NearDuplicate:
    """A train row to drop, the row that it is near, and their Jaccard similarity."""

    row: int
    reason_row: int
    similarity: float


def find_near_duplicates(
    folder: Path, splits: Array, targets: Array, ranks: Array, kept: Array, settings: Deduplicate, pool: WorkerPool
) -> Iterator[NearDuplicate]:
    """Yield the train rows to drop, each at most once.

    `splits` are indices in SPLITS, and `targets` hashes. Of two near train rows, the one of the lower rank is kept.
    `kept` (bool) is changed in place. Bands and the buckets of a band are processed in order, so that the result is the
    same for any number of processes.
    """
    if settings.near == 1:
        return
    for band in range(minhash.choose_bands(settings.near)[0]):
        band_hashes = np.fromfile(minhash.band_path(folder, band), np.uint64)
        rows = np.flatnonzero(kept)
        # Held-out rows come first, because they are kept and near train rows are dropped.
        rows = rows[np.lexsort((ranks[rows], splits[rows] == TRAIN, band_hashes[rows]))]
        resolve = partial(_resolve_chunk, folder=folder, settings=settings)
        for duplicates in pool.map(resolve, _make_chunks(rows, band_hashes, splits, targets)):
            for duplicate in duplicates:
                kept[duplicate.row] = False
                yield duplicate


def _make_chunks(
    rows: Array, band_hashes: Array, splits: Array, targets: Array
) -> Iterator[list[tuple[Array, Array, Array]]]:
    """Yield lists of buckets, each list with CHUNK_ROWS rows or one bucket more.

    A bucket is (row indices, in train (bool), target hashes).
    """
    if not len(rows):
        return
    starts = np.flatnonzero(np.r_[True, band_hashes[rows[1:]] != band_hashes[rows[:-1]]])
    ends = np.r_[starts[1:], len(rows)]
    chunk: list[tuple[Array, Array, Array]] = []
    size = 0
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        bucket = rows[start:end]
        in_train = splits[bucket] == TRAIN
        if not in_train[-1]:
            continue
        chunk.append((bucket, in_train, targets[bucket]))
        size += len(bucket)
        if size >= CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _resolve_chunk(chunk: list[tuple[Array, Array, Array]], folder: Path, settings: Deduplicate) -> list[NearDuplicate]:
    """Return the near-duplicates of all buckets of a chunk."""
    return [duplicate for bucket in chunk for duplicate in _resolve_bucket(*bucket, folder, settings)]


def _resolve_bucket(
    rows: Array, in_train: Array, targets: Array, folder: Path, settings: Deduplicate
) -> list[NearDuplicate]:
    """Compare each train row with the kept rows before it, and return the near-duplicates.

    The first row at or above the threshold decides.
    """
    texts, sketches = _open_files(folder)
    threshold = settings.near
    # The sketches exclude most pairs that share a band by chance, before their texts are read.
    min_overlap = threshold - SKETCH_MARGIN_DEVIATIONS * (threshold * (1 - threshold) / minhash.PERMUTATIONS) ** 0.5
    bucket_sketches = sketches[rows]
    sets: dict[int, set[str]] = {}

    def load_shingles(index: int) -> set[str]:
        if index not in sets:
            sets[index] = minhash.shingles(texts.value("key", int(rows[index])), settings.shingle)
        return sets[index]

    kept = ~in_train
    duplicates = []
    for index in np.flatnonzero(in_train):
        earlier = np.flatnonzero(kept[:index] & (~in_train[:index] | (targets[:index] == targets[index])))
        overlap = (bucket_sketches[earlier] == bucket_sketches[index]).mean(axis=1)
        for candidate in earlier[overlap >= min_overlap]:
            similarity = minhash.jaccard(load_shingles(index), load_shingles(candidate))
            if similarity >= threshold:
                duplicates.append(NearDuplicate(int(rows[index]), int(rows[candidate]), similarity))
                break
        else:
            kept[index] = True
    return duplicates


@lru_cache(maxsize=2)
def _open_files(folder: Path) -> tuple[Any, Array]:
    """Return the texts and the sketches of a table, opened once per process."""
    return ArrowTexts(folder), np.memmap(folder / "sketches.u8", np.uint8, "r").reshape(-1, minhash.PERMUTATIONS)
