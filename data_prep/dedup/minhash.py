"""Shingles, MinHash sketches and their bands.

    "my parcel is late again"   {"my pa", "y par", " parc", ...}   256 hashes -> 32 bands of 8
    "my parcel is late agian"   {"my pa", "y par", " parc", ...}   one equal band: a candidate pair

The number and width of the bands are chosen so that a pair at the threshold shares a band with a probability above
0.9999; for a nearer pair the probability is higher.
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


def band_path(folder: Path, band: int) -> Path:
    return folder / f"band{band:02d}.u64"


class SketchFiles:
    """The sketches of all rows on disk: a file for each band, and one of 256 bytes a row."""

    def __init__(self, folder: Path, settings: Deduplicate) -> None:
        paths = [*(band_path(folder, band) for band in range(choose_bands(settings.near)[0])), folder / "sketches.u8"]
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
