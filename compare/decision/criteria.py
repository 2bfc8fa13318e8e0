"""The five questions beside quality, each answered open, closed or neutral with its figure.

    privacy             May the data leave?
    cost                Is the volume above the break-even?
    structured output   Do the answers have the form that is needed?
    engineering         Does it still pay with all the engineering?
    prompt changes      How often does the prompt change?

How they lead to a choice: compare/decision/verdict_rule.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compare.decision.verdict_inputs import Reason, VerdictInputs
from compare.decision.verdict_rule import COST, ENGINEERING, PRIVACY, PROMPTS, STRUCTURE, Vote

QUESTION_TEXTS = {
    PRIVACY: "May the data leave?",
    COST: "Is the volume above the break-even?",
    STRUCTURE: "Do the answers have the form that is needed?",
    ENGINEERING: "Does it still pay with all the engineering?",
    PROMPTS: "How often does the prompt change?",
}
# Of answers that have the form: less is too little where the form is required.
REQUIRED_FRACTION = 0.99
# Where the form is only useful, a smaller difference speaks for nobody.
USEFUL_DIFFERENCE = 0.01
# More than two trainings a week, each with a comparison after it.
MAX_PROMPT_CHANGES = 8
# Engineering speaks where the answer is the same at so many times the share that the recipe gives.
HIGH_ENGINEERING_FACTOR, LOW_ENGINEERING_FACTOR = 2.0, 0.5


def answer_questions(facts: VerdictInputs, decides: bool) -> list[Reason]:
    """Returns the answers to the five questions, in their order. `decides`: whether the planned baseline was really
    asked; a stand-in's answers speak for nobody."""
    found = [
        _privacy(facts),
        _cost(facts),
        _structured_output(facts, decides),
        _engineering(facts),
        _prompt_changes(facts),
    ]
    return [replace(one, question=QUESTION_TEXTS[one.about]) for one in found]


def _privacy(facts: VerdictInputs) -> Reason:
    if facts.recipe.privacy.data_may_leave:
        return _make_reason(PRIVACY, "The data may leave this machine (privacy.data_may_leave).", "neutral", "yes")
    return _make_reason(PRIVACY, "The data may not leave: no provider was asked, and none can be chosen.", "open", "no")


def _cost(facts: VerdictInputs) -> Reason:
    """The recipe's volume against the break-even with the planned baseline."""
    cost = facts.scores["cost"]
    if not cost["owned"]["measured"]:
        why = cost["owned"]["why_not"]
        return _make_reason(COST, f"What owning costs was not measured: {why}.", "neutral", "not measured")
    name = _priced_baseline(facts)
    if name is None:
        return _make_reason(
            COST, "No closed model with a price was run, so there is no break-even.", "neutral", "no price"
        )
    point, volume = cost["systems"][name]["break_even"], cost["inputs"]["monthly_requests"]
    if point["never"]:
        return _make_reason(COST, f"Owning never breaks even against {name}: {point['why']}.", "closed", "never")
    if point["first_requests"] is None:
        return _make_reason(COST, f"Break-even against {name} is {point['why']}.", "neutral", "withheld")
    row = _monthly_row(facts, name)
    says = (
        f"At {volume:,} requests a month owning costs ${row['owned_usd']:,.0f}, engineer included, and {name} "
        f"${row['closed_usd']:,.0f}; break-even is at {point['first_requests']:,} requests."
    )
    cheaper = row["owned_usd"] < row["closed_usd"]
    return _make_reason(COST, says, "open" if cheaper else "closed", f"{point['first_requests']:,}")


