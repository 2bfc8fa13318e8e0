"""The rows of each optimizer update, as a pure function of the seed.

    batch_indices(rows=5, batch_size=2, epochs=1, max_steps=-1, seed=17) -> [[3, 0], [4, 1], [2]]

A resumed run and a run in several processes therefore use the same rows as one uninterrupted process. Every epoch is a
new shuffle. An update never spans two epochs, so the last update of an epoch may be smaller.
"""

import math
import random
from collections.abc import Sequence


def batch_indices(
    rows: int,
    batch_size: int,
    epochs: float,
    max_steps: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> list[list[int]]:
    """Return for each update the numbers of its rows; `max_steps` of -1 means the number that `epochs` gives.

    With `classes`, the class of each row, every epoch draws the same number of rows of each class (balanced sampling).
    Rows of a small class are drawn several times. The length of an epoch does not change.
    """
    n_updates = count_updates(rows, batch_size, epochs, max_steps)
    updates: list[list[int]] = []
    epoch = 0
    while len(updates) < n_updates:
        rng = random.Random(f"{seed} {epoch}")
        order = list(range(rows)) if classes is None else _draw_balanced(classes, rng)
        rng.shuffle(order)
        updates += [order[start : start + batch_size] for start in range(0, rows, batch_size)]
        epoch += 1
    return updates[:n_updates]


def count_updates(rows: int, batch_size: int, epochs: float, max_steps: int) -> int:
    """Return the number of updates of a training."""
    if max_steps > 0:
        return max_steps
    return math.ceil(updates_per_epoch(rows, batch_size) * epochs)


def updates_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of updates of one pass over all rows."""
    return math.ceil(rows / batch_size)


def _draw_balanced(classes: Sequence[str], rng: random.Random) -> list[int]:
    """Return as many row numbers as there are rows, with equal counts of all classes to within one."""
    members: dict[str, list[int]] = {}
    for index, label in enumerate(classes):
        members.setdefault(label, []).append(index)
    names = sorted(members)
    rng.shuffle(names)
    chosen: list[int] = []
    for index, name in enumerate(names):
        count = len(classes) // len(names) + (index < len(classes) % len(names))
        # Every row of the class is drawn equally often before one is drawn once more.
        repeats, remainder = divmod(count, len(members[name]))
        chosen += members[name] * repeats + rng.sample(members[name], remainder)
    return chosen
