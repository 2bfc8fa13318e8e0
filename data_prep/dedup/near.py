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
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.arrow_texts import ArrowTexts
from data_prep.parallel import WorkerPool
from insource.config.schema.data import SPLITS, Deduplicate
from insource.tasks.words import split_runs, split_words

Array = npt.NDArray[Any]

PERMUTATIONS = 256
MAX_MISS_PROBABILITY = 1e-4
# Standard deviations by which a sketch may underestimate a pair that is to be compared.
SKETCH_MARGIN_DEVIATIONS = 5.0
CHUNK_ROWS = 4000
TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class NearDuplicate:
    """A train row that is near another: it leaves."""

    row: int
    other: int
    similarity: float


def choose_bands(threshold: float) -> tuple[int, int]:
    """Returns (bands, hashes a band): the widest bands that miss at most MISSED of the pairs at the threshold."""
    for width in range(16, 0, -1):
        bands = PERMUTATIONS // width
        if (1 - threshold**width) ** bands <= MAX_MISS_PROBABILITY:
            return bands, width
    return PERMUTATIONS, 1


def recall(threshold: float) -> float:
    """Returns the probability with which a pair that is just as near as the threshold is found."""
    bands, width = choose_bands(threshold)
    return float(1 - (1 - threshold**width) ** bands)


def shingles(key: str, kind: str) -> set[str]:
    """Returns the set of character n-grams or word n-grams of a key; a key shorter than that is its own shingle.

    A character of Chinese, Japanese or Korean says as much as two or three letters: of these, n-grams are half as long
    (two characters at least). A text that mixes scripts has the shingles of each of its runs.
    """
    unit, n = kind[:-1], int(kind[-1])
    if unit == "word":
        words = split_words(key)
        return {" ".join(words[start : start + n]) for start in range(len(words) - n + 1)} or {key}
    if key.isascii():
        return {key[start : start + n] for start in range(len(key) - n + 1)} or {key}
    shingled: set[str] = set()
    for run, dense in split_runs(key):
        length = max(2, n // 2) if dense else n
        shingled |= {run[start : start + length] for start in range(len(run) - length + 1)} or {run}
    return shingled or {key}


def jaccard(left: set[str], right: set[str]) -> float:
    """Returns the share of their shingles that two sets have in common."""
    common = len(left & right)
    return common / (len(left) + len(right) - common)


def sketch(keys: list[str], settings: Deduplicate) -> tuple[Array, Array]:
    """Returns (bands, sketches) of the keys: uint64 [rows, bands] that near rows share one of, uint8 [rows, 256]."""
    import rensa

    bands, width = choose_bands(settings.near)
    if not keys or settings.near == 1:
        return np.zeros((len(keys), bands), np.uint64), np.zeros((len(keys), PERMUTATIONS), np.uint8)
    sets = [list(shingles(key, settings.shingle)) for key in keys]
    rows = rensa.RMinHash.digest_matrix_from_token_sets(sets, PERMUTATIONS, 42).to_rows()
    minima = np.array(rows, np.uint64)
    # Any hash of a band will do: a collision is one comparison more, never a wrong decision.
    factors = np.random.default_rng(1).integers(1, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (minima[:, : bands * width].reshape(-1, bands, width) * factors).sum(axis=2, dtype=np.uint64)
    return mixed, minima.astype(np.uint8)


class SketchFiles:
    """The sketches of all rows on disk: a file for each band, and one of 256 bytes a row."""

    def __init__(self, folder: Path, settings: Deduplicate) -> None:
        paths = [*(_band_path(folder, band) for band in range(choose_bands(settings.near)[0])), folder / "sketches.u8"]
        self._opened = ExitStack()
        *self._bands, self._sketches = [self._opened.enter_context(path.open("wb")) for path in paths]

    def add(self, bands: Array, sketches: Array) -> None:
        for band, file in enumerate(self._bands):
            file.write(np.ascontiguousarray(bands[:, band]).tobytes())
        self._sketches.write(sketches.tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


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
    for band in range(choose_bands(settings.near)[0]):
        band_hashes = np.fromfile(_band_path(folder, band), np.uint64)
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
    min_overlap = threshold - SKETCH_MARGIN_DEVIATIONS * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    bucket_sketches = sketches[rows]
    sets: dict[int, set[str]] = {}

    def shingles_of(index: int) -> set[str]:
        if index not in sets:
            sets[index] = shingles(texts.value("key", int(rows[index])), settings.shingle)
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
            similarity = jaccard(shingles_of(index), shingles_of(candidate))
            if similarity >= threshold:
                duplicates.append(NearDuplicate(int(rows[index]), int(rows[candidate]), similarity))
                break
        else:
            kept[index] = True
    return duplicates


@lru_cache(maxsize=2)
def _open_files(folder: Path) -> tuple[Any, Array]:
    """The files of a table, opened once a process."""
    return ArrowTexts(folder), np.memmap(folder / "sketches.u8", np.uint8, "r").reshape(-1, PERMUTATIONS)


def _band_path(folder: Path, band: int) -> Path:
    return folder / f"band{band:02d}.u64"
