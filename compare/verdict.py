"""The verdict: open, closed, hybrid or inconclusive, each reason with its number.

    facts    quality against the planned baseline, what a linear model reaches, break-even against the volume, answers
             that fit the schema, the five questions of `decide:`, what the router can show
    verdict  "hybrid", because ...

open          own it: as good as the baseline, and cheaper at this volume; or the data may not leave
closed        keep paying: owning is worse, or as good but dearer, or nobody would look after it
hybrid        own the bulk: the router shows on which part of the traffic the owned model keeps the target
inconclusive  what was run does not decide it; what would is told

A stand-in on this machine decides nothing, whatever it scores: it is no provider.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from compare import completeness
from compare.route import Policy
from recipes.schema import Recipe
from tasks import in_words

Choice = Literal["open", "closed", "hybrid", "inconclusive"]
# Less of the traffic than this is no bulk: two systems would be kept for little.
LEAST_COVERAGE = 0.2


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against."""

    about: str
    says: str
    speaks_for: str | None = None
    """open, closed, hybrid, or None where it only informs."""
    figure: str | None = None

    def json(self) -> dict[str, Any]:
        return {"about": self.about, "says": self.says, "for": self.speaks_for, "figure": self.figure}


@dataclass(frozen=True)
class Verdict:
    """What was found, and why."""

    choice: Choice
    headline: str
    reasons: Sequence[Reason]
    undecided: Sequence[str] = field(default=())
    """What is left open, each with what would decide it."""

    def json(self) -> dict[str, Any]:
        """Returns what scores.json says of the verdict."""
        reasons = [one.json() for one in self.reasons]
        return {
            "choice": self.choice,
            "headline": self.headline,
            "reasons": reasons,
            "undecided": list(self.undecided),
        }


@dataclass(frozen=True)
class Facts:
    """What a verdict rests on: scores.json as far as it is written, the recipe, the router."""

    recipe: Recipe
    scores: Mapping[str, Any]
    policy: Policy | None

    @property
    def tuned(self) -> Mapping[str, Any]:
        return self.scores["systems"]["tuned"]  # type: ignore[no-any-return]

    @property
    def primary(self) -> Mapping[str, Any] | None:
        """Returns the planned comparison, None where one of its sides was not run."""
        return next((one for one in self.scores["comparisons"] if one["family"] == "primary"), None)

    @property
    def metric(self) -> str:
        """Returns the metric that decides."""
        plan = self.scores["plan"]
        return str(plan["metric"] if plan else self.scores["task"]["metrics"][0])

    def value(self, name: str) -> float:
        """Returns a system's value of the metric that decides."""
        return float(self.scores["systems"][name]["metrics"][self.metric]["value"])


def of(facts: Facts) -> Verdict:
    """Returns the verdict."""
    quality, open_questions = _quality(facts)
    linear, costs = _linear(facts), _cost(facts)
    asked = [_privacy(facts), costs, _structure(facts), _engineering(facts), _prompt_changes(facts)]
    routed = _router(facts)
    reasons = [one for one in (_not_answered(facts), linear, quality, *asked, routed) if one is not None]
    choice, why = _choice(facts, quality, costs, routed)
    return Verdict(choice, _headline(choice, why, facts), reasons, [*open_questions, *_left_open(facts, choice, costs)])


def _choice(facts: Facts, quality: Reason | None, costs: Reason | None, routed: Reason | None) -> tuple[Choice, str]:
    """The choice and, in a few words, what decided it."""
    decide, may_leave = facts.recipe.decide, facts.recipe.privacy.data_may_leave
    if not facts.tuned["complete"]:
        return "inconclusive", "the tuned model was not asked every row"
    if not may_leave:
        return "open", "the data may not leave, so a closed model is no choice"
    if quality is None or (judged := _judged(facts)) is None:
        refused = _not_answered(facts)
        return "inconclusive", refused.says.rstrip(".") if refused else "no closed model was compared by the plan"
    if not decide.operations_owner:
        return "closed", "nobody would look after a model of one's own"
    hybrid = routed is not None and routed.speaks_for == "hybrid"
    if judged == "worse":
        told = "it is worse than the baseline, but keeps the target on part of the traffic"
        return ("hybrid", told) if hybrid else ("closed", "it is worse than the baseline by more than the margin")
    if judged == "undecided":
        told = "the rows do not show that it is as good overall, but it keeps the target on part of the traffic"
        return ("hybrid", told) if hybrid else ("inconclusive", "the rows do not show whether it is as good")
    if costs is None or costs.speaks_for is None:
        return "inconclusive", "it is as good, but what owning costs was not measured"
    return (
        ("open", "it is as good, and cheaper at this volume")
        if costs.speaks_for == "open"
        else (
            "closed",
            "it is as good, but dearer at this volume",
        )
    )


