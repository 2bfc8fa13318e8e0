"""The five questions beside quality, each answered open, closed or neutral, with a value.

    privacy             May the data leave?
    cost                Is the volume above the break-even?
    structured output   Do the answers have the form that is needed?
    engineering         Does it still pay with all the engineering?
    prompt changes      How often does the prompt change?

compare/decision/verdict_rule.py derives the choice from them.
"""

from compare.decision.verdict_inputs import VerdictInputs
from compare.decision.verdict_rule import COST, ENGINEERING, PRIVACY, PROMPTS, STRUCTURE
from insource.tracking.scores.comparison import Reason, Vote
from insource.tracking.scores.cost_result import UnmeasuredCost

QUESTION_TEXTS = {
    PRIVACY: "May the data leave?",
    COST: "Is the volume above the break-even?",
    STRUCTURE: "Do the answers have the form that is needed?",
    ENGINEERING: "Does it still pay with all the engineering?",
    PROMPTS: "How often does the prompt change?",
}
# Minimum fraction of valid answers if structured output is required.
REQUIRED_FRACTION = 0.99
# If structured output is only useful, a smaller difference is neutral.
USEFUL_DIFFERENCE = 0.01
# About two trainings per week, each with a comparison after it; more favor the API model.
MAX_PROMPT_CHANGES = 8
# Engineering is not neutral if the result is the same at these multiples of the recipe's share.
HIGH_ENGINEERING_FACTOR, LOW_ENGINEERING_FACTOR = 2.0, 0.5


def answer_questions(inputs: VerdictInputs, decides: bool) -> list[Reason]:
    """Return the answers to the five questions, in their order.

    `decides` is whether the planned baseline was really queried. A stand-in's answers are neutral.
    """
    return [
        _privacy(inputs),
        _cost(inputs),
        _structured_output(inputs, decides),
        _engineering(inputs),
        _prompt_changes(inputs),
    ]


def _privacy(inputs: VerdictInputs) -> Reason:
    if inputs.recipe.privacy.data_may_leave:
        return _make_reason(PRIVACY, "The data may leave this machine (privacy.data_may_leave).", "neutral", "yes")
    return _make_reason(
        PRIVACY, "The data may not leave: no provider was queried, and none can be chosen.", "open", "no"
    )


def _cost(inputs: VerdictInputs) -> Reason:
    """Compare the recipe's volume with the break-even against the planned baseline."""
    cost = inputs.scores.cost
    if isinstance(cost.self_hosted, UnmeasuredCost):
        reason = cost.self_hosted.missing_reason
        return _make_reason(COST, f"The cost of self-hosting was not measured: {reason}.", "neutral", "not measured")
    name = _priced_baseline(inputs)
    if name is None:
        return _make_reason(
            COST, "No API model with a price was run, so there is no break-even.", "neutral", "no price"
        )
    break_even, volume = cost.systems[name].break_even, cost.inputs.monthly_requests
    if break_even.never:
        return _make_reason(
            COST, f"Self-hosting never breaks even against {name}: {break_even.reason}.", "closed", "never"
        )
    if break_even.first_requests is None:
        return _make_reason(COST, f"Break-even against {name} is {break_even.reason}.", "neutral", "withheld")
    self_hosted_usd, api_usd = _monthly_usd(inputs, name)
    assert self_hosted_usd is not None and api_usd is not None, "a break-even needs both costs"
    text = (
        f"At {volume:,} requests a month self-hosting costs ${self_hosted_usd:,.0f}, engineer included, and {name} "
        f"${api_usd:,.0f}; break-even is at {break_even.first_requests:,} requests."
    )
    vote: Vote = "open" if self_hosted_usd < api_usd else "closed"
    return _make_reason(COST, text, vote, f"{break_even.first_requests:,}")


def _structured_output(inputs: VerdictInputs, decides: bool) -> Reason:
    requirement, tuned_valid = inputs.recipe.decide.structured_output, inputs.tuned.validity.label
    text = (
        f"{tuned_valid:.2%} of the tuned model's answers fit what may be answered (structured output: {requirement})."
    )
    primary = inputs.primary
    baseline = inputs.scores.systems.get(primary.b) if primary is not None else None
    if baseline is None:
        return _make_reason(STRUCTURE, text, "neutral", f"{tuned_valid:.2%}")
    baseline_valid = baseline.validity.label
    text += f" {baseline.title}: {baseline_valid:.2%}."
    value = f"{tuned_valid:.2%} against {baseline_valid:.2%}"
    return _make_reason(
        STRUCTURE,
        text,
        _structured_output_vote(requirement, tuned_valid, baseline_valid) if decides else "neutral",
        value,
    )


