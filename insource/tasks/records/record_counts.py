"""Expected, predicted and right values of a record.

expected    {"supplier": "Ho", "line_items": [{"name": "nail", "price": "2"}, {"name": "saw", "price": "9"}]}
predicted   {"supplier": "Ho", "line_items": [{"name": "saw", "price": "8"}, {"name": "nail", "price": "2"}]}
values      supplier 1 of 1 right, line_items.name 2 of 2, line_items.price 1 of 2
items       line_items 1 of 2 right in every value

The order of objects in a list is ignored: each is assigned to an object of the target so that most values are right
(Kuhn 1955, by scipy). An unassigned object counts as expected only, or as predicted only.
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
    """Counters `n` (expected), `n_predicted` and `correct` of each path, in one row."""

    values: dict[str, Counter[str]] = field(default_factory=dict)
    """{path: counter} of values that are not objects. A list of such values is one value."""
    items: dict[str, Counter[str]] = field(default_factory=dict)
    """{path: counter} of the objects in lists. An object is right if all its values are."""
    exact: bool = True
    """Whether predicted and expected values are equal."""

    def add(self, other: "Counts") -> None:
        """Add the counts of another part of the row."""
        for totals, additions in ((self.values, other.values), (self.items, other.items)):
            for path, count in additions.items():
                totals.setdefault(path, Counter()).update(count)
        self.exact &= other.exact

    @property
    def n_correct(self) -> int:
        """Return the number of right values."""
        return sum(count["correct"] for count in self.values.values())


def count_record(
    fields: Mapping[str, FieldSchema],
    expected: Mapping[str, Any],
    predicted: Mapping[str, Any],
    normalizers: Normalizers,
    prefix: str = "",
) -> Counts:
    """Return the counts of an object with these fields; {} represents a missing object.

    `prefix` is the path of the object with a dot at its end.
    """
    counts = Counts()
    for name, schema in fields.items():
        counts.add(_count_field(schema, prefix + name, expected.get(name), predicted.get(name), normalizers))
    return counts


def list_value_paths(fields: Mapping[str, FieldSchema], prefix: str = "") -> list[str]:
    """Return the paths of all values, in schema order."""
    paths = []
    for name, schema in fields.items():
        nested = _nested_fields(schema)
        paths += list_value_paths(nested, f"{prefix}{name}.") if nested else [prefix + name]
    return paths


def list_object_arrays(fields: Mapping[str, FieldSchema], prefix: str = "") -> list[str]:
    """Return the paths of the lists of objects, in schema order."""
    paths = []
    for name, schema in fields.items():
        paths += [prefix + name] if _nested_fields(schema) and field_type(schema) == "array" else []
        paths += list_object_arrays(_nested_fields(schema), f"{prefix}{name}.")
    return paths


def summarize_counts(rows: Sequence[Mapping[str, Counter[str]]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return {path: {"precision", "recall", "f1", "n"}} over rows, without paths that neither side has."""
    counts = {name: sum((row[name] for row in rows if name in row), Counter[str]()) for name in names}
    return {
        name: metric_stats.precision_recall(count["correct"], count["n_predicted"], count["n"])
        for name, count in counts.items()
        if count["n"] or count["n_predicted"]
    }


def comparison_value(schema: FieldSchema, path: str, value: Any, normalizers: Normalizers) -> Any:
    """Return a value for comparison: None for an empty value, a sorted list unless it is `ordered`.

    The path of a record is "".
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
    expected = comparison_value(schema, path, expected, normalizers)
    predicted = comparison_value(schema, path, predicted, normalizers)
    correct = expected is not None and expected == predicted
    count = Counter(n=int(expected is not None), n_predicted=int(predicted is not None), correct=int(correct))
    return Counts({path: count}, {}, expected == predicted)


def _count_objects(
    schema: FieldSchema, path: str, expected: Sequence[Any], predicted: Sequence[Any], normalizers: Normalizers
) -> Counts:
    """Return the counts of two lists of objects, assigned so that most values, then most objects, are right.

    `ordered` lists are compared position by position.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    def count_pair(expected_item: Mapping[str, Any], predicted_item: Mapping[str, Any]) -> Counts:
        return count_record(_nested_fields(schema), expected_item, predicted_item, normalizers, f"{path}.")

    pairs: dict[tuple[int, int], Counts] = {}
    if schema.get("ordered") or expected == predicted:
        # For equal lists no other assignment has more right values.
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
                [pairs[a, b].n_correct + pairs[a, b].exact / (1 + len(expected)) for b in range(len(predicted))]
                for a in range(len(expected))
            ]
        )
        assignment = (
            list(zip(*linear_sum_assignment(scores, maximize=True), strict=True)) if expected and predicted else []
        )
    correct = sum(pairs[pair].exact for pair in assignment)
    counts = Counts(
        {},
        {path: Counter(n=len(expected), n_predicted=len(predicted), correct=correct)},
        len(expected) == len(predicted),
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
    """Return the fields of an object, or of the objects in a list; {} for other fields."""
    fields: Mapping[str, FieldSchema] = schema.get("items", schema).get("properties", {})
    return fields
