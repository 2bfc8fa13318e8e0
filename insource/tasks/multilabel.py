"""Choose all labels that apply to a text.

    row      {"id": "T000017", "input": {"text": "late, and torn"}, "target": ["damaged_item", "delivery_delay"]}
    prompt   [{"role": "user", "content": "Name the topics ...\\n\\nLabels:\\n- damaged_item: It came ...\\n\\nAnswer
             with one JSON array of all labels that apply, in the order above; [] if none applies.\\n\\nInput:..."}]
    answer   ["damaged_item", "delivery_delay"]

A set of labels is canonical: each label once, in the order of the task's list. So each set has one spelling as an
answer. `task.labels_per_row: many` selects this module; the task's kind is classification.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.stats.metric_stats import MetricStats
from insource.tasks import classification
from insource.tasks.data_row import RowInput
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.records.field_grammar import quote_literal
from insource.tasks.records.json_fields import BOOLEAN_WORDS, canonical_json
from insource.tasks.source_record import SourceRecord, UnusableRowError, parse_list, read_input, to_text
from insource.tasks.task_kind import Objective
from insource.text.labels import clean_label, find_label

NAME = "multilabel"
BREAKDOWN_NAME, BREAKDOWN_METRIC = "labels", "F1"
OBJECTIVE: Objective = "imitate"
HAS_LABELS, IS_FREE_TEXT, IS_MULTILABEL = True, False, True


@dataclass(frozen=True)
class Spec:
    """A classification task with several labels per row.

    `labels` is {label: description or ""}, in the order of prompt and answer.
    """

    instruction: str
    labels: Mapping[str, str]
    may_be_empty: bool = True
    """Whether a row may have no label: whether the prepared rows contain such rows."""
    normalize_labels: bool = True
    """Whether an answer may use another spelling of a label (data.normalize_labels)."""


def make_spec(task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Spec:
    """Return the task as the prompt needs it. `labels` and `may_be_empty` are those of data.json."""
    return Spec(task.instruction, dict(labels), may_be_empty)


def messages(spec: Spec, row_input: RowInput) -> list[dict[str, str]]:
    """Return the conversation up to the answer: one user message, which every chat template accepts."""
    empty_rule = "[] if none applies" if spec.may_be_empty else "at least one"
    content = "\n\n".join(
        (
            spec.instruction,
            "Labels:\n" + "\n".join(classification.label_lines(spec.labels)),
            f"Answer with one JSON array of all labels that apply, in the order above; {empty_rule}.",
            f"Input:\n{row_input['text']}",
        )
    )
    return [{"role": "user", "content": content}]


def answer_text(spec: Spec, target: Sequence[str]) -> str:
    """Return the text that the model should answer for a canonical set of labels."""
    return canonical_json(list(target))


def training_answers(spec: Spec, target: Sequence[str]) -> list[str]:
    """Return the answer texts that training uses for a target: one."""
    return [answer_text(spec, target)]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the answer."""
    if names := recipe.data.columns.label_columns:
        return {f"data.columns.label_columns[{index}]": name for index, name in enumerate(names)}
    return classification.answer_columns(recipe)


