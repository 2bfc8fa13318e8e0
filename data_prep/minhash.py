"""Shingles of texts, their MinHash sketches, and the bands of the sketches.

    "my parcel is late again"   {"my pa", "y par", " parc", ...}   256 hashes -> 32 bands of 8
    "my parcel is late agian"   {"my pa", "y par", " parc", ...}   one equal band: a candidate pair

The number and the width of the bands find a pair at the threshold with a probability above 0.9999. For nearer pairs the
probability is higher.

Source: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from data_prep.arrays import Array
from insource.config.schema.data import Deduplicate
from insource.tasks.words import split_runs, split_words

PERMUTATIONS = 256
MAX_MISS_PROBABILITY = 1e-4


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return (bands, hashes per band).

    The bands are the widest that miss at most MAX_MISS_PROBABILITY of the pairs at the threshold.
    """
    for width in range(16, 0, -1):
        bands = PERMUTATIONS // width
        if (1 - threshold**width) ** bands <= MAX_MISS_PROBABILITY:
            return bands, width
    return PERMUTATIONS, 1


def recall(threshold: float) -> float:
    """Return the probability that a pair exactly at the threshold is found."""
    bands, width = choose_bands(threshold)
    return float(1 - (1 - threshold**width) ** bands)


def shingles(key: str, kind: str) -> set[str]:
    """Return the set of character or word n-grams of a key; a shorter key is its own shingle.

    `kind` is the unit and n, for example "char5" or "word3". A Chinese, Japanese or Korean character carries as much as
    two or three letters: their n-grams have half the length, at least two characters. A text of several scripts has the
    shingles of each run.
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
    """Return the Jaccard similarity of two sets of shingles."""
    common = len(left & right)
    return common / (len(left) + len(right) - common)


def sketch(keys: list[str], settings: Deduplicate) -> tuple[Array, Array]:
    """Return (bands, sketches) of the keys: uint64 [rows, bands] and uint8 [rows, PERMUTATIONS].

    Near-duplicates have at least one equal band. The sketches estimate the similarity.
    """
    import rensa

    bands, width = choose_bands(settings.near)
    if not keys or settings.near == 1:
        return np.zeros((len(keys), bands), np.uint64), np.zeros((len(keys), PERMUTATIONS), np.uint8)
    sets = [list(shingles(key, settings.shingle)) for key in keys]
    rows = rensa.RMinHash.digest_matrix_from_token_sets(sets, PERMUTATIONS, 42).to_rows()
    minima = np.array(rows, np.uint64)
    # Any hash of a band is sufficient: a collision costs one comparison and never a wrong decision.
    factors = np.random.default_rng(1).integers(1, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (minima[:, : bands * width].reshape(-1, bands, width) * factors).sum(axis=2, dtype=np.uint64)
    return mixed, minima.astype(np.uint8)


def band_path(folder: Path, band: int) -> Path:
    """Return the path of the file of a band."""
    return folder / f"band{band:02d}.u64"


class SketchFiles:
    """The sketches of all rows on disk: one file per band, and one file of PERMUTATIONS bytes per row."""

    def __init__(self, folder: Path, settings: Deduplicate) -> None:
        paths = [*(band_path(folder, band) for band in range(choose_bands(settings.near)[0])), folder / "sketches.u8"]
        self._stack = ExitStack()
        *self._bands, self._sketches = [self._stack.enter_context(path.open("wb")) for path in paths]

    def add(self, bands: Array, sketches: Array) -> None:
        """Append the bands and sketches of a batch, in the shapes of `sketch`."""
        for band, file in enumerate(self._bands):
            file.write(np.ascontiguousarray(bands[:, band]).tobytes())
        self._sketches.write(sketches.tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
