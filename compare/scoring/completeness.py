"""How many rows a system really answered, and whether a verdict can rest on it.

{"answered": 2031, "refused": 3, "cut": 12, "malformed": 5, "failed": 4, "not_asked": 0}

answered   an answer that can be scored, right or wrong      refused    by the model or a filter, for what the row says
malformed  empty, no JSON, not in the schema, not a label    cut        by the output limit, before the answer ended
failed     no answer after all attempts                      not_asked  not sent, or refused for how it was asked

All but the last are wrong answers where they hold no right one. Rows that were not asked are not counted at all: they
make the system INCOMPLETE, and it decides nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from compare.scoring.predictions import NO_ANSWER, SystemAnswer
from compare.systems.catalog import SkippedSystem
from compare.systems.responses import SystemResponses
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer

OUTCOMES = ("answered", "refused", "cut", "malformed", "failed", "not_asked")
# What the model itself has said, whatever it is worth.
MODEL_OUTCOMES = ("answered", "refused", "malformed")
MIN_ANSWERED_FRACTION = 0.99


def count_outcomes(answers: Sequence[SystemAnswer], parsed: Sequence[ParsedAnswer]) -> dict[str, int]:
    """Returns how many rows came to what end."""
    counted = Counter(_outcome(answer, one.problem) for answer, one in zip(answers, parsed, strict=True))
    return {kind: counted[kind] for kind in OUTCOMES}


def exclude_unanswered(
    gathered: Sequence[SystemResponses], missing: Sequence[SkippedSystem]
) -> tuple[list[SystemResponses], list[SkippedSystem]]:
    """Returns the systems that answered some row, and those that did not run, with the others among them: a figure of
    a system that was never really asked would be no figure of it."""
    asked = [one for one in gathered if one.system.kind == "tuned" or not _was_never_asked(one)]
    names = {one.system.name for one in asked}
    refused = [
        SkippedSystem(one.system.name, one.system.title, f"INCOMPLETE: {one.why_incomplete}", incomplete=True)
        for one in gathered
        if one.system.name not in names
    ]
    return asked, [*missing, *refused]


def is_sufficient(system: Mapping[str, Any]) -> bool:
    """Returns whether a verdict can rest on a system of scores.json."""
    told = system.get("rows")
    return bool(system["complete"]) and (told is None or answered_fraction(told) >= MIN_ANSWERED_FRACTION)


def answered_fraction(told: Mapping[str, int]) -> float:
    """Returns the share of rows that the model itself said something to."""
    return sum(told[kind] for kind in MODEL_OUTCOMES) / max(1, sum(told.values()))


def incomplete_reason(scores: Mapping[str, Any], name: str | None) -> str | None:
    """Returns why the verdict cannot rest on the planned baseline, None where it can, or was never to be asked."""
    if name is None:
        return None
    for one in scores["not_run"]:
        if one["name"] == name and one.get("incomplete"):
            return f"{one['title']} is {one['why']}"
    system = scores["systems"].get(name)
    if system is None or is_sufficient(system):
        return None
    if not system["complete"]:
        return f"{system['title']} is INCOMPLETE: {system['why_incomplete']}"
    told = system["rows"]
    lost = ", ".join(f"{told[kind]:,} {kind}" for kind in ("cut", "failed", "not_asked") if told[kind])
    return (
        f"{system['title']} really answered {answered_fraction(told):.1%} of the rows ({lost}), and a verdict "
        "rests on at least "
        f"{MIN_ANSWERED_FRACTION:.0%}"
    )


def _was_never_asked(one: SystemResponses) -> bool:
    return bool(one.test) and all(answer.not_asked for answer in one.test)


def _outcome(answer: SystemAnswer, problem: str | None) -> str:
    if answer.not_asked:
        return "not_asked"
    if problem is None:
        return "answered"
    if problem == TRUNCATED:
        return "cut"
    if problem == "refusal":
        return "refused"
    if problem != NO_ANSWER:
        return "malformed"
    # A 429 after all attempts says nothing of the row, and nothing of the model.
    return "refused" if (answer.error or "").startswith("HTTP 4") and not answer.may_pass else "failed"
