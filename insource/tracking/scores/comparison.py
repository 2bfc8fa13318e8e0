"""The whole of scores.json as records, with its reader and its writer.

    scores = read_scores(run.folder / "scores.json")
    scores.systems["tuned"].metrics[scores.deciding_metric].value      0.912

The file keeps its bytes: `write_scores` after `read_scores` writes the same file, also for one of an older version,
which lacks some keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import ValidationError

from insource.config.errors import StageError
from insource.config.schema.compare import TUNED
from insource.stats.paired import Conclusion
from insource.system import atomic_files
from insource.tracking.record import Number, Record, key
from insource.tracking.scores.cost_result import CostResult
from insource.tracking.scores.routing_result import RoutingResult
from insource.tracking.scores.system_result import SystemResult

Choice = Literal["open", "closed", "hybrid", "inconclusive"]
Vote = Literal["open", "closed", "neutral"]
# If the plan names no baseline that was run, the first of these kinds is compared with the tuned model.
BASELINE_KINDS = ("closed", "file", "linear", "nearest", "head", "base")


class TeacherSummary(Record):
    """The train labels of a teacher (data.teacher). Held-out labels are never a teacher's."""

    name: str
    """Provider, model and API."""
    n_train: int
    """Train rows with its labels."""
    stand_in: bool
    """Whether a server on this machine stood in for the provider."""
    soft_labels: bool
    """Whether training used its probabilities."""


class TaskSummary(Record):
    """The task, and the numbers of its rows."""

    kind: str
    instruction: str
    parts: str
    """What `per_part` of a system has: labels or fields."""
    metrics: Sequence[str]
    n_train: int
    n_test: int
    clusters: int | None
    teacher: TeacherSummary | None = None


class BaseSummary(Record):
    """The base model."""

    name: str
    pocket: bool
    """Whether the pocket model stood in for it."""
    quantization: str
    served_as: str | None = None


class Plan(Record):
    """The planned comparison, and whether it was written before the test set was read."""

    system: str
    baseline: str
    metric: str
    margin: Number
    alpha: Number
    sha256: str
    registered_at: str = key("written")
    confirmatory: bool
    exploratory_reason: str | None = key("why_not")


class NotRun(Record):
    """A system that was not run."""

    name: str
    title: str
    reason: str = key("why")
    incomplete: bool = False
    """Whether it was tried and failed."""


class PairedResult(Record):
    """The difference of two systems in one metric, on the rows that both got."""

    a: str
    b: str
    metric: str
    delta: Number
    ci_low: Number
    ci_high: Number
    p_value: Number
    p_adjusted: Number
    test: str
    alpha: Number
    margin: Number
    n: int
    discordant: int | None
    mde: Number
    family: Literal["primary", "exploratory"]
    conclusion: Conclusion = key("judged")
    rows_to_decide: int | None


