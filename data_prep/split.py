"""Which split a row goes to: decided by a keyed hash of its group (or of its text), and by nothing else.

A row's split does not depend on the other rows, so adding rows moves no old one, and rows that say the same go the
same way. The shares, over all rows and within each label, are therefore met approximately: data.json states how far off
they are.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable

from data_prep.rows import Row
from recipes.schema_data import SPLITS, Split


def assign(row: Row, split: Split, shares: dict[str, float]) -> str:
    """Returns the split of a row: the one whose interval of [0, 1) the row's hash falls into, else train.

    `shares` are the held-out splits and their shares, such as {"test": 0.2, "validation": 0.1}.
    """
    key = row.group if row.group is not None else row.key
    hashed = hashlib.blake2b(key.encode(), key=split.seed.to_bytes(8, "big"), digest_size=8).digest()
    position = int.from_bytes(hashed, "big") / 2**64
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return "train"


def shares_of(split: Split, given: Iterable[str]) -> dict[str, float]:
    """Returns the share of each split that is not given as a file and must be taken from the train rows."""
    return {
        name: share
        for name in ("test", "validation", "calibration")
        if name not in given and (share := getattr(split, name))
    }


def deviations(counts: dict[str, Counter[str]], shares: dict[str, float]) -> dict[str, dict[str, float]]:
    """Returns for each split its share of all rows, the share asked for, and how far the label farthest off is off.

    `counts` are the rows of each label for each split, before duplicates leave.
    """
    labels: Counter[str] = sum((counts[name] for name in SPLITS if name in counts), Counter())
    total = sum(labels.values())
    found = {}
    for name, asked in shares.items():
        mine = counts.get(name, Counter())
        worst = max((abs(mine[label] / count - asked) for label, count in labels.items()), default=0.0)
        found[name] = {"asked": asked, "share": sum(mine.values()) / total, "worst_label_deviation": worst}
    return found
