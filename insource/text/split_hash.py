"""The keyed hash that decides the split of a row, and which train rows a subset has.

    hash_texts(["C01294"], seed=17)                  -> [a number in [0, 2**64)]
    order_by_hash([unit of each row], [id], seed=17) -> the rows, smallest hash first

A subset of n train rows is the n rows with the smallest hashes. So a smaller subset is a part of a larger one. Neither
the order of the file nor the label has an effect.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from insource.text.text_keys import split_key

HashArray = npt.NDArray[np.uint64]


def hash_texts(texts: Iterable[str], seed: int) -> HashArray:
    """Return the 64-bit keyed BLAKE2b hash of each text, uint64 [texts]."""
    key = seed.to_bytes(8, "big")
    digests = b"".join(hashlib.blake2b(text.encode(), key=key, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def make_split_unit(group: str | None, row_id: str, key: str, *, by_id: bool) -> str:
    """Return the text whose rows all go to one split.

    It is the group of the row. A row without a group has its id if `by_id` (the recipe names a group and an id column),
    else the split key of its duplicate key. The line number is not used, because rows may be inserted above it.
    """
    if group is not None:
        return group
    return row_id if by_id else split_key(key)


def order_by_hash(units: Sequence[str], ids: Sequence[str], seed: int) -> list[int]:
    """Return the indices of the rows, ordered by the hash of their units, and within a unit by that of their ids."""
    order = np.lexsort((hash_texts(ids, seed), hash_texts(units, seed)))
    return [int(index) for index in order]
