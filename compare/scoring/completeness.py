"""Outcomes of the rows of a system, and whether they suffice for a verdict.

{"answered": 2031, "refused": 3, "cut": 12, "malformed": 5, "failed": 4, "not_asked": 0}

answered   an answer that can be scored, right or wrong      refused    by model or filter, because of the row's text
malformed  empty, no JSON, not in the schema, not a label    cut        by the output limit, before the answer ended
failed     no answer after all attempts                      not_asked  not sent, or the request itself was rejected

All outcomes but `not_asked` are wrong answers unless the answer is right. Rows that were not asked do not count. They
make the system INCOMPLETE, and it decides nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from compare.records import SkippedSystem, SystemAnswer, SystemResponses
from compare.scoring.predictions import NO_ANSWER
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tracking.scores.comparison import Measurements
from insource.tracking.scores.system_result import SystemResult

OUTCOMES = ("answered", "refused", "cut", "malformed", "failed", "not_asked")
# Outcomes with an answer of the model itself, of any quality.
MODEL_OUTCOMES = ("answered", "refused", "malformed")
MIN_ANSWERED_FRACTION = 0.99


def count_outcomes(answers: Sequence[SystemAnswer], parsed: Sequence[ParsedAnswer]) -> dict[str, int]:
    """Return {outcome: number of rows} for all OUTCOMES."""
    counts = Counter(
        _outcome(answer, parsed_answer.problem) for answer, parsed_answer in zip(answers, parsed, strict=True)
    )
    return {kind: counts[kind] for kind in OUTCOMES}


def exclude_unanswered(
    all_responses: Sequence[SystemResponses], skipped: Sequence[SkippedSystem]
) -> tuple[list[SystemResponses], list[SkippedSystem]]:
    """Return the systems that answered at least one row, and the skipped systems with the others added.

    A system whose every row was not asked has no scores.
    """
    answered = [
        responses
        for responses in all_responses
        if responses.system.kind == "tuned" or not _received_no_requests(responses)
    ]
    answered_names = {responses.system.name for responses in answered}
    unanswered = [
        SkippedSystem(
            responses.system.name, responses.system.title, f"INCOMPLETE: {responses.incomplete_reason}", incomplete=True
        )
        for responses in all_responses
        if responses.system.name not in answered_names
    ]
    return answered, [*skipped, *unanswered]


def is_sufficient(system: SystemResult) -> bool:
    """Return whether a verdict can use a system of scores.json."""
    counts = system.outcomes
    return system.complete and (counts is None or answered_fraction(counts) >= MIN_ANSWERED_FRACTION)


def answered_fraction(counts: Mapping[str, int]) -> float:
    """Return the fraction of rows to which the model itself gave an answer, of any quality."""
    return sum(counts[kind] for kind in MODEL_OUTCOMES) / max(1, sum(counts.values()))


def incomplete_reason(measurements: Measurements, name: str | None) -> str | None:
    """Return why the verdict cannot use the planned baseline. None if it can, or if there is no planned baseline."""
    if name is None:
        return None
    for skipped in measurements.not_run:
        if skipped.name == name and skipped.incomplete:
            return f"{skipped.title} is {skipped.reason}"
    system = measurements.systems.get(name)
    if system is None or is_sufficient(system):
        return None
    if not system.complete:
        return f"{system.title} is INCOMPLETE: {system.incomplete_reason}"
    counts = system.outcomes or {}
    missing_counts = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("cut", "failed", "not_asked") if counts[kind])
    return (
        f"{system.title} really answered {answered_fraction(counts):.1%} of the rows ({missing_counts}), and a verdict "
        f"rests on at least {MIN_ANSWERED_FRACTION:.0%}"
    )


def _received_no_requests(responses: SystemResponses) -> bool:
    return bool(responses.test_answers) and all(answer.not_queried for answer in responses.test_answers)


def _outcome(answer: SystemAnswer, problem: str | None) -> str:
    if answer.not_queried:
        return "not_asked"
    if problem is None:
        return "answered"
    if problem == TRUNCATED:
        return "cut"
    if problem == "refusal":
        return "refused"
    if problem != NO_ANSWER:
        return "malformed"
    # A 429 after all attempts is due neither to the row nor to the model.
    return "refused" if (answer.error or "").startswith("HTTP 4") and not answer.may_pass else "failed"
