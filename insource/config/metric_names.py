"""The main metrics of each kind of task, declared once; `insource/tasks/` computes them.

METRICS["multilabel"]           micro_f1, macro_f1, exact_match
FIRST_METRICS["multilabel"]     "micro_f1"
ROW_METRICS["multilabel"]       "exact_match"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric of which 1 is the best value; higher is better, and figures are shown in percent."""

    label: str | None = None
    """Its display name; None: the words of its name."""
    is_row_mean: bool = True
    """Whether it is a mean over rows, so that it can judge one row."""
    has_test_value: bool = True
    """Whether it is computed for the systems of a comparison, and for the untuned base."""


MACRO_F1, EXACT_MATCH = Metric("macro-F1", is_row_mean=False), Metric()
METRICS: Mapping[str, Mapping[str, Metric]] = {
    "classification": {"accuracy": Metric(), "macro_f1": MACRO_F1},
    "multilabel": {
        "micro_f1": Metric("micro-F1", is_row_mean=False),
        "macro_f1": MACRO_F1,
        "exact_match": EXACT_MATCH,
    },
    "extraction": {
        "exact_match": EXACT_MATCH,
        "field_f1": Metric("field F1", is_row_mean=False),
        "schema_valid": Metric(),
    },
    "generation": {"rouge_l": Metric("ROUGE-L"), "chrf": Metric("chrF"), "exact_match": EXACT_MATCH},
    "preference": {"preference_accuracy": Metric(), "reward_accuracy": Metric(has_test_value=False)},
}
"""{kind: {name: metric}}, in display order."""

FIRST_METRICS = {kind: next(iter(metrics)) for kind, metrics in METRICS.items()}
"""The metric that selects the best checkpoint, and that decides if the plan (compare.primary) names no metric."""

ROW_METRICS = {
    kind: next(name for name, metric in metrics.items() if metric.is_row_mean) for kind, metrics in METRICS.items()
}
"""The metric that judges one row: the first metric that is a mean over rows."""


def select_metrics(kind: str, score: Mapping[str, Any]) -> dict[str, float]:
    """Return the main metrics of a score for console, W&B and model card, in display order.

    A metric may be missing in the score: reward_accuracy without a reference model, or a metric added after the run.
    """
    return {name: score[name] for name in METRICS[kind] if name in score}
