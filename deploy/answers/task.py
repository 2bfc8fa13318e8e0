"""The task of a deployed version: it turns inputs into requests and parses answers.

It combines the deployed prompt.json (instruction, labels or schema, grammar), the recipe of the version, and the
gateway's recipe, which sets the routing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from compare.eval_dataset import EvalDataset
from compare.records import System, SystemAnswer, SystemResponses
from compare.scoring import confidence, predictions
from compare.systems import row_requests
from deploy.answers.label_tree import TaskTokens
from deploy.answers.request_errors import invalid_request
from deploy.routing import Routing
from insource.backends.types import Backend, Request
from insource.config.recipe import Recipe
from insource.config.schema.compare import TUNED
from insource.system import atomic_files
from insource.tasks import extraction
from insource.tasks.chat_messages import parse_messages, split_prompt
from insource.tasks.data_row import InputRow
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.pii import inputs
from insource.tasks.pii.inputs import CleanedInput
from insource.tasks.source_record import UnusableRowError, read_input
from serve.vllm.launch_plan import ServedModel

LOCAL_SYSTEM = System(TUNED, "tuned", "tuned (adapter)", "adapter")
GATEWAY_SECTIONS = ("route", "compare", "serve")
MAX_CHARACTERS_PER_TOKEN = 32
"""No text has so many on average. Longer inputs are rejected before any search in them."""


@dataclass(frozen=True)
class Task:
    """A deployed version of a task."""

    name: str
    version: str
    folder: Path
    """Folder of the adapter, its tokenizer and prompt.json."""
    recipe: Recipe
    """Recipe of the version, with route, compare and serve of the gateway's recipe."""
    dataset: EvalDataset
    """Prompt and task spec, without rows."""
    prompt_head: str
    """Text before the input in the task's prompt."""
    routing: Routing
    """Scale of the confidence and threshold, as deployed."""

    @property
    def internal_name(self) -> str:
        """Name of the version in vLLM."""
        return f"{self.name}@{self.version}"

    @cached_property
    def deployment_id(self) -> str:
        """Id of the version with its routing.json, 16 hex digits. Confidences with one id have the same scale."""
        return atomic_files.digest([self.version, self.routing.file])

    @cached_property
    def tokens(self) -> TaskTokens:
        """Tokenizer and label tree."""
        return TaskTokens(self.folder, self.dataset.task, self.dataset.spec)

    @property
    def labels(self) -> Mapping[str, str] | None:
        """Labels with their descriptions, None if answers are not labels."""
        return self.dataset.spec.labels if self.dataset.task.HAS_LABELS else None

    @property
    def grammar(self) -> str | None:
        """Output constraint of requests, None for free text or without serve.structured_output."""
        return self.dataset.prompt.grammar if self.recipe.serve.structured_output else None

    def prepare(self, text: str) -> CleanedInput:
        """Return an input as data preparation would clean it. Raise RequestError if preparation would reject it."""
        max_characters = MAX_CHARACTERS_PER_TOKEN * self.recipe.serve.max_model_len
        if len(text) > max_characters:
            raise invalid_request(
                f"the input has {len(text):,} characters, and the model reads at most {max_characters:,}"
            )
        try:
            return inputs.prepare_input(text, self.recipe.privacy.redact)
        except UnusableRowError as error:
            raise invalid_request(f"the input cannot be used: {error.detail}") from None

    def request(self, task_input: CleanedInput, max_tokens: int | None = None) -> Request:
        """Return the request for an input, as in the comparison. `max_tokens` limits the answer."""
        row: InputRow = {"id": "input", "input": {"text": task_input.text}}
        (request,) = row_requests.build_requests(LOCAL_SYSTEM, self.dataset, [row])
        return replace(request, max_tokens=min(request.max_tokens, max_tokens or request.max_tokens))

    def backend(self, constrained: bool | None = None) -> Backend:
        """Return the backend for requests to vLLM. `constrained` applies the grammar regardless of the recipe."""
        grammar = self.dataset.prompt.grammar if constrained else self.grammar
        return Backend(
            "openai", self.internal_name, structured="grammar" if grammar else "none", log_probabilities=True
        )

    def parse(self, answer: SystemAnswer) -> ParsedAnswer:
        """Return an answer parsed by the task and checked against its schema."""
        if self.dataset.task.OBJECTIVE == "prefer" and answer.output is not None:
            # The comparison scores pairs of such a task and generates no answers.
            parsed: ParsedAnswer = self.dataset.task.parse(self.dataset.spec, answer.output)
            return parsed
        return predictions.parse_answer(self.dataset, answer)

    def confidence(self, answer: SystemAnswer) -> float | None:
        """Return the confidence of the deployed version's answer, on the scale fitted by the comparison."""
        return confidence.compute_confidences(SystemResponses(LOCAL_SYSTEM, [answer]), self.routing.scale, [answer])[0]

    def stated_confidence(self, answer: SystemAnswer) -> float | None:
        """Return the confidence stated by an API model, None if it states none."""
        system = System("api", "closed", "api")
        return confidence.compute_confidences(SystemResponses(system, [answer]), None, [answer])[0]

    def equality_key(self, value: Any) -> str:
        """Return a key that is equal for answers that are equal by the task's score."""
        if self.recipe.task.kind == "extraction":
            return extraction.record_equality_key(self.dataset.spec, value)
        return self.answer_text(value)

    def answer_text(self, value: Any) -> str:
        """Return the text of an answer: the label, the record as JSON, or the text."""
        return value if isinstance(value, str) else str(self.dataset.task.answer_text(self.dataset.spec, value))


def build_task(served: ServedModel, version: str, gateway_recipe: Recipe | None, routing: Routing) -> Task | None:
    """Return the task of a version, None if its prompt.json does not state one."""
    prompt = served.prompt
    if prompt.task is None:
        return None
    module, spec = prompt.load_task()
    recipe = served.recipe
    if gateway_recipe is not None:
        sections = {name: getattr(gateway_recipe, name) for name in GATEWAY_SECTIONS}
        may_leave = recipe.privacy.data_may_leave and gateway_recipe.privacy.data_may_leave
        privacy = recipe.privacy.model_copy(update={"data_may_leave": may_leave})
        recipe = recipe.model_copy(update={**sections, "privacy": privacy})
    prompt_head = "\n".join(message["content"] for message in module.messages(spec, {"text": ""})).strip()
    dataset = EvalDataset(module, spec, prompt, train=[], calibration=[], test=[])
    return Task(served.name, version, served.folder, recipe, dataset, prompt_head, routing)


def extract_text(task: Task, value: object) -> str:
    """Return the text of an input: a text, an object of the recipe's text columns, or the messages of a conversation.

    Raise RequestError if it is none of them.
    """
    columns = task.recipe.data.columns
    try:
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return split_prompt(parse_messages(value, "input"))[1]
        if isinstance(value, dict):
            if columns.messages is not None and columns.messages in value:
                return split_prompt(parse_messages(value[columns.messages], columns.messages))[1]
            if unknown := sorted(value.keys() ^ set(columns.texts)):
                raise invalid_request(
                    f"an input that is an object has {', '.join(columns.texts)}, and {unknown[0]!r} is "
                    f"{'missing' if unknown[0] in columns.texts else 'none of them'}"
                )
            return read_input(value, columns)
    except UnusableRowError as error:
        raise invalid_request(f"the input cannot be used: {error.detail}") from None
    raise invalid_request("an input is a text, an object of the task's text columns, or a list of messages")
