"""Validation of a classification head: its score, and its paired difference to the label tokens of the same run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from insource.config.metric_names import FIRST_METRICS
from insource.stats import paired
from insource.tasks.data_row import Rows
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.task_kind import TaskKind
from insource.tracking.reference_row import read_references
from insource.tracking.run import Run
from train.evaluate.log_likelihood import BATCH_ROWS
from train.evaluate.pack_passes import compute_by_row
from train.evaluate.validation import score_with_slices
from train.loop.losses import class_logits
from train.packing import packing_plan
from train.packing.collate import Batch
from train.packing.packing_plan import Pack, PackingPlan, TokenizedRow, UpdateShards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def predict_log_probabilities(
    model: "PreTrainedModel",
    rows: Sequence[TokenizedRow],
    plan: PackingPlan,
    pad_token_id: int,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[list[float]]:
    """Return for each row the natural-log probability of every label. Rows are packed as in training.

    The mode of the model is unchanged.
    """
    import torch

    def compute(_pack: Pack, batch: Batch) -> dict[str, list[float]]:
        logits, _, numbers = class_logits(model, batch)
        log_probabilities = torch.log_softmax(logits, dim=-1).tolist()
        return {
            batch.rows[number].id: values for number, values in zip(numbers.tolist(), log_probabilities, strict=True)
        }

    chunks = [range(start, min(start + BATCH_ROWS, len(rows))) for start in range(0, len(rows), BATCH_ROWS)]
    shards = UpdateShards(rows, packing_plan.plan_for_rows(plan, rows, BATCH_ROWS), chunks, 1)
    by_id = compute_by_row(model, shards, plan.mode, pad_token_id, compute, on_batch)
    return [by_id[row.id] for row in rows]


def most_probable(labels: Sequence[str], log_probabilities: Sequence[float]) -> tuple[str, float]:
    """Return the most probable label and its log-probability; of equal ones the first."""
    index = max(range(len(labels)), key=lambda number: log_probabilities[number])
    return labels[index], log_probabilities[index]


def score_labels(task: TaskKind, spec: object, rows: Rows, predicted: Sequence[str]) -> dict[str, Any]:
    """Return the task's score of predicted labels, with that of slices."""
    return score_with_slices(task, spec, rows, [ParsedAnswer(label) for label in predicted])


def compare_with_tokens(
    run: Run, task: TaskKind, spec: object, rows: Rows, predicted: Sequence[str]
) -> dict[str, Any] | None:
    """Return the difference head minus label tokens in the first metric, on the rows with a reference answer.

    The reference answers are those of the run's adapter to validation rows (reference.jsonl). None without them.
    """
    if not run.references_path.exists():
        return None
    tokens = {row.id: row.answer for row in read_references(run.references_path)}
    pairs = [(row, label) for row, label in zip(rows, predicted, strict=True) if row["id"] in tokens]
    if not pairs:
        return None
    metric, targets = FIRST_METRICS["classification"], [row["target"] for row, _ in pairs]
    head = task.compute_metric_stats(spec, targets, [ParsedAnswer(label) for _, label in pairs])[metric]
    answers = [task.parse(spec, tokens[row["id"]]) for row, _ in pairs]
    label_tokens = task.compute_metric_stats(spec, targets, answers)[metric]
    groups = [row.get("group") for row, _ in pairs]
    clusters = groups if any(group is not None for group in groups) else None
    difference = paired.compute_paired_difference(head, label_tokens, clusters)
    return {
        "metric": metric,
        "n": len(pairs),
        "head": head.compute_value(),
        "tokens": label_tokens.compute_value(),
        "difference": difference.delta,
        "low": difference.low,
        "high": difference.high,
    }
