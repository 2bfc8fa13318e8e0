"""How sure each answer is: the probability of what was decoded, on a scale fitted on validation rows.

    a label, a text    the probability of the path that was decoded
    a record           the probability of the field that the model was least sure of
    (insource/tasks/records/field_confidence.py)

The scale of the tuned model is fitted on its reference answers, which training left beside the weights; nothing is
asked for it. That of an endpoint that decides is fitted on validation rows that it is asked for this. What other
systems say of themselves is taken as they say it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any, Literal

from compare.eval_dataset import EvalDataset, Rows
from compare.scoring import predictions
from compare.scoring.predictions import SystemAnswer
from insource.config.conflicts import ROW_METRICS
from insource.stats import calibration
from insource.stats.calibration import Platt
from insource.system import atomic_files
from insource.tracking.run import Run

if TYPE_CHECKING:
    from compare.systems.responses import SystemResponses

ScoredPart = Literal["answer", "least certain field"]

SELF_REPORTED = "nothing: as the system tells it"


@dataclass(frozen=True)
class Scale:
    """How log-probabilities become confidences, and what the validation rows that this was fitted on have on it."""

    platt: Platt | None
    """None: these answers are all right or all wrong, and probabilities are taken as they are."""
    part: ScoredPart
    """Whose probability it is."""
    confidences: Sequence[float] = ()
    """Of validation rows."""
    right: Sequence[float] = ()

    def json(self) -> dict[str, Any]:
        """Returns what routing.json says of it, so that whoever serves computes the same confidence."""
        slope, intercept = (self.platt.slope, self.platt.intercept) if self.platt else (None, None)
        return {"of": self.part, "slope": slope, "intercept": intercept}


def scale_from_json(told: Mapping[str, Any]) -> Scale:
    """Returns the scale of `score` in routing.json, by which answers have the confidence that was compared; it has no
    validation rows."""
    platt = None if told["slope"] is None else Platt(float(told["slope"]), float(told["intercept"]))
    return Scale(platt, told["of"])


def fit_tuned_scale(here: Run, material: EvalDataset) -> Scale | None:
    """Returns the scale of the tuned model, None where there are no references of validation rows."""
    path = here.references
    if material.module.OBJECTIVE == "prefer" or not path.exists():
        return None
    rows = {row["id"]: row for row in atomic_files.read_jsonl(here.folder / "data" / "validation.jsonl")}
    told = [one for one in atomic_files.read_jsonl(path) if one["id"] in rows]
    answers = [
        SystemAnswer(
            one["id"],
            one["answer"],
            log_probability=one["log_probability"],
            field_log_probability=one.get("field_log_probability"),
        )
        for one in told
    ]
    return fit_scale(material, [rows[one.id] for one in answers], answers)


def fit_scale(material: EvalDataset, rows: Rows, answers: Sequence[SystemAnswer]) -> Scale | None:
    """Returns the scale of a system by its answers to validation rows, None where they tell no probability."""
    told = [(row, one) for row, one in zip(rows, answers, strict=True) if one.log_probability is not None]
    if not told:
        return None
    known = [one for _, one in told]
    found = predictions.score_answers(material, [row for row, _ in told], known)
    # References that were written before fields were told apart have the path alone.
    by_field = any(one.field_log_probability is not None for one in known)
    part: ScoredPart = (
        "least certain field" if by_field and material.prompt["task"]["kind"] == "extraction" else "answer"
    )
    likely, right = [_log_probability(one, part) or 0.0 for one in known], row_correctness(found, material)
    platt = calibration.fit_platt(likely, [bool(value) for value in right])
    return Scale(platt, part, [_to_confidence(platt, one) for one in likely], right)


def compute_confidences(
    one: "SystemResponses", fitted: Scale | None, answers: Sequence[SystemAnswer]
) -> list[float | None]:
    """Returns the confidence of each answer, None where nothing tells it."""
    return [_answer_confidence(answer, fitted if one.system.on_tuned_scale else one.scale) for answer in answers]


def row_correctness(found: predictions.Predictions, material: EvalDataset) -> list[float]:
    """Returns for each row whether it is right: 1 or 0, by the first metric of the task that says so."""
    kind = material.prompt["task"]["kind"]
    whole = {"generation": "exact_match"}
    return list(found.metrics[whole.get(kind, ROW_METRICS[kind])])


def reliability(confidences: Sequence[float | None], right: Sequence[float], fitted: bool) -> dict[str, Any] | None:
    """Returns how far the confidences can be believed, None where too few are told."""
    told = [(c, bool(r)) for c, r in zip(confidences, right, strict=True) if c is not None]
    if len(told) < 2:
        return None
    found: Mapping[str, Any] = calibration.reliability([c for c, _ in told], [r for _, r in told])
    return {**found, "fitted_on": "validation" if fitted else SELF_REPORTED}


def _answer_confidence(answer: SystemAnswer, fitted: Scale | None) -> float | None:
    if answer.confidence is not None:
        return answer.confidence
    likely = _log_probability(answer, fitted.part if fitted else "answer")
    return None if likely is None or answer.output is None else _to_confidence(fitted.platt if fitted else None, likely)


def _log_probability(answer: SystemAnswer, part: ScoredPart) -> float | None:
    """That of the field, and of the whole answer where it is no record."""
    if part == "least certain field" and answer.field_log_probability is not None:
        return answer.field_log_probability
    return answer.log_probability


def _to_confidence(platt: Platt | None, log_probability: float) -> float:
    return platt.confidence(log_probability) if platt else min(1.0, exp(log_probability))
