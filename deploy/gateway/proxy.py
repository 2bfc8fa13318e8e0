"""The HTTP application of the gateway: it checks keys and limits, maps model names to versions, and routes by path.

Clients send `model: classifier`; vLLM has `classifier@3f2a90c17b5e44d0`. The proxy replaces the name in requests and
restores it in answers. Each version has its own name, so no prefix cache of one version is read by another. A change of
versions is one assignment: requests in flight end on the version that they started with.

vLLM checks its key only on some paths and lets every client load adapters. Therefore only these paths are forwarded:
POST /v1/chat/completions, /v1/completions and /v1/messages. The gateway itself answers POST /v1/tasks/<recipe>,
/v1/decisions, /v1/systemone and /v1/feedback, chats with an input of a task (paths/chat_tasks.py), and GET /v1/models,
/openapi.json and /metrics. Without a key it answers GET /healthz (the process runs) and /readyz (requests are
forwarded; /health is its old name).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deploy.answers.local_model import LOCAL, EngineConnection
from deploy.answers.outcome import VERSION_HEADER
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.gateway.paths import (
    chat_request,
    chat_tasks,
    decisions,
    feedback,
    forwarding,
    model_names,
    openapi,
    systemone,
    tasks_path,
)
from deploy.gateway.proxy_state import ProxyState
from deploy.monitoring import metrics
from insource.config.hosts import cross_origin_problem
from insource.config.schema.serving_and_cost import Limits
from insource.system.daemon_thread import run_in_thread

FORWARDED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
HEALTH_PATHS = ("/health", "/healthz", "/readyz")
LABEL_PATHS = {path.PATH: path.answer_questions for path in (decisions, systemone)}
"""Paths that return the probabilities of labels, with the function that answers a request."""
GATEWAY_PATHS = (*LABEL_PATHS, feedback.PATH, "/v1/models", openapi.PATH, "/metrics", *HEALTH_PATHS)
"""Paths that the gateway itself answers, in addition to those of tasks."""
BODY_SECONDS = 30.0
"""Maximum time for a client to send a body."""


@dataclass
class AccessRecord:
    """Fields of the access log that aiohttp does not have."""

    client: str = ""
    model: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Number of task inputs by answering system and reason."""


ACCESS_RECORD = web.RequestKey("access_record", AccessRecord)


