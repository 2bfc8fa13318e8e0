"""Which rows each optimizer update learns from: a pure function of the seed, so that a resumed run and a run in
more processes see what one process would have seen.

    updates(rows=5, batch_size=2, epochs=1, max_steps=-1, seed=17) -> [[3, 0], [4, 1], [2]]

Every epoch is a new shuffle, and an update never spans two epochs: the last one of an epoch may be smaller.
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
    """Returns for each update the numbers of its rows; `max_steps` of -1 means as many as `epochs` makes.

    Given `classes`, the class of each row, every epoch draws as many rows of each class, rows of a small one
    several times (balanced sampling); an epoch is as long as without.
    """
    wanted = count_updates(rows, batch_size, epochs, max_steps)
    found: list[list[int]] = []
    epoch = 0
    while len(found) < wanted:
        drawn = random.Random(f"{seed} {epoch}")
        order = list(range(rows)) if classes is None else _draw_balanced(classes, drawn)
        drawn.shuffle(order)
        found += [order[first : first + batch_size] for first in range(0, rows, batch_size)]
        epoch += 1
    return found[:wanted]


def count_updates(rows: int, batch_size: int, epochs: float, max_steps: int) -> int:
    """Returns how many updates that makes."""
    if max_steps > 0:
        return max_steps
    return math.ceil(updates_per_epoch(rows, batch_size) * epochs)


def updates_per_epoch(rows: int, batch_size: int) -> int:
    """Returns how many updates see every row once."""
    return math.ceil(rows / batch_size)


def _draw_balanced(classes: Sequence[str], drawn: random.Random) -> list[int]:
    """Returns as many row numbers as there are rows, the classes as often as each other to within one."""
    members: dict[str, list[int]] = {}
    for at, one in enumerate(classes):
        members.setdefault(one, []).append(at)
    names = sorted(members)
    drawn.shuffle(names)
    chosen: list[int] = []
    for at, name in enumerate(names):
        share = len(classes) // len(names) + (at < len(classes) % len(names))
        # Every row of the class as often as any other, before one is drawn once more.
        whole, rest = divmod(share, len(members[name]))
        chosen += members[name] * whole + drawn.sample(members[name], rest)
    return chosen
