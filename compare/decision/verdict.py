"""The verdict: open, closed, hybrid or inconclusive, each reason with its number.

    facts    quality against the planned baseline, what a linear model reaches, the five questions (criteria.py), what
             the router can show
    verdict  "hybrid", because ...

open          own it: as good as the baseline, and the questions speak for it; or the data may not leave
closed        keep paying: owning is worse, or as good but the questions speak against it, or nobody would run it
hybrid        own the bulk: the router shows on which part of the traffic the owned model keeps the target
inconclusive  what was run does not decide it; what would is told

The rule is in rule.py. A stand-in on this machine decides nothing, whatever it scores: it is no provider.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from compare.decision import criteria, verdict_rule
from compare.decision.verdict_inputs import Reason, VerdictInputs
from compare.decision.verdict_rule import Choice, Quality, RuleInputs, Vote
from compare.scoring import completeness
from insource.tasks import metric_label

# Less of the traffic than this is no bulk: two systems would be kept for little.
MIN_COVERAGE = 0.2


@dataclass(frozen=True)
class Verdict:
    """What was found, and why."""

    choice: Choice
    headline: str
    reasons: Sequence[Reason]
    undecided: Sequence[str] = field(default=())
    """What is left open, each with what would decide it."""

    def count(self) -> dict[str, int]:
        """Returns for how many of the five questions the answer is open, closed and neutral."""
        voices = [one.speaks_for for one in self.reasons if one.question]
        return {voice: voices.count(voice) for voice in get_args(Vote)}

    def json(self) -> dict[str, Any]:
        """Returns what scores.json says of the verdict."""
        return {
            "choice": self.choice,
            "headline": self.headline,
            "reasons": [one.json() for one in self.reasons],
            "count": self.count(),
            "undecided": list(self.undecided),
        }


def decide(facts: VerdictInputs) -> Verdict:
    """Returns the verdict."""
    quality, open_questions = _quality(facts)
    judged = _primary_conclusion(facts)
    asked = criteria.answer_questions(facts, decides=judged is not None)
    routed = _routing(facts)
    refused = _incomplete_baseline(facts)
    reasons = [one for one in (refused, _linear_baseline(facts), quality, *asked, routed) if one is not None]
    position = RuleInputs(
        tuned_complete=facts.tuned["complete"],
        quality=judged if quality is not None else None,
        routable=routed is not None and routed.speaks_for == "hybrid",
        owner=facts.recipe.decide.operations_owner,
        form_required=facts.recipe.decide.structured_output == "required",
        voices={one.about: one.speaks_for for one in asked},  # type: ignore[misc]
    )
    choice, why = verdict_rule.apply_rule(position)
    if refused and choice == "inconclusive" and position.quality is None and position.tuned_complete:
        why = refused.says.rstrip(".")
    undecided = [*open_questions, *_open_points(facts, choice, position.voices[verdict_rule.COST])]
    return Verdict(choice, _headline(choice, why, facts), reasons, undecided)


def _primary_conclusion(facts: VerdictInputs) -> Quality | None:
    """How the planned comparison ended, None where it decides nothing."""
    primary, plan = facts.primary, facts.scores["plan"]
    if primary is None or plan is None or not plan["confirmatory"]:
        return None
    baseline = facts.scores["systems"][primary["b"]]
    decides = (
        baseline["kind"] in ("closed", "file") and not baseline["stand_in"] and completeness.is_sufficient(baseline)
    )
    judged: Quality = primary["judged"]
    return judged if decides else None


def _incomplete_baseline(facts: VerdictInputs) -> Reason | None:
    """Why the verdict cannot rest on the planned baseline, where that was tried and not really answered."""
    plan = facts.scores["plan"]
    why = completeness.incomplete_reason(facts.scores, plan["baseline"] if plan else None)
    return Reason("completeness", f"{why}.", None, "INCOMPLETE") if why else None


def _quality(facts: VerdictInputs) -> tuple[Reason | None, list[str]]:
    """What the planned comparison says, and what it leaves open."""
    plan, primary = facts.scores["plan"], facts.primary
    if plan is None:
        return None, ["compare.primary: the recipe plans no comparison; name a baseline, a metric and a margin"]
    if primary is None:
        why = {one["name"]: one["why"] for one in facts.scores["not_run"]}.get(plan["baseline"], "it was not run")
        told = f"Quality against {plan['baseline']} was not measured ({why})."
        return None, [
            f"{told} It is what decides, by {metric_label(plan['metric'])} and a margin of {plan['margin']:.1%}."
        ]
    baseline = facts.scores["systems"][primary["b"]]
    word = {
        "superior": "is better than",
        "non-inferior": "is as good as",
        "worse": "is worse than",
        "undecided": "may or may not be as good as",
    }[primary["judged"]]
    says = (
        f"The tuned model {word} {baseline['title']}: {metric_label(primary['metric'])} "
        f"{facts.value(primary['a']):.1%} "
        f"against {facts.value(primary['b']):.1%} on {primary['n']:,} rows, difference {primary['delta']:+.1%} "
        f"({primary['ci_low']:+.1%} to {primary['ci_high']:+.1%}), margin {primary['margin']:.1%}."
    )
    left = []
    if primary["judged"] == "undecided":
        rows = primary["rows_to_decide"]
        needed = f"about {rows:,} test rows would" if rows else "no number of rows that one would label does"
        left.append(f"Quality is undecided at {primary['n']:,} rows: {needed} decide it if the difference is as seen.")
    if baseline["stand_in"]:
        left.append(
            f"{baseline['title']} ran on this machine: it shows that the comparison works, and decides nothing."
        )
    if not baseline["complete"]:
        left.append(f"{baseline['title']} is INCOMPLETE: {baseline['why_incomplete']}.")
    if not plan["confirmatory"]:
        left.append(f"The comparison only explores: {plan['why_not']}.")
    speaks = {"superior": "open", "non-inferior": "open", "worse": "closed"}.get(_primary_conclusion(facts) or "")
    return Reason("quality", says, speaks, f"{primary['delta']:+.1%}"), left


def _linear_baseline(facts: VerdictInputs) -> Reason | None:
    """The cheapest thing that could do: it is the first line where it does as well."""
    names = [name for name, one in facts.scores["systems"].items() if one["kind"] in ("linear", "nearest")]
    if not names:
        return None
    best = max(names, key=facts.value)
    one, tuned = facts.value(best), facts.value("tuned")
    called, metric = str(facts.scores["systems"][best]["title"]), metric_label(facts.metric)
    title = called[0].upper() + called[1:]
    if one >= tuned:
        margin = facts.scores["plan"]["margin"] if facts.scores["plan"] else 0.0
        word = "better" if one > tuned + margin else "as well"
        says = (
            f"{title} does {word}: {metric} {one:.1%} against {tuned:.1%} of the tuned model. It needs no GPU and "
            "costs next to nothing: take it first."
        )
        return Reason("linear", says, None, f"{one:.1%}")
    return Reason("linear", f"{title} reaches {metric} {one:.1%}, the tuned model {tuned:.1%}.", None, f"{one:.1%}")


def _routing(facts: VerdictInputs) -> Reason | None:
    policy = facts.policy
    if policy is None:
        return None
    if policy.threshold is None or policy.coverage is None or policy.accuracy is None:
        return Reason("routing", f"No part of the traffic can be given to it alone: {policy.why_none}.", None, "none")
    says = (
        f"From a confidence of {policy.threshold:.2f} on it answers {policy.coverage:.0%} of the traffic alone, and "
        f"{policy.accuracy:.1%} of that right ({policy.calibration_rows:,} calibration rows): {policy.target} with "
        f"{policy.confidence:.0%} confidence, on traffic like the calibration rows."
    )
    named = facts.scores["systems"].get(policy.not_worse_than or "")
    bulk = policy.coverage >= MIN_COVERAGE and not (named and named["stand_in"])
    return Reason("routing", says, "hybrid" if bulk else None, f"{policy.coverage:.0%}")


def _open_points(facts: VerdictInputs, choice: Choice, costs: Vote) -> list[str]:
    """What was not run, and what that leaves open."""
    plan = facts.scores["plan"]
    others = [one for one in facts.scores["not_run"] if plan is None or one["name"] != plan["baseline"]]
    found = [f"{one['title']} was not run: {one['why']}." for one in others]
    if choice == "inconclusive" and costs == "neutral":
        found.append("Whether owning would pay: one of its two sides has no cost, see Cost.")
    return found


def _headline(choice: Choice, why: str, facts: VerdictInputs) -> str:
    told = {
        "open": "Own it",
        "closed": "Keep the closed model",
        "hybrid": "Own the bulk, and leave the hard rest to the closed model",
        "inconclusive": "Not decided yet",
    }[choice]
    stand_in = " (the pocket model stood in for the recipe's own)" if facts.scores["base"]["pocket"] else ""
    return f"{told}: {why}{stand_in}."
