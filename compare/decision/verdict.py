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
from typing import get_args

from compare.decision import criteria, verdict_rule
from compare.decision.verdict_inputs import VerdictInputs
from compare.decision.verdict_rule import RuleInputs
from compare.scoring import completeness
from insource.config.schema.compare import TUNED
from insource.stats.paired import Conclusion
from insource.tasks import metric_label
from insource.tracking.scores.comparison import Choice, Reason, Verdict, Vote

# Minimum fraction of the traffic for "hybrid"; below it running two systems is not worth it.
MIN_COVERAGE = 0.2


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
        tuned_complete=inputs.tuned.complete,
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
    return Verdict(
        choice=choice,
        headline=_headline(choice, reason_text, inputs),
        reasons=reasons,
        votes=count_votes(reasons),
        open_questions=open_points,
    )


def count_votes(reasons: Sequence[Reason]) -> dict[str, int]:
    """Return the number of the five questions with each vote: open, closed and neutral."""
    votes = [reason.favors for reason in reasons if reason.question]
    return {vote: votes.count(vote) for vote in get_args(Vote)}


def _primary_conclusion(inputs: VerdictInputs) -> Conclusion | None:
    """Return the conclusion of the planned comparison, None if it decides nothing."""
    primary, plan = inputs.primary, inputs.scores.plan
    if primary is None or plan is None or not plan.confirmatory:
        return None
    baseline = inputs.scores.systems[primary.b]
    decides = baseline.kind in ("closed", "file") and not baseline.stand_in and completeness.is_sufficient(baseline)
    return primary.conclusion if decides else None


def _incomplete_baseline(inputs: VerdictInputs) -> Reason | None:
    """Return why the verdict cannot use the planned baseline, if it was tried and its answers do not suffice."""
    plan = inputs.scores.plan
    reason = completeness.incomplete_reason(inputs.scores, plan.baseline if plan else None)
    if reason is None:
        return None
    return _make_reason("completeness", f"{reason}.", None, "INCOMPLETE")


def _quality(inputs: VerdictInputs) -> tuple[Reason | None, list[str]]:
    """Return the result of the planned comparison, and its open points."""
    plan, primary = inputs.scores.plan, inputs.primary
    if plan is None:
        return None, ["compare.primary: the recipe plans no comparison; name a baseline, a metric and a margin"]
    if primary is None:
        reasons = {skipped.name: skipped.reason for skipped in inputs.scores.not_run}
        problem = f"Quality against {plan.baseline} was not measured ({reasons.get(plan.baseline, 'it was not run')})."
        return None, [
            f"{problem} It is what decides, by {metric_label(plan.metric)} and a margin of {plan.margin:.1%}."
        ]
    baseline = inputs.scores.systems[primary.b]
    phrase = {
        "superior": "is better than",
        "non-inferior": "is as good as",
        "worse": "is worse than",
        "undecided": "may or may not be as good as",
    }[primary.conclusion]
    text = (
        f"The tuned model {phrase} {baseline.title}: {metric_label(primary.metric)} "
        f"{inputs.scores.deciding_value(primary.a):.1%} against {inputs.scores.deciding_value(primary.b):.1%} on "
        f"{primary.n:,} rows, difference {primary.delta:+.1%} ({primary.ci_low:+.1%} to {primary.ci_high:+.1%}), "
        f"margin {primary.margin:.1%}."
    )
    open_points = []
    if primary.conclusion == "undecided":
        rows = primary.rows_to_decide
        rows_text = f"about {rows:,} test rows would" if rows else "no number of rows that one would label does"
        open_points.append(
            f"Quality is undecided at {primary.n:,} rows: {rows_text} decide it if the difference is as seen."
        )
    if baseline.stand_in:
        open_points.append(
            f"{baseline.title} ran on this machine: it shows that the comparison works, and decides nothing."
        )
    if not baseline.complete:
        open_points.append(f"{baseline.title} is INCOMPLETE: {baseline.incomplete_reason}.")
    if not plan.confirmatory:
        open_points.append(f"The comparison only explores: {plan.exploratory_reason}.")
    favors = {"superior": "open", "non-inferior": "open", "worse": "closed"}.get(_primary_conclusion(inputs) or "")
    return _make_reason("quality", text, favors, f"{primary.delta:+.1%}"), open_points


def _linear_baseline(inputs: VerdictInputs) -> Reason | None:
    """Return the result of the cheapest baseline. It comes first if it is as good as the tuned model."""
    scores = inputs.scores
    names = [name for name, system in scores.systems.items() if system.kind in ("linear", "nearest")]
    if not names:
        return None
    best = max(names, key=scores.deciding_value)
    linear_value, tuned_value = scores.deciding_value(best), scores.deciding_value(TUNED)
    baseline_title, metric = scores.systems[best].title, metric_label(scores.deciding_metric)
    title = baseline_title[0].upper() + baseline_title[1:]
    if linear_value >= tuned_value:
        margin = scores.plan.margin if scores.plan else 0.0
        word = "better" if linear_value > tuned_value + margin else "as well"
        text = (
            f"{title} does {word}: {metric} {linear_value:.1%} against {tuned_value:.1%} of the tuned model. It needs "
            "no GPU and costs next to nothing: take it first."
        )
        return _make_reason("linear", text, None, f"{linear_value:.1%}")
    return _make_reason(
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
        return _make_reason(
            "routing", f"No part of the traffic can be answered by it only: {policy.no_threshold_reason}.", None, "none"
        )
    text = (
        f"From a confidence of {policy.threshold:.2f} on it answers {policy.coverage:.0%} of the traffic alone, and "
        f"{policy.accuracy:.1%} of that right ({policy.calibration_rows:,} calibration rows): {policy.target} with "
        f"{policy.confidence:.0%} confidence, on traffic like the calibration rows."
    )
    baseline = inputs.scores.systems.get(policy.not_worse_than or "")
    is_bulk = policy.coverage >= MIN_COVERAGE and not (baseline and baseline.stand_in)
    return _make_reason("routing", text, "hybrid" if is_bulk else None, f"{policy.coverage:.0%}")


def _open_points(inputs: VerdictInputs, choice: Choice, cost_vote: Vote) -> list[str]:
    """Return the systems that were not run, and the questions that this leaves open."""
    plan = inputs.scores.plan
    skipped = [system for system in inputs.scores.not_run if plan is None or system.name != plan.baseline]
    points = [f"{system.title} was not run: {system.reason}." for system in skipped]
    if choice == "inconclusive" and cost_vote == "neutral":
        points.append("Whether self-hosting is cheaper: the cost of one of the two is unknown, see Cost.")
    return points


def _headline(choice: Choice, reason: str, inputs: VerdictInputs) -> str:
    opening = {
        "open": "Self-host it",
        "closed": "Keep the API model",
        "hybrid": "Self-host the bulk, and send the hard rest to the API model",
        "inconclusive": "Not decided yet",
    }[choice]
    stand_in = " (the pocket model stood in for the recipe's own)" if inputs.scores.base.pocket else ""
    return f"{opening}: {reason}{stand_in}."


def _make_reason(topic: str, text: str, favors: str | None, value: str) -> Reason:
    return Reason(topic=topic, text=text, favors=favors, value=value, question=None)
