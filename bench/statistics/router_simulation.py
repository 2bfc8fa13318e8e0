"""Calibration rows with a known truth above each threshold, and methods to choose a threshold, for bench.routing.

    confidences 0.93 0.71 0.98 ...   right 1 0 1 ...   above 0.9 in truth: 41% of the rows, 96.2% of them right

The rows are SYNTHETIC. The true figures of a threshold follow from the probabilities, not from a large sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from insource.stats import learn_then_test
from insource.stats.learn_then_test import Claim, MeanAbove, NonInferior
from insource.stats.metric_stats import Array

TARGET, MARGIN, ALPHA = 0.95, 0.02, 0.05
VALIDATION_ROWS = 500
# Points at which a continuous distribution is summed.
N_POINTS = 200_000
PREVIOUS_STEPS = 200


@dataclass(frozen=True)
class Population:
    """A distribution of rows."""

    name: str
    confidences: Array
    """Equally likely values: all of them, or closely spaced quantiles."""
    accuracies: Array
    """The probability that an answer with this confidence is right."""
    baseline_accuracy: float | None = None
    """The same of another system, at every confidence; None without a comparison."""

    @property
    def claim(self) -> Claim:
        """Return the claim that a threshold must meet."""
        return MeanAbove(TARGET) if self.baseline_accuracy is None else NonInferior(MARGIN)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Return confidences, correctness and scores of n rows, each (n,); the claim is about the scores."""
        indices = rng.integers(0, len(self.confidences), n)
        correct = (rng.random(n) < self.accuracies[indices]).astype(np.float64)
        scores = correct if self.baseline_accuracy is None else correct - (rng.random(n) < self.baseline_accuracy)
        return self.confidences[indices], correct, scores

    def true_coverage_and_miss(self, threshold: float) -> tuple[float, bool]:
        """Return the true fraction of rows that a threshold keeps, and whether they miss the target."""
        is_kept = self.confidences >= threshold
        if not is_kept.any():
            return 0.0, False
        mean = float(self.accuracies[is_kept].mean())
        missed = (
            mean <= TARGET + 1e-9 if self.baseline_accuracy is None else mean - self.baseline_accuracy <= -MARGIN + 1e-9
        )
        return float(is_kept.mean()), bool(missed)


def _expand_levels(values: Mapping[float, int]) -> Array:
    return np.repeat(list(values), list(values.values())).astype(np.float64)


QUANTILES = (np.arange(N_POINTS) + 0.5) / N_POINTS
CONTINUOUS_CONFIDENCES: Array = 0.3 + 0.7 * QUANTILES**0.1
DISCRETE_CONFIDENCES = _expand_levels({0.5: 8, 0.6: 8, 0.7: 10, 0.8: 14, 0.9: 20, 0.97: 40})

POPULATIONS = (
    Population("continuous, as sure as right", CONTINUOUS_CONFIDENCES, CONTINUOUS_CONFIDENCES),
    Population(
        "continuous, too sure", CONTINUOUS_CONFIDENCES, 0.8 + 0.18 * ((CONTINUOUS_CONFIDENCES - 0.3) / 0.7) ** 3
    ),
    Population(
        "continuous, surest rows worse", CONTINUOUS_CONFIDENCES, np.where(CONTINUOUS_CONFIDENCES > 0.95, 0.945, 0.965)
    ),
    Population("continuous, at the target everywhere", CONTINUOUS_CONFIDENCES, np.full(N_POINTS, TARGET)),
    Population("discrete, as sure as right", DISCRETE_CONFIDENCES, DISCRETE_CONFIDENCES),
    Population("discrete, at the target everywhere", DISCRETE_CONFIDENCES, np.full(len(DISCRETE_CONFIDENCES), TARGET)),
    Population("paired, as sure as right", CONTINUOUS_CONFIDENCES, CONTINUOUS_CONFIDENCES, 0.93),
    Population("paired, at the margin everywhere", CONTINUOUS_CONFIDENCES, np.full(N_POINTS, 0.9), 0.9 + MARGIN),
)


@dataclass(frozen=True)
class CalibrationDraw:
    """Rows from which a threshold is chosen."""

    claim: Claim
    validation_confidences: Array
    """Confidences of validation rows."""
    validation_correct: Array
    confidences: Array
    """Confidences of calibration rows."""
    scores: Array


def draw_calibration(population: Population, n: int, rng: np.random.Generator) -> CalibrationDraw:
    """Return n calibration rows, and as many validation rows, at most VALIDATION_ROWS."""
    validation, correct, _ = population.draw(min(n, VALIDATION_ROWS), rng)
    confidences, _, scores = population.draw(n, rng)
    return CalibrationDraw(population.claim, validation, correct, confidences, scores)


def insource_threshold(draw: CalibrationDraw) -> float | None:
    """Return the threshold that compare/decision/routing_policy.py chooses; None if there is none."""
    thresholds = learn_then_test.build_thresholds(draw.validation_confidences.tolist())
    n = len(draw.confidences)
    start = learn_then_test.find_start(
        draw.claim, thresholds, draw.validation_confidences, draw.validation_correct, n, ALPHA
    )
    result = learn_then_test.run_fixed_sequence(draw.claim, thresholds[start:], draw.confidences, draw.scores, ALPHA)
    return None if result.selected_index is None else result.thresholds[result.selected_index]


class MapieMeanAbove(MeanAbove):
    """The p-value of MAPIE 1.6 for right and wrong: the exact binomial.

    MAPIE rounds the number of wrong rows up from their fraction, which sometimes adds one.
    """

    def p_value(self, scores: Array) -> float:
        """Return the p-value of scores 0 and 1, (n,)."""
        from scipy.stats import binom

        n = len(scores)
        return float(binom.cdf(np.ceil(n * (1 - scores.sum() / n)), n, 1 - self.target)) if n else 1.0


def previous_threshold(draw: CalibrationDraw) -> float | None:
    """Return the threshold of the build before, reimplemented without MAPIE.

    It tests quantiles of the calibration rows' own confidences from strict to loose.
    """
    n = len(draw.confidences)
    min_fraction = min(0.9, max(0.05, 2 * log(ALPHA) / log(TARGET) / n))
    steps = np.unique(np.quantile(draw.confidences, np.linspace(1 - min_fraction, 0, PREVIOUS_STEPS)))[::-1].tolist()
    result = learn_then_test.run_fixed_sequence(MapieMeanAbove(TARGET), steps, draw.confidences, draw.scores, ALPHA)
    return None if result.selected_index is None else float(steps[result.selected_index])


def untested_threshold(draw: CalibrationDraw) -> float | None:
    """Return the loosest confidence of calibration rows above which these rows meet the target."""
    order = np.argsort(-draw.confidences, kind="stable")
    thresholds = np.unique(draw.confidences)
    means = np.cumsum(draw.scores[order])[learn_then_test.count_kept(draw.confidences, thresholds.tolist()) - 1]
    means /= learn_then_test.count_kept(draw.confidences, thresholds.tolist())
    meets_target = means >= (TARGET if isinstance(draw.claim, MeanAbove) else -MARGIN)
    return float(thresholds[meets_target].min()) if meets_target.any() else None


METHODS: Mapping[str, Callable[[CalibrationDraw], float | None]] = {
    "insource": insource_threshold,
    "the build before": previous_threshold,
    "no test": untested_threshold,
}
# The build before had no method for differences.
PAIRED_METHODS = ("insource", "no test")
