"""Label identity: the label of a spelling. Recipe labels, labels of rows, answers and scores all use these functions.

find_label("Refund-Status", ["refund_status", "other"])     "refund_status"
find_label("-1", ["-1", "0", "1"])                          "-1"
find_label("Us", ["US", "us"])                              None: ambiguous
"""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from insource.text.text_keys import INVISIBLE, clean, label_key

_cached_label_key = lru_cache(maxsize=65536)(label_key)


@lru_cache(maxsize=65536)
def clean_label(label: str) -> str:
    """Return the label without white space at its edges and without invisible characters."""
    return clean(INVISIBLE.sub("", label))


def find_label(spelling: str, labels: Collection[str], fold: bool = True) -> str | None:
    """Return the label that a spelling denotes: an exact match, or the only label with the same `label_key` if `fold`.

    None if no label fits, or several do.
    """
    if spelling in labels:
        return spelling
    if (cleaned := clean_label(spelling)) in labels:
        return cleaned
    matches = _group_by_key(tuple(labels)).get(_cached_label_key(spelling), []) if fold else []
    return matches[0] if len(matches) == 1 else None


@lru_cache(maxsize=64)
def _group_by_key(labels: tuple[str, ...]) -> dict[str, list[str]]:
    """Return {label key: labels}."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_cached_label_key(label), []).append(label)
    return groups


def label_identity(spelling: str, labels: Collection[str] | None, fold: bool) -> str:
    """Return a text that all spellings of one label share, and spellings of different labels never share.

    `labels` are those of the recipe; None if the labels come from the rows.
    """
    if labels is None:
        return _cached_label_key(spelling) if fold else clean_label(spelling)
    return find_label(spelling, labels, fold) or spelling


def map_spellings(counts: Mapping[str, int], fold: bool) -> dict[str, str]:
    """Return {spelling: label} from {spelling: count}; the most frequent spelling is the label."""
    by_label: dict[str, list[str]] = {}
    for spelling, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        by_label.setdefault(label_identity(spelling, None, fold), []).append(spelling)
    return {variant: clean_label(variants[0]) for variants in by_label.values() for variant in variants}


def display_label(label: str, max_characters: int = 60) -> str:
    """Return a label in quotes for a message: invisible characters as code points, cut to `max_characters`."""
    visible = INVISIBLE.sub(lambda match: f"<U+{ord(match[0]):04X}>", label)
    return repr(visible if len(visible) <= max_characters else visible[: max_characters - 1] + "…")


def find_unclean(labels: Iterable[str]) -> list[str]:
    """Return the labels that cannot be answered as written, because of white space or invisible characters."""
    return [label for label in labels if clean_label(label) != label]
