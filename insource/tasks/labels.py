"""Label identity: which label a spelling stands for. Listed labels, labels of rows, answers and scores all ask here.

find("Refund-Status", ["refund_status", "other"])     "refund_status"
find("-1", ["-1", "0", "1"])                          "-1"
find("Us", ["US", "us"])                              None: it could be either
"""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from insource.tasks.text_keys import INVISIBLE, clean, label_key

_cached_label_key = lru_cache(maxsize=65536)(label_key)


@lru_cache(maxsize=65536)
def clean_label(label: str) -> str:
    """Returns the label without white space at its edges and without characters that show nothing."""
    return clean(INVISIBLE.sub("", label))


def find_label(written: str, labels: Collection[str], fold: bool = True) -> str | None:
    """Returns the label that a spelling stands for: itself, or the one that differs from it in spelling alone.

    Spellings are folded by `label_key` if `fold`. None where no label fits, or several do.
    """
    if written in labels:
        return written
    if (cleaned := clean_label(written)) in labels:
        return cleaned
    same = _group_by_key(tuple(labels)).get(_cached_label_key(written), []) if fold else []
    return same[0] if len(same) == 1 else None


@lru_cache(maxsize=64)
def _group_by_key(labels: tuple[str, ...]) -> dict[str, list[str]]:
    """The labels of each key."""
    found: dict[str, list[str]] = {}
    for label in labels:
        found.setdefault(_cached_label_key(label), []).append(label)
    return found


def label_identity(written: str, labels: Collection[str] | None, fold: bool) -> str:
    """Returns a text that spellings of one label share, and spellings of two labels never do.

    `labels` are those that the recipe lists, None where they are found in the rows.
    """
    if labels is None:
        return _cached_label_key(written) if fold else clean_label(written)
    return find_label(written, labels, fold) or written


def map_spellings(counts: Mapping[str, int], fold: bool) -> dict[str, str]:
    """Returns {spelling: its label} for spellings and how often each occurs: the most frequent one is the label."""
    by_label: dict[str, list[str]] = {}
    for written, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        by_label.setdefault(label_identity(written, None, fold), []).append(written)
    return {one: clean_label(same[0]) for same in by_label.values() for one in same}


def display_label(label: str, most: int = 60) -> str:
    """Returns a label in quotes for a message: invisible characters as their codes, what is long cut."""
    visible = INVISIBLE.sub(lambda found: f"<U+{ord(found[0]):04X}>", label)
    return repr(visible if len(visible) <= most else visible[: most - 1] + "…")


def find_unclean(labels: Iterable[str]) -> list[str]:
    """Returns the labels that could not be answered as they are written, for white space or invisible characters."""
    return [label for label in labels if clean_label(label) != label]
