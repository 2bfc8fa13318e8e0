"""Pull the fields of a record out of a document.

    row      {"id": "D000017", "input": {"text": "Invoice 20417 ..."}, "target": {"number": "20417", "due": null}}
    prompt   [{"role": "user", "content": "Read the document ...\\n\\nFields:\\n- number (text of at most 20
             characters): as printed ...\\n\\nAnswer with one JSON object ...\\n\\nInput:\\nInvoice 20417 ..."}]
    answer   {"number": "20417", "due": null}

A record is canonical: every field, in the schema's order, null where the document has none. So a record has one
spelling as an answer, and a field that the recipe's schema does not require may be null.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from insource.stats import metric_stats
from insource.stats.metric_stats import Tally
from recipes.schema import Recipe
from recipes.schema_data import Task
from recipes.schema_fields import nullable
from tasks.fields import RULES, Field, canonical, check, effective, in_words, json_text, literal, rule
from tasks.given import Given, UnusableRowError, cell, input_of
from tasks.parsed import Parsed
from tasks.values import normalize

# What `weakest` tells of, and by which figure.
PARTS, PARTS_BY = "fields", "F1"
OBJECTIVE = "imitate"
LABELLED, FREE_TEXT, MANY = False, False, False


@dataclass(frozen=True)
class Spec:
    """An extraction task. `json_schema` is what answers must fit: every field required, null allowed where it may lack.

    `normalizers` are those of the recipe: what is evened out in a field before two values are compared.
    """

    instruction: str
    json_schema: Mapping[str, Any]
    normalizers: Mapping[str, Sequence[str]]

    @property
    def fields(self) -> Mapping[str, Field]:
        """The schema of each field, in the order of the answer."""
        return self.json_schema["properties"]  # type: ignore[no-any-return]


def specify(task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Spec:
    """Returns the task as prompts need it; `labels` belong to another kind and are not read."""
    given: Any = task.json_schema
    required = given.get("required", ())
    fields = {
        name: effective(field, nullable(field) or name not in required) for name, field in given["properties"].items()
    }
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return Spec(task.instruction, schema, {name: list(chosen) for name, chosen in task.normalizers.items()})


def messages(spec: Spec, row_input: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the conversation up to the answer: one user message, which every chat template can take."""
    lines = [
        f"- {name} ({in_words(field)})" + (f": {field['description']}" if "description" in field else "")
        for name, field in spec.fields.items()
    ]
    content = "\n\n".join(
        (
            spec.instruction,
            "Fields:\n" + "\n".join(lines),
            "Answer with one JSON object that has exactly these keys, in this order.",
            f"Input:\n{row_input['text']}",
        )
    )
    return [{"role": "user", "content": content}]


