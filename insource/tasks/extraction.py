"""Extract the fields of a record from a document.

    row      {"id": "D000017", "input": {"text": "Invoice 20417 ..."}, "target": {"number": "20417", "due": null}}
    prompt   [{"role": "user", "content": "Read the document ...\\n\\nFields:\\n- number (text of at most 20
             characters): as printed ...\\n\\nAnswer with one JSON object ...\\n\\nInput:\\nInvoice 20417 ..."}]
    answer   {"number": "20417", "due": null}

A record is canonical: every field, in the schema's order, null for a field that the document lacks. So a record has
one spelling as an answer. A field that the recipe's schema does not require may be null. With `task.absent: omit` the
answer leaves such fields out; targets and scores are the same.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.stats.metric_stats import MetricStats
from insource.tasks import references
from insource.tasks.data_row import RowInput
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.records import field_grammar, json_fields, record_counts
from insource.tasks.records.json_fields import (
    FieldSchema,
    UnknownKeyError,
    canonical_json,
    canonicalize,
    check_keys,
    check_value,
)
from insource.tasks.records.record_counts import Counts
from insource.tasks.source_record import SourceRecord, UnusableRowError, read_input, to_text
from insource.tasks.task_kind import Objective

NAME = "extraction"
BREAKDOWN_NAME, BREAKDOWN_METRIC = "fields", "F1"
OBJECTIVE: Objective = "imitate"
HAS_LABELS, IS_FREE_TEXT, IS_MULTILABEL = False, False, False


@dataclass(frozen=True)
class Spec:
    """An extraction task.

    `json_schema` is the schema of answers: every field required, null allowed if the field may be missing.
    `normalizers` are those of the recipe; they apply to a field before two values are compared.
    """

    instruction: str
    json_schema: Mapping[str, Any]
    normalizers: Mapping[str, Sequence[str]]
    absent: str = "null"
    """The form of a missing field in the answer: null, or omit to leave it out."""

    @property
    def fields(self) -> Mapping[str, FieldSchema]:
        """Return the schema of each field, in the order of the answer."""
        return self.json_schema["properties"]  # type: ignore[no-any-return]


def make_spec(task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Spec:
    """Return the task as the prompt needs it. `labels` and `may_be_empty` are unused."""
    json_schema: Any = task.json_schema
    normalizers = {name: list(steps) for name, steps in task.normalizers.items()}
    return Spec(
        task.instruction, {"type": "object", **json_fields.resolve_object(json_schema)}, normalizers, task.absent
    )


def messages(spec: Spec, row_input: RowInput) -> list[dict[str, str]]:
    """Return the conversation up to the answer: one user message, which every chat template accepts."""
    omission_note = " Leave out what the document does not give." if spec.absent == "omit" else ""
    key_phrase = "these keys" if spec.absent == "omit" else "exactly these keys"
    content = "\n\n".join(
        (
            spec.instruction,
            "Fields:\n" + "\n".join(json_fields.describe_fields(spec.fields, spec.absent)),
            f"Answer with one JSON object that has {key_phrase}, in this order.{omission_note}",
            f"Input:\n{row_input['text']}",
        )
    )
    return [{"role": "user", "content": content}]


def canonical_record(spec: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the canonical record: all fields in the schema's order, clean texts, null for empty or missing values.

    Text becomes the field's type, which tables need. Raises ValueError with the field and the problem.
    """
    if unknown := [name for name in values if name not in spec.fields]:
        raise ValueError(f"there is no field {', '.join(map(repr, unknown))}; there are {', '.join(spec.fields)}")
    record = {name: canonicalize(field, values.get(name)) for name, field in spec.fields.items()}
    for name, field in spec.fields.items():
        try:
            # A blank required text counts as missing.
            check_value(field, json_fields.blank_to_null(record[name]))
        except ValueError as error:
            raise ValueError(f"field {name}: {error}") from None
    return record


def answer_text(spec: Spec, target: Mapping[str, Any]) -> str:
    """Return the text that the model should answer for a canonical record."""
    record = {name: target[name] for name in spec.fields}
    return canonical_json(json_fields.drop_nulls(record) if spec.absent == "omit" else record)


