"""Rows that represent the most uncertain rows, chosen one by one.

in   unit vectors of rows, the most uncertain row first; uncertainty [0.9, 0.9, 0.8, ...]; unit vectors of labelled rows
out  [4, 0, 7, ...]      row 4 is similar to many uncertain rows that no labelled row is similar to

1. Only the most uncertain rows count: CANDIDATES_PER_ROW times as many as are chosen. The number grows in steps of
   BLOCK_ROWS chosen rows, so that the first rows do not depend on `count`.
2. A row is covered by its similarity to the nearest labelled or chosen row. The next row is the one that increases the
   sum of uncertainty times coverage most. So a row among many uncertain rows comes before one that is unlike all
   others, and a copy of a chosen row comes last.

Source: facility location among uncertain rows, Wei, Iyer and Bilmes 2015, "Submodularity in data subset selection and
active learning" (ICML); lazy evaluation, Minoux 1978. docs/labelling.md compares it with other rules.
"""

import numpy as np

from data_prep.arrays import Array

CANDIDATES_PER_ROW = 10
"""Most uncertain rows from which one is chosen. Zhdanov 2019 (arXiv:1901.05954) uses 10 to 50."""
BLOCK_ROWS = 100
CHUNK_ROWS = 1_024
TOLERANCE = 1e-6


def choose_representative(
    vectors: Array, labelled_vectors: Array, uncertainty: Array, count: int, *, all_rows: bool = False
) -> list[int]:
    """Return up to `count` positions, best first. Of equal gains, the first position is taken.

    `vectors` are float32 [rows, dimensions], `uncertainty` float64 [rows] in descending order. With `all_rows`, all
    rows count from the first block on.
    """
    covered = _compute_coverage(vectors, labelled_vectors)
    weights = uncertainty.astype(np.float32)
    candidates_per_block = len(vectors) if all_rows else CANDIDATES_PER_ROW * BLOCK_ROWS
    # A row without features is similar to itself, although its vector is zero.
    own_gains = np.where(np.any(vectors, axis=1), np.float32(0), weights)
    chosen: list[int] = []
    bounds = np.empty(0, np.float32)
    while len(chosen) < min(count, len(vectors)):
        size = min(candidates_per_block * (len(chosen) // BLOCK_ROWS + 1), len(vectors))
        if size != len(bounds):
            bounds = _compute_gains(vectors[:size], covered[:size], weights[:size]) + own_gains[:size]
            bounds[chosen] = -1.0
        position = int(bounds.argmax())
        similarity = vectors @ vectors[position]
        gain = weights[:size] @ np.maximum(similarity[:size] - covered[:size], 0.0) + own_gains[position]
        if gain < bounds[position] - TOLERANCE:  # a gain only decreases, so an earlier one is an upper bound
            bounds[position] = gain
            continue
        chosen.append(position)
        bounds[position] = -1.0
        covered = np.maximum(covered, similarity)
    return chosen


def _compute_coverage(vectors: Array, labelled_vectors: Array) -> Array:
    """Return the similarity of each row to the nearest labelled row, at least 0, float32 [rows]."""
    covered = np.zeros(len(vectors), np.float32)
    for start in range(0, len(labelled_vectors), CHUNK_ROWS):
        similarity = vectors @ labelled_vectors[start : start + CHUNK_ROWS].T
        covered = np.maximum(covered, similarity.max(axis=1))
    return covered


def _compute_gains(vectors: Array, covered: Array, weights: Array) -> Array:
    """Return how much each row would increase the weighted coverage, float32 [rows]."""
    gains = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), CHUNK_ROWS):
        similarity = vectors @ vectors[start : start + CHUNK_ROWS].T
        similarity -= covered[:, None]
        gains[start : start + CHUNK_ROWS] = weights @ np.maximum(similarity, 0.0, out=similarity)
    return gains