def read_source_row(values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
    """Return text and labels of a source row, unchanged.

    Raises UnusableRowError if a column of one label contains neither 1 nor 0.
    """
    columns = recipe.data.columns
    if columns.label_columns is None:
        return SourceRecord("", read_input(values, columns), values.get(columns.label))
    marks = {name: BOOLEAN_WORDS.get(to_text(values.get(name)).strip().casefold()) for name in columns.label_columns}
    if unclear := [name for name, mark in marks.items() if mark is None]:
        message = f"column {unclear[0]!r} holds {to_text(values.get(unclear[0]))[:40] or 'nothing'}; 1 or 0 is needed"
        raise UnusableRowError("bad_labels", message)
    return SourceRecord("", read_input(values, columns), [name for name, mark in marks.items() if mark])


def normalize_target(target: Any, recipe: Recipe, redact: Callable[[str], str]) -> str:
    """Return the labels in their original spelling, as a JSON array. `redact` is unused: labels hold no personal data.

    `target` is a list, a JSON array in a text, or a text with `data.columns.label_separator` between labels. Raises
    UnusableRowError for other targets, for an empty label, and for a label that is not in the recipe's list.
    """
    labels = parse_label_list(target, recipe.data.columns.label_separator)
    return canonical_json(
        list(dict.fromkeys(classification.normalize_target(label, recipe, redact) for label in labels))
    )


def parse_label_list(target: Any, separator: str | None) -> list[str]:
    """Return the labels of a source value in its order. Raises UnusableRowError if the value is not a label list."""
    if (entries := parse_list(target)) is not None:
        if invalid := [entry for entry in entries if entry is None or isinstance(entry, list | dict)]:
            raise UnusableRowError(
                "bad_labels", f"a label is {to_text(invalid[0])[:40] or 'null'}, and a label is a text"
            )
        return [to_text(entry) for entry in entries]
    if separator is None or not isinstance(target, str | int | float):
        expected = "a list of labels, its JSON" + ("" if separator else ", or data.columns.label_separator")
        raise UnusableRowError("bad_labels", f"the labels are {to_text(target)[:40] or 'missing'}; needed: {expected}")
    return [entry.strip() for entry in to_text(target).split(separator) if clean_label(entry)]


def parse_target(text: str) -> list[str]:
    """Return the target from its stored text."""
    return json.loads(text)  # type: ignore[no-any-return]


def target_labels(text: str) -> list[str]:
    """Return the labels of a target text in their original spelling."""
    return parse_target(text)


def make_label_mapper(spellings: Mapping[str, str], order: Sequence[str]) -> Callable[[str], str]:
    """Return a function from a target text to its canonical text, by {spelling: label}.

    The canonical text has each label once, in `order`.
    """
    positions = {label: index for index, label in enumerate(order)}

    def map_labels(text: str) -> str:
        return canonical_json(sorted({spellings[label] for label in target_labels(text)}, key=positions.__getitem__))

    return map_labels


def make_answer_reader(spec: Spec, normalize_labels: bool, separator: str | None = None) -> Callable[[Any], str]:
    """Return a function that reads an answer as data preparation reads the labels of a row.

    Accepts a list, a JSON array, or labels with the separator between them. Other values stay unchanged.
    """

    def read_answer(value: object) -> str:
        try:
            entries = parse_label_list(value, separator)
        except UnusableRowError:
            return to_text(value)
        labels = [find_label(label, spec.labels, normalize_labels) or label for label in entries]
        return canonical_json(sorted(set(labels), key=[*spec.labels, *labels].index))

    return read_answer


def equality_key(text: str, recipe: Recipe) -> str:
    """Return a key that equal sets of labels share, in any order and spelling."""
    return canonical_json(sorted({classification.equality_key(label, recipe) for label in target_labels(text)}))


def conflict_key(key: str, text: str) -> str:
    """Return the key of rows that may have only one target: the duplicate key of the input."""
    return key


def grammar(spec: Spec) -> str:
    """Return the output constraint as a grammar (EBNF for xgrammar and vLLM): canonical sets only.

    from_i matches a label with index i or higher and its continuation; after_i matches the continuation of label i - 1.
    """
    labels, last_index = [quote_literal(canonical_json(label)) for label in spec.labels], len(spec.labels) - 1
    empty = ' | "]"' if spec.may_be_empty else ""
    lines = [f'root ::= "[" (from_0{empty})']
    for index, label in enumerate(labels):
        continuation = f" | from_{index + 1}" if index < last_index else ""
        lines.append(f"from_{index} ::= {label} after_{index + 1}{continuation}")
        lines.append(f'after_{index + 1} ::= "]"' + (f' | ", " from_{index + 1}' if index < last_index else ""))
    return "\n".join(lines)


def output_schema(spec: Spec) -> dict[str, Any]:
    """Return the output constraint as a JSON Schema."""
    items = {"type": "string", "enum": list(spec.labels)}
    min_items = {} if spec.may_be_empty else {"minItems": 1}
    return {"type": "array", "items": items, **min_items, "maxItems": len(spec.labels), "uniqueItems": True}


def parse(spec: Spec, output: str) -> ParsedAnswer:
    """Return the labels of an output in canonical order, or problem not_json, wrong_schema or not_a_label.

    Order and repetition are ignored. Spellings follow the rule of the data.
    """
    try:
        entries = json.loads(output)
    except (ValueError, RecursionError):
        return ParsedAnswer(None, "not_json")
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return ParsedAnswer(None, "wrong_schema")
    if not entries and not spec.may_be_empty:
        return ParsedAnswer(None, "wrong_schema")
    labels = {find_label(entry.strip(), spec.labels, spec.normalize_labels) for entry in entries}
    return (
        ParsedAnswer(None, "not_a_label")
        if None in labels
        else ParsedAnswer([label for label in spec.labels if label in labels])
    )


def score(spec: Spec, targets: Sequence[Sequence[str]], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """Return {"n", "micro_f1", "macro_f1", "exact_match", "invalid": {problem: count}, "per_class": {label: {...}}}.

    An entry of per_class has "precision", "recall", "f1" and "n". micro_f1 counts the labels of all rows together.
    macro_f1 is the mean over the labels that occur in targets or answers. exact_match is the fraction of rows with
    exactly the right labels. An answer with a problem has no labels: it lowers recall and is never exact. Raises
    ValueError without rows.
    """
    if not targets:
        raise ValueError("no rows to score")
    predictions = _predicted_labels(answers)
    expected, predicted = (Counter(label for row in rows for label in row) for rows in (targets, predictions))
    correct = Counter(
        label for row, answer_labels in zip(targets, predictions, strict=True) for label in {*row} & {*answer_labels}
    )
    return {
        "n": len(targets),
        **{name: metric.compute_value() for name, metric in compute_metric_stats(spec, targets, answers).items()},
        "invalid": dict(sorted(Counter(answer.problem for answer in answers if answer.problem is not None).items())),
        "per_class": {
            label: metric_stats.precision_recall(correct[label], predicted[label], expected[label])
            for label in spec.labels
            if expected[label] or predicted[label]
        },
    }


def compute_metric_stats(
    spec: Spec, targets: Sequence[Sequence[str]], answers: Sequence[ParsedAnswer]
) -> dict[str, MetricStats]:
    """Return micro_f1, macro_f1 and exact_match as sums over rows."""
    label_indices = {label: index for index, label in enumerate(spec.labels)}
    predictions = _predicted_labels(answers)
    expected, predicted = ([{label_indices[label] for label in row} for row in rows] for rows in (targets, predictions))
    correct = [len(a & b) for a, b in zip(expected, predicted, strict=True)]
    exact = [
        float(a == b and answer.problem is None) for a, b, answer in zip(expected, predicted, answers, strict=True)
    ]
    return {
        "micro_f1": metric_stats.micro_f1_metric(
            correct, [len(row) for row in predicted], [len(row) for row in expected]
        ),
        "macro_f1": metric_stats.multilabel_macro_f1_metric(expected, predicted, len(label_indices)),
        "exact_match": metric_stats.mean_metric(exact),
    }


def lowest_scoring(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the labels with their F1, lowest first."""
    return classification.lowest_scoring(score)


def _predicted_labels(answers: Sequence[ParsedAnswer]) -> list[Sequence[str]]:
    """Return the labels of each answer; none if it has a problem."""
    return [() if answer.problem is not None else answer.value for answer in answers]
