"""The answers of a teacher: a label for train, or the reason why a row is left out.

output "Delivery-Delay", probability 0.93, min_confidence 0.8    TeacherLabel(target="delivery_delay", ...)
output "perhaps a delay"                                         "invalid_answer"
finish_reason "refusal"                                          "refused"
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp
from typing import Any, Literal

from data_prep.rows.data_row import Row, locate_fields, slice_values
from data_prep.teacher.unlabelled_rows import Candidate
from insource.backends.response_cache import CachedResponse
from insource.config.recipe import Recipe
from insource.tasks.extraction import parse_record
from insource.tasks.pii import redaction
from insource.tasks.source_record import UnusableRowError, check_characters
from insource.tasks.task_kind import TaskKind

Reason = Literal["not_sent", "no_answer", "refused", "cut_off", "invalid_answer", "low_confidence"]
"""not_sent: the budget was used up. no_answer: an error of the provider, after all retries."""


@dataclass(frozen=True)
class TeacherLabel:
    """A row that a teacher labelled: a line of labels.jsonl."""

    id: str
    file: str
    line: int
    text: str
    target: str
    """In the form of prepared data (`normalize_target` of the task)."""
    group: str | None
    time: float | None
    slices: Mapping[str, str]
    pii_kinds: tuple[str, ...]
    confidence: float | None
    """The probability of the answer; None if the provider returns none."""
    probabilities: Mapping[str, float] | None
    """Of every label, from decision endpoints."""
    model_id: str | None
    """The model name in the response."""

    def to_json(self) -> dict[str, Any]:
        """Return the line of labels.jsonl."""
        return asdict(self)


def read_answer(
    candidate: Candidate, response: CachedResponse | None, task: TaskKind, spec: Any, recipe: Recipe
) -> TeacherLabel | Reason:
    """Return the label of a row, or the reason why it is left out."""
    assert recipe.data.teacher is not None
    if response is None:
        return "not_sent"
    if response.finish_reason == "refusal" or (response.error is not None and response.final):
        return "refused"
    if response.output is None:
        return "no_answer"
    if response.finish_reason == "length":
        return "cut_off"
    parsed = task.parse(spec, response.output)
    if parsed.problem is not None:
        return "invalid_answer"
    try:
        check_characters("answer", parsed.value)
        target = task.normalize_target(parsed.value, recipe, lambda text: text)
    except UnusableRowError:
        return "invalid_answer"
    confidence = read_confidence(response, parsed.value)
    minimum = recipe.data.teacher.min_confidence
    if minimum is not None and (confidence is None or confidence < minimum):
        return "low_confidence"
    return TeacherLabel(
        id=candidate.id,
        file=candidate.file,
        line=candidate.line,
        text=candidate.text,
        target=target,
        group=candidate.group,
        time=candidate.time,
        slices=candidate.slices,
        pii_kinds=tuple(sorted(candidate.pii_kinds)),
        confidence=confidence,
        probabilities=response.probabilities,
        model_id=response.model_id,
    )


def read_confidence(response: CachedResponse, answer: object) -> float | None:
    """Return the probability of a parsed answer, None if the provider returned none."""
    if response.probabilities is not None and isinstance(answer, str):
        return response.probabilities.get(answer)
    return None if response.log_probability is None else exp(response.log_probability)


def make_row(label: TeacherLabel, recipe: Recipe) -> Row:
    """Return a labelled row as data preparation reads rows of people."""
    kinds, is_record = recipe.privacy.redact, recipe.task.kind == "extraction"
    record = parse_record(label.target) if is_record else {}
    values = slice_values(label.slices, label.target, recipe, {})
    return Row(
        id=label.id,
        text=label.text,
        target=label.target,
        references=(),
        group=label.group,
        slices={name: redaction.pseudonymize(values.get(name, ""), kinds) for name in recipe.data.slices},
        time=label.time,
        pii_kinds=frozenset(label.pii_kinds),
        system="",
        text_before_cleaning=label.text,
        field_states=locate_fields(record, record, label.text) if is_record else {},
        cut_fields=frozenset(),
        file=label.file,
        line=label.line,
        provenance="teacher",
    )
