"""The verdict: open, closed, hybrid or inconclusive, with reasons and their values.

    inputs   quality against the planned baseline, the linear baseline, the five questions (criteria.py), the routing
             policy
    verdict  "hybrid", because ...

open          self-host: as good as the baseline, and the questions favor it; or the data may not leave
closed        keep the API model: self-hosting is worse, or the questions do not favor it, or it has no maintainer
hybrid        self-host for part of the traffic: the part on which the tuned model reaches the target
inconclusive  the results do not decide; the open points list what would decide it

The rule is in verdict_rule.py. A local stand-in decides nothing, whatever its score: it is not the provider.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from compare.decision import criteria, verdict_rule
from compare.decision.verdict_inputs import Reason, VerdictInputs
from compare.decision.verdict_rule import Choice, Quality, RuleInputs, Vote
from compare.scoring import completeness
from insource.tasks import metric_label

# Minimum fraction of the traffic for "hybrid"; below it running two systems is not worth it.
MIN_COVERAGE = 0.2


@dataclass(frozen=True)
class Verdict:
    """The choice and its reasons."""

    choice: Choice
    headline: str
    reasons: Sequence[Reason]
    open_questions: Sequence[str] = field(default=())
    """Open points, each with the result that would decide it."""

    def count(self) -> dict[str, int]:
        """Return the number of the five questions with each vote: open, closed and neutral."""
        votes = [reason.favors for reason in self.reasons if reason.question]
        return {vote: votes.count(vote) for vote in get_args(Vote)}

    def json(self) -> dict[str, Any]:
        """Return the entry `verdict` of scores.json."""
        return {
            "choice": self.choice,
            "headline": self.headline,
            "reasons": [reason.json() for reason in self.reasons],
            "count": self.count(),
            "undecided": list(self.open_questions),
        }


def decide(inputs: VerdictInputs) -> Verdict:
    """Return the verdict."""
    quality, open_questions = _quality(inputs)
    conclusion = _primary_conclusion(inputs)
    questions = criteria.answer_questions(inputs, decides=conclusion is not None)
    routing = _routing(inputs)
    incomplete = _incomplete_baseline(inputs)
    reasons = [
        reason for reason in (incomplete, _linear_baseline(inputs), quality, *questions, routing) if reason is not None
    ]
    rule_inputs = RuleInputs(
        tuned_complete=inputs.tuned["complete"],
        quality=conclusion if quality is not None else None,
        routable=routing is not None and routing.favors == "hybrid",
        has_maintainer=inputs.recipe.decide.operations_owner,
        structured_output_required=inputs.recipe.decide.structured_output == "required",
        votes={reason.topic: reason.favors for reason in questions},  # type: ignore[misc]
    )
    choice, reason_text = verdict_rule.apply_rule(rule_inputs)
    if incomplete and choice == "inconclusive" and rule_inputs.quality is None and rule_inputs.tuned_complete:
        reason_text = incomplete.text.rstrip(".")
    open_points = [*open_questions, *_open_points(inputs, choice, rule_inputs.votes[verdict_rule.COST])]
    return Verdict(choice, _headline(choice, reason_text, inputs), reasons, open_points)


def _primary_conclusion(inputs: VerdictInputs) -> Quality | None:
    """Return the conclusion of the planned comparison, None if it decides nothing."""
    primary, plan = inputs.primary, inputs.scores["plan"]
    if primary is None or plan is None or not plan["confirmatory"]:
        return None
    baseline = inputs.scores["systems"][primary["b"]]
    decides = (
        baseline["kind"] in ("closed", "file") and not baseline["stand_in"] and completeness.is_sufficient(baseline)
    )
    conclusion: Quality = primary["judged"]
    return conclusion if decides else None


def _incomplete_baseline(inputs: VerdictInputs) -> Reason | None:
    """Return why the verdict cannot use the planned baseline, if it was tried and its answers do not suffice."""
    plan = inputs.scores["plan"]
    reason = completeness.incomplete_reason(inputs.scores, plan["baseline"] if plan else None)
    return Reason("completeness", f"{reason}.", None, "INCOMPLETE") if reason else None


def _quality(inputs: VerdictInputs) -> tuple[Reason | None, list[str]]:
    """Return the result of the planned comparison, and its open points."""
    plan, primary = inputs.scores["plan"], inputs.primary
    if plan is None:
        return None, ["compare.primary: the recipe plans no comparison; name a baseline, a metric and a margin"]
    if primary is None:
        reason = {skipped["name"]: skipped["why"] for skipped in inputs.scores["not_run"]}.get(
            plan["baseline"], "it was not run"
        )
        problem = f"Quality against {plan['baseline']} was not measured ({reason})."
        return None, [
            f"{problem} It is what decides, by {metric_label(plan['metric'])} and a margin of {plan['margin']:.1%}."
        ]
    baseline = inputs.scores["systems"][primary["b"]]
    phrase = {
        "superior": "is better than",
        "non-inferior": "is as good as",
        "worse": "is worse than",
        "undecided": "may or may not be as good as",
    }[primary["judged"]]
    text = (
        f"The tuned model {phrase} {baseline['title']}: {metric_label(primary['metric'])} "
        f"{inputs.value(primary['a']):.1%} against {inputs.value(primary['b']):.1%} on {primary['n']:,} rows, "
        f"difference {primary['delta']:+.1%} ({primary['ci_low']:+.1%} to {primary['ci_high']:+.1%}), margin "
        f"{primary['margin']:.1%}."
    )
    open_points = []
    if primary["judged"] == "undecided":
        rows = primary["rows_to_decide"]
        rows_text = f"about {rows:,} test rows would" if rows else "no number of rows that one would label does"
        open_points.append(
            f"Quality is undecided at {primary['n']:,} rows: {rows_text} decide it if the difference is as seen."
        )
    if baseline["stand_in"]:
        open_points.append(
            f"{baseline['title']} ran on this machine: it shows that the comparison works, and decides nothing."
        )
    if not baseline["complete"]:
        open_points.append(f"{baseline['title']} is INCOMPLETE: {baseline['why_incomplete']}.")
    if not plan["confirmatory"]:
        open_points.append(f"The comparison only explores: {plan['why_not']}.")
    favors = {"superior": "open", "non-inferior": "open", "worse": "closed"}.get(_primary_conclusion(inputs) or "")
    return Reason("quality", text, favors, f"{primary['delta']:+.1%}"), open_points


def _linear_baseline(inputs: VerdictInputs) -> Reason | None:
    """Return the result of the cheapest baseline. It comes first if it is as good as the tuned model."""
    names = [name for name, system in inputs.scores["systems"].items() if system["kind"] in ("linear", "nearest")]
    if not names:
        return None
    best = max(names, key=inputs.value)
    linear_value, tuned_value = inputs.value(best), inputs.value("tuned")
    baseline_title, metric = str(inputs.scores["systems"][best]["title"]), metric_label(inputs.metric)
    title = baseline_title[0].upper() + baseline_title[1:]
    if linear_value >= tuned_value:
        margin = inputs.scores["plan"]["margin"] if inputs.scores["plan"] else 0.0
        word = "better" if linear_value > tuned_value + margin else "as well"
        text = (
            f"{title} does {word}: {metric} {linear_value:.1%} against {tuned_value:.1%} of the tuned model. It needs "
            "no GPU and costs next to nothing: take it first."
        )
        return Reason("linear", text, None, f"{linear_value:.1%}")
    return Reason(
        "linear",
        f"{title} reaches {metric} {linear_value:.1%}, the tuned model {tuned_value:.1%}.",
        None,
        f"{linear_value:.1%}",
    )


def _routing(inputs: VerdictInputs) -> Reason | None:
    policy = inputs.policy
    if policy is None:
        return None
    if policy.threshold is None or policy.coverage is None or policy.accuracy is None:
        return Reason("routing", f"No part of the traffic can be given to it alone: {policy.why_none}.", None, "none")
    text = (
        f"From a confidence of {policy.threshold:.2f} on it answers {policy.coverage:.0%} of the traffic alone, and "
        f"{policy.accuracy:.1%} of that right ({policy.calibration_rows:,} calibration rows): {policy.target} with "
        f"{policy.confidence:.0%} confidence, on traffic like the calibration rows."
    )
    baseline = inputs.scores["systems"].get(policy.not_worse_than or "")
    is_bulk = policy.coverage >= MIN_COVERAGE and not (baseline and baseline["stand_in"])
    return Reason("routing", text, "hybrid" if is_bulk else None, f"{policy.coverage:.0%}")


def _open_points(inputs: VerdictInputs, choice: Choice, cost_vote: Vote) -> list[str]:
    """Return the systems that were not run, and the questions that this leaves open."""
    plan = inputs.scores["plan"]
    skipped = [system for system in inputs.scores["not_run"] if plan is None or system["name"] != plan["baseline"]]
    points = [f"{system['title']} was not run: {system['why']}." for system in skipped]
    if choice == "inconclusive" and cost_vote == "neutral":
        points.append("Whether owning would pay: one of its two sides has no cost, see Cost.")
    return points


def _headline(choice: Choice, reason: str, inputs: VerdictInputs) -> str:
    opening = {
        "open": "Own it",
        "closed": "Keep the closed model",
        "hybrid": "Own the bulk, and leave the hard rest to the closed model",
        "inconclusive": "Not decided yet",
    }[choice]
    stand_in = " (the pocket model stood in for the recipe's own)" if inputs.scores["base"]["pocket"] else ""
    return f"{opening}: {reason}{stand_in}."
