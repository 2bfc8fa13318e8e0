"""OpenAI's decisions (`POST /v1/decisions`, public beta since 2026-10-06): one question, its choices, the row as input.

asked     {"model": "gpt-6-luna", "input": "my parcel is late", "questions": [{"type": "choice", "instructions":
           "Choose the queue.", "choices": [{"value": "delivery_delay", "description": "parcel late or lost"}, ...]}]}
answered  {"answers": [{"type": "choice", "choice": "delivery_delay", "confidence": 0.93, "probabilities":
           [{"value": "delivery_delay", "probability": 0.97}, ...]}], "model": "gpt-6-luna", "usage": {...}}
or        {"answers": [{"type": "refusal", "name": null}], ...}

One row a request: `input` belongs to all questions of a request (openai 3.54, types/decision_create_params.py), so a
second row could only go into the instructions, which is another prompt. `confidence` is a measure of how uneven the
probabilities are, and not the chance that the answer is right: the probability of the choice is what is kept.
"""

import math
from typing import TYPE_CHECKING, Any

from insource.backends.types import Backend, ChoiceQuestion, Completion, Request, ResponseHook, Usage
from insource.backends.wire import model_families, openai_chat
from insource.config.errors import RecipeError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Decision

# A request has no parameter that it could do without.
OPTIONAL_PARAMETERS: dict[str, tuple[str, ...]] = {}
# A provider may round to a few digits; the logarithm of an honest 0 has no end.
_MIN_PROBABILITY = 1e-9


def make_client(backend: Backend, on_response: ResponseHook | None = None) -> "AsyncOpenAI":
    """Returns the SDK's client; as on the wire of chat completions."""
    return openai_chat.make_client(backend, on_response)


def build_body(backend: Backend, request: Request) -> dict[str, Any]:
    """Returns the request as it is sent. Raises RecipeError for more labels than the endpoint takes."""
    choice_question = require_choice_question(backend, request)
    choices = [
        {"value": label, "description": description} if description else {"value": label}
        for label, description in choice_question.labels
    ]
    question = {"type": "choice", "instructions": choice_question.instruction, "choices": choices}
    return {"model": backend.model, "input": choice_question.text, "questions": [question]}


async def send(client: "AsyncOpenAI", backend: Backend, request: Request) -> Completion:
    """Returns the answer of one attempt. Raises the SDK's errors, and ValueError where the answer is none."""
    return parse_completion(await client.decisions.create(**build_body(backend, request)), backend, request)


async def fetch_shutdown_date(client: "AsyncOpenAI", backend: Backend) -> str | None:
    """Returns the day when the model will be shut down, None where none is announced. Raises the SDK's errors."""
    return await openai_chat.fetch_shutdown_date(client, backend)


def parse_completion(decision: "Decision", backend: Backend, request: Request) -> Completion:
    """Returns what a decision says; a refusal is an answer. Raises ValueError, AttributeError or TypeError where it is
    none."""
    if len(decision.answers) != 1:
        raise ValueError(f"{len(decision.answers)} answers to one question")
    answer, raw_usage = decision.answers[0], decision.usage
    usage = Usage(raw_usage.input_tokens, raw_usage.output_tokens, None, raw_usage.input_tokens_details.cached_tokens)
    if answer.type == "refusal":
        return Completion("", decision.model, usage, "refusal")
    if answer.type != "choice":
        raise ValueError(f"an answer of type {answer.type} to a question of type choice")
    probabilities = {str(choice.value): float(choice.probability) for choice in answer.probabilities}
    return build_choice_completion(str(answer.choice), probabilities, decision.model, usage, request)


def require_choice_question(backend: Backend, request: Request) -> ChoiceQuestion:
    """Returns the question of a request. Raises RecipeError where an endpoint cannot take it."""
    family, question = model_families.find_family(backend.wire, backend.model), request.choices
    if question is None or family.choices is None:
        raise RecipeError(f"api: {backend.wire} chooses among fixed labels: it is for task.kind classification")
    min_labels, max_labels = family.choices
    if not min_labels <= len(question.labels) <= max_labels:
        raise RecipeError(
            f"api: {backend.wire} takes {min_labels} to {max_labels} labels, and the task has {len(question.labels):,} "
            f"({family.source}); leave the baseline out, or ask the model by api: chat"
        )
    return question


def build_choice_completion(
    label: str, probabilities: dict[str, float], model: str, usage: Usage, request: Request
) -> Completion:
    """Returns the label that was chosen, with the probability of every label. Raises ValueError where one is missing,
    or is no probability."""
    question = request.choices
    labels = [name for name, _ in question.labels] if question else []
    if missing := [name for name in labels if name not in probabilities]:
        raise ValueError(f"no probability of {missing[0]!r}")
    if invalid := [value for value in probabilities.values() if not 0 <= value <= 1]:
        raise ValueError(f"{invalid[0]} is no probability")
    log_probability = math.log(max(probabilities.get(label, 0.0), _MIN_PROBABILITY))
    return Completion(label, model, usage, "stop", log_probability, {name: probabilities[name] for name in labels})
