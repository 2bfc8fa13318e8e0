"""The typed records of prompt.json: everything that a server needs to build the prompts of training.

<run>/adapter/prompt.json   {"schema_version": 1, "task": {"kind": "classification", ...}, "messages": [...], ...}

PromptSpec.read(run.folder / "adapter").grammar         'root ::= "late" | "lost"'
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insource.config.errors import RecipeError
from insource.system import atomic_files
from insource.tasks import load_task_spec
from insource.tasks.task_kind import TaskKind
from insource.tracking.record import StoredRecord

PROMPT_FILE = "prompt.json"
PROMPT_SCHEMA_VERSION = 1


class TrainedBase(StoredRecord):
    """A base that training changed: dequantized weights, see base_models/base_store.py."""

    digest: str
    """Name of its folder in the store."""
    quantization: str = ""
    dtype: str = ""
    sha256: Mapping[str, str] = {}
    """{file: hash}."""


class BaseIdentity(StoredRecord):
    """The base of an adapter."""

    name: str
    """Public name; "" if the task has no base yet."""
    commit: str | None = None
    """Commit on the hub; None for a folder."""
    sha256: Mapping[str, str] | None = None
    """{file: hash} of a folder; None for a base on the hub."""
    trained: TrainedBase | None = None
    """None if the published base was used in training, or if its weights could not be kept."""


class TemplateRecord(StoredRecord):
    """The chat template of training."""

    pinned: Mapping[str, object] = {}
    """Values of its variables."""
    own_suffix: str | None = None
    """Why the prompts end in another way than the template ends them; None if they do not."""


class PromptExamples(StoredRecord):
    """The examples in the prompts of training (train.shots)."""

    shots: int
    """Number of similar train rows in each prompt."""
    max_prompt_tokens: int
    """The least similar examples are left out of a prompt that is longer."""


class ReferenceFile(StoredRecord):
    """The reference answers of a run, which are not in the adapter folder."""

    rows: int
    sha256: str


class PromptSpec(StoredRecord):
    """Contents of prompt.json. A comparison before training has only the constraint and the limit of the answer."""

    schema_version: int = PROMPT_SCHEMA_VERSION
    task: Mapping[str, Any] | None = None
    """The kind of task and the fields of its Spec; None if an earlier version trained the run."""
    messages: list[dict[str, str]] = []
    """The messages of a prompt, with a placeholder for the input, without examples."""
    prompt_ids: list[int] | None = None
    """Token ids of `messages`; None if an earlier version trained the run."""
    output_schema: Mapping[str, Any] | None = None
    """JSON schema of an answer; None for free text."""
    grammar: str | None = None
    """Grammar of an answer (EBNF); None for free text."""
    stop: str | None = None
    """Token that ends an answer."""
    max_answer_tokens: int
    chat_template_sha256: str = ""
    template: TemplateRecord = TemplateRecord()
    base: BaseIdentity = BaseIdentity(name="")
    references: ReferenceFile | None = None
    """None if an earlier version trained the run."""
    examples: PromptExamples | None = None
    """None if the prompts of training have no examples."""

    @classmethod
    def read(cls, folder: Path) -> "PromptSpec":
        """Return the prompt.json of an adapter or of an exported model.

        Raise RecipeError if this version cannot read it, FileNotFoundError if there is none.
        """
        path = folder / PROMPT_FILE
        return cls.parse(atomic_files.read_json(path), path)

    def load_task(self) -> tuple[TaskKind, Any]:
        """Return the task's module and its Spec. Raise RecipeError if an earlier version trained the run."""
        if self.task is None:
            raise RecipeError("prompt.json has no task: an earlier version of insource wrote it", code="INS-R014")
        return load_task_spec(self.task)

    @property
    def kind(self) -> str:
        """The kind of task; "" if an earlier version trained the run."""
        return str(self.task["kind"]) if self.task else ""

    def check_without_examples(self, run_id: str) -> None:
        """Raise RecipeError if the prompts of training have examples: only parity check and comparison send them."""
        if self.examples is not None:
            raise RecipeError(
                f"run {run_id} was trained with train.shots: {self.examples.shots}. Its prompts have similar train "
                "rows as examples, which a server, a gateway and a prediction do not send. Use it in `make compare`; "
                "to serve or deploy, train with train.shots: 0",
                code="INS-E016",
            )

    def with_references(self, references: ReferenceFile) -> "PromptSpec":
        """Return the spec with the record of the reference answers."""
        return self.model_copy(update={"references": references})


def read_trained_base(folder: Path) -> TrainedBase | None:
    """Return the record of the base that the adapter in a folder was trained on; None for the published base."""
    return PromptSpec.read(folder).base.trained
