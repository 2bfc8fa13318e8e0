"""Near-duplicates: MinHash finds candidates, exact Jaccard similarity decides.

    "my parcel is late again"   {"my pa", "y par", " parc", ...}   256 hashes -> 32 bands of 8
    "my parcel is late agian"   {"my pa", "y par", " parc", ...}   a band in common: a pair to compare

Texts are compared by their duplicate key (insource/tasks/text_keys.py), so case and punctuation never tell two apart. A
train row leaves where it is near a row of test, calibration or validation, whatever its label, or near another train
row of the same label. Held-out rows never leave: without a model that learns from them, a near row does no harm among
them, and leaving would make calibration unlike test.

The bands are as many and as wide as finds a pair at the threshold with a probability above 0.9999, a nearer one
with more. Source: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays import Array
from data_prep.arrow_texts import ArrowTexts
from data_prep.dedup import minhash
from data_prep.dedup.drops import TRAIN
from data_prep.parallel import WorkerPool
from insource.config.schema.data import Deduplicate

# Standard deviations by which a sketch may underestimate a pair that is to be compared.
SKETCH_MARGIN_DEVIATIONS = 5.0
CHUNK_ROWS = 4000


@dataclass(frozen=True)
class NearDuplicate:
    """A train row that is near another: it leaves."""

    row: int
    other: int
    similarity: float


def find_near_duplicates(
    folder: Path, splits: Array, targets: Array, order: Array, kept: Array, settings: Deduplicate, pool: WorkerPool
) -> Iterator[NearDuplicate]:
    """Yields the train rows that are to leave, at most once each.

    `splits` are places in SPLITS, `targets` hashes, `order` ranks the rows by what they say, and of two near train rows
    the one of the lower rank stays; `kept` (bool) is changed in place. Band by band, and within a band bucket by
    bucket, so that the result is the same for any number of processes.
    """
    if settings.near == 1:
        return
    for band in range(minhash.choose_bands(settings.near)[0]):
        band_hashes = np.fromfile(minhash.band_path(folder, band), np.uint64)
        rows = np.flatnonzero(kept)
        # Held-out rows first: they stay, and what is near them goes.
        rows = rows[np.lexsort((order[rows], splits[rows] == TRAIN, band_hashes[rows]))]
        resolve = partial(_resolve_chunk, folder=folder, settings=settings)
        for duplicates in pool.map(resolve, _make_chunks(rows, band_hashes, splits, targets)):
            for duplicate in duplicates:
                kept[duplicate.row] = False
                yield duplicate


def _make_chunks(
    rows: Array, band_hashes: Array, splits: Array, targets: Array
) -> Iterator[list[tuple[Array, Array, Array]]]:
    """Yields lists of buckets, CHUNK_ROWS rows or a bucket more: of each (rows, whether in train, target hashes)."""
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
    duplicates: list[NearDuplicate] = []
    for rows, in_train, targets in chunk:
        duplicates += _resolve_bucket(rows, in_train, targets, folder, settings)
    return duplicates


def _resolve_bucket(
    rows: Array, in_train: Array, targets: Array, folder: Path, settings: Deduplicate
) -> list[NearDuplicate]:
    """Compares each train row with those before it that stay; stops at the first that it is near."""
    texts, sketches = _open_files(folder)
    threshold = settings.near
    # A sketch tells most pairs apart that share a band by chance, before their texts are fetched.
    min_overlap = threshold - SKETCH_MARGIN_DEVIATIONS * (threshold * (1 - threshold) / minhash.PERMUTATIONS) ** 0.5
    bucket_sketches = sketches[rows]
    sets: dict[int, set[str]] = {}

    def shingles_of(index: int) -> set[str]:
        if index not in sets:
            sets[index] = minhash.shingles(texts.value("key", int(rows[index])), settings.shingle)
        return sets[index]

    kept = ~in_train
    duplicates = []
    for index in np.flatnonzero(in_train):
        earlier = np.flatnonzero(kept[:index] & (~in_train[:index] | (targets[:index] == targets[index])))
        candidates = (
            earlier[(bucket_sketches[earlier] == bucket_sketches[index]).mean(axis=1) >= min_overlap]
            if len(earlier)
            else earlier
        )
        for candidate in candidates:
            similarity = minhash.jaccard(shingles_of(index), shingles_of(candidate))
            if similarity >= threshold:
                duplicates.append(NearDuplicate(int(rows[index]), int(rows[candidate]), similarity))
                break
        else:
            kept[index] = True
    return duplicates


@lru_cache(maxsize=2)
def _open_files(folder: Path) -> tuple[Any, Array]:
    """The files of a table, opened once a process."""
    return ArrowTexts(folder), np.memmap(folder / "sketches.u8", np.uint8, "r").reshape(-1, minhash.PERMUTATIONS)