def _build_guard(proxy_state: ProxyState) -> Middleware:
    """Return the middleware that counts requests, rejects cross-origin ones, and turns RequestError into a response."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[ACCESS_RECORD] = AccessRecord()
        started_at, status = time.monotonic(), "500"
        try:
            response = await respond(request, handler)
            status = str(response.status)
            return response
        except (asyncio.CancelledError, ConnectionError):
            status = metrics.DISCONNECTED
            raise
        finally:
            proxy_state.monitor.metrics.count_request(
                normalize_path(request.path), status, time.monotonic() - started_at
            )

    async def respond(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
            if problem := cross_origin_problem(host, origin, proxy_state.keys.required):
                raise RequestError(403, "permission_error", problem)
            return await handler(request)
        except RequestError as error:
            return _error_response(error, close=proxy_state.stopping)

    return guard


def build_application(proxy_state: ProxyState) -> web.Application:
    """Return the aiohttp application of the gateway."""

    async def receive_feedback(request: web.Request) -> web.StreamResponse:
        async with _accept_body(proxy_state, request, requires_engine=False) as body:
            payload = await feedback.record_feedback(body, proxy_state.tasks, proxy_state.monitor)
            return await forwarding.send_json(request, payload, {})

    async def list_models(request: web.Request) -> web.StreamResponse:
        _require_client(proxy_state, request)
        entries = [{"id": name, "object": "model", "owned_by": "insource"} for name in proxy_state.public_names]
        return web.json_response({"object": "list", "data": entries})

    async def describe_paths(request: web.Request) -> web.StreamResponse:
        _require_client(proxy_state, request)
        description = openapi.build_description(
            proxy_state.tasks, proxy_state.public_names, proxy_state.limits, proxy_state.keys.required
        )
        return web.json_response(description)

    async def expose_metrics(request: web.Request) -> web.StreamResponse:
        _require_client(proxy_state, request)
        text = await _render_metrics(proxy_state)
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def report_alive(request: web.Request) -> web.StreamResponse:
        return web.json_response({"alive": True})

    async def report_ready(request: web.Request) -> web.StreamResponse:
        return web.json_response({"ready": proxy_state.is_ready}, status=200 if proxy_state.is_ready else 503)

    async def not_found(request: web.Request) -> web.StreamResponse:
        raise RequestError(404, "not_found_error", f"there is no {request.method} {request.path} here")

    app = web.Application(client_max_size=proxy_state.limits.body_kib * 2**10, middlewares=[_build_guard(proxy_state)])
    for path in FORWARDED_PATHS:
        app.router.add_post(path, partial(_answer_model_request, proxy_state))
    app.router.add_post(f"{tasks_path.PREFIX}{{name}}", partial(_answer_task_request, proxy_state))
    for path in LABEL_PATHS:
        app.router.add_post(path, partial(_answer_decision_request, proxy_state))
    app.router.add_post(feedback.PATH, receive_feedback)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get(openapi.PATH, describe_paths)
    app.router.add_get("/metrics", expose_metrics)
    app.router.add_get("/healthz", report_alive)
    for path in ("/readyz", "/health"):
        app.router.add_get(path, report_ready)
    app.router.add_route("*", "/{anything:.*}", not_found)
    return app


@asynccontextmanager
async def _accept_body(
    proxy_state: ProxyState, request: web.Request, requires_engine: bool = True
) -> AsyncIterator[bytes]:
    """Yield the body of a request, which counts as in flight meanwhile.

    Raise RequestError if it is rejected. With `requires_engine` that includes requests while vLLM starts.
    """
    client = _require_client(proxy_state, request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError(415, "invalid_request_error", "a packed body (Content-Encoding) is not taken; send it plain")
    with proxy_state.count_request(client):
        if requires_engine:
            proxy_state.require_ready()
        yield await _read_body(proxy_state, request)


async def _answer_model_request(proxy_state: ProxyState, request: web.Request) -> web.StreamResponse:
    """Return the answer to a forwarded request or to a chat with a task input. Raise RequestError if there is none."""
    async with _accept_body(proxy_state, request) as body:
        fields, names, raw = _resolve_model(proxy_state, request, body)
        engine, monitor = proxy_state.require_engine(names.internal_name), proxy_state.monitor
        deployment = proxy_state.find_task(names)
        with proxy_state.track_in_flight(names.internal_name):
            try:
                answer = None
                if deployment is not None and chat_tasks.accepts_tasks(deployment, request.path, raw):
                    connection = EngineConnection(engine, proxy_state.record_data)
                    counts = request[ACCESS_RECORD].outcomes
                    answer = await chat_tasks.answer_chat(
                        connection, deployment, request, body, names, proxy_state.limits, counts, monitor
                    )
                if answer is None:
                    forwarded = _rewrite_body(fields, names, proxy_state.limits)
                    answer = await forwarding.forward(engine, request, forwarded, names, proxy_state.record_data)
                monitor.metrics.count_tokens(names.model, LOCAL, *answer.get(forwarding.USED_TOKENS, (0, 0)))
                return answer
            except forwarding.ConnectionLostError as error:
                raise RequestError(503, "overloaded_error", str(error), 5) from None
            except forwarding.AnswerTooLargeError as error:
                raise RequestError(413, "request_too_large", str(error)) from None


def normalize_path(path: str) -> str:
    """Return a path as log and metrics name it. Unknown paths are "other", because their number is unlimited."""
    if path.startswith(tasks_path.PREFIX):
        return tasks_path.PREFIX.rstrip("/")
    return path if path in (*FORWARDED_PATHS, *GATEWAY_PATHS) else "other"


def _rewrite_body(fields: model_names.Fields, names: forwarding.ModelNames, limits: Limits) -> bytes:
    """Return the body to send to vLLM for a client's body. Raise RequestError if it exceeds the limits."""
    try:
        return model_names.replace_values(fields, model=names.internal_name, **_apply_limits(fields, limits))
    except ValueError:
        raise invalid_request("the body is no JSON object") from None


async def _answer_decision_request(proxy_state: ProxyState, request: web.Request) -> web.StreamResponse:
    """Return the decision on an input of a task. Raise RequestError if there is none."""
    async with _accept_body(proxy_state, request) as body:
        _, names, _ = _resolve_model(proxy_state, request, body)
        if (deployment := proxy_state.find_task(names)) is None:
            raise RequestError(
                404, "not_found_error", f"the prompt.json of {names.internal_name} does not state its task"
            )
        with proxy_state.track_in_flight(names.internal_name):
            engine = EngineConnection(proxy_state.require_engine(names.internal_name), proxy_state.record_data)
            payload = await LABEL_PATHS[request.path](
                body, deployment, engine, names.public_name, proxy_state.limits, proxy_state.monitor
            )
            return await forwarding.send_json(request, payload, {VERSION_HEADER: names.version})


def _resolve_model(
    proxy_state: ProxyState, request: web.Request, body: bytes
) -> tuple[model_names.Fields, forwarding.ModelNames, bool]:
    """Return a body's fields, its model, and whether it is forwarded unchanged.

    Raise RequestError if the model is invalid.
    """
    try:
        fields = model_names.parse_fields(body)
        model = model_names.read_value(fields, "model")
    except ValueError as error:
        raise invalid_request(f"the body is no JSON object: {error}") from None
    if model_names.has_duplicate_key(body, fields):
        raise invalid_request("a key is in the body twice")
    name, raw = proxy_state.split_model_name(model)
    version = proxy_state.require_version(name)
    request[ACCESS_RECORD].model = f"{name}@{version}"
    return fields, forwarding.ModelNames(f"{name}@{version}", str(model), version), raw


