"""Which rows open alike, found on token ids: one prefix for most data, several where a data set has several prompts.

    prompts   [7 7 7 1 2] [7 7 7 3] [7 7 7 4 4] [9 9 5] [9 9 6 6]
    groups    prefix 3: rows 0 1 2     prefix 2: rows 3 4

Sorted prompts are a tree: what neighbours share, all between them share. The tree is cut where it saves most: a group
of n rows with a prefix of P tokens saves P for each row but one of every pack, and a pack has as many of its rows as an
update brings in the mean.
"""

from collections.abc import Sequence
from itertools import pairwise

# Prompts that people write differ in a few places; texts that were made to nest would go deeper than Python does.
MAX_DEPTH = 32

PrefixGroups = list[tuple[int, int, int]]


def group_by_prefix(prompts: Sequence[list[int]], batch_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the prefix length of each group, and for each prompt the number of its group.

    A prefix leaves at least the last token to every prompt. Groups are numbered from the one of the most rows; rows
    that share nothing worth the while are one group of prefix 0.
    """
    order = sorted(range(len(prompts)), key=lambda at: prompts[at])
    ordered = [prompts[at] for at in order]
    rate = batch_size / max(1, len(ordered))
    found = _best_partition(ordered, _shared_lengths(ordered), 0, len(ordered), rate, MAX_DEPTH)[1]
    by_prefix: dict[tuple[int, int], list[int]] = {}
    for first, end, prefix in found:
        # Loose rows are one group; equal prefixes of other openings are not.
        by_prefix.setdefault((prefix, first if prefix else 0), []).extend(range(first, end))
    members = sorted(by_prefix.items(), key=lambda one: (-len(one[1]), one[0]))
    group_of = [0] * len(prompts)
    for number, (_, places) in enumerate(members):
        for place in places:
            group_of[order[place]] = number
    return tuple(prefix for (prefix, _), _ in members), tuple(group_of)


def _shared_lengths(ordered: Sequence[list[int]]) -> list[int]:
    """Returns how many leading ids each prompt shares with the one before it, the last of either left out."""
    shared = [0] * len(ordered)
    for at in range(1, len(ordered)):
        one, other = ordered[at - 1], ordered[at]
        most = min(len(one), len(other)) - 1
        length = 0
        while length < most and one[length] == other[length]:
            length += 1
        shared[at] = length
    return shared


def _best_partition(
    ordered: Sequence[list[int]], shared: Sequence[int], first: int, end: int, rate: float, branchings: int
) -> tuple[float, PrefixGroups]:
    """Returns what the rows first..end save at best, and the groups that save it as (first, end, prefix).

    `rate` is how many rows of an update there are for each row of the data; `branchings` how often more to divide.
    """
    rows = end - first
    prefix = min(shared[first + 1 : end], default=0)
    # Of the rows that an update brings, all but one of the pack are spared the prefix.
    together = prefix * rows * max(0.0, 1 - 1 / max(1.0, rows * rate))
    # Parts of less than a row in two updates never meet in a pack.
    if rows * rate < 1:
        return 0.0, [(first, end, 0)]
    apart, parts = 0.0, PrefixGroups()
    cuts = [first, *(at for at in range(first + 1, end) if shared[at] == prefix), end]
    if branchings and len(cuts) < rows + 1:
        for begin, stop in pairwise(cuts):
            saved, found = _best_partition(ordered, shared, begin, stop, rate, branchings - 1)
            apart += saved
            parts += found
    if apart > together:
        return apart, parts
    return together, [(first, end, prefix if together > 0 else 0)]
