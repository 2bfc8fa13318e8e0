"""How a comparison is put into words and figures, the same on the page and in the pull request.

0.9123 -> "91.2%", a difference of -0.0084 -> "−0.8 points", $0.0123, 120 ms, 1,234,567

What model or label wrote it is never trusted here: the page escapes by its template, the pull request by its own rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insource.config.schema.compare import TUNED
from insource.system.number_format import format_count, format_percent
from insource.tasks import metric_label

Scores = Mapping[str, Any]

KIND_LABELS = {
    "tuned": "the tuned model",
    "base": "the same base, untuned",
    "linear": "a linear model",
    "nearest": "the nearest training rows",
    "closed": "a closed model",
    "file": "answers from a file",
}
CONCLUSION_LABELS = {
    "superior": "better",
    "non-inferior": "as good, within the margin",
    "worse": "worse",
    "undecided": "undecided",
}
STAGE_LABELS = {"parse": "readable", "schema": "in the schema", "label": "allowed", "right": "right"}
"""What an answer must get through, each stage a share of all rows."""


def metric_name(metric: str) -> str:
    """Returns a metric as it is shown: macro_f1 as macro-F1."""
    return metric_label(metric)


def count_answered(system: Mapping[str, Any]) -> int:
    """Returns how many rows have an answer that can be scored: those that `ends` lists are the others."""
    counts = system.get("rows") or {}
    return int(counts.get("answered", system["answered"]))


def format_outcomes(system: Mapping[str, Any]) -> str:
    """Returns what became of the rows that are no plain answers: 3 refused, 12 cut; "" where there are none."""
    counts = system.get("rows") or {}
    kinds = ("refused", "malformed", "cut", "failed", "not_asked")
    return ", ".join(f"{counts[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if counts.get(kind))


def display_name(system: Mapping[str, Any]) -> str:
    """Returns what a system is called in every table; a stand-in is always called one."""
    title: str = system["title"]
    return title if not system["stand_in"] or "stand-in" in title.lower() else f"{title} (stand-in)"


def display_names(scores: Scores) -> dict[str, str]:
    """Returns what each system is called, by its name, those that did not run too."""
    return {skipped["name"]: skipped["title"] for skipped in scores["not_run"]} | {
        name: display_name(system) for name, system in scores["systems"].items()
    }


def deciding_metric(scores: Scores) -> str:
    """Returns the metric that decides: the plan's, else the task's first."""
    plan = scores["plan"]
    return str(plan["metric"] if plan else scores["task"]["metrics"][0])


def primary_pair(scores: Scores) -> tuple[str | None, str | None]:
    """Returns the two systems that all is about: the plan's, else the tuned one and a closed or another one.

    None where there is no such system.
    """
    systems, plan = scores["systems"], scores["plan"]
    tuned = plan["system"] if plan and plan["system"] in systems else None
    tuned = tuned or next((name for name, system in systems.items() if system["kind"] == "tuned"), None)
    if plan and plan["baseline"] in systems:
        return tuned, plan["baseline"]
    others = [name for name, system in systems.items() if system["kind"] != "tuned"]
    ranks = ("closed", "file", "linear", "nearest", "base")
    return tuned, min(others, key=lambda name: ranks.index(systems[name]["kind"]), default=None)


def parity_text(scores: Scores) -> str:
    """Returns how what was served answered the validation rows, beside the weights that were trained."""
    parity = scores["systems"].get(TUNED, {}).get("parity")
    if parity is None:
        return "not checked in this comparison"
    if parity["agreement"] is not None:
        return (
            f"{format_percent(parity['agreement'])} of {format_count(parity['n'], 'validation row')} answered as "
            "the trained weights do"
        )
    difference_text = f"{parity['difference']:+.1%} ({parity['ci_low']:+.1%} to {parity['ci_high']:+.1%})"
    return (
        f"other weights than were trained: {metric_label(parity['metric'])} {format_percent(parity['served'])} against "
        f"{format_percent(parity['trained'])} of {format_count(parity['n'], 'validation row')}, {difference_text}"
    )


def deciding_value(scores: Scores, name: str | None) -> float | None:
    """Returns a system's value in the metric that decides, None where it has none."""
    metric = scores["systems"][name]["metrics"].get(deciding_metric(scores)) if name else None
    return None if metric is None else float(metric["value"])


