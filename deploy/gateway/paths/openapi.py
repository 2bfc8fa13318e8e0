"""GET /openapi.json: the description of the gateway's paths in OpenAPI 3.1.

{"openapi": "3.1.0", "paths": {"/v1/tasks/classifier": {"post": {"requestBody": ..., "responses": {"200": ...}}}, ...}}

Every deployed task has its own path, with the schema of its inputs and answers, so clients can be generated for it.
Requests that are no valid HTTP are refused before they reach a path and are not described.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from deploy.answers.outcome import VERSION_HEADER, Deployment
from deploy.answers.task import Task
from deploy.gateway.paths import chat_request, decisions, feedback, openapi_schemas, systemone, tasks_path
from deploy.gateway.paths.openapi_schemas import TEXT, Schema, describe_object
from insource.config.schema.serving_and_cost import Limits

PATH = "/openapi.json"
API_VERSION = "1.0"
"""Increased when a path changes in a way that breaks clients."""
STATUSES = {
    400: "The request is invalid. The message names the problem.",
    401: "A valid key is missing (Authorization: Bearer, or x-api-key).",
    403: "The request comes from a web page of another origin.",
    404: "There is no such model, task or answer.",
    408: "The body was sent too slowly.",
    413: "The request exceeds serve.limits.",
    415: "The body is compressed.",
    422: "The answer does not fit the task's schema.",
    429: "Too many requests are in flight, or the budget of this month is spent.",
    502: "The answer of the model's server cannot be read.",
    503: "No answer is available now: the model is being started, or it failed.",
}
RETRYABLE = (429, 503)
"""Statuses with the header Retry-After."""
_GET_STATUSES = (401, 403)
_BODY_STATUSES = (*_GET_STATUSES, 400, 408, 413, 415, 429, 503)
_TASK_STATUSES = (*_BODY_STATUSES, 404, 422, 502)
_PASSED_ON = "Another status of vLLM, passed on unchanged."


def build_description(
    deployments: Mapping[str, Deployment], models: Sequence[str], limits: Limits, key_required: bool
) -> dict[str, Any]:
    """Return the OpenAPI description. `models` are the names in /v1/models."""
    tasks = [deployment.task for _, deployment in sorted(deployments.items())]
    paths = {**_describe_chats(models, limits), **_describe_own_paths(tasks), **_describe_state()}
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "insource gateway", "version": API_VERSION},
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in schemes] if key_required else [],
        "paths": paths,
        "components": {
            "schemas": {"Error": openapi_schemas.ERROR},
            "responses": {str(status): _describe_error(status) for status in STATUSES},
            "securitySchemes": schemes,
        },
    }


def _describe_chats(models: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Return the paths of OpenAI's and Anthropic's formats, which vLLM or the gateway answers."""
    openai_chat = openapi_schemas.describe_chat(models, limits, with_max_tokens=False)
    anthropic_chat = openapi_schemas.describe_chat(models, limits, with_max_tokens=True)
    completion = openapi_schemas.describe_completion_request(models, limits)
    return {
        chat_request.COMPLETIONS_PATH: _describe_chat(
            "Answer a chat in OpenAI's format", openai_chat, openapi_schemas.CHAT_COMPLETION
        ),
        chat_request.MESSAGES_PATH: _describe_chat(
            "Answer a chat in Anthropic's format", anthropic_chat, openapi_schemas.MESSAGE
        ),
        "/v1/completions": _describe_chat("Complete a prompt", completion, openapi_schemas.COMPLETION),
    }


def _describe_chat(summary: str, request: Schema, response: Schema) -> dict[str, Any]:
    path = _describe_post(summary, request, response, _TASK_STATUSES)
    responses = path["post"]["responses"]
    # OpenAPI 3.1 has no schema for the events of a stream.
    responses["200"]["content"]["text/event-stream"] = {"schema": {}}
    responses["default"] = {"description": _PASSED_ON}
    return path


def _describe_own_paths(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the paths of tasks, decisions, System One and feedback."""
    classifications = [task for task in tasks if task.recipe.task.task_name == "classification"]
    paths = {
        f"{tasks_path.PREFIX}{quote(task.name)}": _describe_post(
            f"Answer inputs of the task {task.name}",
            openapi_schemas.describe_task_request(task),
            openapi_schemas.describe_task_response(task),
            _TASK_STATUSES,
        )
        for task in tasks
    }
    paths[decisions.PATH] = _describe_post(
        "Return the probability of labels",
        openapi_schemas.describe_decision_request(classifications),
        openapi_schemas.describe_decision_response(),
        (*_BODY_STATUSES, 404, 502),
    )
    paths[systemone.PATH] = _describe_post(
        "Return the probability of labels, in the format of System One",
        openapi_schemas.describe_systemone_request(classifications),
        openapi_schemas.describe_systemone_response(),
        (*_BODY_STATUSES, 404, 502),
    )
    paths[feedback.PATH] = _describe_post(
        "Record right answers",
        openapi_schemas.describe_feedback_request(tasks),
        openapi_schemas.describe_feedback_response(),
        (*_BODY_STATUSES, 404),
        with_version=False,
    )
    return paths


def _describe_state() -> dict[str, Any]:
    """Return the paths without a body."""
    ready = describe_object({"ready": {"type": "boolean"}})
    not_ready = {"503": _describe_json("Requests are not forwarded now.", ready)}
    ready_path = _describe_get("Whether requests are forwarded", ready, not_ready, needs_key=False)
    alive = describe_object({"alive": {"const": True}})
    metrics = _describe_get("Metrics for Prometheus", TEXT)
    metrics["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": TEXT}}
    return {
        "/v1/models": _describe_get("List the model names", openapi_schemas.MODELS),
        PATH: _describe_get("This description", describe_object({"openapi": TEXT, "paths": {"type": "object"}})),
        "/metrics": metrics,
        "/healthz": _describe_get("Whether the gateway runs", alive, needs_key=False),
        "/readyz": ready_path,
        "/health": ready_path,
    }


def _describe_get(
    summary: str, response: Schema, responses: Mapping[str, Any] | None = None, needs_key: bool = True
) -> dict[str, Any]:
    statuses = _GET_STATUSES if needs_key else (403,)
    documented = {"200": _describe_json("OK", response), **_refer_to_errors(statuses), **(responses or {})}
    return {"get": {"summary": summary, "responses": documented} | ({} if needs_key else {"security": []})}


def _describe_post(
    summary: str, request: Schema, response: Schema, statuses: Sequence[int], with_version: bool = True
) -> dict[str, Any]:
    answer = _describe_json("OK", response)
    if with_version:
        answer["headers"] = {VERSION_HEADER: {"schema": TEXT, "description": "The version that answered."}}
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    responses = {"200": answer, **_refer_to_errors(statuses)}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


def _refer_to_errors(statuses: Sequence[int]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}


def _describe_error(status: int) -> dict[str, Any]:
    response = _describe_json(STATUSES[status], {"$ref": "#/components/schemas/Error"})
    seconds = {"schema": {"type": "integer"}, "description": "Seconds until the request should be sent again."}
    return response | ({"headers": {"Retry-After": seconds}} if status in RETRYABLE else {})


def _describe_json(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
