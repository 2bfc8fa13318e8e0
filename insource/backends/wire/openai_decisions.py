"""OpenAI's decisions (`POST /v1/decisions`, public beta since 2026-10-06): a question with choices about a text.

request   {"model": "gpt-6-luna", "input": "my parcel is late", "questions": [{"type": "choice", "instructions":
           "Choose the queue.", "choices": [{"value": "delivery_delay", "description": "parcel late or lost"}, ...]}]}
response  {"answers": [{"type": "choice", "choice": "delivery_delay", "confidence": 0.93, "probabilities":
           [{"value": "delivery_delay", "probability": 0.97}, ...]}], "model": "gpt-6-luna", "usage": {...}}
or        {"answers": [{"type": "refusal", "name": null}], ...}

One row a request: `input` belongs to all questions of a request (openai 3.54, types/decision_create_params.py). A
second row would have to go into the instructions, which changes the prompt. `confidence` measures how uneven the
probabilities are, not the probability that the answer is right. Only the probability of the choice is kept.
"""

import math
from typing import TYPE_CHECKING, Any

from insource.backends.types import Backend, ChoiceQuestion, Completion, Request, Usage
from insource.backends.wire import model_families

# Client and shutdown date are those of chat completions.
from insource.backends.wire.openai_chat import fetch_shutdown_date as fetch_shutdown_date
from insource.backends.wire.openai_chat import make_client as make_client
from insource.config.errors import RecipeError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Decision

# A request has no optional parameter.
OPTIONAL_PARAMETERS: dict[str, tuple[str, ...]] = {}
# A provider may round to a few digits, and log(0) is infinite.
_MIN_PROBABILITY = 1e-9


def build_body(backend: Backend, request: Request) -> dict[str, Any]:
    """Return the request body. Raise RecipeError if the endpoint does not support the number of labels."""
    choice_question = require_choice_question(backend, request)
    choices = [
        {"value": label, "description": description} if description else {"value": label}
        for label, description in choice_question.labels
    ]
    question = {"type": "choice", "instructions": choice_question.instruction, "choices": choices}
    return {"model": backend.model, "input": choice_question.text, "questions": [question]}


async def send(client: "AsyncOpenAI", backend: Backend, request: Request) -> Completion:
    """Return the completion of one attempt. Raise the SDK's errors, and ValueError for a malformed response."""
    return parse_completion(await client.decisions.create(**build_body(backend, request)), backend, request)


def parse_completion(decision: "Decision", backend: Backend, request: Request) -> Completion:
    """Return the completion of a decision; a refusal is an answer.

    Raise ValueError, AttributeError or TypeError if it is malformed.
    """
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
    """Return the choice question of a request. Raise RecipeError if the endpoint does not support it."""
    family, question = model_families.find_family(backend.api_format, backend.model), request.choices
    if question is None or family.label_limits is None:
        raise RecipeError(
            f"api: {backend.api_format} chooses one of fixed labels: it needs task.kind classification", code="INS-A004"
        )
    min_labels, max_labels = family.label_limits
    if not min_labels <= len(question.labels) <= max_labels:
        raise RecipeError(
            f"api: {backend.api_format} takes {min_labels} to {max_labels} labels, and the task has "
            f"{len(question.labels):,} ({family.source}); leave the baseline out, or set api: chat",
            code="INS-A004",
        )
    return question


def build_choice_completion(
    label: str, probabilities: dict[str, float], model: str, usage: Usage, request: Request
) -> Completion:
    """Return the chosen label as a completion with the probability of every label.

    Raise ValueError if a probability is missing or outside [0, 1].
    """
    question = request.choices
    labels = [name for name, _ in question.labels] if question else []
    if missing := [name for name in labels if name not in probabilities]:
        raise ValueError(f"no probability of {missing[0]!r}")
    if invalid := [value for value in probabilities.values() if not 0 <= value <= 1]:
        raise ValueError(f"{invalid[0]} is no probability")
    log_probability = math.log(max(probabilities.get(label, 0.0), _MIN_PROBABILITY))
    return Completion(label, model, usage, "stop", log_probability, {name: probabilities[name] for name in labels})
