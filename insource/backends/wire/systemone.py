"""System One (`POST <base_url>/systemone`): the API of TypeSafe's Jev, which other servers adopted.

request   {"model": "jev-1.14.0", "state": "my parcel is late", "questions": {"label": {"type": "choice",
           "instructions": "Choose the queue.", "criteria": {"delivery_delay": "parcel late or lost", "other": null}}}}
response  {"model": "jev-1.14.0", "answers": {"label": {"type": "choice", "choice": "delivery_delay",
           "probabilities": {"delivery_delay": 0.97, ...}, "confidence": 0.93}}, "usage": {"input_tokens": 61, ...}}

Checked on 2026-11-29 against the published references of those who serve it (Abacus RouteLLM, Ollama 0.35, Fireworks,
Bespoke Nimble, Databricks) and two client libraries, on 2026-12-01 against the models of TypeSafe's SDK (typesafe-sdk
0.7.5, generated from its server's OpenAPI description); never against TypeSafe itself. The request goes through the
openai SDK's client, for its transport, its key header and its exceptions.
"""

from typing import TYPE_CHECKING, Any

from insource.backends.types import Backend, Completion, Request, Usage

# The client is that of chat completions.
from insource.backends.wire.openai_chat import make_client as make_client
from insource.backends.wire.openai_decisions import build_choice_completion, require_choice_question

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPTIONAL_PARAMETERS: dict[str, tuple[str, ...]] = {}
QUESTION_KEY = "label"


def build_body(backend: Backend, request: Request) -> dict[str, Any]:
    """Return the request body. Raise RecipeError if the endpoint does not support the number of labels."""
    choice_question = require_choice_question(backend, request)
    criteria = {label: description or None for label, description in choice_question.labels}
    question = {"type": "choice", "instructions": choice_question.instruction, "criteria": criteria}
    return {"model": backend.model, "state": choice_question.text, "questions": {QUESTION_KEY: question}}


async def send(client: "AsyncOpenAI", backend: Backend, request: Request) -> Completion:
    """Return the completion of one attempt. Raise the SDK's errors, and ValueError for a malformed response."""
    response = await client.post("/systemone", cast_to=object, body=build_body(backend, request))
    return parse_completion(response, backend, request)


async def fetch_shutdown_date(client: "AsyncOpenAI", backend: Backend) -> str | None:
    """Return None: the API has no such field."""
    return None


def parse_completion(response: Any, backend: Backend, request: Request) -> Completion:
    """Return the completion of a response.

    Raise ValueError, LookupError, AttributeError or TypeError if it is malformed.
    """
    answer, raw_usage = response["answers"][QUESTION_KEY], response.get("usage") or {}
    if answer["type"] != "choice":
        raise ValueError(f"an answer of type {answer['type']} to a question of type choice")
    usage = Usage(raw_usage.get("input_tokens"), raw_usage.get("output_tokens"))
    probabilities = {str(label): float(value) for label, value in answer["probabilities"].items()}
    return build_choice_completion(str(answer["choice"]), probabilities, str(response["model"]), usage, request)
