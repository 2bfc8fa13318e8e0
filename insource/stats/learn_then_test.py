"""The lowest confidence threshold whose answers meet a target: Learn then Test with a fixed sequence.

thresholds 0.99, 0.98, ... 0.31, 0 of validation rows; 900 calibration rows; 95% right, with 95% confidence
  -> begins at 0.93, 27 thresholds tested, 0.66 is the last that passes: p = 0.021

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv:2110.01052): each threshold is a hypothesis,
"the answers above it miss the target", with a p-value from the calibration rows. Thresholds are tested from strict to
loose, each at 1 - confidence, until one is not rejected. The probability that any passed threshold misses the target
is then at most 1 - confidence. Thresholds and the start of the sequence must not depend on the calibration rows, so
both come from validation rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from insource.stats.metric_stats import Array

MAX_THRESHOLDS = 100
POWER = 0.8
# Upper limit of required rows; larger numbers are not worth labelling.
MAX_ROWS = 1_000_000
# Number of row counts that estimate_required_rows tries; each is about 10% larger than the last.
ROW_GRID_SIZE = 100
# Fewer kept rows are too few to estimate the required rows.
MIN_KEPT_ROWS = 20
# Error probability spent on the bound of the discordant proportion (Berger and Boos 1994), and the number of
# proportions that are tried.
BETA, NUISANCE_GRID_SIZE = 1e-3, 17


class Claim(Protocol):
    """A claim about the scores of the rows that a threshold keeps. The best score is 1."""

    WORST_SCORE: ClassVar[float]

    def p_value(self, scores: Array) -> float:
        """Return the probability of scores as good as these, or better, if the claim is false."""

    def expected_moments(self, correct: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of scores, for these proportions of right answers."""

    def power(self, mean: Array, deviation: Array, rows: Array, alpha: float) -> Array:
        """Return the probability that this many kept rows show the claim at `alpha`, for each mean and deviation."""

    def min_rows(self, alpha: float) -> int:
        """Return a number of kept rows below which the claim is not shown at `alpha`, if all answers are right."""


@dataclass(frozen=True)
class MeanAbove:
    """More than `target` of the kept answers are right, or the mean of scores in [0, 1] is above `target`."""

    WORST_SCORE: ClassVar[float] = 0.0
    target: float

    def p_value(self, scores: Array) -> float:
        """Return the exact binomial p-value for scores 0 and 1, that of Hoeffding and Bentkus for others."""
        from scipy.stats import binom

        n = len(scores)
        if not n:
            return 1.0
        if np.all((scores == 0) | (scores == 1)):
            return float(binom.sf(np.sum(scores) - 1, n, self.target))
        return hoeffding_bentkus(float(np.mean(scores)), n, self.target)

    def expected_moments(self, correct: Array) -> tuple[Array, Array]:
        return correct, np.sqrt(correct * (1 - correct))

    def power(self, mean: Array, deviation: Array, rows: Array, alpha: float) -> Array:
        from scipy.stats import binom

        n_rows = np.floor(rows)
        # One more right answer than isf has a p-value of at most alpha. Too few rows have no such count.
        return np.asarray(binom.sf(binom.isf(alpha, n_rows, self.target), n_rows, mean))

    def min_rows(self, alpha: float) -> int:
        return ceil(log(alpha) / log(self.target) - 1e-9)


@dataclass(frozen=True)
class NonInferior:
    """The kept answers are right at most `margin` less often than another system's answers to the same rows.

    Scores are differences: 1 if only the first system is right, -1 if only the other is, else 0.
    """

    WORST_SCORE: ClassVar[float] = -1.0
    margin: float

    def p_value(self, scores: Array) -> float:
        """Return the exact unconditional p-value, see difference_p_value. Raises ValueError for other scores."""
        won, lost = int(np.sum(scores == 1)), int(np.sum(scores == -1))
        if won + lost + int(np.sum(scores == 0)) != len(scores):
            raise ValueError("scores of a paired comparison are 1, 0 and -1")
        return difference_p_value(won, lost, len(scores), self.margin)

    def expected_moments(self, correct: Array) -> tuple[Array, Array]:
        # The other system does not answer validation rows: assume the same proportion, independently.
        return np.zeros_like(correct), np.sqrt(2 * correct * (1 - correct))

    def power(self, mean: Array, deviation: Array, rows: Array, alpha: float) -> Array:
        from scipy.special import ndtr, ndtri

        probability = ndtr(ndtri(alpha) + np.sqrt(rows) * (mean + self.margin) / deviation)
        return np.where(rows < self.min_rows(alpha), 0.0, probability)

    def min_rows(self, alpha: float) -> int:
        # All scores are 0, because the other system's answers are right too. If it is wrong, fewer rows suffice.
        return ceil(log(alpha) / log(1 - self.margin) - 1e-9)


