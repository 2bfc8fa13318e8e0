"""How sure each answer is: the probability of the path that was decoded, on a scale fitted on validation rows.

The scale of the tuned model is fitted on its reference answers, which training left beside the weights; nothing is
asked for it. That of an endpoint that decides is fitted on validation rows that it is asked for this. What other
systems say of themselves is taken as they say it.
"""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from compare import predictions
from compare.gathered import Gathered
from compare.material import Material, Rows
from compare.predictions import Answer
from insource.stats import calibration
from insource.stats.calibration import Platt
from recipes.schema_clashes import ROW_METRICS
from tracking import files
from tracking.run import Run

AS_TOLD = "nothing: as the system tells it"


def scale(here: Run, material: Material) -> Platt | None:
    """Returns the scale of the tuned model, None where its references are all right or all wrong, or there are none."""
    path = here.folder / "adapter" / "reference.jsonl"
    if material.module.OBJECTIVE == "prefer" or not path.exists():
        return None
    rows = {row["id"]: row for row in files.read_jsonl(here.folder / "data" / "validation.jsonl")}
    told = [one for one in files.read_jsonl(path) if one["id"] in rows]
    answers = [Answer(one["id"], one["answer"]) for one in told]
    found = predictions.of(material, [rows[one.id] for one in answers], answers)
    right = [bool(value) for value in right_of(found, material)]
    return calibration.fitted([one["log_probability"] for one in told], right)


def of(one: Gathered, fitted: Platt | None, answers: Sequence[Answer]) -> list[float | None]:
    """Returns the confidence of each answer, None where nothing tells it."""
    return [_confidence(answer, fitted if one.system.on_tuned_scale else one.scale) for answer in answers]


def scale_of(material: Material, rows: Rows, answers: Sequence[Answer]) -> Platt | None:
    """Returns the scale of a system by its answers to validation rows, None where they are all right or all wrong, or
    tell no probability."""
    told = [(row, one) for row, one in zip(rows, answers, strict=True) if one.log_probability is not None]
    if not told:
        return None
    found = predictions.of(material, [row for row, _ in told], [one for _, one in told])
    likely = [one.log_probability for _, one in told if one.log_probability is not None]
    return calibration.fitted(likely, [bool(value) for value in right_of(found, material)])


def right_of(found: predictions.Predictions, material: Material) -> list[float]:
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
    return {**found, "fitted_on": "validation" if fitted else AS_TOLD}


def _confidence(answer: Answer, fitted: Platt | None) -> float | None:
    if answer.confidence is not None:
        return answer.confidence
    if answer.log_probability is None or answer.output is None:
        return None
    return fitted.confidence(answer.log_probability) if fitted else min(1.0, exp(answer.log_probability))