def training_answers(spec: Spec, target: Mapping[str, Any]) -> list[str]:
    """Return the answer texts that training uses for a target: one."""
    return [answer_text(spec, target)]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the answer. Columns of single fields may be missing, so they are not listed."""
    columns = recipe.data.columns
    if columns.targets is not None or columns.slot_columns:
        return columns.target_columns or columns.slot_columns
    return {} if columns.target is None else {"data.columns.target": columns.target}


def read_source_row(values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
    """Return text and record of a source row, unchanged."""
    columns, schema = recipe.data.columns, recipe.task.json_schema
    text = read_input(values, columns)
    if columns.targets is not None:
        target, *other_targets = references.read_references(values, columns)
        return SourceRecord("", text, target, other_targets)
    if columns.target is not None:
        return SourceRecord("", text, values.get(columns.target))
    properties: Any = (schema or {})["properties"]
    return SourceRecord("", text, {field: values[field] for field in properties if field in values})


def parse_record(target: Any) -> dict[str, Any]:
    """Return the record of a source value, an object or its JSON. Raises UnusableRowError."""
    if isinstance(target, str) and target.strip():
        try:
            target = json.loads(target)
        except ValueError:
            raise UnusableRowError("bad_record", "the record is text that is no JSON") from None
    if not isinstance(target, dict):
        problem = "empty" if not target else "no JSON object"
        hint = "; data.columns.slots reads lists of slots" if isinstance(target, list) and target else ""
        raise UnusableRowError("bad_record", f"the record is {problem}{hint}")
    return target


def normalize_target(target: Any, recipe: Recipe, redact: Callable[[str], str]) -> str:
    """Return the canonical record as JSON, with every field.

    `redact` applies to the values too, because the model cannot copy redacted text from the input. Raises
    UnusableRowError if the record does not fit the schema.
    """
    redacted = json_fields.map_scalars(
        parse_record(target), lambda scalar: redact(scalar) if isinstance(scalar, str) else scalar
    )
    try:
        record = canonical_record(make_spec(recipe.task, {}), redacted)
    except ValueError as error:
        raise UnusableRowError("bad_record", str(error)) from None
    return canonical_json(record)


def make_answer_reader(spec: Spec, normalize_labels: bool, separator: str | None = None) -> Callable[[Any], str]:
    """Return a function that reads an answer as data preparation reads a record of the source.

    Text, and an object that does not fit the schema, stay unchanged.
    """

    def read_answer(value: object) -> str:
        if isinstance(value, dict):
            with suppress(ValueError):
                return answer_text(spec, canonical_record(spec, value))
        return to_text(value)

    return read_answer


def parse_target(text: str) -> dict[str, Any]:
    """Return the target from its stored text."""
    return json.loads(text)  # type: ignore[no-any-return]


def equality_key(text: str, recipe: Recipe) -> str:
    """Return a key that equal targets share: the values after the normalizers, lists sorted unless `ordered`."""
    return record_equality_key(make_spec(recipe.task, {}), json.loads(text))


def record_equality_key(spec: Spec, target: Mapping[str, Any]) -> str:
    """Return a key that equal records share, see equality_key."""
    return canonical_json(record_counts.comparison_value(spec.json_schema, "", target, spec.normalizers))


def conflict_key(key: str, text: str) -> str:
    """Return the key of rows that may have only one target: the duplicate key of the input."""
    return key


def grammar(spec: Spec) -> str:
    """Return the output constraint as a grammar (EBNF for xgrammar and vLLM): canonical answers only."""
    return field_grammar.record_grammar(spec.fields, spec.absent)


def output_schema(spec: Spec) -> dict[str, Any]:
    """Return the output constraint as a JSON Schema."""
    schema = json_fields.allow_omission(spec.json_schema) if spec.absent == "omit" else spec.json_schema
    return json_fields.strip_extensions(schema)  # type: ignore[no-any-return]


def parse(spec: Spec, output: str) -> ParsedAnswer:
    """Return the canonical record of an output, or problem not_json, invented_key or wrong_schema.

    Any white space in the JSON is accepted. A duplicate key, NaN, or text around the object is not_json.
    """
    try:
        record = json.loads(output, object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return ParsedAnswer(None, "not_json")
    if not isinstance(record, dict):
        return ParsedAnswer(None, "wrong_schema")
    if spec.absent == "omit":
        record = json_fields.fill_nulls(spec.json_schema, record)
    try:
        check_keys(spec.fields, record)
        for name, field in spec.fields.items():
            check_value(field, record[name])
    except UnknownKeyError:
        return ParsedAnswer(None, "invented_key")
    except ValueError:
        return ParsedAnswer(None, "wrong_schema")
    return ParsedAnswer({name: canonicalize(field, record[name]) for name, field in spec.fields.items()})


def score(spec: Spec, targets: Sequence[Mapping[str, Any]], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """Return {"n", "exact_match", "field_f1", "schema_valid", "invalid": {problem: count}, "wrong_value", "per_field":
    {path: {"precision", "recall", "f1", "n"}}, "per_item": {path of a list of objects: the same}}.

    A value is right if it equals the target's after the field's normalizers. Lists compare in any order, unless the
    schema has `ordered: true`. The objects of a list are assigned to those of the target so that most values are right.
    per_item counts objects with every value right (insource/tasks/records/record_counts.py). null for null counts in
    exact_match only.

    An invalid answer has no values: it lowers recall and is never exact. wrong_value counts valid answers that are not
    exact, so every row is exact, wrong or invalid. field_f1 counts the values of all fields together. per_field has no
    fields that neither targets nor answers have. Raises ValueError without rows.
    """
    if not targets:
        raise ValueError("no rows to score")
    rows = _count_rows(spec, targets, answers)
    metrics = _stats_from_counts(rows, answers)
    n_exact = round(metrics["exact_match"].compute_value() * len(targets))
    problems = Counter(answer.problem for answer in answers if answer.problem is not None)
    return {
        "n": len(targets),
        **{name: metric.compute_value() for name, metric in metrics.items()},
        "invalid": dict(sorted(problems.items())),
        "wrong_value": len(targets) - n_exact - problems.total(),
        "per_field": record_counts.summarize_counts(
            [row.values for row in rows], record_counts.list_value_paths(spec.fields)
        ),
        "per_item": record_counts.summarize_counts(
            [row.items for row in rows], record_counts.list_object_arrays(spec.fields)
        ),
    }


def nearest_target(spec: Spec, targets: Sequence[Mapping[str, Any]], answer: ParsedAnswer) -> Mapping[str, Any]:
    """Return the target that is nearest to an answer, by exact match, then by F1 of values; the first of several."""
    counts = _count_rows(spec, targets, [answer] * len(targets))
    f1 = [_stats_from_counts([row], [answer])["field_f1"].compute_value() for row in counts]
    return max(zip(targets, counts, f1, strict=True), key=lambda candidate: (candidate[1].exact, candidate[2]))[0]


def compute_metric_stats(
    spec: Spec, targets: Sequence[Mapping[str, Any]], answers: Sequence[ParsedAnswer]
) -> dict[str, MetricStats]:
    """Return exact_match, field_f1 and schema_valid as sums over rows."""
    return _stats_from_counts(_count_rows(spec, targets, answers), answers)


def _count_rows(spec: Spec, targets: Sequence[Mapping[str, Any]], answers: Sequence[ParsedAnswer]) -> list[Counts]:
    """Return expected, predicted and right values of each row; an answer with a problem has no values."""
    return [
        record_counts.count_record(
            spec.fields, target, {} if answer.problem is not None else answer.value, spec.normalizers
        )
        for target, answer in zip(targets, answers, strict=True)
    ]


def _stats_from_counts(rows: Sequence[Counts], answers: Sequence[ParsedAnswer]) -> dict[str, MetricStats]:
    valid = [float(answer.problem is None) for answer in answers]
    correct, predicted, expected = (
        [float(sum(count[key] for count in row.values.values())) for row in rows]
        for key in ("correct", "n_predicted", "n")
    )
    return {
        "exact_match": metric_stats.mean_metric([float(a.exact and b) for a, b in zip(rows, valid, strict=True)]),
        "field_f1": metric_stats.micro_f1_metric(correct, predicted, expected),
        "schema_valid": metric_stats.mean_metric(valid),
    }


def lowest_scoring(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the fields with their F1, lowest first."""
    return sorted(((name, entry["f1"]) for name, entry in score["per_field"].items()), key=lambda entry: entry[1])


def _reject_duplicate_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Raises ValueError for a duplicate key, whose value is ambiguous."""
    pairs = list(pairs)
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
