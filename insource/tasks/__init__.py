"""What a task is: its prompt, its output constraint, its parser, its score. One module a kind, found by its name."""

from collections.abc import Mapping
from typing import Any

from insource.tasks import classification, extraction, generation, multilabel, preference
from insource.tasks.task_kind import TaskKind

TASKS: dict[str, TaskKind] = {
    "classification": classification,
    "multilabel": multilabel,
    "extraction": extraction,
    "generation": generation,
    "preference": preference,
}
# Names that are written otherwise than in words.
METRIC_LABELS = {
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "field_f1": "field F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
}


def load_task_spec(task: Mapping[str, Any]) -> tuple[TaskKind, Any]:
    """Returns the module of a task's kind, and the task as prompts need it, from `task` of a prompt.json."""
    module = TASKS[task["kind"]]
    return module, module.Spec(**{name: value for name, value in task.items() if name != "kind"})


def metric_label(metric: str) -> str:
    """Returns a metric's name as it is shown: macro_f1 as macro-F1, exact_match as exact match."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def slice_name(value: str | bool) -> str:
    """Returns a slice's value as reports name it: true and false as JSON has them, a text as it is written."""
    return value if isinstance(value, str) else str(value).lower()


def format_metrics(headline: Mapping[str, float]) -> str:
    """Returns the headline figures of a score as one line: accuracy 85.7%, macro-F1 84.9%."""
    return ", ".join(f"{metric_label(metric)} {value:.1%}" for metric, value in headline.items())
