"""Calibration of a model's own probability: a scale fitted on other rows, and its calibration error.

log-probability of the answer -0.69, slope 1.4, intercept -0.3   -> confidence 0.43
confidences of 3,080 answers, 91% of them right, in ten bins      -> expected calibration error 0.018
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, log

import numpy as np

from insource.stats.intervals import ALPHA, wilson

# Minimum distance of probabilities from 0 and 1, where the logit is infinite.
CLIP_EPSILON = 1e-9


@dataclass(frozen=True)
class Platt:
    """Logistic scale on the logit of a probability (Platt 1999)."""

    slope: float
    intercept: float

    def confidence(self, log_probability: float) -> float:
        """Return the probability that the answer is right, from the natural log-probability of the model."""
        z = self.slope * logit(log_probability) + self.intercept
        return 1 / (1 + exp(-z)) if z >= 0 else exp(z) / (1 + exp(z))


def logit(log_probability: float) -> float:
    """Return log(p / (1 - p)) of a natural log-probability, with p clipped to CLIP_EPSILON from 0 and 1."""
    clipped = min(max(log_probability, log(CLIP_EPSILON)), -CLIP_EPSILON)
    return clipped - log(-expm1(clipped))


def fit_platt(log_probabilities: Sequence[float], correct: Sequence[bool]) -> Platt | None:
    """Return the scale fitted to answers; None if all answers are right or all are wrong.

    scikit-learn's default penalty (C=1) stays. With some hundred rows it changes the scale little. If right and wrong
    answers are separable, it keeps the scale from becoming a step. Raises ValueError if the lengths differ.
    """
    if len(log_probabilities) != len(correct):
        raise ValueError(f"{len(log_probabilities)} log-probabilities are given for {len(correct)} answers")
    if len({bool(value) for value in correct}) < 2:
        return None
    from sklearn.linear_model import LogisticRegression

    logits = np.array([[logit(log_probability)] for log_probability in log_probabilities])
    model = LogisticRegression(max_iter=1000).fit(logits, np.asarray(correct, dtype=bool))
    return Platt(float(model.coef_[0, 0]), float(model.intercept_[0]))


def reliability(confidences: Sequence[float], correct: Sequence[bool], bins: int = 10) -> dict[str, object]:
    """Return the expected calibration error, and confidence and accuracy in bins of equal size.

    {"n", "ece", "bins": [{"low", "high", "n", "confidence", "accuracy", "ci_low", "ci_high"}]}: low and high are the
    smallest and largest confidence of a bin. ci_low and ci_high are Wilson's 95% interval of its accuracy. Equal
    confidences share a bin, so there may be fewer bins. Raises ValueError without rows, or if the lengths differ.
    """
    if not len(correct) or len(confidences) != len(correct):
        raise ValueError(f"{len(confidences)} confidences are given for {len(correct)} answers; give one for each")
    ordered = np.asarray(confidences, dtype=np.float64)
    order = np.argsort(ordered, kind="stable")
    ordered, ordered_correct = ordered[order], np.asarray(correct, dtype=np.float64)[order]
    starts = np.searchsorted(ordered, ordered[np.arange(bins) * len(ordered) // bins], side="left")
    groups = np.split(np.arange(len(ordered)), np.unique(starts)[1:])
    bin_stats = []
    for indices in groups:
        accuracy = float(ordered_correct[indices].mean())
        low, high = wilson(accuracy, len(indices), ALPHA)
        bin_stats.append(
            {
                "low": float(ordered[indices[0]]),
                "high": float(ordered[indices[-1]]),
                "n": len(indices),
                "confidence": float(ordered[indices].mean()),
                "accuracy": accuracy,
                "ci_low": low,
                "ci_high": high,
            }
        )
    weighted_gap = sum(stats["n"] * abs(stats["accuracy"] - stats["confidence"]) for stats in bin_stats)
    return {"n": len(ordered), "ece": float(weighted_gap) / len(ordered), "bins": bin_stats}
