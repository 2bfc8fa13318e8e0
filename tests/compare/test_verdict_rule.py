"""The rule of the verdict, over every combination of what it depends on."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

from compare.decision import criteria, verdict_rule
from compare.decision.verdict_rule import COUNTED_QUESTIONS, QUESTIONS, RuleInputs
from insource.stats.paired import Conclusion
from insource.tracking.scores.comparison import Vote

VOICES: tuple[Vote, ...] = ("closed", "neutral", "open")
QUALITIES: tuple[Conclusion | None, ...] = (None, *get_args(Conclusion))
DOCS = Path(__file__).parents[2] / "docs" / "comparing.md"
# By the cost, and by how many more of the other three questions speak for owning than against it.
BY_COUNT = {
    "open": {-3: "closed", -2: "closed", -1: "open", 0: "open", 1: "open", 2: "open", 3: "open"},
    "closed": {-3: "closed", -2: "closed", -1: "closed", 0: "closed", 1: "closed", 2: "open", 3: "open"},
    "neutral": dict.fromkeys(range(-3, 4), "inconclusive"),
}
FLAGS = (True, False)


def every() -> Iterator[RuleInputs]:
    for complete, quality, routable, owner, required in product(FLAGS, QUALITIES, FLAGS, FLAGS, FLAGS):
        for voices in product(VOICES, repeat=len(QUESTIONS)):
            votes = dict(zip(QUESTIONS, voices, strict=True))
            yield RuleInputs(complete, quality, routable, owner, required, votes)


def expected(inputs: RuleInputs) -> str:
    """The table of docs/comparing.md, line by line."""
    structure = inputs.votes["structured output"]
    others = sum(
        (inputs.votes[question] == "open") - (inputs.votes[question] == "closed")
        for question in COUNTED_QUESTIONS
        if question != "cost"
    )
    lines: list[tuple[bool, str]] = [
        (not inputs.tuned_complete, "inconclusive"),
        (inputs.votes["privacy"] == "open", "open"),
        (inputs.quality is None, "inconclusive"),
        (not inputs.has_maintainer, "closed"),
        (inputs.quality == "worse", "hybrid" if inputs.routable else "closed"),
        (inputs.quality == "undecided", "hybrid" if inputs.routable else "inconclusive"),
        (inputs.structured_output_required and structure != "neutral", structure),
        (True, BY_COUNT[inputs.votes["cost"]][others]),
    ]
    return next(choice for fits, choice in lines if fits)


def test_every_combination_ends_as_the_documentation_says() -> None:
    positions = list(every())
    assert len(positions) == 2 * 5 * 2 * 2 * 2 * 3**5
    for inputs in positions:
        choice, reason = verdict_rule.apply_rule(inputs)
        assert choice == expected(inputs), inputs
        assert reason and not reason.endswith(".")


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_reaches_the_choice_and_never_against_its_own_side(question: str) -> None:
    """What speaks for owning never turns owning into keeping."""
    reached = False
    for inputs in every():
        if inputs.votes[question] != "closed":
            continue
        for_owning = RuleInputs(**{**vars(inputs), "votes": {**inputs.votes, question: "open"}})
        choice, changed_choice = verdict_rule.apply_rule(inputs)[0], verdict_rule.apply_rule(for_owning)[0]
        reached |= choice != changed_choice
        assert not (choice == "open" and changed_choice != "open"), inputs
        assert not (changed_choice == "closed" and choice != "closed"), inputs
    assert reached


def test_the_headline_says_what_outvoted_the_cost() -> None:
    voices: dict[str, Any] = dict.fromkeys(QUESTIONS, "closed") | {"privacy": "neutral", "cost": "open"}
    result = verdict_rule.apply_rule(RuleInputs(True, "superior", False, True, False, voices))
    assert result == (
        "closed",
        "it is better and cheaper at this volume, but 3 of the other questions are against self-hosting",
    )


def test_the_documentation_has_the_figures_of_the_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"at least {criteria.REQUIRED_FRACTION:.0%}" in text
    assert f"at least {100 * criteria.USEFUL_DIFFERENCE:g} point more" in text
    assert f"more than {criteria.MAX_PROMPT_CHANGES} times a month" in text
    assert all(f"| {question}: " in text for question in QUESTIONS)
