"""Rows that say the same, within a split and across splits.

A row's key (tasks/text.py) decides. Test rows never leave. What is in test leaves train, validation and calibration,
whatever its label; what is in validation or calibration leaves train. Within a split, rows with one key and one label
are kept once; train rows with one key and several labels are a conflict, and the recipe says what becomes of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from data_prep.rows import Rejected, Row
from recipes.errors import RecipeError

# Who keeps a text that two splits have: the one named first.
PRECEDENCE = ("test", "calibration", "validation", "train")


def deduplicate(splits: dict[str, list[Row]], conflicts: str) -> tuple[dict[str, list[Row]], list[Rejected]]:
    """Returns the splits without what must leave, and each row that left with its reason.

    `conflicts` is the recipe's data.conflicts: drop, majority or fail. Raises RecipeError on a conflict under fail.
    """
    kept: dict[str, list[Row]] = {}
    dropped: list[Rejected] = []
    seen: dict[str, tuple[str, Row]] = {}
    for name in PRECEDENCE:
        rows, mine = splits.get(name, []), []
        if name == "train":
            rows, conflicting = _settle(rows, conflicts)
            dropped += conflicting
        labels: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            above = seen.get(row.key)
            if name != "test" and above and above[0] != name:
                dropped.append(_dropped(row, f"in_{above[0]}", f"says the same as {above[1].id} in {above[0]}"))
            elif name != "test" and row.target in labels[row.key]:
                dropped.append(
                    _dropped(row, "duplicate", f"says the same as {seen[row.key][1].id} with the same label")
                )
            else:
                mine.append(row)
                labels[row.key].add(row.target)
                seen.setdefault(row.key, (name, row))
        kept[name] = mine
    return kept, dropped


def shared_keys(rows: Iterable[Row], others: Iterable[Row]) -> int:
    """Returns how many rows say the same as one of the others."""
    keys = {row.key for row in others}
    return sum(row.key in keys for row in rows)


def _settle(rows: list[Row], conflicts: str) -> tuple[list[Row], list[Rejected]]:
    """Resolves rows of one key and several labels."""
    by_key: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_key[row.key][row.target] += 1
    torn = {key: labels for key, labels in by_key.items() if len(labels) > 1}
    if torn and conflicts == "fail":
        first = next(row for row in rows if row.key in torn)
        raise RecipeError(
            f"{first.file}:{first.line}: {len(torn)} texts bear several labels, this one {', '.join(torn[first.key])}; "
            "mend the rows, or set data.conflicts to drop or majority"
        )
    kept, dropped = [], []
    for row in rows:
        labels = torn.get(row.key)
        if labels is None:
            kept.append(row)
            continue
        (winner, most), (_, second) = labels.most_common(2)
        if conflicts == "majority" and row.target == winner and most > second:
            kept.append(row)
        else:
            dropped.append(_dropped(row, "conflict", f"the same text also bears {', '.join(sorted(labels))}"))
    return kept, dropped


def _dropped(row: Row, reason: str, detail: str) -> Rejected:
    return Rejected(row.file, row.line, row.id, reason, detail, kind="dropped")
