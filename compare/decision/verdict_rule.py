"""The rule of the verdict, from quality, routing policy and the five questions to a choice (docs/comparing.md).

RuleInputs(tuned_complete=True, quality="non-inferior", routable=False, has_maintainer=True,
           structured_output_required=True,
           votes={"privacy": "neutral", "cost": "open", "structured output": "neutral", "engineering": "neutral",
                  "prompt changes": "closed"})
"open", "it is as good, and cheaper at this volume"            one vote each: the cost decides a tie
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from insource.stats.paired import Conclusion
from insource.tracking.scores.comparison import Choice, Vote

PRIVACY, COST, STRUCTURE, ENGINEERING, PROMPTS = QUESTIONS = (
    "privacy",
    "cost",
    "structured output",
    "engineering",
    "prompt changes",
)
COUNTED_QUESTIONS = (COST, STRUCTURE, ENGINEERING, PROMPTS)
"""Questions that are counted if quality is as good. Privacy decides before them."""


@dataclass(frozen=True)
class RuleInputs:
    """All inputs of the choice."""

    tuned_complete: bool
    """Whether the tuned model got every row."""
    quality: Conclusion | None
    """The conclusion of the planned comparison; None if it decides nothing."""
    routable: bool
    """Whether the routing policy reaches its target on enough of the traffic."""
    has_maintainer: bool
    """Whether the tuned model has a maintainer."""
    structured_output_required: bool
    """Whether structured output is required, not only useful."""
    votes: Mapping[str, Vote]
    """The vote of each of QUESTIONS."""


def apply_rule(inputs: RuleInputs) -> tuple[Choice, str]:
    """Return the choice and a short text with the deciding reason."""
    if not inputs.tuned_complete:
        return "inconclusive", "the tuned model was not queried for every row"
    if inputs.votes[PRIVACY] == "open":
        return "open", "the data may not leave, so an API model cannot be chosen"
    if inputs.quality is None:
        return "inconclusive", "no API model was compared by the plan"
    if not inputs.has_maintainer:
        return "closed", "nobody would maintain a self-hosted model"
    if inputs.quality == "worse":
        if inputs.routable:
            return "hybrid", "it is worse than the baseline, but keeps the target on part of the traffic"
        return "closed", "it is worse than the baseline by more than the margin"
    if inputs.quality == "undecided":
        if inputs.routable:
            return (
                "hybrid",
                "the rows do not show that it is as good overall, but it keeps the target on part of the traffic",
            )
        return "inconclusive", "the rows do not show whether it is as good"
    return _choose_by_questions(inputs, "it is better" if inputs.quality == "superior" else "it is as good")


def _choose_by_questions(inputs: RuleInputs, quality: str) -> tuple[Choice, str]:
    """Return the choice between two models if the tuned one is at least as good."""
    structure, cost = inputs.votes[STRUCTURE], inputs.votes[COST]
    if inputs.structured_output_required and structure == "open":
        return "open", f"{quality}, and only its answers have the required form"
    if inputs.structured_output_required and structure == "closed":
        return "closed", f"{quality}, but only the API model's answers have the required form"
    if cost == "neutral":
        return "inconclusive", f"{quality}, but the cost of one of the two was not measured"
    votes = Counter(inputs.votes[question] for question in COUNTED_QUESTIONS)
    # The cost decides a tie.
    choice: Literal["open", "closed"] = cost
    if votes["open"] != votes["closed"]:
        choice = "open" if votes["open"] > votes["closed"] else "closed"
    if choice == cost:
        return choice, f"{quality}, " + {"open": "and cheaper", "closed": "but more expensive"}[
            cost
        ] + " at this volume"
    price, side = ("more expensive", "for") if choice == "open" else ("cheaper", "against")
    others = f"{votes[choice]} of the other questions are {side} self-hosting"
    return choice, f"{quality} and {price} at this volume, but {others}"
