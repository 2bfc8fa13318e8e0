"""Task kinds: prompt, output constraint, parser and score. One module per kind."""

from collections.abc import Mapping
from typing import Any

from insource.config.metric_names import METRICS
from insource.tasks import classification, extraction, generation, multilabel, preference
from insource.tasks.task_kind import TaskKind

TASKS: dict[str, TaskKind] = {
    "classification": classification,
    "multilabel": multilabel,
    "extraction": extraction,
    "generation": generation,
    "preference": preference,
}
"""{Task.task_name: module}."""
METRIC_LABELS = {
    name: metric.label for metrics in METRICS.values() for name, metric in metrics.items() if metric.label is not None
}
"""Display names of metrics whose name is not written as its words."""


def load_task_spec(task: Mapping[str, Any]) -> tuple[TaskKind, Any]:
    """Return the task module and the Spec from `task` of a prompt.json."""
    module = TASKS[task["kind"]]
    return module, module.Spec(**{name: value for name, value in task.items() if name != "kind"})


def metric_label(metric: str) -> str:
    """Return the display name of a metric: macro_f1 as macro-F1, exact_match as exact match."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def slice_name(value: str | bool) -> str:
    """Return the display name of a slice's value: true and false as in JSON, text unchanged."""
    return value if isinstance(value, str) else str(value).lower()


def format_metrics(headline: Mapping[str, float]) -> str:
    """Return the main metrics of a score as one line: accuracy 85.7%, macro-F1 84.9%."""
    return ", ".join(f"{metric_label(metric)} {value:.1%}" for metric, value in headline.items())
