"""OpenAI's chat completions, through its SDK: OpenAI, vLLM, Gemini, Mistral, any base_url, and Azure."""

from typing import TYPE_CHECKING, Any

from insource.backends.types import DUMMY_API_KEY, Backend, Completion, Request, ResponseHook, Usage
from insource.backends.wire import model_families
from insource.backends.wire.json_schema import restrict_keywords, unwrap_answer, wrap_in_object
from insource.backends.wire.sdk_environment import hide_variables
from insource.config.errors import RecipeError
from insource.config.hosts import is_loopback, parse_host
from insource.tasks.records.field_confidence import lowest_field_log_probability

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

    from insource.backends.wire.engine_completion import EngineCompletion

DEFAULT_BASE_URL = "https://api.openai.com/v1"
# Optional parameters, with the names that an error gives them.
OPTIONAL_PARAMETERS = {
    # Refused by servers that know only its old name, max_tokens, which is sent instead.
    "max_completion_tokens": ("max_completion_tokens",),
    "temperature": ("temperature",),
    "reasoning_effort": ("reasoning_effort", "reasoning.effort"),
    "logprobs": ("logprobs",),
    "response_format": ("response_format",),
}


def make_client(backend: Backend, on_response: ResponseHook | None = None) -> "AsyncOpenAI":
    """Return the SDK's client, without its retries (client.py retries, so that each attempt is recorded).

    `on_response` gets the status and headers of every response. On Azure the SDK reads the API version from
    OPENAI_API_VERSION, and without a key AZURE_OPENAI_AD_TOKEN. Other variables of the environment have no effect
    (sdk_environment.py). Raise RecipeError if one of them is missing.
    """
    from openai import AsyncAzureOpenAI, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

    async def call_hook(response: Any) -> None:
        if on_response:
            on_response(response.status_code, response.headers)

    http = DefaultAsyncHttpxClient(**backend.http_client_options, event_hooks={"response": [call_hook]})
    settings: dict[str, Any] = {"timeout": backend.timeout_seconds, "max_retries": 0, "http_client": http}
    if backend.cloud != "azure":
        with hide_variables(default_address=backend.base_url is None):
            return AsyncOpenAI(api_key=backend.api_key, base_url=backend.base_url or DEFAULT_BASE_URL, **settings)
    # Without a key the SDK sends Azure's key from the environment, which a local stand-in must not get.
    is_local = is_loopback(parse_host(backend.base_url))
    key = None if backend.api_key == DUMMY_API_KEY and not is_local else backend.api_key
    try:
        with hide_variables(default_address=False):
            return AsyncAzureOpenAI(azure_endpoint=backend.base_url or "", api_key=key, **settings)
    except (OpenAIError, ValueError) as error:
        raise RecipeError(f"model {backend.model} on Azure cannot be used: {error}", code="INS-A005") from None


def build_body(backend: Backend, request: Request) -> dict[str, Any]:
    """Return the request body: only optional parameters that the recipe sets and the provider did not refuse."""
    limit = "max_tokens" if "max_completion_tokens" in backend.omitted_parameters else "max_completion_tokens"
    body: dict[str, Any] = {
        "model": backend.model,
        "messages": [dict(message) for message in request.messages],
        limit: request.max_tokens,
    }
    if backend.temperature is not None:
        body["temperature"] = backend.temperature
    if backend.effort is not None:
        body["reasoning_effort"] = backend.effort
    if backend.log_probabilities:
        body["logprobs"] = True
    constraint = request.constraint
    if backend.structured == "grammar" and constraint.grammar is not None:
        body["structured_outputs"] = {"grammar": constraint.grammar}
    if backend.structured == "json_schema" and constraint.json_schema is not None:
        keywords = model_families.find_schema_keywords(backend)
        schema = {
            "name": "answer",
            "strict": True,
            "schema": restrict_keywords(wrap_in_object(constraint.json_schema), keywords),
        }
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if name not in backend.omitted_parameters}


async def send(client: "AsyncOpenAI", backend: Backend, request: Request) -> Completion:
    """Return the completion of one attempt. Raise the SDK's errors, and ValueError for a malformed response."""
    from openai.types.chat import ChatCompletion

    completion = await client.post("/chat/completions", cast_to=ChatCompletion, body=build_body(backend, request))
    return parse_completion(completion, backend, request)


async def fetch_shutdown_date(client: "AsyncOpenAI", backend: Backend) -> str | None:
    """Return the day (ISO 8601) on which the model will be shut down, None if none is announced.

    Raise the SDK's errors.
    """
    return (await client.models.retrieve(backend.model)).shutdown_date


def parse_completion(completion: "ChatCompletion | EngineCompletion", backend: Backend, request: Request) -> Completion:
    """Return the parsed completion. Raise ValueError, AttributeError or TypeError if it is malformed."""
    if not completion.choices:
        raise ValueError("the answer holds no choice")
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.content or ""
    if backend.structured == "json_schema" and request.constraint.json_schema is not None:
        text = unwrap_answer(request.constraint.json_schema, text)
    token_logprobs = choice.logprobs.content if choice.logprobs else None
    prompt_details = usage.prompt_tokens_details if usage else None
    completion_details = usage.completion_tokens_details if usage else None
    return Completion(
        output=text,
        model_id=completion.model,
        usage=Usage(
            input_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            reasoning_tokens=completion_details.reasoning_tokens if completion_details else None,
            cached_tokens=prompt_details.cached_tokens if prompt_details else None,
        ),
        finish_reason="refusal" if choice.message.refusal else str(choice.finish_reason),
        log_probability=sum(token.logprob for token in token_logprobs) if token_logprobs else None,
        field_log_probability=(
            lowest_field_log_probability(
                [token.token for token in token_logprobs], [token.logprob for token in token_logprobs]
            )
            if token_logprobs
            else None
        ),
    )