class ConfusionMatrix(Record):
    """Counts by target (rows) and predicted label (columns)."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


class Disagreement(Record):
    """A row that two systems answer differently. It is in the report, not in scores.json."""

    id: str
    input: str
    target: str
    answers: Mapping[str, str]
    """{system: answer}."""
    correct: Mapping[str, bool] = key("right")
    confidence: Number | None


class Opening(Record):
    """One reading of the test set."""

    opened: str
    run: str
    plan_sha256: str | None


class Integrity(Record):
    """What the figures rest on."""

    test_sha256: str
    plan_sha256: str
    openings: Sequence[Opening]
    leaked_rows: int
    cache_hits: int
    retries: int
    versions: Mapping[str, str]
    git_commit: str | None
    fallbacks: Sequence[str]
    incomplete: Sequence[str]


class Reason(Record):
    """One reason for or against self-hosting."""

    topic: str = key("about")
    text: str = key("says")
    favors: str | None = key("for")
    """open, closed or hybrid, for the five questions also neutral; None if it is only information."""
    value: str | None = key("figure")
    question: str | None = None
    """The text of the question that it answers (compare/decision/criteria.py), None if it answers none."""


class Verdict(Record):
    """The choice and its reasons."""

    choice: Choice
    headline: str
    reasons: Sequence[Reason]
    votes: Mapping[str, int] = key("count")
    """{vote: number of the five questions}."""
    open_questions: Sequence[str] = key("undecided")
    """Open points, each with the result that would decide it."""


class Measurements(Record):
    """scores.json without routing and verdict: what the verdict is decided from."""

    schema_version: int
    run_id: str
    recipe: str
    created: str
    task: TaskSummary
    base: BaseSummary
    hardware: str
    training_seconds: Number = 0.0
    plan: Plan | None
    systems: Mapping[str, SystemResult]
    not_run: Sequence[NotRun]
    comparisons: Sequence[PairedResult]
    agreement: Mapping[str, Number]
    """{"a | b": fraction of the common rows with the same answer}."""
    confusion: Mapping[str, ConfusionMatrix]
    cost: CostResult
    integrity: Integrity

    @property
    def deciding_metric(self) -> str:
        """Return the deciding metric: the plan's, else the task's first."""
        return select_deciding_metric(self.plan, self.task.metrics)

    @property
    def primary_comparison(self) -> PairedResult | None:
        """Return the planned comparison, None if there was no plan or one of its sides was not run."""
        return next((comparison for comparison in self.comparisons if comparison.family == "primary"), None)

    @property
    def primary_pair(self) -> tuple[str | None, str | None]:
        """Return the two main systems: those of the plan, else the tuned model and an API model or another system.

        None for a system that does not exist.
        """
        systems, plan = self.systems, self.plan
        tuned = plan.system if plan and plan.system in systems else None
        tuned = tuned or next((name for name, system in systems.items() if system.kind == "tuned"), None)
        if plan and plan.baseline in systems:
            return tuned, plan.baseline
        others = [name for name, system in systems.items() if system.kind != "tuned"]
        return tuned, min(others, key=lambda name: BASELINE_KINDS.index(systems[name].kind), default=None)

    def deciding_value(self, name: str) -> float:
        """Return a system's value of the deciding metric. Raise KeyError if it has none."""
        return self.systems[name].metrics[self.deciding_metric].value


class Scores(Measurements):
    """The whole of scores.json."""

    routing: RoutingResult | None
    verdict: Verdict


class _HasMetric(Protocol):
    @property
    def metric(self) -> str: ...


def select_deciding_metric(plan: _HasMetric | None, metrics: Sequence[str]) -> str:
    """Return the metric that decides: the plan's, else the task's first."""
    return plan.metric if plan else metrics[0]


def build_scores(measurements: Measurements, routing: RoutingResult, verdict: Verdict) -> Scores:
    """Return the measurements with routing and verdict."""
    return Scores(**dict(measurements), routing=routing, verdict=verdict)


def read_scores(path: Path) -> Scores:
    """Return the records of a scores.json. Raise StageError if it is not one."""
    try:
        return Scores.model_validate(atomic_files.read_json(path))
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(str(part) for part in problem["loc"])
        raise StageError(
            f"{path}: {location or 'the file'}: {problem['msg']} ({error.error_count():,} such errors); compare again "
            "(`make compare RECIPE=... FRESH=1`)",
            code="INS-C003",
        ) from None


@dataclass(frozen=True)
class ComparedModel:
    """The tuned model of a comparison: a threshold holds only for the same weights."""

    variant: str | None
    """None: an earlier version did not record it."""
    served_base: str | None
    """None: an earlier version did not record it."""


def read_compared_model(path: Path) -> ComparedModel:
    """Return the tuned model of a scores.json of any version."""
    payload = atomic_files.read_json(path)
    return ComparedModel(payload["systems"][TUNED].get("form"), payload.get("base", {}).get("served_as"))


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores.json."""
    atomic_files.write_json(path, scores.to_json())
