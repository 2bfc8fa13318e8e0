"""The loosest threshold on a confidence above which answers keep a target: Learn then Test with a fixed sequence.

thresholds 0.99, 0.98, ... 0.31, 0 of validation rows; 900 calibration rows; 95% right, with 95% confidence
  -> begins at 0.93, 27 thresholds tested, 0.66 is the last that passes: p = 0.021

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv:2110.01052): each threshold is a hypothesis,
"the answers kept by it miss the target", with a p-value of the calibration rows. They are tested from strict to loose,
each at 1 - confidence, until one cannot be rejected. So the chance that any threshold which passed misses the target is
at most 1 - confidence. That needs thresholds, and a place where the sequence begins, which do not depend on the
calibration rows: both are of validation rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log
from typing import Protocol

import numpy as np
import numpy.typing as npt

from insource.stats.metric_stats import Array

MAX_THRESHOLDS = 100
POWER = 0.8
# Nobody labels more than this.
MAX_ROWS = 1_000_000
# Numbers of rows that are tried, each about a tenth larger than the last.
ROW_GRID_SIZE = 100
# Fewer kept rows tell nothing of the rows that would be needed.
MIN_KEPT_ROWS = 20
# Share of misses that is given away to bound how often two systems differ (Berger and Boos 1994), and how many such
# shares are tried.
BETA, NUISANCE_GRID_SIZE = 1e-3, 17


class Claim(Protocol):
    """What is to be shown of the rows that a threshold keeps."""

    def p_value(self, scores: Array) -> float:
        """Returns the probability of scores as good as these, or better, where the claim is false."""

    def expected(self, right: Array) -> tuple[Array, Array]:
        """Returns mean and standard deviation of scores where such shares of the answers are right."""

    def spread(self, scores: Array) -> tuple[float, float]:
        """Returns mean and standard deviation of scores, with one of the best and one of the worst added, so that a few
        equal ones do not look sure."""

    def chance(self, mean: Array, deviation: Array, rows: Array, alpha: float) -> Array:
        """Returns the probability that so many kept rows show the claim at `alpha`, for each mean and deviation."""

    def least_rows(self, alpha: float) -> int:
        """Returns how many kept rows show the claim at `alpha` where none of them speaks against it."""


@dataclass(frozen=True)
class MeanAbove:
    """More than `target` of the kept answers are right; or the mean of scores from 0 to 1 is above it."""

    target: float

    def p_value(self, scores: Array) -> float:
        """Returns the exact binomial p-value of scores 0 and 1, that of Hoeffding and Bentkus of others."""
        from scipy.stats import binom

        n = len(scores)
        if not n:
            return 1.0
        if np.all((scores == 0) | (scores == 1)):
            return float(binom.sf(np.sum(scores) - 1, n, self.target))
        return hoeffding_bentkus(float(np.mean(scores)), n, self.target)

    def expected(self, right: Array) -> tuple[Array, Array]:
        return right, np.sqrt(right * (1 - right))

    def spread(self, scores: Array) -> tuple[float, float]:
        padded = np.append(scores, [0.0, 1.0])
        return float(padded.mean()), float(padded.std())

    def chance(self, mean: Array, deviation: Array, rows: Array, alpha: float) -> Array:
        from scipy.stats import binom

        whole = np.floor(rows)
        # One more right than this has a p-value of at most alpha; of too few rows there is no such count.
        return np.asarray(binom.sf(binom.isf(alpha, whole, self.target), whole, mean))

    def least_rows(self, alpha: float) -> int:
        return ceil(log(alpha) / log(self.target) - 1e-9)


@dataclass(frozen=True)
class NonInferior:
    """The kept answers are right at most `margin` less often than another system's answers to the same rows. Scores are
    differences: 1 where the first system alone is right, -1 where the other is, else 0."""

    margin: float

    def p_value(self, scores: Array) -> float:
        """Returns the exact unconditional p-value, see `difference_p_value`. Raises ValueError for other scores."""
        won, lost = int(np.sum(scores == 1)), int(np.sum(scores == -1))
        if won + lost + int(np.sum(scores == 0)) != len(scores):
            raise ValueError("scores of a paired comparison are 1, 0 and -1")
        return difference_p_value(won, lost, len(scores), self.margin)

    def expected(self, right: Array) -> tuple[Array, Array]:
        # The other system is not asked for validation rows: as if it were right as often, and independently.
        return np.zeros_like(right), np.sqrt(2 * right * (1 - right))

    def spread(self, scores: Array) -> tuple[float, float]:
        padded = np.append(scores, [-1.0, 1.0])
        return float(padded.mean()), float(padded.std())

    def chance(self, mean: Array, deviation: Array, rows: Array, alpha: float) -> Array:
        from scipy.special import ndtr, ndtri

        probability = ndtr(ndtri(alpha) + np.sqrt(rows) * (mean + self.margin) / deviation)
        return np.where(rows < self.least_rows(alpha), 0.0, probability)

    def least_rows(self, alpha: float) -> int:
        return ceil(log(alpha) / log(1 - self.margin) - 1e-9)


@dataclass(frozen=True)
class FixedSequenceResult:
    """A fixed sequence of thresholds, strict to loose, and how far it was passed."""

    thresholds: Sequence[float]
    """All that were to be tested, of validation rows."""
    p_values: Sequence[float]
    """Of those that were tested; all but the last pass, and the last where none failed."""
    alpha: float

    @property
    def chosen(self) -> int | None:
        """Returns which threshold is the loosest that passed, None where the first did not."""
        passed = sum(p_value <= self.alpha for p_value in self.p_values)
        return passed - 1 if passed else None


def build_thresholds(confidences: Sequence[float], max_thresholds: int = MAX_THRESHOLDS) -> list[float]:
    """Returns thresholds from strict to loose: confidences of (validation) rows, in equal steps of rows, and last 0,
    which keeps everything. Equal ones are one threshold."""
    values = np.asarray(confidences, dtype=np.float64)
    if not len(values):
        return [0.0]
    steps = np.quantile(values, np.linspace(0, 1, max_thresholds - 1), method="inverted_cdf")
    return [float(threshold) for threshold in np.unique(np.append(steps, 0.0))[::-1]]


def count_kept(confidences: Array, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Returns how many rows each threshold keeps."""
    return len(confidences) - np.searchsorted(np.sort(confidences), np.asarray(thresholds), side="left")


