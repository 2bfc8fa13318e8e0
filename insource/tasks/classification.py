"""Choose one label for a text.

    row      {"id": "T000017", "input": {"text": "my parcel is late"}, "target": "delivery_delay", "group": "C01294"}
    prompt   [{"role": "user", "content": "Route the message ...\\n\\nLabels:\\n- delivery_delay: A parcel that ...
             \\n\\nAnswer with exactly one label.\\n\\nInput:\\nmy parcel is late"}]
    answer   "delivery_delay"

The parts of the prompt that all rows share come first, so that training computes them once: see
train/packing/packing_plan.py. `insource/tasks/task_kind.py` describes the functions that all kinds share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.stats.metric_stats import MetricStats
from insource.tasks.data_row import RowInput
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.source_record import SourceRecord, UnusableRowError, read_input, read_label, to_text
from insource.tasks.task_kind import Objective
from insource.text.labels import clean_label, display_label, find_label, label_identity

NAME = "classification"
BREAKDOWN_NAME, BREAKDOWN_METRIC = "labels", "F1"
OBJECTIVE: Objective = "imitate"
HAS_LABELS, IS_FREE_TEXT, IS_MULTILABEL = True, False, False


@dataclass(frozen=True)
class Spec:
    """A classification task with resolved labels: {label: description or ""}, in prompt order."""

    instruction: str
    labels: Mapping[str, str]
    normalize_labels: bool = False
    """Whether an answer may spell a label differently (data.normalize_labels); False for runs without this key."""


def make_spec(task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Spec:
    """Return the task as the prompt needs it.

    `labels` are those of data.json. `may_be_empty` is unused: each row has a label.
    """
    return Spec(task.instruction, dict(labels), normalize_labels=True)


def messages(spec: Spec, row_input: RowInput) -> list[dict[str, str]]:
    """Return the conversation up to the answer: one user message, which every chat template accepts."""
    content = "\n\n".join(
        (
            spec.instruction,
            "Labels:\n" + "\n".join(label_lines(spec.labels)),
            "Answer with exactly one label.",
            f"Input:\n{row_input['text']}",
        )
    )
    return [{"role": "user", "content": content}]


def label_lines(labels: Mapping[str, str]) -> list[str]:
    """Return the lines that list the labels in a prompt."""
    return [f"- {label}: {description}" if description else f"- {label}" for label, description in labels.items()]


def answer_text(spec: Spec, target: str) -> str:
    """Return the text that the model should answer."""
    return target


def training_answers(spec: Spec, target: str) -> list[str]:
    """Return the answer texts that training uses for a target: one."""
    return [target]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the answer."""
    return {"data.columns.label": recipe.data.columns.label}


def read_source_row(values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
    """Return text and label of a source row, unchanged."""
    columns = recipe.data.columns
    label = read_label(values.get(columns.label), columns.label)
    return SourceRecord("", read_input(values, columns), label)


def normalize_target(target: str, recipe: Recipe, redact: Callable[[str], str]) -> str:
    """Return the label in its original spelling, with white space, so that reports can show merged spellings.

    `redact` is unused: labels hold no personal data. Raises UnusableRowError if the label is empty, or is not one of
    the labels in the recipe.
    """
    label, recipe_labels = target, recipe.task.labels
    if not clean_label(label):
        raise UnusableRowError("no_label", "the label is empty")
    if recipe_labels != "auto" and find_label(label, recipe_labels, recipe.data.normalize_labels) is None:
        matches = get_close_matches(label, list(recipe_labels), 1)
        hint = f"; did you mean {matches[0]!r}?" if matches else ""
        raise UnusableRowError("unknown_label", f"{display_label(label)} is not among task.labels{hint}")
    return label


def parse_target(text: str) -> str:
    """Return the target from its stored text."""
    return text


def target_labels(text: str) -> list[str]:
    """Return the labels of a target text in their original spelling: one."""
    return [text]


def make_label_mapper(spellings: Mapping[str, str], order: Sequence[str]) -> Callable[[str], str]:
    """Return a function from a target text to its label, by {spelling: label}."""
    return lambda text: spellings.get(text, text)


def make_answer_reader(spec: Spec, normalize_labels: bool, separator: str | None = None) -> Callable[[Any], str]:
    """Return a function that reads an answer as data preparation reads a label of the source.

    The answer is cleaned. With `normalize_labels` any spelling of a label is accepted. Text that is not a label stays
    unchanged.
    """

    def read_answer(value: object) -> str:
        text = to_text(value)
        return find_label(text, spec.labels, normalize_labels) or text

    return read_answer


def equality_key(text: str, recipe: Recipe) -> str:
    """Return a key that all spellings of one label share."""
    recipe_labels = recipe.task.labels
    return label_identity(text, None if recipe_labels == "auto" else recipe_labels, recipe.data.normalize_labels)


def conflict_key(key: str, text: str) -> str:
    """Return the key of rows that may have only one target: the duplicate key of the input."""
    return key


def grammar(spec: Spec) -> str:
    """Return the output constraint as a grammar (EBNF for xgrammar and vLLM): exactly one of the labels."""
    return "root ::= " + " | ".join(_quote_label(label) for label in spec.labels)


def output_schema(spec: Spec) -> dict[str, Any]:
    """Return the output constraint as a JSON Schema."""
    return {"type": "string", "enum": list(spec.labels)}


def parse(spec: Spec, output: str) -> ParsedAnswer:
    """Return the label of an output, by the spelling rule of the data, or problem not_a_label."""
    label = find_label(output.strip(), spec.labels, spec.normalize_labels)
    return ParsedAnswer(None, "not_a_label") if label is None else ParsedAnswer(label)


def score(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """Return {"n", "accuracy", "macro_f1", "invalid", "per_class": {label: {"precision", "recall", "f1", "n"}}}.

    An answer with a problem counts as wrong. macro_f1 is the mean over the labels that occur in targets or answers.
    Raises ValueError without rows.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if not targets:
        raise ValueError("no rows to score")
    predicted = ["" if answer.problem is not None else answer.value for answer in answers]
    occurs = set(targets) | set(predicted)
    occurring = [label for label in spec.labels if label in occurs]
    columns = precision_recall_fscore_support(targets, predicted, labels=occurring, zero_division=0.0)
    per_class = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for label, p, r, f, n in zip(occurring, *columns, strict=True)
    }
    return {
        "n": len(targets),
        **{name: metric.compute_value() for name, metric in compute_metric_stats(spec, targets, answers).items()},
        "invalid": sum(answer.problem is not None for answer in answers),
        "per_class": per_class,
    }


def compute_metric_stats(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> dict[str, MetricStats]:
    """Return accuracy and macro_f1 as sums over rows."""
    label_indices = {label: index for index, label in enumerate(dict.fromkeys([*spec.labels, *targets]))}
    expected = [label_indices[target] for target in targets]
    predicted = [-1 if answer.problem is not None else label_indices[answer.value] for answer in answers]
    correct = [float(a == b) for a, b in zip(expected, predicted, strict=True)]
    return {
        "accuracy": metric_stats.mean_metric(correct),
        "macro_f1": metric_stats.macro_f1_metric(expected, predicted, len(label_indices)),
    }


def lowest_scoring(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the labels with their F1, lowest first."""
    return sorted(((name, entry["f1"]) for name, entry in score["per_class"].items()), key=lambda entry: entry[1])


def _quote_label(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
