"""The interface of a task module: constants and functions that every kind of task defines.

    task: TaskKind = TASKS["classification"]
    spec = task.make_spec(recipe.task, {"refund_status": "", "other": ""})
    task.parse(spec, "Refund-Status")       ParsedAnswer("refund_status")

A task module is a Python module, not a class. mypy checks each entry of TASKS against TaskKind, and
`tests/insource/tasks/test_task_kind.py` compares members and parameter names.

Each kind has its own Spec and its own type of target, so the interface types both as Any:

    kind             target
    classification   str: one label
    multilabel       list[str]: labels in the order of Spec.labels
    extraction       dict[str, Any]: the canonical record
    generation       str
    preference       dict[str, str]: {"chosen", "rejected"}
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from insource.config.recipe import Recipe
from insource.config.schema.data import Task
from insource.stats.metric_stats import MetricStats
from insource.tasks.data_row import RowInput
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.source_record import SourceRecord

Objective = Literal["imitate", "prefer"]
"""imitate: supervised fine-tuning on the target. prefer: DPO on pairs of answers."""


class TaskKind(Protocol):
    """Constants and functions of a task module."""

    NAME: str
    """Task.task_name: the module's key in TASKS, and in METRICS of insource/config/metric_names.py."""
    BREAKDOWN_NAME: str
    """The name of the parts in lowest_scoring, for reports: labels, fields, groups of rows."""
    BREAKDOWN_METRIC: str
    """The metric of lowest_scoring, for reports."""
    OBJECTIVE: Objective
    HAS_LABELS: bool
    """Whether targets consist of labels. Labels can be counted, balanced and checked for errors."""
    IS_FREE_TEXT: bool
    """Whether targets are free text. Personal data in free text is redacted as in an input."""
    IS_MULTILABEL: bool
    """Whether a row has several labels."""
    Spec: type[Any]
    """Frozen dataclass of all values that prompt, constraint and parser need. prompt.json stores its fields."""

    def make_spec(self, task: Task, labels: Mapping[str, str], may_be_empty: bool = False) -> Any:
        """Return the Spec of a recipe's task.

        `labels` is {label: description or ""} from data.json. `may_be_empty`: whether a row may have no label.
        Kinds without labels ignore both.
        """

    def messages(self, spec: Any, row_input: RowInput) -> list[dict[str, str]]:
        """Return the conversation up to the answer. `row_input` is {"text": ...}."""

    def answer_text(self, spec: Any, target: Any) -> str:
        """Return the text that the model should answer."""

    def training_answers(self, spec: Any, target: Any) -> list[str]:
        """Return all answer texts that training uses for a target; preference has two, the others one."""

    def answer_columns(self, recipe: Recipe) -> dict[str, str]:
        """Return {recipe key: source column} of the columns that hold the answer.

        Raises RecipeError if the recipe's columns do not fit the kind.
        """

    def read_source_row(self, values: Mapping[str, Any], recipe: Recipe) -> SourceRecord:
        """Return input and target of a source row {column: value}, unchanged. Raises UnusableRowError."""

    def normalize_target(self, target: Any, recipe: Recipe, redact: Callable[[str], str]) -> str:
        """Return the target of a SourceRecord as the text that prepared data stores.

        `redact` replaces personal data in texts. Raises UnusableRowError.
        """

    def parse_target(self, text: str) -> Any:
        """Return the target from its stored text."""

    def equality_key(self, text: str, recipe: Recipe) -> str:
        """Return a key that equal targets share. `text` is the stored text of a target."""

    def conflict_key(self, key: str, text: str) -> str:
        """Return the key of rows that may have only one target.

        `key` is the duplicate key of the input, `text` the stored text of the target.
        """

    def grammar(self, spec: Any) -> str | None:
        """Return the output constraint as EBNF for xgrammar and vLLM; None for free text."""

    def output_schema(self, spec: Any) -> dict[str, Any] | None:
        """Return the output constraint as a JSON Schema; None for free text."""

    def parse(self, spec: Any, output: str) -> ParsedAnswer:
        """Return the parsed answer, or a problem code."""

    def score(self, spec: Any, targets: Sequence[Any], answers: Sequence[ParsedAnswer]) -> dict[str, Any]:
        """Return {"n", each metric, "invalid", and a breakdown}. Metrics are 0 to 1 and higher is better.

        An answer with a problem counts as wrong. Raises ValueError without rows.
        """

    def compute_metric_stats(
        self, spec: Any, targets: Sequence[Any], answers: Sequence[ParsedAnswer]
    ) -> dict[str, MetricStats]:
        """Return {metric: sums over rows}, from which any resample can be computed."""

    def lowest_scoring(self, score: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Return (name, metric) of each part of a score, lowest first. See BREAKDOWN_NAME and BREAKDOWN_METRIC."""


@runtime_checkable
class LabelledTaskKind(TaskKind, Protocol):
    """A kind with HAS_LABELS: classification and multilabel."""

    def target_labels(self, text: str) -> list[str]:
        """Return the labels in the stored text of a target, in their original spelling."""

    def make_label_mapper(self, spellings: Mapping[str, str], order: Sequence[str]) -> Callable[[str], str]:
        """Return a function from the stored text of a target to its canonical text.

        `spellings` is {spelling: label}; `order` is the order of the labels.
        """


@runtime_checkable
class FreeTextTaskKind(TaskKind, Protocol):
    """A kind with IS_FREE_TEXT: generation and preference."""

    def describe_answer(self, text: str, target: Any) -> dict[str, float]:
        """Return statistics of one target for data.html. `text` is the input."""


@runtime_checkable
class DecodedTaskKind(TaskKind, Protocol):
    """A kind whose answers are decoded texts, so that files and clients can supply them: all except preference."""

    def make_answer_reader(
        self, spec: Any, normalize_labels: bool, separator: str | None = None
    ) -> Callable[[Any], str]:
        """Return a function from an answer in a file to the text that `parse` takes.

        `normalize_labels` and `separator` are data.normalize_labels and data.columns.label_separator.
        """


@runtime_checkable
class MultiReferenceTaskKind(TaskKind, Protocol):
    """A kind whose rows may have several references (data.columns.targets): extraction and generation."""

    def nearest_target(self, spec: Any, targets: Sequence[Any], answer: ParsedAnswer) -> Any:
        """Return the target that is nearest to an answer; the first of several."""
