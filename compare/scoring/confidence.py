"""The confidence of each answer: its decoded probability, on a scale fitted on validation rows.

    a label, a text    the probability of the decoded sequence
    a record           the lowest probability of a field
    (insource/tasks/records/field_confidence.py)

The scale of the tuned model is fitted on its reference answers, which training writes beside the weights; no further
request is needed. The scale of a decision endpoint is fitted on validation rows that are requested for it. Confidences
that other systems report are used unchanged.
"""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from compare.eval_dataset import EvalDataset
from compare.records import Scale, ScoredPart, SystemAnswer, SystemResponses
from compare.scoring import predictions
from insource.config.metric_names import ROW_METRICS
from insource.stats import calibration
from insource.stats.calibration import Platt
from insource.system import atomic_files
from insource.tasks.data_row import Rows
from insource.tracking.reference_row import read_references
from insource.tracking.run import Run
from insource.tracking.scores.system_result import Reliability

SELF_REPORTED = "nothing: as the system tells it"


def scale_from_json(payload: Mapping[str, Any]) -> Scale:
    """Return the scale in the entry `score` of routing.json, without validation rows.

    With it serving computes the same confidences as the comparison.
    """
    platt = None if payload["slope"] is None else Platt(float(payload["slope"]), float(payload["intercept"]))
    return Scale(platt, payload["of"])


def fit_tuned_scale(run: Run, dataset: EvalDataset) -> Scale | None:
    """Return the scale of the tuned model, None if there are no reference answers to validation rows."""
    path = run.references_path
    if dataset.task.OBJECTIVE == "prefer" or not path.exists():
        return None
    rows = {row["id"]: row for row in atomic_files.read_jsonl(run.folder / "data" / "validation.jsonl")}
    records = [record for record in read_references(path) if record.id in rows]
    answers = [
        SystemAnswer(
            record.id,
            record.answer,
            log_probability=record.log_probability,
            field_log_probability=record.field_log_probability,
        )
        for record in records
    ]
    return fit_scale(dataset, [rows[answer.id] for answer in answers], answers)


def fit_scale(dataset: EvalDataset, rows: Rows, answers: Sequence[SystemAnswer]) -> Scale | None:
    """Return the scale of a system from its answers to validation rows, None if no answer has a probability."""
    answered = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer.log_probability is not None]
    if not answered:
        return None
    known_answers = [answer for _, answer in answered]
    scored = predictions.score_answers(dataset, [row for row, _ in answered], known_answers)
    # Older reference files have no probabilities of fields.
    by_field = any(answer.field_log_probability is not None for answer in known_answers)
    is_record = by_field and dataset.prompt.kind == "extraction"
    part: ScoredPart = "least certain field" if is_record else "answer"
    log_probabilities = [_log_probability(answer, part) or 0.0 for answer in known_answers]
    correct = row_correctness(scored, dataset)
    platt = calibration.fit_platt(log_probabilities, [bool(value) for value in correct])
    return Scale(platt, part, [_to_confidence(platt, value) for value in log_probabilities], correct)


def compute_confidences(
    responses: SystemResponses, tuned_scale: Scale | None, answers: Sequence[SystemAnswer]
) -> list[float | None]:
    """Return the confidence of each answer, None if it has none."""
    return [
        _answer_confidence(answer, tuned_scale if responses.system.uses_tuned_scale else responses.scale)
        for answer in answers
    ]


def row_correctness(scored: predictions.Predictions, dataset: EvalDataset) -> list[float]:
    """Return 1 or 0 for each row: whether its answer is completely right.

    The metric is the task's first one of single rows. For generation that is a fraction, so exact_match is used.
    """
    kind = dataset.prompt.kind
    return list(scored.metrics["exact_match" if kind == "generation" else ROW_METRICS[kind]])


def reliability(confidences: Sequence[float | None], correct: Sequence[float], calibrated: bool) -> Reliability | None:
    """Return the reliability of the confidences, None if fewer than two are known."""
    pairs = [
        (confidence, bool(is_correct))
        for confidence, is_correct in zip(confidences, correct, strict=True)
        if confidence is not None
    ]
    if len(pairs) < 2:
        return None
    result = calibration.reliability([confidence for confidence, _ in pairs], [is_correct for _, is_correct in pairs])
    return Reliability.model_validate({**result, "fitted_on": "validation" if calibrated else SELF_REPORTED})


def _answer_confidence(answer: SystemAnswer, scale: Scale | None) -> float | None:
    if answer.confidence is not None:
        return answer.confidence
    log_probability = _log_probability(answer, scale.part if scale else "answer")
    if log_probability is None or answer.output is None:
        return None
    return _to_confidence(scale.platt if scale else None, log_probability)


def _log_probability(answer: SystemAnswer, part: ScoredPart) -> float | None:
    """Return the log-probability of the part, that of the complete answer if it is not a record."""
    if part == "least certain field" and answer.field_log_probability is not None:
        return answer.field_log_probability
    return answer.log_probability


def _to_confidence(platt: Platt | None, log_probability: float) -> float:
    return platt.confidence(log_probability) if platt else min(1.0, exp(log_probability))
