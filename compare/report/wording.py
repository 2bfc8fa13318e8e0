"""Texts of a comparison that the HTML page, the Markdown page and the console share.

Texts of models and labels are not escaped: the HTML page escapes them in its template, the Markdown page by its own
rules.
"""

from dataclasses import dataclass

from insource.config.schema.compare import TUNED
from insource.system.number_format import format_count, format_percent
from insource.tasks import metric_label
from insource.tracking.scores.comparison import Reason, Scores
from insource.tracking.scores.system_result import SystemKind, SystemResult

KIND_LABELS: dict[SystemKind, str] = {
    "tuned": "the tuned model",
    "base": "the same base, untuned",
    "linear": "a linear model",
    "nearest": "the nearest training rows",
    "head": "the same base with a classification head",
    "closed": "an API model",
    "file": "answers from a file",
}
CONCLUSION_LABELS = {
    "superior": "better",
    "non-inferior": "as good, within the margin",
    "worse": "worse",
    "undecided": "undecided",
}
STAGE_LABELS = {"parse": "readable", "schema": "in the schema", "label": "allowed", "right": "right"}
"""Validity stages of an answer, each a fraction of all rows."""


def teacher_text(scores: Scores) -> str | None:
    """Return whose the train labels are if some are a teacher's; None otherwise."""
    task = scores.task
    if task.teacher is None:
        return None
    stand_in = ", a stand-in on this machine" if task.teacher.stand_in else ""
    labels_note = ", as probabilities" if task.teacher.soft_labels else ""
    return (
        f"{task.teacher.n_train:,} of {task.n_train:,} are those of the teacher {task.teacher.name}{stand_in}"
        f"{labels_note}; the others, and all test labels, are those of the data"
    )


def count_answered(system: SystemResult) -> int:
    """Return the number of rows with an answer that can be scored. `format_outcomes` lists the others."""
    return (system.outcomes or {}).get("answered", system.answered)


def format_outcomes(system: SystemResult) -> str:
    """Return the outcomes of rows without such an answer: 3 refused, 12 cut; "" if there are none."""
    counts = system.outcomes or {}
    kinds = ("refused", "malformed", "cut", "failed", "not_asked")
    return ", ".join(f"{counts[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if counts.get(kind))


def display_name(system: SystemResult) -> str:
    """Return a system's name in tables. A stand-in is always marked as one."""
    title = system.title
    return title if not system.stand_in or "stand-in" in title.lower() else f"{title} (stand-in)"


def quantization_label(scores: Scores) -> str:
    """Return how the base was quantized in training."""
    return "not quantized" if scores.base.quantization == "none" else scores.base.quantization


def display_names(scores: Scores) -> dict[str, str]:
    """Return {name: display name} of all systems, including those that did not run."""
    return {skipped.name: skipped.title for skipped in scores.not_run} | {
        name: display_name(system) for name, system in scores.systems.items()
    }


def parity_text(scores: Scores) -> str:
    """Return the result of the parity check: the served variant against the trained weights, on the validation rows."""
    tuned = scores.systems.get(TUNED)
    if tuned is None or tuned.parity is None:
        return "not checked in this comparison"
    parity = tuned.parity
    if parity.agreement is not None:
        return (
            f"{format_percent(parity.agreement)} of {format_count(parity.n, 'validation row')} answered as "
            "the trained weights do"
        )
    difference_text = f"{parity.difference:+.1%} ({parity.ci_low:+.1%} to {parity.ci_high:+.1%})"
    return (
        f"other weights than were trained: {metric_label(parity.metric)} {format_percent(parity.served)} against "
        f"{format_percent(parity.trained)} of {format_count(parity.n, 'validation row')}, {difference_text}"
    )


def deciding_value(scores: Scores, name: str | None) -> float | None:
    """Return a system's value in the deciding metric, None if it has none."""
    metric = scores.systems[name].metrics.get(scores.deciding_metric) if name else None
    return None if metric is None else metric.value


@dataclass(frozen=True)
class BaselineNote:
    """A note that a linear model, or the most similar train row, is as good as the tuned model."""

    text: str
    reason_index: int | None
    """Index of the verdict's reason with the same content."""


def linear_baseline_note(scores: Scores) -> BaselineNote | None:
    """Return the note below the headline if a linear model or the most similar row is at least as good, else None.

    Also None if the headline mentions it.
    """
    tuned = scores.primary_pair[0]
    value = deciding_value(scores, tuned)
    if value is None or "linear" in scores.verdict.headline.lower():
        return None
    names = [name for name, system in scores.systems.items() if system.kind in ("linear", "nearest")]
    as_good = {name: score for name in names if (score := deciding_value(scores, name)) is not None and score >= value}
    if not as_good:
        return None
    for index, reason in enumerate(scores.verdict.reasons):
        if reason.topic == "linear":
            return BaselineNote(reason.text, index)
    best = max(as_good, key=lambda name: as_good[name])
    titles = display_names(scores)
    return BaselineNote(
        f"{titles[best][0].upper()}{titles[best][1:]} does as well: {metric_label(scores.deciding_metric)} "
        f"{format_percent(as_good[best])}, {titles[str(tuned)]} {format_percent(value)}.",
        None,
    )


def supporting_reasons(scores: Scores) -> list[Reason]:
    """Return the verdict's reasons, without the one below the headline and without the five questions."""
    note = linear_baseline_note(scores)
    numbered = enumerate(scores.verdict.reasons)
    return [reason for index, reason in numbered if not reason.question and (not note or index != note.reason_index)]


def question_reasons(scores: Scores) -> list[Reason]:
    """Return the verdict's answers to the five questions; [] for a scores.json of an older version."""
    return [reason for reason in scores.verdict.reasons if reason.question]


def format_votes(scores: Scores) -> str:
    """Return the votes of the five questions: 1 open (cost), 1 closed (prompt changes), 3 neutral."""
    reasons = question_reasons(scores)
    parts = []
    for vote in ("open", "closed", "neutral"):
        topics = [reason.topic for reason in reasons if reason.favors == vote]
        topics_text = f" ({', '.join(topics)})" if topics and vote != "neutral" else ""
        parts.append(f"{len(topics)} {vote}{topics_text}")
    return ", ".join(parts)


def incomplete_notes(scores: Scores) -> list[str]:
    """Return one line for each incomplete system, and for each further incomplete part of the run."""
    titles = display_names(scores)
    stopped = {
        name: f"{titles[name]}: {count_answered(system):,} of {system.n:,} rows answered"
        + (f"; {system.incomplete_reason}" if system.incomplete_reason else "")
        for name, system in scores.systems.items()
        if not system.complete
    }
    notes = [line for line in scores.integrity.incomplete if not any(_refers_to(line, name) for name in stopped)]
    return [*stopped.values(), *notes]


def _refers_to(line: str, name: str) -> bool:
    return line == name or line.startswith(f"{name}:") or line.startswith(f"{name} ")
