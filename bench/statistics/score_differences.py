"""Differences of row scores from -1 to 1 with a known true mean, for bench.parity_check.

    lost entirely   0 0 0 -0.81 0 0 ...    a few rows lose their complete score, the others keep it

The rows are SYNTHETIC. A score before the change is drawn from a beta distribution with mean 0.8.
"""

import numpy as np

from insource.stats.metric_stats import Array

CHANGE_KINDS = ("lost entirely", "lost and won", "many small changes", "many small losses, rare gains")
TRAINED_SCORE_BETA = (8.0, 2.0)
WIN_RATE, CHANGE_RATE, CHANGE_STD, SMALL_LOSS_RATE, RARE_GAIN_RATE = 0.02, 0.3, 0.15, 0.5, 0.004


def draw_differences(kind: str, n: int, drop: float, rng: np.random.Generator) -> Array:
    """Return n differences, served minus trained, with a true mean of -drop.

    lost entirely                  the complete score of a row, in drop / 0.8 of rows
    lost and won                   the same, and as much lost as won in 2% of rows each
    many small changes             30% of rows, normal with a standard deviation of 0.15
    many small losses, rare gains  half of all rows lose a little, 0.4% gain 1

    Raise ValueError for another kind.
    """
    uniform, previous_scores = rng.random(n), rng.beta(*TRAINED_SCORE_BETA, n)
    lost = drop / (TRAINED_SCORE_BETA[0] / sum(TRAINED_SCORE_BETA))
    if kind == "lost entirely":
        return np.where(uniform < lost, -previous_scores, 0.0)
    if kind == "lost and won":
        return np.where(
            uniform < WIN_RATE + lost, -previous_scores, np.where(uniform < 2 * WIN_RATE + lost, previous_scores, 0.0)
        )
    if kind == "many small changes":
        return np.where(uniform < CHANGE_RATE, np.clip(rng.normal(-drop / CHANGE_RATE, CHANGE_STD, n), -1, 1), 0.0)
    if kind == "many small losses, rare gains":
        return np.where(
            uniform < RARE_GAIN_RATE,
            1.0,
            np.where(uniform < RARE_GAIN_RATE + SMALL_LOSS_RATE, -(drop + RARE_GAIN_RATE) / SMALL_LOSS_RATE, 0.0),
        )
    raise ValueError(f"there is no kind of change {kind!r}; give one of {', '.join(CHANGE_KINDS)}")