@dataclass(frozen=True)
class FixedSequenceResult:
    """A fixed sequence of thresholds, strict to loose, and its p-values."""

    thresholds: Sequence[float]
    """All planned thresholds, from validation rows."""
    p_values: Sequence[float]
    """P-values of the tested thresholds. All but the last pass; the last passes if no threshold failed."""
    alpha: float

    @property
    def selected_index(self) -> int | None:
        """Return the index of the loosest threshold that passed, None if the first failed."""
        passed = sum(p_value <= self.alpha for p_value in self.p_values)
        return passed - 1 if passed else None


def build_thresholds(confidences: Sequence[float], max_thresholds: int = MAX_THRESHOLDS) -> list[float]:
    """Return thresholds from strict to loose: confidences of validation rows in equal steps of rows, and 0 at the end.

    0 keeps all rows. Equal thresholds are merged.
    """
    values = np.asarray(confidences, dtype=np.float64)
    if not len(values):
        return [0.0]
    steps = np.quantile(values, np.linspace(0, 1, max_thresholds - 1), method="inverted_cdf")
    return [float(threshold) for threshold in np.unique(np.append(steps, 0.0))[::-1]]


def count_kept(confidences: Array, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the number of rows that each threshold keeps."""
    return len(confidences) - np.searchsorted(np.sort(confidences), np.asarray(thresholds), side="left")


def find_start(
    claim: Claim, thresholds: Sequence[float], confidences: Array, correct: Array, rows: int, alpha: float
) -> int:
    """Return the index of the threshold with the highest probability to pass, for `rows` calibration rows.

    `confidences` and `correct` are of validation rows. A stricter threshold keeps too few rows to show the claim, and a
    fixed sequence ends at its first failure.
    """
    order = np.argsort(-confidences, kind="stable")
    hits = np.append(0.0, np.cumsum(correct[order]))
    counts = count_kept(confidences, thresholds)
    # One right and one wrong row are added, so that the strictest rows do not look certain.
    mean, deviation = claim.expected_moments((hits[counts] + 1) / (counts + 2))
    expected_rows = rows * counts / max(1, len(confidences))
    power = claim.power(mean, deviation, expected_rows, alpha)
    return int(np.argmax(power if power.max() > 0 else expected_rows))


def run_fixed_sequence(
    claim: Claim, thresholds: Sequence[float], confidences: Array, scores: Array, alpha: float
) -> FixedSequenceResult:
    """Return the p-values of calibration rows for thresholds that do not depend on these rows."""
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
    """Return the approximate number of calibration rows that show the claim for some threshold with a power of 80%.

    Assumes answers as good as these. None if no threshold meets the claim, so that no number of rows suffices.
    """
    ordered = scores[np.argsort(-confidences, kind="stable")]
    counts = [int(count) for count in count_kept(confidences, thresholds) if count >= MIN_KEPT_ROWS]
    if not counts:
        return None
    # One worst and one best score are added, so that a few equal scores do not look certain.
    padded = [np.append(ordered[:count], [claim.WORST_SCORE, 1.0]) for count in counts]
    mean, deviation = (np.array([moment(scores) for scores in padded]) for moment in (np.mean, np.std))
    shares = np.array(counts) / len(confidences)
    # The best of many thresholds is optimistic: half a standard error is subtracted.
    mean = mean - deviation / np.sqrt(counts) / 2
    for rows in np.geomspace(claim.min_rows(alpha), MAX_ROWS, ROW_GRID_SIZE):
        if claim.power(mean, deviation, rows * shares, alpha).max() >= POWER:
            return ceil(float(rows))
    return None


def hoeffding_bentkus(mean: float, n: int, target: float) -> float:
    """Return the p-value of "scores in [0, 1] have a mean of at most `target`".

    Source: Bates et al. 2021, Journal of the ACM 68, 43; Angelopoulos et al. 2021, proposition 6.
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    if mean <= target:
        return 1.0
    hoeffding = np.exp(-n * (rel_entr(mean, target) + rel_entr(1 - mean, 1 - target)))
    bentkus = np.e * binom.sf(floor(n * mean + 1e-9) - 1, n, target)
    return float(min(1.0, hoeffding, bentkus))


def difference_p_value(won: int, lost: int, n: int, margin: float) -> float:
    """Return the exact p-value of "the first system is right less often by `margin` or more", for n paired rows.

    won, lost: rows that only the first, or only the other, system has right. The statistic is won - lost. The
    discordant proportion is unknown: the p-value is the maximum over all proportions up to a bound. The bound fails
    with probability BETA, which is added (Berger and Boos 1994, JASA 89, 1012-1016). At a given proportion, a true
    difference of exactly the margin is least favorable, since moving a row from lost to won can only raise the
    statistic.
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
    # Very improbable counts of discordant rows are skipped; their probability is added to the p-value.
    low, high = int(binom.ppf(BETA * 1e-6, n, margin)), int(binom.isf(BETA * 1e-6, n, max_share))
    counts = np.arange(low, high + 1)[None, :]
    min_won = np.ceil((counts + won - lost) / 2)
    probabilities = binom.pmf(counts, n, shares) * binom.sf(min_won - 1, counts, (shares - margin) / (2 * shares))
    return float(min(1.0, probabilities.sum(axis=1).max() + BETA * (1 + 2e-6)))
