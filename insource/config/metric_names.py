"""The names of the main metrics of each kind of task; `insource/tasks/` computes them."""

METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("micro_f1", "macro_f1", "exact_match"),
    "extraction": ("exact_match", "field_f1", "schema_valid"),
    "generation": ("rouge_l", "chrf", "exact_match"),
    "preference": ("preference_accuracy", "reward_accuracy"),
}
"""The first metric selects the best checkpoint, and decides if the plan (compare.primary) names no metric."""

ROW_METRICS = {kind: names[0] for kind, names in METRICS.items()} | {"multilabel": "exact_match"}
"""The metric that judges one row: the first metric that is a mean over rows."""
