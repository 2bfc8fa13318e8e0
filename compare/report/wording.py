"""How a comparison is put into words and figures, the same on the page and in the pull request.

0.9123 -> "91.2%", a difference of -0.0084 -> "−0.8 points", $0.0123, 120 ms, 1,234,567

What model or label wrote it is never trusted here: the page escapes by its template, the pull request by its own rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from insource.config.schema.compare import TUNED
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


def format_count(count: int, one: str, several: str = "") -> str:
    """Returns "1 row", "13,083 rows"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def format_percent(share: float) -> str:
    """Returns 12.3%. What is not nothing is never 0.0%, and what is not all is never 100.0%."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1%"
    return ">99.9%" if 99.95 <= value < 100 else f"{value:.1f}%"


def format_range(low: float, high: float) -> str:
    """Returns an interval of shares: 90.1 to 92.2."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def format_delta(difference: float) -> str:
    """Returns a difference of shares in points: +1.2, −0.8; two decimals where one would say nothing."""
    value = 100 * difference
    text = f"{abs(value):.1f}" if abs(value) >= 0.05 or value == 0 else f"{abs(value):.2f}"
    return "0.0" if float(text) == 0 else ("+" if value > 0 else "−") + text


def format_delta_range(low: float, high: float) -> str:
    """Returns an interval of a difference in points: −1.9 to +0.3."""
    return f"{format_delta(low)} to {format_delta(high)}"


def format_usd(value: float | None) -> str:
    """Returns $1,234 or $12.34 or $0.0123 or $0.40; "not measured" for None."""
    if value is None:
        return "not measured"
    if value >= 100 or value == 0:
        # Halves are rounded up, as the page's script does.
        return f"${floor(value + 0.5):,}"
    if value >= 1:
        return f"${value:.2f}"
    text = f"{value:.{2 - floor(log10(value))}f}"
    return f"${text[:4]}{text[4:].rstrip('0')}"


def format_compact(value: float) -> str:
    """Returns 950, 12.3k, 5M, 2.15B: three digits of a large number."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{floor(value + 0.5)}"


def format_axis_percent(share: float) -> str:
    """Returns a share as an axis has it: 90%, 92.5%."""
    return f"{round(100 * share, 3):g}%"


def format_seconds(value: float) -> str:
    """Returns 0.4 ms, 85 ms, 1.24 s."""
    if value >= 0.9995:
        return f"{value:.2f} s"
    return f"{1000 * value:.{0 if value >= 0.00995 else 1}f} ms"


def format_points(difference: float) -> str:
    """Returns a distance in points: 1.6."""
    return f"{100 * difference:.1f}"


def format_p_value(value: float) -> str:
    """Returns 0.013, <0.001."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def format_number(value: float | None, digits: int = 1) -> str:
    """Returns a plain figure, and a dash for what is not known."""
    return "–" if value is None else f"{value:,.{digits}f}"


def metric_name(metric: str) -> str:
    """Returns a metric as it is shown: macro_f1 as macro-F1."""
    return metric_label(metric)


def count_answered(system: Mapping[str, Any]) -> int:
    """Returns how many rows have an answer that can be scored: those that `ends` lists are the others."""
    told = system.get("rows") or {}
    return int(told.get("answered", system["answered"]))


def format_outcomes(system: Mapping[str, Any]) -> str:
    """Returns what became of the rows that are no plain answers: 3 refused, 12 cut; "" where there are none."""
    told = system.get("rows") or {}
    shown = ("refused", "malformed", "cut", "failed", "not_asked")
    return ", ".join(f"{told[kind]:,} {kind.replace('_', ' ')}" for kind in shown if told.get(kind))


def display_name(system: Mapping[str, Any]) -> str:
    """Returns what a system is called in every table; a stand-in is always called one."""
    given: str = system["title"]
    return given if not system["stand_in"] or "stand-in" in given.lower() else f"{given} (stand-in)"


