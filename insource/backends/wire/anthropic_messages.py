"""Anthropic's Messages API, through its SDK.

Providers: Anthropic, vLLM's `/v1/messages`, and Anthropic models on Bedrock and Vertex. It returns no
log-probabilities.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from insource.backends.types import DUMMY_API_KEY, Backend, Completion, Request, ResponseHook, Usage
from insource.backends.wire import model_families
from insource.backends.wire.json_schema import restrict_keywords, unwrap_answer, wrap_in_object
from insource.backends.wire.sdk_environment import hide_variables
from insource.config.errors import RecipeError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, AsyncAnthropicBedrock, AsyncAnthropicVertex
    from anthropic.types import Message

    Client = AsyncAnthropic | AsyncAnthropicBedrock | AsyncAnthropicVertex

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
DEFAULT_BASE_URL = "https://api.anthropic.com"
# Optional parameters, with the names that an error gives them.
OPTIONAL_PARAMETERS = {
    "temperature": ("temperature",),
    "effort": ("output_config.effort", "effort"),
    "thinking": ("thinking",),
    "format": ("output_config.format", "output_format"),
}
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def make_client(backend: Backend, on_response: ResponseHook | None = None) -> "Client":
    """Return the SDK's client, without its retries (client.py retries, so that each attempt is recorded).

    `on_response` gets the status and headers of every response. Bedrock: region and credentials as boto3 finds them, or
    AWS_REGION and AWS_BEARER_TOKEN_BEDROCK. Vertex: the region from CLOUD_ML_REGION, project and credentials as
    google-auth finds them, or ANTHROPIC_VERTEX_PROJECT_ID. Other variables of the environment have no effect
    (sdk_environment.py). Raise RecipeError if a variable or a library is missing.
    """
    from anthropic import AsyncAnthropic, AsyncAnthropicBedrock, AsyncAnthropicVertex, DefaultAsyncHttpxClient

    async def call_hook(response: Any) -> None:
        if on_response:
            on_response(response.status_code, response.headers)

    http = DefaultAsyncHttpxClient(**backend.http_client_options, event_hooks={"response": [call_hook]})
    settings: dict[str, Any] = {"timeout": backend.timeout_seconds, "max_retries": 0, "http_client": http}
    settings["base_url"] = backend.base_url or (None if backend.cloud else DEFAULT_BASE_URL)
    with hide_variables(default_address=backend.base_url is None):
        try:
            if backend.cloud == "bedrock":
                return AsyncAnthropicBedrock(**_find_bedrock_credentials(backend), **settings)
            if backend.cloud == "vertex":
                return AsyncAnthropicVertex(**_find_vertex_credentials(backend), **settings)
        except ValueError as error:
            raise RecipeError(
                f"model {backend.model} on {backend.cloud} cannot be used: {error}", code="INS-A005"
            ) from None
        return AsyncAnthropic(api_key=backend.api_key, **settings)


def _find_bedrock_credentials(backend: Backend) -> dict[str, Any]:
    """Return the API key if there is one; else check that credentials exist.

    The SDK itself would search for them only at the first request.
    """
    if backend.api_key != DUMMY_API_KEY:
        return {"api_key": backend.api_key}
    if os.environ.get("AWS_BEARER_TOKEN_BEDROCK"):
        return {}
    session = _import_cloud_library("boto3", backend)
    try:
        if session.Session().get_credentials() is not None:
            return {}
        reason = "boto3 finds none (`aws configure`, or AWS_BEARER_TOKEN_BEDROCK)"
    except import_module("botocore.exceptions").BotoCoreError as error:
        reason = str(error)
    raise RecipeError(f"model {backend.model} on bedrock has no credentials: {reason}", code="INS-A005")


def _find_vertex_credentials(backend: Backend) -> dict[str, Any]:
    """Return project and credentials.

    The SDK requires the project before it loads the credentials, which contain it.
    """
    project, default_project = os.environ.get("ANTHROPIC_VERTEX_PROJECT_ID"), None
    settings: dict[str, Any] = {"access_token": backend.api_key}
    if backend.api_key == DUMMY_API_KEY:
        auth = _import_cloud_library("google.auth", backend)
        try:
            credentials, default_project = auth.default(scopes=[_GOOGLE_SCOPE])
        except import_module("google.auth.exceptions").GoogleAuthError as error:
            raise RecipeError(f"model {backend.model} on vertex has no credentials: {error}", code="INS-A005") from None
        settings = {"credentials": credentials}
    if not (project or default_project):
        raise RecipeError(
            f"model {backend.model} on vertex needs a project: set ANTHROPIC_VERTEX_PROJECT_ID", code="INS-A005"
        )
    return {**settings, "project_id": project or default_project}


def _import_cloud_library(library: str, backend: Backend) -> Any:
    """Return a module of a library that only this cloud needs. Raise RecipeError if it is not installed."""
    try:
        return import_module(library)
    except ImportError:
        package = library.replace(".", "-")
        raise RecipeError(
            f"model {backend.model} on {backend.cloud} needs {package}, which is not installed: pip install {package} "
            f"(the extra `{backend.cloud}` of this project)",
            code="INS-A006",
        ) from None


def build_body(backend: Backend, request: Request) -> dict[str, Any]:
    """Return the request body.

    The constraint is sent as a JSON Schema, the only form of this API. Effort none turns thinking off.
    """
    system = "\n\n".join(message["content"] for message in request.messages if message["role"] == "system")
    body: dict[str, Any] = {
        "model": backend.model,
        "messages": [dict(message) for message in request.messages if message["role"] != "system"],
        "max_tokens": request.max_tokens,
    }
    if system:
        body["system"] = system
    if backend.temperature is not None and "temperature" not in backend.omitted_parameters:
        body["temperature"] = backend.temperature
    if backend.effort == "none" and "thinking" not in backend.omitted_parameters:
        body["thinking"] = {"type": "disabled"}
    if output := _build_output_config(backend, request):
        body["output_config"] = output
    return body


def _build_output_config(backend: Backend, request: Request) -> dict[str, object]:
    config: dict[str, Any] = {}
    if backend.effort not in (None, "none") and "effort" not in backend.omitted_parameters:
        config["effort"] = backend.effort
    constrained = backend.structured == "json_schema" and request.constraint.json_schema is not None
    if constrained and "format" not in backend.omitted_parameters:
        keywords = model_families.find_schema_keywords(backend)
        schema = restrict_keywords(wrap_in_object(request.constraint.json_schema or {}), keywords, one_type=True)
        config["format"] = {"type": "json_schema", "schema": schema}
    return config


async def send(client: "Client", backend: Backend, request: Request) -> Completion:
    """Return the completion of one attempt. Raise the SDK's errors, and ValueError for a malformed response."""
    from anthropic.types import Message

    message = await client.post("/v1/messages", cast_to=Message, body=build_body(backend, request))
    return parse_completion(message, backend, request)


