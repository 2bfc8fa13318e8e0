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


def make_client(backend: Backend, heard: ResponseHook | None = None) -> "AsyncOpenAI":
    """Returns the SDK's client; as on the wire of chat completions."""
    return openai_chat.make_client(backend, heard)


def build_body(backend: Backend, request: Request) -> dict[str, Any]:
    """Returns the request as it is sent. Raises RecipeError for more labels than the endpoint takes."""
    asked = require_choice_question(backend, request)
    choices = [{"value": label, "description": about} if about else {"value": label} for label, about in asked.labels]
    question = {"type": "choice", "instructions": asked.instruction, "choices": choices}
    return {"model": backend.model, "input": asked.text, "questions": [question]}


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
    answer, told = decision.answers[0], decision.usage
    usage = Usage(told.input_tokens, told.output_tokens, None, told.input_tokens_details.cached_tokens)
    if answer.type == "refusal":
        return Completion("", decision.model, usage, "refusal")
    if answer.type != "choice":
        raise ValueError(f"an answer of type {answer.type} to a question of type choice")
    found = {str(one.value): float(one.probability) for one in answer.probabilities}
    return build_choice_completion(str(answer.choice), found, decision.model, usage, request)


def require_choice_question(backend: Backend, request: Request) -> ChoiceQuestion:
    """Returns the question of a request. Raises RecipeError where an endpoint cannot take it."""
    family, asked = model_families.find_family(backend.wire, backend.model), request.choices
    if asked is None or family.choices is None:
        raise RecipeError(f"api: {backend.wire} chooses among fixed labels: it is for task.kind classification")
    fewest, most = family.choices
    if not fewest <= len(asked.labels) <= most:
        raise RecipeError(
            f"api: {backend.wire} takes {fewest} to {most} labels, and the task has {len(asked.labels):,} "
            f"({family.source}); leave the baseline out, or ask the model by api: chat"
        )
    return asked


def build_choice_completion(
    label: str, probabilities: dict[str, float], model: str, usage: Usage, request: Request
) -> Completion:
    """Returns the label that was chosen, with the probability of every label. Raises ValueError where one is missing,
    or is no probability."""
    asked = request.choices
    labels = [one for one, _ in asked.labels] if asked else []
    if missing := [one for one in labels if one not in probabilities]:
        raise ValueError(f"no probability of {missing[0]!r}")
    if bad := [value for value in probabilities.values() if not 0 <= value <= 1]:
        raise ValueError(f"{bad[0]} is no probability")
    likely = math.log(max(probabilities.get(label, 0.0), _MIN_PROBABILITY))
    return Completion(label, model, usage, "stop", likely, {one: probabilities[one] for one in labels})
