"""Choose one label for a text.

    row      {"id": "T000017", "input": {"text": "my parcel is late"}, "target": "delivery_delay", "group": "C01294"}
    prompt   [{"role": "user", "content": "Route the message ...\\n\\nLabels:\\n- delivery_delay: A parcel that ...
             \\n\\nAnswer with exactly one label.\\n\\nInput:\\nmy parcel is late"}]
    answer   "delivery_delay"

All that is the same for every row comes first, so that it can be computed once: see train/packing/packing_plan.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.stats.metric_stats import MetricStats
from insource.tasks.labels import clean_label, display_label, find_label, label_identity
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.source_record import SourceRecord, UnusableRowError, read_input, read_label, to_text
from insource.tasks.task_kind import Objective

# What `weakest` tells of, and by which figure.
BREAKDOWN_NAME, BREAKDOWN_METRIC = "labels", "F1"
OBJECTIVE: Objective = "imitate"
# Whether targets are labels, to be counted, balanced and doubted; whether they are free text, in which personal data
# are looked for as in an input.
# MANY: whether a row has several labels.
HAS_LABELS, IS_FREE_TEXT, IS_MULTILABEL = True, False, False


@dataclass(frozen=True)
class Spec:
    """A classification task with its labels resolved: {label: description or ""}, in prompt order."""

    instruction: str
    labels: Mapping[str, str]
    normalize_labels: bool = False
    """Whether an answer may spell a label otherwise (data.normalize_labels); in runs that do not say, it may not."""


def make_spec(task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Spec:
    """Returns the task as prompts need it; `labels` as data preparation found or checked them (data.json). Every row
    has a label: `may_be_empty` is not read."""
    return Spec(task.instruction, dict(labels), normalize_labels=True)


def messages(spec: Spec, row_input: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the conversation up to the answer: one user message, which every chat template can take."""
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
    """Returns the lines that list the labels in a prompt."""
    return [f"- {label}: {description}" if description else f"- {label}" for label, description in labels.items()]


def answer_text(spec: Spec, target: str) -> str:
    """Returns the text that the model should answer."""
    return target


def training_answers(spec: Spec, target: str) -> list[str]:
    """Returns every text that is learnt from for a target: here the one answer."""
    return [target]


def answer_columns(recipe: Recipe) -> dict[str, str]:
    """Returns {recipe key: column} of what the answer is read from."""
    return {"data.columns.label": recipe.data.columns.label}


def read_source_row(values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
    """Returns the text and the label of a source row, as they stand there."""
    columns = recipe.data.columns
    label = read_label(values.get(columns.label), columns.label)
    return SourceRecord("", read_input(values, columns), label)


def normalize_target(target: str, recipe: Recipe, redact: Callable[[str], str]) -> str:
    """Returns the label as it was written, white space and all, so that what is merged can be shown; a label holds
    nothing personal to `redact`.

    Raises UnusableRowError where it is empty, or not among those that the recipe lists.
    """
    label, listed = target, recipe.task.labels
    if not clean_label(label):
        raise UnusableRowError("no_label", "the label is empty")
    if listed != "auto" and find_label(label, listed, recipe.data.normalize_labels) is None:
        matches = get_close_matches(label, list(listed), 1)
        hint = f"; did you mean {matches[0]!r}?" if matches else ""
        raise UnusableRowError("unknown_label", f"{display_label(label)} is not among task.labels{hint}")
    return label


def parse_target(text: str) -> str:
    """Returns the target behind its text."""
    return text


def target_labels(text: str) -> list[str]:
    """Returns the labels of a target text, as they were written: here the one."""
    return [text]


def make_label_mapper(spellings: Mapping[str, str], order: Sequence[str]) -> Callable[[str], str]:
    """Returns what turns a target text into the label that it stands for, by {label as written: its label}."""
    return lambda text: spellings.get(text, text)


def make_answer_reader(spec: Spec, normalize_labels: bool, separator: str | None = None) -> Callable[[Any], str]:
    """Returns what reads an answer that a person has as data preparation reads a label of the source: clean, and with
    `normalize_labels` in any spelling of a label. What is no label stays as it stands there."""

    def read_answer(value: Any) -> str:
        text = to_text(value)
        return find_label(text, spec.labels, normalize_labels) or text

    return read_answer


def equality_key(text: str, recipe: Recipe) -> str:
    """Returns what equal targets share: spellings of one label are one label."""
    listed = recipe.task.labels
    return label_identity(text, None if listed == "auto" else listed, recipe.data.normalize_labels)


def conflict_key(key: str, text: str) -> str:
    """Returns what can bear one target alone: here what the row says (its duplicate key)."""
    return key


def grammar(spec: Spec) -> str:
    """Returns the output constraint as a grammar (EBNF as xgrammar and vLLM read it): exactly one of the labels."""
    return "root ::= " + " | ".join(_quote_label(label) for label in spec.labels)


def output_schema(spec: Spec) -> dict[str, Any]:
    """Returns the output constraint as a JSON Schema, for backends that take one."""
    return {"type": "string", "enum": list(spec.labels)}


def parse(spec: Spec, output: str) -> ParsedAnswer:
    """Returns the label that the output stands for, by the rule that holds for the data, or problem not_a_label."""
    label = find_label(output.strip(), spec.labels, spec.normalize_labels)
    return ParsedAnswer(None, "not_a_label") if label is None else ParsedAnswer(label)


def score(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """Returns {"n", "accuracy", "macro_f1", "invalid", "per_class": {label: {"precision", "recall", "f1", "n"}}}.

    An answer with a problem counts as wrong. macro_f1 is the mean over the labels that occur among the targets or the
    answers. Raises ValueError without rows: no rows is no score.
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
        **{name: metric.figure() for name, metric in compute_metric_stats(spec, targets, answers).items()},
        "invalid": sum(answer.problem is not None for answer in answers),
        "per_class": per_class,
    }


def compute_metric_stats(spec: Spec, targets: Sequence[str], answers: Sequence[ParsedAnswer]) -> dict[str, MetricStats]:
    """Returns accuracy and macro_f1 as sums over rows, of which any resample can be computed."""
    label_indices = {label: index for index, label in enumerate(dict.fromkeys([*spec.labels, *targets]))}
    expected = [label_indices[target] for target in targets]
    predicted = [-1 if answer.problem is not None else label_indices[answer.value] for answer in answers]
    right = [float(a == b) for a, b in zip(expected, predicted, strict=True)]
    return {
        "accuracy": metric_stats.mean_metric(right),
        "macro_f1": metric_stats.macro_f1_metric(expected, predicted, len(label_indices)),
    }


def main_metrics(score: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures that stand for a score: in the console, in W&B and on the model card."""
    return {name: score[name] for name in ("accuracy", "macro_f1")}


def lowest_scoring(score: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns the labels with their F1, the worst first."""
    return sorted(((name, entry["f1"]) for name, entry in score["per_class"].items()), key=lambda entry: entry[1])


def _quote_label(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
