"""The inputs of a verdict, and its reasons."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compare.decision.routing_policy import RoutingPolicy
from insource.config.recipe import Recipe


@dataclass(frozen=True)
class Reason:
    """One reason for or against self-hosting."""

    topic: str
    text: str
    favors: str | None = None
    """open, closed or hybrid, for the five questions also neutral; None if it is only information."""
    value: str | None = None
    question: str | None = None
    """The text of the question that it answers (compare/decision/criteria.py), None if it answers none."""

    def json(self) -> dict[str, Any]:
        """Return the entry of the reason in scores.json."""
        payload = {"about": self.topic, "says": self.text, "for": self.favors, "figure": self.value}
        return {**payload, "question": self.question}


@dataclass(frozen=True)
class VerdictInputs:
    """The inputs of a verdict: the recipe, scores.json without the verdict, and the routing policy."""

    recipe: Recipe
    scores: Mapping[str, Any]
    policy: RoutingPolicy | None

    @property
    def tuned(self) -> Mapping[str, Any]:
        return self.scores["systems"]["tuned"]  # type: ignore[no-any-return]

    @property
    def primary(self) -> Mapping[str, Any] | None:
        """Return the planned comparison, None if one of its sides was not run."""
        return next(
            (comparison for comparison in self.scores["comparisons"] if comparison["family"] == "primary"), None
        )

    @property
    def metric(self) -> str:
        """Return the deciding metric."""
        plan = self.scores["plan"]
        return str(plan["metric"] if plan else self.scores["task"]["metrics"][0])

    def value(self, name: str) -> float:
        """Return a system's value of the deciding metric."""
        return float(self.scores["systems"][name]["metrics"][self.metric]["value"])