async def fetch_shutdown_date(client: "Client", backend: Backend) -> str | None:
    """Return the day (ISO 8601) on which the model will be shut down, None if none is announced.

    Raise the SDK's errors.
    """
    from anthropic import AsyncAnthropic

    assert isinstance(client, AsyncAnthropic), "clouds have no list of models on this wire"
    retires = (await client.models.retrieve(backend.model)).retires_at
    return retires.date().isoformat() if retires else None


def parse_completion(message: "Message", backend: Backend, request: Request) -> Completion:
    """Return the completion of a message. Raise ValueError, AttributeError or TypeError if it is malformed."""
    text, usage = "".join(block.text for block in message.content if block.type == "text"), message.usage
    if backend.structured == "json_schema" and request.constraint.json_schema is not None:
        text = unwrap_answer(request.constraint.json_schema, text)
    # input_tokens excludes tokens that were read from, or written to, the cache.
    cached = usage.cache_read_input_tokens or 0
    return Completion(
        output=text,
        model_id=message.model,
        usage=Usage(
            input_tokens=usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
            output_tokens=usage.output_tokens,
            reasoning_tokens=_get_thinking_tokens(usage),
            cached_tokens=usage.cache_read_input_tokens,
        ),
        finish_reason=_FINISH_REASONS.get(message.stop_reason or "", message.stop_reason or "unknown"),
    )


def _get_thinking_tokens(usage: Any) -> int | None:
    details = usage.output_tokens_details
    return details.thinking_tokens if details else None
