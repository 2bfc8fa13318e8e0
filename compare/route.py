"""The routing policy: from which confidence on the owned model may answer alone.

routing.json
{"threshold": 0.83, "target_accuracy": 0.95, "confidence": 0.95, "calibration_rows": 1180, "coverage": 0.71,
 "accuracy": 0.968, "why_none": null}

Thresholds are tried from strict to loose on calibration rows, which serve nothing else, until one cannot be shown to
keep the target (Learn then Test, Angelopoulos et al. 2021, fixed sequence; MAPIE). Then, with the confidence asked for,
the answers above the threshold are right at least as often as the target says. "None can be shown" is a usual outcome.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recipes.schema_verdict import Route

# Below this many rows nothing tight can be shown.
LEAST_ROWS = 50
STEPS = 200


@dataclass(frozen=True)
class Policy:
    """What was found."""

    threshold: float | None
    """None: no threshold can be shown to keep the target."""
    target_accuracy: float
    confidence: float
    calibration_rows: int
    coverage: float | None
    """Share of calibration rows that the owned model would answer alone."""
    accuracy: float | None
    """Of those, the share that it has right."""
    why_none: str | None

    def json(self) -> dict[str, Any]:
        """Returns routing.json."""
        return asdict(self)


def policy(confidences: Sequence[float | None], right: Sequence[float], route: Route) -> Policy:
    """Returns the loosest threshold that keeps `route.target_accuracy` with `route.confidence`. An answer of unknown
    confidence never stays."""
    n = len(confidences)

    def none(why: str) -> Policy:
        return Policy(None, route.target_accuracy, route.confidence, n, None, None, why)

    if n < LEAST_ROWS:
        return none(f"{n} calibration rows are too few; give data.split.calibration a larger share")
    if all(one is None for one in confidences):
        return none("the served model tells no probabilities")
    import numpy as np

    told = np.array([0.0 if one is None else one for one in confidences])
    hit = np.asarray(right, dtype=int)
    threshold = _controlled(told, hit, route)
    if threshold is None:
        best = float(hit[told >= np.quantile(told, 0.9)].mean())
        return none(
            f"no threshold can be shown to keep {route.target_accuracy:.0%} with {route.confidence:.0%} confidence on "
            f"{n:,} calibration rows; of the tenth that the model is surest of {best:.1%} are right"
        )
    kept = told >= threshold
    return Policy(
        threshold,
        route.target_accuracy,
        route.confidence,
        n,
        float(kept.mean()),
        float(hit[kept].mean()),
        None,
    )


def _controlled(told: Any, hit: Any, route: Route) -> float | None:
    import numpy as np
    from mapie.risk_control import BinaryClassificationController

    # Thresholds at quantiles: strict to loose in equal steps of coverage. The strictest keep too few rows to show
    # anything, and a fixed sequence ends at its first failure: it begins where enough rows are left.
    least = min(0.9, max(0.05, _least_rows(route) / len(told)))
    steps = np.unique(np.quantile(told, np.linspace(1 - least, 0, STEPS)))[::-1]
    controller = BinaryClassificationController(
        lambda given: np.column_stack([1 - given[:, 0], given[:, 0]]),
        risk="precision",
        target_level=route.target_accuracy,
        confidence_level=route.confidence,
        best_predict_param_choice="recall",
        list_predict_params=steps,
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        # It warns where nothing can be shown, which is told in words here.
        warnings.simplefilter("ignore")
        controller.calibrate(told.reshape(-1, 1), hit)
    found = controller.valid_predict_params
    return float(np.min(found)) if len(found) else None


def _least_rows(route: Route) -> float:
    """Rows that show the target even if every one of them is right: target ** n <= 1 - confidence; some more, since
    one will be wrong."""
    from math import log

    return 2 * log(1 - route.confidence) / log(route.target_accuracy)
