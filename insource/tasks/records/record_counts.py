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
        for totals, additions in ((self.values, other.values), (self.items, other.items)):
            for path, count in additions.items():
                totals.setdefault(path, Counter()).update(count)
        self.same &= other.same

    @property
    def right(self) -> int:
        """Returns how many values are right."""
        return sum(count["right"] for count in self.values.values())


def count_record(
    fields: Mapping[str, FieldSchema],
    expected: Mapping[str, Any],
    predicted: Mapping[str, Any],
    normalizers: Normalizers,
    prefix: str = "",
) -> Counts:
    """Returns the counts of an object of these fields; {} stands for one that is not there. `prefix` is its path, with
    a dot at its end."""
    counts = Counts()
    for name, schema in fields.items():
        counts.add(_count_field(schema, prefix + name, expected.get(name), predicted.get(name), normalizers))
    return counts


def list_value_paths(fields: Mapping[str, FieldSchema], prefix: str = "") -> list[str]:
    """Returns the paths of all values, in the order of the schema."""
    paths = []
    for name, schema in fields.items():
        nested = _nested_fields(schema)
        paths += list_value_paths(nested, f"{prefix}{name}.") if nested else [prefix + name]
    return paths


def list_object_arrays(fields: Mapping[str, FieldSchema], prefix: str = "") -> list[str]:
    """Returns the paths of the lists of objects, in the order of the schema."""
    paths = []
    for name, schema in fields.items():
        paths += [prefix + name] if _nested_fields(schema) and field_type(schema) == "array" else []
        paths += list_object_arrays(_nested_fields(schema), f"{prefix}{name}.")
    return paths


def summarize_counts(rows: Sequence[Mapping[str, Counter[str]]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns {path: {"precision", "recall", "f1", "n"}} over rows, without paths that neither side has."""
    counts = {name: sum((row[name] for row in rows if name in row), Counter[str]()) for name in names}
    return {
        name: metric_stats.precision_recall(count["right"], count["said"], count["n"])
        for name, count in counts.items()
        if count["n"] or count["said"]
    }


def comparison_value(schema: FieldSchema, path: str, value: Any, normalizers: Normalizers) -> Any:
    """Returns a value as it is compared: None for nothing, a list that is not `ordered` in an order of its own.

    A record has the path "".
    """
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        nested = _nested_fields(schema)
        return {name: comparison_value(nested[name], prefix + name, value[name], normalizers) for name in nested}
    if isinstance(value, list) and _nested_fields(schema):
        entries = [comparison_value(schema["items"], path, entry, normalizers) for entry in value]
        return (entries if schema.get("ordered") else sorted(entries, key=canonical_json)) or None
    if isinstance(value, list):
        entries = [normalize(entry, normalizers.get(path, ())) for entry in value]
        return (entries if schema.get("ordered") else sorted(entries)) or None
    return normalize(value, normalizers.get(path, ()))


def _count_field(schema: FieldSchema, path: str, expected: Any, predicted: Any, normalizers: Normalizers) -> Counts:
    nested = _nested_fields(schema)
    if nested and field_type(schema) == "array":
        return _count_objects(schema, path, expected or [], predicted or [], normalizers)
    if nested:
        return count_record(nested, expected or {}, predicted or {}, normalizers, f"{path}.")
    expected, predicted = (
        comparison_value(schema, path, expected, normalizers),
        comparison_value(schema, path, predicted, normalizers),
    )
    right = expected is not None and expected == predicted
    count = Counter(n=int(expected is not None), said=int(predicted is not None), right=int(right))
    return Counts({path: count}, {}, expected == predicted)


def _count_objects(
    schema: FieldSchema, path: str, expected: Sequence[Any], predicted: Sequence[Any], normalizers: Normalizers
) -> Counts:
    """The counts of two lists of objects, so assigned that most values are right, and then most objects; of `ordered`
    ones the first is held against the first, and so on."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    def count_pair(expected_item: Mapping[str, Any], predicted_item: Mapping[str, Any]) -> Counts:
        return count_record(_nested_fields(schema), expected_item, predicted_item, normalizers, f"{path}.")

    pairs: dict[tuple[int, int], Counts] = {}
    if schema.get("ordered") or expected == predicted:
        # No other assignment of equal lists has more right.
        assignment = [(index, index) for index in range(min(len(expected), len(predicted)))]
        pairs = {(index, index): count_pair(expected[index], predicted[index]) for index, _ in assignment}
    else:
        pairs = {
            (a, b): count_pair(item, candidate)
            for a, item in enumerate(expected)
            for b, candidate in enumerate(predicted)
        }
        scores = np.array(
            [
                [pairs[a, b].right + pairs[a, b].same / (1 + len(expected)) for b in range(len(predicted))]
                for a in range(len(expected))
            ]
        )
        assignment = (
            list(zip(*linear_sum_assignment(scores, maximize=True), strict=True)) if expected and predicted else []
        )
    right = sum(pairs[pair].same for pair in assignment)
    counts = Counts(
        {}, {path: Counter(n=len(expected), said=len(predicted), right=right)}, len(expected) == len(predicted)
    )
    matched = {a for a, _ in assignment}, {b for _, b in assignment}
    for part in (
        *(pairs[pair] for pair in assignment),
        *(count_pair(item, {}) for index, item in enumerate(expected) if index not in matched[0]),
        *(count_pair({}, item) for index, item in enumerate(predicted) if index not in matched[1]),
    ):
        counts.add(part)
    return counts


def _nested_fields(schema: FieldSchema) -> Mapping[str, FieldSchema]:
    """The fields of an object, or of the objects of a list; none of other fields."""
    fields: Mapping[str, FieldSchema] = schema.get("items", schema).get("properties", {})
    return fields