def _judged(facts: Facts) -> str | None:
    """How the planned comparison ended, None where it decides nothing."""
    primary, plan = facts.primary, facts.scores["plan"]
    if primary is None or plan is None or not plan["confirmatory"]:
        return None
    baseline = facts.scores["systems"][primary["b"]]
    decides = baseline["kind"] in ("closed", "file") and not baseline["stand_in"] and completeness.enough(baseline)
    return str(primary["judged"]) if decides else None


def _not_answered(facts: Facts) -> Reason | None:
    """Why the verdict cannot rest on the planned baseline, where that was tried and not really answered."""
    plan = facts.scores["plan"]
    why = completeness.why_not(facts.scores, plan["baseline"] if plan else None)
    return Reason("completeness", f"{why}.", None, "INCOMPLETE") if why else None


def _quality(facts: Facts) -> tuple[Reason | None, list[str]]:
    """What the planned comparison says, and what it leaves open."""
    plan, primary = facts.scores["plan"], facts.primary
    if plan is None:
        return None, ["compare.primary: the recipe plans no comparison; name a baseline, a metric and a margin"]
    if primary is None:
        why = {one["name"]: one["why"] for one in facts.scores["not_run"]}.get(plan["baseline"], "it was not run")
        told = f"Quality against {plan['baseline']} was not measured ({why})."
        return None, [f"{told} It is what decides, by {in_words(plan['metric'])} and a margin of {plan['margin']:.1%}."]
    baseline = facts.scores["systems"][primary["b"]]
    word = {
        "superior": "is better than",
        "non-inferior": "is as good as",
        "worse": "is worse than",
        "undecided": "may or may not be as good as",
    }[primary["judged"]]
    says = (
        f"The tuned model {word} {baseline['title']}: {in_words(primary['metric'])} {facts.value(primary['a']):.1%} "
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
    speaks = {"superior": "open", "non-inferior": "open", "worse": "closed"}.get(_judged(facts) or "")
    return Reason("quality", says, speaks, f"{primary['delta']:+.1%}"), left


def _linear(facts: Facts) -> Reason | None:
    """The cheapest thing that could do: it is the first line where it does as well."""
    names = [name for name, one in facts.scores["systems"].items() if one["kind"] in ("linear", "nearest")]
    if not names:
        return None
    best = max(names, key=facts.value)
    one, tuned = facts.value(best), facts.value("tuned")
    called, metric = str(facts.scores["systems"][best]["title"]), in_words(facts.metric)
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


def _privacy(facts: Facts) -> Reason:
    if facts.recipe.privacy.data_may_leave:
        return Reason("privacy", "The data may leave this machine (privacy.data_may_leave).", None, "yes")
    return Reason("privacy", "The data may not leave: no provider was asked, and none can be chosen.", "open", "no")


def _cost(facts: Facts) -> Reason | None:
    """The recipe's volume against the break-even with the planned baseline, or with the first whose price is known."""
    cost, plan = facts.scores["cost"], facts.scores["plan"]
    real = {
        name: one
        for name, one in cost["systems"].items()
        if name in facts.scores["systems"] and not facts.scores["systems"][name]["stand_in"]
    }
    name = plan["baseline"] if plan and plan["baseline"] in real else next(iter(real), None)
    if not cost["owned"]["measured"]:
        return Reason("cost", f"What owning costs was not measured: {cost['owned']['why_not']}.", None, "not measured")
    if name is None:
        return Reason("cost", "No closed model with a price was run, so there is no break-even.", None, "no price")
    point, volume = real[name]["break_even"], cost["inputs"]["monthly_requests"]
    if point["never"]:
        return Reason("cost", f"Owning never breaks even against {name}: {point['why']}.", "closed", "never")
    if point["first_requests"] is None:
        return Reason("cost", f"Break-even against {name} is {point['why']}.", None, "withheld")
    row = next(line for line in real[name]["monthly"] if line["of_recipe"])
    cheaper = row["owned_usd"] < row["closed_usd"]
    says = (
        f"At {volume:,} requests a month owning costs ${row['owned_usd']:,.0f}, engineer included, and {name} "
        f"${row['closed_usd']:,.0f}; break-even is at {point['first_requests']:,} requests."
    )
    return Reason("cost", says, "open" if cheaper else "closed", f"{point['first_requests']:,}")


def _structure(facts: Facts) -> Reason:
    required, valid = facts.recipe.decide.structured_output, facts.tuned["validity"]["label"]
    says = f"{valid:.2%} of the tuned model's answers fit what may be answered (structured output: {required})."
    primary = facts.primary
    if primary is not None and primary["b"] in facts.scores["systems"]:
        other = facts.scores["systems"][primary["b"]]
        says += f" {other['title']}: {other['validity']['label']:.2%}."
    speaks = "closed" if required == "required" and valid < 0.99 else None
    return Reason("structured output", says, speaks, f"{valid:.2%}")


def _engineering(facts: Facts) -> Reason:
    cost, decide = facts.recipe.cost, facts.recipe.decide
    usd = cost.engineer_usd_per_month * cost.engineer_share
    who = "somebody owns it" if decide.operations_owner else "nobody would look after it (decide.operations_owner)"
    says = f"Running it takes {cost.engineer_share:.0%} of an engineer, ${usd:,.0f} a month; {who}."
    return Reason("engineering", says, None if decide.operations_owner else "closed", f"${usd:,.0f}")


def _prompt_changes(facts: Facts) -> Reason:
    times, seconds = facts.recipe.decide.prompt_changes_per_month, facts.scores["training_seconds"]
    spent = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
    often = "never" if not times else "once a month" if times == 1 else f"{times:g} times a month"
    says = f"The prompt changes {often}; each change is a training of {spent} on this hardware and a new comparison."
    return Reason("prompt changes", says, "closed" if times > 8 else None, f"{times:g}")


def _router(facts: Facts) -> Reason | None:
    policy = facts.policy
    if policy is None:
        return None
    if policy.threshold is None or policy.coverage is None or policy.accuracy is None:
        return Reason("routing", f"No part of the traffic can be given to it alone: {policy.why_none}.", None, "none")
    says = (
        f"Above a confidence of {policy.threshold:.2f} it answers {policy.coverage:.0%} of the traffic alone, and "
        f"{policy.accuracy:.1%} of that right ({policy.calibration_rows:,} calibration rows): at least "
        f"{policy.target_accuracy:.0%} with {policy.confidence:.0%} confidence."
    )
    return Reason("routing", says, "hybrid" if policy.coverage >= LEAST_COVERAGE else None, f"{policy.coverage:.0%}")


def _left_open(facts: Facts, choice: Choice, costs: Reason | None) -> list[str]:
    """What was not run, and what that leaves open."""
    plan = facts.scores["plan"]
    others = [one for one in facts.scores["not_run"] if plan is None or one["name"] != plan["baseline"]]
    found = [f"{one['title']} was not run: {one['why']}." for one in others]
    if choice == "inconclusive" and (costs is None or costs.speaks_for is None):
        found.append("Whether owning would pay: one of its two sides has no cost, see Cost.")
    return found


def _headline(choice: Choice, why: str, facts: Facts) -> str:
    told = {
        "open": "Own it",
        "closed": "Keep the closed model",
        "hybrid": "Own the bulk, and leave the hard rest to the closed model",
        "inconclusive": "Not decided yet",
    }[choice]
    stand_in = " (the pocket model stood in for the recipe's own)" if facts.scores["base"]["pocket"] else ""
    return f"{told}: {why}{stand_in}."