async def _answer_task_request(proxy_state: ProxyState, request: web.Request) -> web.StreamResponse:
    """Return the answer to inputs of a task. Raise RequestError if there is none."""
    async with _accept_body(proxy_state, request) as body:
        name = request.match_info["name"]
        version = proxy_state.require_version(name)
        if (deployment := proxy_state.tasks.get(name)) is None:
            raise RequestError(404, "not_found_error", f"the prompt.json of {name}@{version} does not state its task")
        request[ACCESS_RECORD].model = deployment.task.internal_name
        with proxy_state.track_in_flight(deployment.task.internal_name):
            private = chat_request.has_private_header(request.headers)
            session = proxy_state.require_engine(deployment.task.internal_name)
            engine = EngineConnection(session, proxy_state.record_data)
            payload, outcomes = await tasks_path.answer_inputs(
                body, deployment, engine, private, proxy_state.limits, proxy_state.monitor
            )
            request[ACCESS_RECORD].outcomes.update(outcome.route for outcome in outcomes)
            return await forwarding.send_json(request, payload, {VERSION_HEADER: version})


async def _render_metrics(proxy_state: ProxyState) -> bytes:
    """Return the metrics as Prometheus reads them."""
    monitor = proxy_state.monitor
    monitor.metrics.set_state(proxy_state.is_ready, proxy_state.in_flight_by_client.total(), proxy_state.versions)
    if proxy_state.pool is not None:
        monitor.metrics.set_engines(
            {engine.url: (bool(engine.models), engine.in_flight) for engine in proxy_state.pool.engines}
        )
    monitor.update_drift(proxy_state.tasks)
    return await run_in_thread(monitor.render_metrics, dict(proxy_state.tasks))


def _require_client(proxy_state: ProxyState, request: web.Request) -> str:
    """Return the client of a request. Raise RequestError without a valid key."""
    client = proxy_state.keys.identify_client(request.headers)
    if client is None:
        raise RequestError(401, "authentication_error", "a valid key is needed (Authorization: Bearer, or x-api-key)")
    request[ACCESS_RECORD].client = client
    return client


async def _read_body(proxy_state: ProxyState, request: web.Request) -> bytes:
    """Return the body of a request.

    Raise RequestError if it is too large, too slow, incomplete or not UTF-8.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        body.decode()  # JSON values are forwarded unread, whatever their bytes are
        return body
    except UnicodeDecodeError as error:
        raise RequestError(400, "invalid_request_error", f"the body is no UTF-8 at byte {error.start}") from None
    except web.HTTPRequestEntityTooLarge:
        message = f"a request may have {proxy_state.limits.body_kib:,} KiB (serve.limits.body_kib)"
        raise RequestError(413, "request_too_large", message) from None
    except TimeoutError:
        raise RequestError(408, "invalid_request_error", f"the body took over {BODY_SECONDS:.0f} s") from None
    except web.RequestPayloadError as error:
        raise RequestError(400, "invalid_request_error", f"the body cannot be read: {error}") from None


def _apply_limits(fields: model_names.Fields, limits: Limits) -> dict[str, int]:
    """Return the fields that the limits add to a request: max_tokens, if it sets none.

    Raise RequestError if it exceeds the limits, ValueError if it is not JSON.
    """
    n_answers = model_names.count_prompts(fields) * max(1.0, model_names.read_number(fields, "n") or 1.0)
    if n_answers > limits.sequences:
        message = (
            f"{n_answers:.0f} answers were requested together, and {limits.sequences} may be (serve.limits.sequences)"
        )
        raise RequestError(413, "request_too_large", message)
    if limits.answer_tokens is None:
        return {}
    requested = {key: model_names.read_number(fields, key) for key in ("max_tokens", "max_completion_tokens")}
    for key, tokens in requested.items():
        if tokens is not None and tokens > limits.answer_tokens:
            message = f"{key} is {tokens:.0f}, and {limits.answer_tokens} may be (serve.limits.answer_tokens)"
            raise RequestError(413, "request_too_large", message)
    return {} if any(tokens is not None for tokens in requested.values()) else {"max_tokens": limits.answer_tokens}


def _error_response(error: RequestError, close: bool) -> web.StreamResponse:
    """Return an error in the format of both SDKs."""
    headers = {"Retry-After": str(error.retry_seconds)} if error.retry_seconds else None
    response = web.json_response({"type": "error", "error": error.json()}, status=error.status, headers=headers)
    if close:
        response.force_close()
    return response