def _structured_output_vote(requirement: str, tuned_valid: float, baseline_valid: float) -> Vote:
    """Return the side with enough valid answers, if only one has enough, or with clearly more of them."""
    if requirement == "required" and (tuned_valid >= REQUIRED_FRACTION) != (baseline_valid >= REQUIRED_FRACTION):
        return "open" if tuned_valid > baseline_valid else "closed"
    if requirement == "useful" and abs(tuned_valid - baseline_valid) >= USEFUL_DIFFERENCE:
        return "open" if tuned_valid > baseline_valid else "closed"
    return "neutral"


def _engineering(inputs: VerdictInputs) -> Reason:
    """Return whether the answer to the cost question is the same for other shares of an engineer."""
    cost, name = inputs.recipe.cost, _priced_baseline(inputs)
    usd = cost.engineer_usd_per_month * cost.engineer_share
    value, text = f"${usd:,.0f}", f"Running it takes {cost.engineer_share:.0%} of an engineer, ${usd:,.0f} a month"
    if not inputs.recipe.decide.operations_owner:
        return _make_reason(
            ENGINEERING, f"{text}; nobody would maintain it (decide.operations_owner).", "closed", value
        )
    self_hosted_usd, api_usd = (None, None) if name is None else _monthly_usd(inputs, name)
    if self_hosted_usd is None:
        return _make_reason(ENGINEERING, f"{text}; whether it pays is not known.", "neutral", value)
    other_usd = self_hosted_usd - usd
    if usd and api_usd is not None and api_usd > other_usd + HIGH_ENGINEERING_FACTOR * usd:
        return _make_reason(
            ENGINEERING, f"{text}; self-hosting would be cheaper with twice as much too.", "open", value
        )
    if usd and api_usd is not None and api_usd < other_usd + LOW_ENGINEERING_FACTOR * usd:
        return _make_reason(
            ENGINEERING, f"{text}; self-hosting would be more expensive with half as much too.", "closed", value
        )
    return _make_reason(ENGINEERING, f"{text}; whether self-hosting is cheaper depends on it.", "neutral", value)


def _prompt_changes(inputs: VerdictInputs) -> Reason:
    changes, seconds = inputs.recipe.decide.prompt_changes_per_month, inputs.scores.training_seconds
    duration = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
    frequency = "never" if not changes else "once a month" if changes == 1 else f"{changes:g} times a month"
    text = (
        f"The prompt changes {frequency}; each change is a training of {duration} on this hardware and a new "
        "comparison."
    )
    vote: Vote = "open" if not changes else "closed" if changes > MAX_PROMPT_CHANGES else "neutral"
    return _make_reason(PROMPTS, text, vote, f"{changes:g} a month")


def _make_reason(topic: str, text: str, vote: Vote, value: str) -> Reason:
    return Reason(topic=topic, text=text, favors=vote, value=value, question=QUESTION_TEXTS[topic])


def _priced_baseline(inputs: VerdictInputs) -> str | None:
    """Return the paid system whose cost counts: the planned baseline, or without a plan the first one with a price.

    None if it was not run, has no price, or is a stand-in.
    """
    plan, systems, paid = inputs.scores.plan, inputs.scores.systems, inputs.scores.cost.systems
    candidates = [name for name in paid if name in systems and not systems[name].stand_in]
    if plan:
        return plan.baseline if plan.baseline in candidates else None
    return next((name for name in candidates if paid[name].usd_per_request is not None), None)


def _monthly_usd(inputs: VerdictInputs, name: str) -> tuple[float | None, float | None]:
    """Return the monthly costs of self-hosting and of a paid system at the recipe's volume; None: unknown."""
    rows = inputs.scores.cost.systems[name].monthly
    return next((row.self_hosted_usd, row.api_usd) for row in rows if row.of_recipe)
