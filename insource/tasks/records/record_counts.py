"""What of a record was wanted, said and right, value by value.

wanted   {"supplier": "Ho", "line_items": [{"name": "nail", "price": "2"}, {"name": "saw", "price": "9"}]}
said     {"supplier": "Ho", "line_items": [{"name": "saw", "price": "8"}, {"name": "nail", "price": "2"}]}
values   supplier 1 of 1 right, line_items.name 2 of 2, line_items.price 1 of 2
items    line_items 1 of 2 right in every value

The objects of a list stand in no order that counts: each is assigned to one of the target's, so that most values are
right (Kuhn 1955, by scipy). What has no counterpart was wanted and not said, or said and not wanted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from insource.stats import metric_stats
from insource.tasks.records.json_fields import FieldSchema, canonical_json, field_type
from insource.tasks.records.normalizers import normalize

Normalizers = Mapping[str, Sequence[str]]


@dataclass
class Counts:
    """n (wanted), said and right of each path, in one row."""

    values: dict[str, Counter[str]] = field(default_factory=dict)
    """Of values that are no objects; a list of them is one value."""
    items: dict[str, Counter[str]] = field(default_factory=dict)
    """Of the objects of lists, right where every value is."""
    same: bool = True
    """Whether all that was wanted was said, and nothing else."""

    def add(self, other: "Counts") -> None:
        """Adds the counts of another part of the row."""
        for mine, theirs in ((self.values, other.values), (self.items, other.items)):
            for path, count in theirs.items():
                mine.setdefault(path, Counter()).update(count)
        self.same &= other.same

    @property
    def right(self) -> int:
        """Returns how many values are right."""
        return sum(count["right"] for count in self.values.values())


def count_record(
    fields: Mapping[str, FieldSchema],
    wanted: Mapping[str, Any],
    said: Mapping[str, Any],
    normalizers: Normalizers,
    above: str = "",
) -> Counts:
    """Returns the counts of an object of these fields; {} stands for one that is not there. `above` is its path, with a
    dot at its end."""
    found = Counts()
    for name, one in fields.items():
        found.add(_count_field(one, above + name, wanted.get(name), said.get(name), normalizers))
    return found


def list_value_paths(fields: Mapping[str, FieldSchema], above: str = "") -> list[str]:
    """Returns the paths of all values, in the order of the schema."""
    found = []
    for name, one in fields.items():
        inside = _nested_fields(one)
        found += list_value_paths(inside, f"{above}{name}.") if inside else [above + name]
    return found


def list_object_arrays(fields: Mapping[str, FieldSchema], above: str = "") -> list[str]:
    """Returns the paths of the lists of objects, in the order of the schema."""
    found = []
    for name, one in fields.items():
        found += [above + name] if _nested_fields(one) and field_type(one) == "array" else []
        found += list_object_arrays(_nested_fields(one), f"{above}{name}.")
    return found


def summarize_counts(rows: Sequence[Mapping[str, Counter[str]]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns {path: {"precision", "recall", "f1", "n"}} over rows, without paths that neither side has."""
    counts = {name: sum((row[name] for row in rows if name in row), Counter[str]()) for name in names}
    return {
        name: metric_stats.precision_recall(count["right"], count["said"], count["n"])
        for name, count in counts.items()
        if count["n"] or count["said"]
    }


def comparison_value(one: FieldSchema, path: str, value: Any, normalizers: Normalizers) -> Any:
    """Returns a value as it is compared: None for nothing, a list that is not `ordered` in an order of its own.

    A record has the path "".
    """
    if isinstance(value, dict):
        above = f"{path}." if path else ""
        inside = _nested_fields(one)
        return {name: comparison_value(inside[name], above + name, value[name], normalizers) for name in inside}
    if isinstance(value, list) and _nested_fields(one):
        entries = [comparison_value(one["items"], path, entry, normalizers) for entry in value]
        return (entries if one.get("ordered") else sorted(entries, key=canonical_json)) or None
    if isinstance(value, list):
        entries = [normalize(entry, normalizers.get(path, ())) for entry in value]
        return (entries if one.get("ordered") else sorted(entries)) or None
    return normalize(value, normalizers.get(path, ()))


def _count_field(one: FieldSchema, path: str, wanted: Any, said: Any, normalizers: Normalizers) -> Counts:
    inside = _nested_fields(one)
    if inside and field_type(one) == "array":
        return _count_objects(one, path, wanted or [], said or [], normalizers)
    if inside:
        return count_record(inside, wanted or {}, said or {}, normalizers, f"{path}.")
    wanted, said = comparison_value(one, path, wanted, normalizers), comparison_value(one, path, said, normalizers)
    right = wanted is not None and wanted == said
    count = Counter(n=int(wanted is not None), said=int(said is not None), right=int(right))
    return Counts({path: count}, {}, wanted == said)


def _count_objects(
    field: FieldSchema, path: str, wanted: Sequence[Any], said: Sequence[Any], normalizers: Normalizers
) -> Counts:
    """The counts of two lists of objects, so assigned that most values are right, and then most objects; of `ordered`
    ones the first is held against the first, and so on."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    def of(one: Mapping[str, Any], other: Mapping[str, Any]) -> Counts:
        return count_record(_nested_fields(field), one, other, normalizers, f"{path}.")

    pairs: dict[tuple[int, int], Counts] = {}
    if field.get("ordered") or wanted == said:
        # No other assignment of equal lists has more right.
        chosen = [(at, at) for at in range(min(len(wanted), len(said)))]
        pairs = {(at, at): of(wanted[at], said[at]) for at, _ in chosen}
    else:
        pairs = {(a, b): of(one, other) for a, one in enumerate(wanted) for b, other in enumerate(said)}
        worth = np.array(
            [
                [pairs[a, b].right + pairs[a, b].same / (1 + len(wanted)) for b in range(len(said))]
                for a in range(len(wanted))
            ]
        )
        chosen = list(zip(*linear_sum_assignment(worth, maximize=True), strict=True)) if wanted and said else []
    right = sum(pairs[one].same for one in chosen)
    found = Counts({}, {path: Counter(n=len(wanted), said=len(said), right=right)}, len(wanted) == len(said))
    alone = {a for a, _ in chosen}, {b for _, b in chosen}
    for part in (
        *(pairs[one] for one in chosen),
        *(of(one, {}) for at, one in enumerate(wanted) if at not in alone[0]),
        *(of({}, one) for at, one in enumerate(said) if at not in alone[1]),
    ):
        found.add(part)
    return found


def _nested_fields(one: FieldSchema) -> Mapping[str, FieldSchema]:
    """The fields of an object, or of the objects of a list; none of other fields."""
    found: Mapping[str, FieldSchema] = one.get("items", one).get("properties", {})
    return found
