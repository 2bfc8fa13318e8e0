"""The inputs of a verdict."""

from dataclasses import dataclass

from compare.decision.routing_policy import RoutingPolicy
from insource.config.recipe import Recipe
from insource.config.schema.compare import TUNED
from insource.tracking.scores.comparison import Measurements, PairedResult
from insource.tracking.scores.system_result import SystemResult


@dataclass(frozen=True)
class VerdictInputs:
    """The inputs of a verdict: the recipe, scores.json without routing and verdict, and the routing policy."""

    recipe: Recipe
    scores: Measurements
    policy: RoutingPolicy | None

    @property
    def tuned(self) -> SystemResult:
        return self.scores.systems[TUNED]

    @property
    def primary(self) -> PairedResult | None:
        """Return the planned comparison, None if one of its sides was not run."""
        return self.scores.primary_comparison
