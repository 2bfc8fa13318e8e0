"""What a verdict rests on, and what a reason of it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compare.decision.routing_policy import RoutingPolicy
from insource.config.recipe import Recipe


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against."""

    about: str
    says: str
    speaks_for: str | None = None
    """open, closed, hybrid, of the five questions also neutral; None where it only informs."""
    figure: str | None = None
    question: str | None = None
    """Which of the five questions it answers (compare/decision/criteria.py), None where it answers none of them."""

    def json(self) -> dict[str, Any]:
        """Returns what scores.json says of the reason."""
        payload = {"about": self.about, "says": self.says, "for": self.speaks_for, "figure": self.figure}
        return {**payload, "question": self.question}


@dataclass(frozen=True)
class VerdictInputs:
    """What a verdict rests on: scores.json as far as it is written, the recipe, the router."""

    recipe: Recipe
    scores: Mapping[str, Any]
    policy: RoutingPolicy | None

    @property
    def tuned(self) -> Mapping[str, Any]:
        return self.scores["systems"]["tuned"]  # type: ignore[no-any-return]

    @property
    def primary(self) -> Mapping[str, Any] | None:
        """Returns the planned comparison, None where one of its sides was not run."""
        return next(
            (comparison for comparison in self.scores["comparisons"] if comparison["family"] == "primary"), None
        )

    @property
    def metric(self) -> str:
        """Returns the metric that decides."""
        plan = self.scores["plan"]
        return str(plan["metric"] if plan else self.scores["task"]["metrics"][0])

    def value(self, name: str) -> float:
        """Returns a system's value of the metric that decides."""
        return float(self.scores["systems"][name]["metrics"][self.metric]["value"])