def display_names(scores: Scores) -> dict[str, str]:
    """Returns what each system is called, by its name, those that did not run too."""
    return {one["name"]: one["title"] for one in scores["not_run"]} | {
        name: display_name(one) for name, one in scores["systems"].items()
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
    own = plan["system"] if plan and plan["system"] in systems else None
    own = own or next((name for name, one in systems.items() if one["kind"] == "tuned"), None)
    if plan and plan["baseline"] in systems:
        return own, plan["baseline"]
    others = [name for name, one in systems.items() if one["kind"] != "tuned"]
    ranks = ("closed", "file", "linear", "nearest", "base")
    return own, min(others, key=lambda name: ranks.index(systems[name]["kind"]), default=None)


def parity_text(scores: Scores) -> str:
    """Returns how what was served answered the validation rows, beside the weights that were trained."""
    told = scores["systems"].get(TUNED, {}).get("parity")
    if told is None:
        return "not checked in this comparison"
    if told["agreement"] is not None:
        return (
            f"{format_percent(told['agreement'])} of {format_count(told['n'], 'validation row')} answered as "
            "the trained weights do"
        )
    between_told = f"{told['difference']:+.1%} ({told['ci_low']:+.1%} to {told['ci_high']:+.1%})"
    return (
        f"other weights than were trained: {metric_label(told['metric'])} {format_percent(told['served'])} against "
        f"{format_percent(told['trained'])} of {format_count(told['n'], 'validation row')}, {between_told}"
    )


def deciding_value(scores: Scores, name: str | None) -> float | None:
    """Returns a system's value in the metric that decides, None where it has none."""
    measured = scores["systems"][name]["metrics"].get(deciding_metric(scores)) if name else None
    return None if measured is None else float(measured["value"])


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
    own = primary_pair(scores)[0]
    value = deciding_value(scores, own)
    if value is None or "linear" in scores["verdict"]["headline"].lower():
        return None
    linear = [name for name, one in scores["systems"].items() if one["kind"] == "linear"]
    as_good = {name: of for name in linear if (of := deciding_value(scores, name)) is not None and of >= value}
    if not as_good:
        return None
    for at, reason in enumerate(scores["verdict"]["reasons"]):
        if reason["about"] == "linear":
            return BaselineNote(reason["says"], at)
    best = max(as_good, key=lambda name: as_good[name])
    named = display_names(scores)
    return BaselineNote(
        f"A linear model does as well: {named[best]} reaches {format_percent(as_good[best])} "
        f"{metric_name(deciding_metric(scores))}, {named[str(own)]} {format_percent(value)}.",
        None,
    )


def supporting_reasons(scores: Scores) -> list[Mapping[str, Any]]:
    """Returns the verdict's reasons, but for the one that stands under the headline and for the five questions."""
    first = linear_baseline_note(scores)
    every = enumerate(scores["verdict"]["reasons"])
    return [one for at, one in every if not one.get("question") and (not first or at != first.reason)]


def question_reasons(scores: Scores) -> list[Mapping[str, Any]]:
    """Returns the verdict's answers to the five questions; none of a scores.json that was written before they were."""
    return [one for one in scores["verdict"]["reasons"] if one.get("question")]


def format_votes(scores: Scores) -> str:
    """Returns for whom the five questions speak: 1 open (cost), 1 closed (prompt changes), 3 neutral."""
    asked = question_reasons(scores)
    told = []
    for voice in ("open", "closed", "neutral"):
        about = [one["about"] for one in asked if one["for"] == voice]
        named = f" ({', '.join(about)})" if about and voice != "neutral" else ""
        told.append(f"{len(about)} {voice}{named}")
    return ", ".join(told)


def primary_comparison(scores: Scores) -> Mapping[str, Any] | None:
    """Returns the one comparison that was planned, None where there was no plan or it could not be made."""
    found: list[Mapping[str, Any]] = [one for one in scores["comparisons"] if one["family"] == "primary"]
    return found[0] if found else None


def incomplete_notes(scores: Scores) -> list[str]:
    """Returns one line for each thing that is not whole: systems that stopped, and what the run itself names."""
    named = display_names(scores)
    stopped = {
        name: f"{named[name]}: {count_answered(one):,} of {one['n']:,} rows answered"
        + (f"; {one['why_incomplete']}" if one["why_incomplete"] else "")
        for name, one in scores["systems"].items()
        if not one["complete"]
    }
    told = [line for line in scores["integrity"]["incomplete"] if not any(_refers_to(line, name) for name in stopped)]
    return [*stopped.values(), *told]


def _refers_to(line: str, name: str) -> bool:
    return line == name or line.startswith(f"{name}:") or line.startswith(f"{name} ")
