"""Resampling of MetricStats: units to draw, and the metric of each draw, from sums only.

rows [[1, 1], [0, 1], [1, 1]]                          -> sums [[0, 1], [1, 1]], counts [1, 2]
the same, the first two of cluster "a", the third None -> sums [[1, 2], [1, 1]], counts [1, 1]

A unit is drawn completely or not at all: a row, or a cluster of rows. Units with equal sums are one cell with a count,
so a draw is one count per cell: 100,000 rows of right and wrong are two numbers per draw.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from insource.stats.metric_stats import Array

SumsToValue = Callable[[Array], Array]
"""Sums (b, k) -> the figure of each, (b,)."""
IntArray = npt.NDArray[np.int64]

# Values in memory at the same time, in each of a few arrays: 16 MiB.
MAX_CHUNK_VALUES = 2 * 2**20
# Drawing one count for a cell costs as much as drawing this many units one by one.
MULTINOMIAL_SPEEDUP = 8


@dataclass(frozen=True)
class ResamplingUnits:
    """m cells of equal units."""

    sums: Any
    """(m, k) sums of one unit of each cell: a float64 array or a csr_array."""
    counts: IntArray
    """(m,) units in each cell."""

    @property
    def n(self) -> int:
        """Return the number of units."""
        return int(self.counts.sum())

    @property
    def total(self) -> Array:
        """Return the sums over all units, (k,)."""
        return np.asarray(self.counts @ self.sums, dtype=np.float64)

    @property
    def use_multinomial(self) -> bool:
        """Return whether one count per cell is faster to draw than one index per unit."""
        return len(self.counts) * MULTINOMIAL_SPEEDUP < self.n


def index_clusters(clusters: Sequence[str | None] | None, n: int) -> IntArray | None:
    """Return the cluster index of each row, (n,); None if no two rows share a cluster.

    A row with cluster None is its own cluster. Raises ValueError if rows and clusters differ in number.
    """
    if clusters is None:
        return None
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} clusters are given for {n} rows; give one, or None, for each")
    index_by_cluster: dict[int | str, int] = {}
    indices = [
        index_by_cluster.setdefault(row if name is None else name, len(index_by_cluster))
        for row, name in enumerate(clusters)
    ]
    return np.array(indices, dtype=np.int64) if len(index_by_cluster) < n else None


def group_units(rows: Any, cluster_indices: IntArray | None = None) -> ResamplingUnits:
    """Return the units of rows (n, k): the rows, or the clusters with these indices.

    Cells are sorted, so that the order of the rows has no effect.
    """
    if cluster_indices is not None:
        rows = _sum_by_cluster(rows, cluster_indices)
    keys = _row_keys(rows)
    counts = Counter(keys)
    row_by_key = dict(zip(keys, range(len(keys)), strict=True))
    cells = sorted(counts)
    return ResamplingUnits(
        rows[[row_by_key[cell] for cell in cells]], np.array([counts[cell] for cell in cells], dtype=np.int64)
    )


def bootstrap(units: ResamplingUnits, value: SumsToValue, resamples: int, rng: np.random.Generator) -> Array:
    """Return the metric of each resample, (resamples,): n units drawn with replacement."""
    cells, n = len(units.counts), units.n
    values = np.empty(resamples)
    cell_by_unit = None if units.use_multinomial else np.repeat(np.arange(cells), units.counts)
    for chunk in iter_chunks(resamples, max(units.sums.shape[1], cells if cell_by_unit is None else n)):
        n_draws = chunk.stop - chunk.start
        if cell_by_unit is None:
            weights = rng.multinomial(n, units.counts / n, size=n_draws).astype(np.float64)
        else:
            sampled = cell_by_unit[rng.integers(0, n, size=(n_draws, n))]
            sampled += cells * np.arange(n_draws)[:, None]
            weights = np.bincount(sampled.ravel(), minlength=n_draws * cells).reshape(n_draws, cells).astype(np.float64)
        values[chunk] = value(weights @ units.sums)
    return values


def permute(units: ResamplingUnits, value: SumsToValue, permutations: int, rng: np.random.Generator) -> Array:
    """Return the metric of each permutation, (permutations,): each unit counts with probability 0.5.

    `value` gets the sums of the units that count.
    """
    cells, n = len(units.counts), units.n
    values = np.empty(permutations)
    starts = np.cumsum(units.counts) - units.counts
    for chunk in iter_chunks(permutations, max(units.sums.shape[1], cells if units.use_multinomial else n)):
        n_draws = chunk.stop - chunk.start
        if units.use_multinomial:
            weights = rng.binomial(units.counts, 0.5, size=(n_draws, cells)).astype(np.float64)
        else:
            coin_bits = rng.integers(0, 256, size=(n_draws, -(-n // 8)), dtype=np.uint8)
            weights = np.unpackbits(coin_bits, axis=1, count=n).astype(np.float64)
            if cells < n:
                weights = np.add.reduceat(weights, starts, axis=1)
        values[chunk] = value(weights @ units.sums)
    return values


def jackknife(units: ResamplingUnits, value: SumsToValue) -> Array:
    """Return the metric without one unit of each cell, (m,). Needs at least two units."""
    total, values = units.total, np.empty(len(units.counts))
    for chunk in iter_chunks(len(units.counts), units.sums.shape[1]):
        values[chunk] = value(total - _to_dense(units.sums[chunk]))
    return values


def hstack_rows(a: Any, b: Any) -> Any:
    """Return the rows of two metrics side by side, (n, 2k)."""
    if _is_sparse(a) or _is_sparse(b):
        from scipy.sparse import csr_array, hstack

        return hstack([csr_array(a), csr_array(b)], format="csr")
    return np.hstack([a, b])


def find_nonzero_rows(sums: Any) -> npt.NDArray[np.bool_]:
    """Return the mask of rows that are not all zero, (m,)."""
    return np.asarray(abs(sums).sum(axis=1)).ravel() > 0


def _sum_by_cluster(rows: object, cluster_indices: IntArray) -> object:
    from scipy.sparse import csr_array

    row_indices = np.arange(len(cluster_indices))
    membership = csr_array(
        (np.ones(len(row_indices)), (cluster_indices, row_indices)),
        shape=(int(cluster_indices.max()) + 1, len(row_indices)),
    )
    return membership @ rows


def _row_keys(rows: Any) -> list[bytes]:
    """Return bytes of each row; equal rows have equal bytes."""
    plain: Any
    if not _is_sparse(rows):
        # Adding 0 turns -0 into 0.
        plain = np.ascontiguousarray(rows, dtype=np.float64) + 0.0
        keys: list[bytes] = plain.view(np.dtype((np.void, plain.itemsize * plain.shape[1]))).ravel().tolist()
        return keys
    plain = rows.tocsr(copy=True)
    plain.sum_duplicates()
    plain.eliminate_zeros()
    columns, counts = plain.indices.astype(np.int64).tobytes(), plain.data.astype(np.float64).tobytes()
    return [columns[8 * a : 8 * b] + counts[8 * a : 8 * b] for a, b in pairwise(plain.indptr.tolist())]


def iter_chunks(n_rows: int, width: int) -> Iterator[slice]:
    """Yield slices of `n_rows` rows, each with at most MAX_CHUNK_VALUES values or one row."""
    step = max(1, MAX_CHUNK_VALUES // max(width, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _is_sparse(rows: Any) -> bool:
    return hasattr(rows, "tocsr")


def _to_dense(rows: Any) -> Array:
    return np.asarray(rows.toarray() if _is_sparse(rows) else rows, dtype=np.float64)