@dataclass(frozen=True)
class BaselineNote:
    """A linear model that does as well as the tuned one."""

    says: str
    reason: int | None
    """Which of the verdict's reasons says it."""


def linear_baseline_note(scores: Scores) -> BaselineNote | None:
    """Returns what stands first under the headline where a linear model does as well; None where none does.

    None also where the headline says it already.
    """
    tuned = primary_pair(scores)[0]
    value = deciding_value(scores, tuned)
    if value is None or "linear" in scores["verdict"]["headline"].lower():
        return None
    linear_names = [name for name, system in scores["systems"].items() if system["kind"] == "linear"]
    as_good = {
        name: score for name in linear_names if (score := deciding_value(scores, name)) is not None and score >= value
    }
    if not as_good:
        return None
    for index, reason in enumerate(scores["verdict"]["reasons"]):
        if reason["about"] == "linear":
            return BaselineNote(reason["says"], index)
    best = max(as_good, key=lambda name: as_good[name])
    titles = display_names(scores)
    return BaselineNote(
        f"A linear model does as well: {titles[best]} reaches {format_percent(as_good[best])} "
        f"{metric_name(deciding_metric(scores))}, {titles[str(tuned)]} {format_percent(value)}.",
        None,
    )


def supporting_reasons(scores: Scores) -> list[Mapping[str, Any]]:
    """Returns the verdict's reasons, but for the one that stands under the headline and for the five questions."""
    note = linear_baseline_note(scores)
    numbered = enumerate(scores["verdict"]["reasons"])
    return [reason for index, reason in numbered if not reason.get("question") and (not note or index != note.reason)]


def question_reasons(scores: Scores) -> list[Mapping[str, Any]]:
    """Returns the verdict's answers to the five questions; none of a scores.json that was written before they were."""
    return [reason for reason in scores["verdict"]["reasons"] if reason.get("question")]


def format_votes(scores: Scores) -> str:
    """Returns for whom the five questions speak: 1 open (cost), 1 closed (prompt changes), 3 neutral."""
    reasons = question_reasons(scores)
    parts = []
    for vote in ("open", "closed", "neutral"):
        topics = [reason["about"] for reason in reasons if reason["for"] == vote]
        topics_text = f" ({', '.join(topics)})" if topics and vote != "neutral" else ""
        parts.append(f"{len(topics)} {vote}{topics_text}")
    return ", ".join(parts)


def primary_comparison(scores: Scores) -> Mapping[str, Any] | None:
    """Returns the one comparison that was planned, None where there was no plan or it could not be made."""
    planned: list[Mapping[str, Any]] = [
        comparison for comparison in scores["comparisons"] if comparison["family"] == "primary"
    ]
    return planned[0] if planned else None


def incomplete_notes(scores: Scores) -> list[str]:
    """Returns one line for each thing that is not whole: systems that stopped, and what the run itself names."""
    titles = display_names(scores)
    stopped = {
        name: f"{titles[name]}: {count_answered(system):,} of {system['n']:,} rows answered"
        + (f"; {system['why_incomplete']}" if system["why_incomplete"] else "")
        for name, system in scores["systems"].items()
        if not system["complete"]
    }
    notes = [line for line in scores["integrity"]["incomplete"] if not any(_refers_to(line, name) for name in stopped)]
    return [*stopped.values(), *notes]


def _refers_to(line: str, name: str) -> bool:
    return line == name or line.startswith(f"{name}:") or line.startswith(f"{name} ")
