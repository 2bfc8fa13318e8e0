"""Groups of rows with a common prefix, found on token ids: one for most data, several if the data have several prompts.

    prompts   [7 7 7 1 2] [7 7 7 3] [7 7 7 4 4] [9 9 5] [9 9 6 6]
    groups    prefix 3: rows 0 1 2     prefix 2: rows 3 4

Sorted prompts form a tree: all prompts between two prompts share the tokens that these two share. The tree is cut where
the cut saves most. A group of n rows with a prefix of P tokens saves P tokens for each row but one of every pack. A
pack has as many rows of the group as an update has on average.
"""

from collections.abc import Sequence
from itertools import pairwise

# Prompts written by people differ in a few places. Texts nested on purpose would exceed Python's recursion limit.
MAX_DEPTH = 32

PrefixGroups = list[tuple[int, int, int]]


def group_by_prefix(prompts: Sequence[list[int]], batch_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the prefix length of each group, and for each prompt the number of its group.

    Every prompt keeps at least its last token outside the prefix. Groups are numbered by descending number of rows.
    Rows without a worthwhile common prefix are one group of prefix 0.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    ordered = [prompts[index] for index in order]
    rows_per_update_ratio = batch_size / max(1, len(ordered))
    groups = _best_partition(ordered, _shared_lengths(ordered), 0, len(ordered), rows_per_update_ratio, MAX_DEPTH)[1]
    by_prefix: dict[tuple[int, int], list[int]] = {}
    for start, end, prefix in groups:
        # Rows without a prefix are one group. Equal prefix lengths of other openings are separate groups.
        by_prefix.setdefault((prefix, start if prefix else 0), []).extend(range(start, end))
    members = sorted(by_prefix.items(), key=lambda item: (-len(item[1]), item[0]))
    prompt_groups = [0] * len(prompts)
    for number, (_, positions) in enumerate(members):
        for position in positions:
            prompt_groups[order[position]] = number
    return tuple(prefix for (prefix, _), _ in members), tuple(prompt_groups)


def _shared_lengths(ordered: Sequence[list[int]]) -> list[int]:
    """Return the number of leading ids that each prompt shares with the one before it, their last ids left out."""
    shared = [0] * len(ordered)
    for index in range(1, len(ordered)):
        previous, current = ordered[index - 1], ordered[index]
        max_length = min(len(previous), len(current)) - 1
        length = 0
        while length < max_length and previous[length] == current[length]:
            length += 1
        shared[index] = length
    return shared


def _best_partition(
    ordered: Sequence[list[int]],
    shared: Sequence[int],
    start: int,
    end: int,
    rows_per_update_ratio: float,
    max_depth: int,
) -> tuple[float, PrefixGroups]:
    """Return the most tokens that the rows start..end can save, and the groups that save them as (start, end, prefix).

    `rows_per_update_ratio` is the number of rows of an update divided by the number of all rows; `max_depth` limits
    further divisions.
    """
    rows = end - start
    prefix = min(shared[start + 1 : end], default=0)
    # All but one of the group's rows in a pack save the prefix.
    saved_together = prefix * rows * max(0.0, 1 - 1 / max(1.0, rows * rows_per_update_ratio))
    # Parts with less than one row in an update on average rarely share a pack.
    if rows * rows_per_update_ratio < 1:
        return 0.0, [(start, end, 0)]
    saved_split, split_groups = 0.0, PrefixGroups()
    split_points = [start, *(index for index in range(start + 1, end) if shared[index] == prefix), end]
    if max_depth and len(split_points) < rows + 1:
        for part_start, part_end in pairwise(split_points):
            saved, part_groups = _best_partition(
                ordered, shared, part_start, part_end, rows_per_update_ratio, max_depth - 1
            )
            saved_split += saved
            split_groups += part_groups
    if saved_split > saved_together:
        return saved_split, split_groups
    return saved_together, [(start, end, prefix if saved_together > 0 else 0)]