def record(task_or_spec: Task | Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the canonical record: all fields in the schema's order, clean texts, null for what is empty or missing.

    Text becomes the field's type, as a table needs it. Raises ValueError naming the field and what is wrong with it.
    """
    spec = specify(task_or_spec, {}) if isinstance(task_or_spec, Task) else task_or_spec
    if unknown := [name for name in given if name not in spec.fields]:
        raise ValueError(f"there is no field {', '.join(map(repr, unknown))}; there are {', '.join(spec.fields)}")
    found = {name: canonical(field, given.get(name)) for name, field in spec.fields.items()}
    for name, field in spec.fields.items():
        try:
            # A required text that is blank is as missing as one that is not there.
            check(field, None if found[name] == "" else found[name])
        except ValueError as error:
            raise ValueError(f"field {name}: {error}") from None
    return found


def answer(spec: Spec, target: Mapping[str, Any]) -> str:
    """Returns the text that the model should answer for a canonical record."""
    return json_text({name: target[name] for name in spec.fields})


def answers(spec: Spec, target: Mapping[str, Any]) -> list[str]:
    """Returns every text that is learnt from for a target: here the one answer."""
    return [answer(spec, target)]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Returns {recipe key: column} of what the answer is read from; a column of a field may be missing."""
    whole = recipe.data.columns.target
    return {} if whole is None else {"data.columns.target": whole}


def given(values: Mapping[str, Any], recipe: Recipe) -> Given:
    """Returns the text and the record of a source row, as they stand there."""
    columns, schema = recipe.data.columns, recipe.task.json_schema
    text = input_of(values, columns)
    if columns.target is not None:
        return Given("", text, values.get(columns.target))
    fields: Any = (schema or {})["properties"]
    return Given("", text, {field: values[field] for field in fields if field in values})


def given_record(target: Any) -> dict[str, Any]:
    """Returns the record that a source gives as an object or as its JSON. Raises UnusableRowError."""
    if isinstance(target, str) and target.strip():
        try:
            target = json.loads(target)
        except ValueError:
            raise UnusableRowError("bad_record", "the record is text that is no JSON") from None
    if not isinstance(target, dict):
        raise UnusableRowError("bad_record", f"the record is {'empty' if not target else 'no JSON object'}")
    return target


def target_text(target: Any, recipe: Recipe, hide: Callable[[str], str]) -> str:
    """Returns the canonical record as its answer. What `hide` replaces in the input cannot be copied from there.

    Raises UnusableRowError where the record does not fit the schema.
    """
    spec = specify(recipe.task, {})
    try:
        found = record(spec, {name: _hidden(value, hide) for name, value in given_record(target).items()})
    except ValueError as error:
        raise UnusableRowError("bad_record", str(error)) from None
    return answer(spec, found)


def given_answers(spec: Spec, normalize_labels: bool, separator: str | None = None) -> Callable[[Any], str]:
    """Returns what reads an answer that a person has. A record that stands there as an object is read as data
    preparation reads one of the source; text, and an object that does not fit the schema, stays as it stands there."""

    def one(value: Any) -> str:
        if isinstance(value, dict):
            with suppress(ValueError):
                return answer(spec, record(spec, value))
        return cell(value)

    return one


def target_of(text: str) -> dict[str, Any]:
    """Returns the target behind its text."""
    return json.loads(text)  # type: ignore[no-any-return]


def comparable(text: str, recipe: Recipe) -> str:
    """Returns what equal targets share: the values as they are scored, after the normalizers, lists in any order."""
    spec = specify(recipe.task, {})
    target = json.loads(text)
    return json_text({name: _compared(spec, name, target) for name in spec.fields})


def subject(key: str, text: str) -> str:
    """Returns what can bear one target alone: here what the row says (its duplicate key)."""
    return key


def grammar(spec: Spec) -> str:
    """Returns the output constraint as a grammar (EBNF as xgrammar and vLLM read it): canonical answers alone."""
    keys = [literal(f"{', ' if at else '{'}{json_text(name)}: ") for at, name in enumerate(spec.fields)]
    lines = ["root ::= " + " ".join(f"{key} field_{at}" for at, key in enumerate(keys)) + ' "}"']
    lines += [f"field_{at} ::= {rule(field)}" for at, field in enumerate(spec.fields.values())]
    return "\n".join(lines + [f"{name} ::= {written}" for name, written in RULES.items()])


def output_schema(spec: Spec) -> dict[str, Any]:
    """Returns the output constraint as a JSON Schema, for backends that take one."""
    return dict(spec.json_schema)


def parse(spec: Spec, output: str) -> Parsed:
    """Returns the canonical record that the output is, or why it is none: not_json, invented_key or wrong_schema.

    JSON may be spaced as it likes; a key that stands there twice, NaN, or text around the object is no JSON.
    """
    try:
        found = json.loads(output, object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return Parsed(None, "not_json")
    if not isinstance(found, dict):
        return Parsed(None, "wrong_schema")
    if found.keys() - spec.fields.keys():
        return Parsed(None, "invented_key")
    if spec.fields.keys() - found.keys():
        return Parsed(None, "wrong_schema")
    try:
        for name, field in spec.fields.items():
            check(field, found[name])
    except ValueError:
        return Parsed(None, "wrong_schema")
    return Parsed({name: canonical(field, found[name]) for name, field in spec.fields.items()})


def score(spec: Spec, targets: Sequence[Mapping[str, Any]], answers: Sequence[Parsed]) -> dict[str, Any]:
    """Returns {"n", "exact_match", "field_f1", "schema_valid", "invalid": {problem: count}, "wrong_value",
    "per_field": {field: {"precision", "recall", "f1", "n"}}}.

    A value is right where it equals the target's after the field's normalizers; a list as a multiset. null for null
    agrees in exact_match and counts for nothing else. An invalid answer says nothing: it lowers recall and is never
    exact. wrong_value counts valid answers that are not exact, so that every row is exact, wrong or invalid. field_f1
    counts the values of all fields together; per_field leaves out fields that neither targets nor answers have.
    Raises ValueError without rows: no rows is no score.
    """
    if not targets:
        raise ValueError("no rows to score")
    rows = [_counts(spec, target, one) for target, one in zip(targets, answers, strict=True)]
    counts = {name: sum((row[name] for row in rows), Counter[str]()) for name in spec.fields}
    found = _tallies(rows, answers)
    exact = round(found["exact_match"].figure() * len(targets))
    problems = Counter(one.problem for one in answers if one.problem is not None)
    return {
        "n": len(targets),
        **{name: one.figure() for name, one in found.items()},
        "invalid": dict(sorted(problems.items())),
        "wrong_value": len(targets) - exact - problems.total(),
        "per_field": {
            name: metric_stats.precision_recall(count["right"], count["said"], count["n"])
            for name, count in counts.items()
            if count["n"] or count["said"]
        },
    }


def tallies(spec: Spec, targets: Sequence[Mapping[str, Any]], answers: Sequence[Parsed]) -> dict[str, Tally]:
    """Returns exact_match, field_f1 and schema_valid as sums over rows, of which any resample can be computed."""
    return _tallies([_counts(spec, target, one) for target, one in zip(targets, answers, strict=True)], answers)


def headline(score: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures that stand for a score: in the console, in W&B and on the model card."""
    return {name: score[name] for name in ("exact_match", "field_f1", "schema_valid")}


def weakest(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns the fields with their F1, the worst first."""
    return sorted(((name, one["f1"]) for name, one in score["per_field"].items()), key=lambda one: one[1])


def _counts(spec: Spec, target: Mapping[str, Any], one: Parsed) -> dict[str, Counter[str]]:
    """What of each field was wanted, said and right in one row, 0 or 1 each; `differs` where they are not the same."""
    found = {}
    for name in spec.fields:
        wanted = _compared(spec, name, target)
        said = None if one.problem is not None else _compared(spec, name, one.value)
        found[name] = Counter(
            n=wanted is not None,
            said=said is not None,
            right=wanted is not None and wanted == said,
            differs=wanted != said,
        )
    return found


def _tallies(rows: Sequence[Mapping[str, Counter[str]]], answers: Sequence[Parsed]) -> dict[str, Tally]:
    valid = [float(one.problem is None) for one in answers]
    same = [not any(count["differs"] for count in row.values()) for row in rows]
    right, said, wanted = (
        [float(sum(count[of] for count in row.values())) for row in rows] for of in ("right", "said", "n")
    )
    return {
        "exact_match": metric_stats.of_scores([float(a and b) for a, b in zip(same, valid, strict=True)]),
        "field_f1": metric_stats.of_parts(right, said, wanted),
        "schema_valid": metric_stats.of_scores(valid),
    }


def _compared(spec: Spec, name: str, record: Mapping[str, Any]) -> Any:
    """A field's value as it is compared: None for nothing, a list in an order of its own."""
    value, normalizers = record[name], spec.normalizers.get(name, ())
    if isinstance(value, list):
        return sorted(normalize(one, normalizers) for one in value) or None
    return normalize(value, normalizers)


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_hidden(one, hide) for one in value]
    return hide(value) if isinstance(value, str) else value


def _without_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError where a key stands there twice: which one is meant is a guess."""
    pairs = list(pairs)
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