def find_start(
    claim: Claim, thresholds: Sequence[float], confidences: Array, right: Array, rows: int, alpha: float
) -> int:
    """Returns where the sequence begins, for so many calibration rows: at the threshold whose chance to pass is the
    best, by confidences and right answers of validation rows.

    A stricter one keeps too few rows to show anything, and a fixed sequence ends at its first failure.
    """
    order = np.argsort(-confidences, kind="stable")
    hits = np.append(0.0, np.cumsum(right[order]))
    counts = count_kept(confidences, thresholds)
    # With one row for and one against, so that the strictest rows do not look surer than they are.
    mean, deviation = claim.expected((hits[counts] + 1) / (counts + 2))
    expected_rows = rows * counts / max(1, len(confidences))
    power = claim.chance(mean, deviation, expected_rows, alpha)
    return int(np.argmax(power if power.max() > 0 else expected_rows))


def run_fixed_sequence(
    claim: Claim, thresholds: Sequence[float], confidences: Array, scores: Array, alpha: float
) -> FixedSequenceResult:
    """Returns how far calibration rows pass a sequence of thresholds that does not depend on them."""
    order = np.argsort(-confidences, kind="stable")
    ordered, p_values = scores[order], []
    for count in count_kept(confidences, thresholds):
        p_values.append(claim.p_value(ordered[:count]))
        if p_values[-1] > alpha:
            break
    return FixedSequenceResult(thresholds, p_values, alpha)


def estimate_required_rows(
    claim: Claim, thresholds: Sequence[float], confidences: Array, scores: Array, alpha: float
) -> int | None:
    """Returns about how many calibration rows would show the claim for some threshold in four of five cases, if answers
    are as good as these; None where no threshold passes it in truth, so that no number of rows would."""
    ordered = scores[np.argsort(-confidences, kind="stable")]
    counts = [int(count) for count in count_kept(confidences, thresholds) if count >= MIN_KEPT_ROWS]
    if not counts:
        return None
    mean, deviation = np.array([claim.spread(ordered[:count]) for count in counts]).T
    shares = np.array(counts) / len(confidences)
    # By the best of many thresholds it would look easier than it is: half a standard error is taken off.
    mean = mean - deviation / np.sqrt(counts) / 2
    for rows in np.geomspace(claim.least_rows(alpha), MAX_ROWS, ROW_GRID_SIZE):
        if claim.chance(mean, deviation, rows * shares, alpha).max() >= POWER:
            return ceil(float(rows))
    return None


def hoeffding_bentkus(mean: float, n: int, target: float) -> float:
    """Returns the p-value of "scores from 0 to 1 have a mean of at most `target`" (Bates et al. 2021, Journal of the
    ACM 68, 43; Angelopoulos et al. 2021, proposition 6)."""
    from scipy.special import rel_entr
    from scipy.stats import binom

    if mean <= target:
        return 1.0
    hoeffding = np.exp(-n * (rel_entr(mean, target) + rel_entr(1 - mean, 1 - target)))
    bentkus = np.e * binom.sf(floor(n * mean + 1e-9) - 1, n, target)
    return float(min(1.0, hoeffding, bentkus))


def difference_p_value(won: int, lost: int, n: int, margin: float) -> float:
    """Returns the exact p-value of "the first system is right less often by `margin` or more", of n paired rows.

    won, lost: rows that the first, or the other, system alone has right. The statistic is won - lost. How often the two
    differ is not known: the p-value is the largest over all such shares up to a bound that holds but with probability
    BETA, which is added (Berger and Boos 1994, JASA 89, 1012-1016). At a given share the difference of just the margin
    is the least favourable, since moving a row from lost to won can only raise the statistic.
    """
    from scipy.special import betaincinv
    from scipy.stats import binom

    if not n:
        return 1.0
    differing = won + lost
    max_share = 1.0 if differing == n else float(betaincinv(differing + 1, n - differing, 1 - BETA))
    if max_share <= margin:
        return BETA
    shares = np.linspace(margin, max_share, NUISANCE_GRID_SIZE)[:, None]
    # Counts of differing rows that practically never occur are left out, and added as if they spoke against it.
    low, high = int(binom.ppf(BETA * 1e-6, n, margin)), int(binom.isf(BETA * 1e-6, n, max_share))
    counts = np.arange(low, high + 1)[None, :]
    min_won = np.ceil((counts + won - lost) / 2)
    probabilities = binom.pmf(counts, n, shares) * binom.sf(min_won - 1, counts, (shares - margin) / (2 * shares))
    return float(min(1.0, probabilities.sum(axis=1).max() + BETA * (1 + 2e-6)))