def _structured_output(facts: VerdictInputs, decides: bool) -> Reason:
    needed, valid = facts.recipe.decide.structured_output, facts.tuned["validity"]["label"]
    says = f"{valid:.2%} of the tuned model's answers fit what may be answered (structured output: {needed})."
    primary = facts.primary
    other = facts.scores["systems"].get(primary["b"]) if primary is not None else None
    if other is None:
        return _make_reason(STRUCTURE, says, "neutral", f"{valid:.2%}")
    theirs = other["validity"]["label"]
    says += f" {other['title']}: {theirs:.2%}."
    figure = f"{valid:.2%} against {theirs:.2%}"
    return _make_reason(
        STRUCTURE, says, _structured_output_vote(needed, valid, theirs) if decides else "neutral", figure
    )


def _structured_output_vote(needed: str, valid: float, theirs: float) -> Vote:
    """For whom the shares of answers speak that have the form: who alone has enough of them, or clearly more."""
    if needed == "required" and (valid >= REQUIRED_FRACTION) != (theirs >= REQUIRED_FRACTION):
        return "open" if valid > theirs else "closed"
    if needed == "useful" and abs(valid - theirs) >= USEFUL_DIFFERENCE:
        return "open" if valid > theirs else "closed"
    return "neutral"


def _engineering(facts: VerdictInputs) -> Reason:
    """Whether the answer to the question of cost holds whatever share of an engineer it takes."""
    cost, name = facts.recipe.cost, _priced_baseline(facts)
    usd = cost.engineer_usd_per_month * cost.engineer_share
    figure, says = f"${usd:,.0f}", f"Running it takes {cost.engineer_share:.0%} of an engineer, ${usd:,.0f} a month"
    if not facts.recipe.decide.operations_owner:
        return _make_reason(
            ENGINEERING, f"{says}; nobody would look after it (decide.operations_owner).", "closed", figure
        )
    if not facts.scores["cost"]["owned"]["measured"] or name is None:
        return _make_reason(ENGINEERING, f"{says}; whether it pays is not known.", "neutral", figure)
    row = _monthly_row(facts, name)
    rest, closed = row["owned_usd"] - usd, row["closed_usd"]
    if usd and closed is not None and closed > rest + HIGH_ENGINEERING_FACTOR * usd:
        return _make_reason(ENGINEERING, f"{says}; owning would be cheaper with twice as much too.", "open", figure)
    if usd and closed is not None and closed < rest + LOW_ENGINEERING_FACTOR * usd:
        return _make_reason(ENGINEERING, f"{says}; owning would be dearer with half as much too.", "closed", figure)
    return _make_reason(ENGINEERING, f"{says}; whether owning is cheaper depends on it.", "neutral", figure)


def _prompt_changes(facts: VerdictInputs) -> Reason:
    times, seconds = facts.recipe.decide.prompt_changes_per_month, facts.scores["training_seconds"]
    spent = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
    often = "never" if not times else "once a month" if times == 1 else f"{times:g} times a month"
    says = f"The prompt changes {often}; each change is a training of {spent} on this hardware and a new comparison."
    voice: Vote = "open" if not times else "closed" if times > MAX_PROMPT_CHANGES else "neutral"
    return _make_reason(PROMPTS, says, voice, f"{times:g} a month")


def _make_reason(about: str, says: str, voice: Vote, figure: str) -> Reason:
    return Reason(about, says, voice, figure)


def _priced_baseline(facts: VerdictInputs) -> str | None:
    """Returns the closed system whose cost counts: the planned baseline, or without a plan the first that has a price;
    None where it was not run, has none, or only stands in."""
    plan, systems = facts.scores["plan"], facts.scores["systems"]
    known = [name for name in facts.scores["cost"]["systems"] if name in systems and not systems[name]["stand_in"]]
    if plan:
        return plan["baseline"] if plan["baseline"] in known else None
    priced = [name for name in known if facts.scores["cost"]["systems"][name]["usd_per_request"] is not None]
    return next(iter(priced), None)


def _monthly_row(facts: VerdictInputs, name: str) -> Mapping[str, Any]:
    """Returns both costs at the recipe's volume."""
    found: list[Mapping[str, Any]] = facts.scores["cost"]["systems"][name]["monthly"]
    return next(line for line in found if line["of_recipe"])
