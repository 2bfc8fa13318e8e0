"""The only door to vLLM: who may come in, what they may ask for, and which version answers.

Clients ask for `model: classifier`; vLLM knows `classifier@3f2a90c17b5e44d0`. The door puts the one for the other on
the way in and takes it back on the way out. Because every version has a name of its own, no prefix cache of one version
is ever read by another, and changing over is one assignment: requests on their way end where they began.

vLLM itself checks its key on some paths alone and lets everyone load adapters; here is what passes, and no more:
POST /v1/chat/completions, /v1/completions and /v1/messages, GET /v1/models. The gateway itself answers POST
/v1/tasks/<recipe>, /v1/decisions and /v1/feedback, chats that hold an input of a task (on_tasks.py), and GET /metrics;
and without a key GET /healthz (the process runs) and /readyz (requests are passed on; /health is its name of before).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from aiohttp import ClientSession, web

from deploy.answers.local_model import LOCAL, EngineConnection
from deploy.answers.request_errors import RequestError, invalid_request
from deploy.gateway.keys import Keys
from deploy.gateway.paths import chat_request, chat_tasks, decisions, feedback, forwarding, model_names, tasks_path
from deploy.gateway.paths.router import Deployment
from deploy.monitoring import metrics
from deploy.monitoring.monitor import Monitor
from insource.config.hosts import cross_origin_problem
from insource.config.schema.serving_and_cost import Limits
from insource.system.daemon_thread import run_in_thread

FORWARDED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
HEALTH_PATHS = ("/health", "/healthz", "/readyz")
GATEWAY_PATHS = (decisions.PATH, feedback.PATH, "/v1/models", "/metrics", *HEALTH_PATHS)
"""Paths that the gateway itself answers, beside those of tasks."""
MAX_BODY_BYTES = Limits().body_kib * 2**10
BODY_SECONDS = 30.0
"""How long a client may take to send a body."""
VERSION_HEADER = forwarding.VERSION_HEADER


class ProxyState:
    """What stands behind the door now, and what is on its way through it."""

    def __init__(
        self,
        api_key: str | Keys | None,
        limits: Limits | None = None,
        deployed: tuple[str, ...] = (),
        watch: Monitor | None = None,
    ) -> None:
        self.keys = api_key if isinstance(api_key, Keys) else Keys(api_key)
        self.limits = limits or Limits()
        self.watch = watch or Monitor()
        self.watch.mirror.under_way = self.under_way
        self.deployed = deployed
        """Models that are deployed, whether or not a version of them answers."""
        self.versions: dict[str, str] = {}
        """{model: version} that new requests go to."""
        self.tasks: dict[str, Deployment] = {}
        """{model: its task}, of that version."""
        self.engine: ClientSession | None = None
        """The session with vLLM, None while it is down."""
        self.answers = True
        """False while vLLM runs and sends nothing."""
        self.heard_at = 0.0
        """When vLLM sent something the last time (time.monotonic)."""
        self.stopping = False
        self.on_their_way: Counter[str] = Counter()
        """{model@version: requests}."""
        self.of_key: Counter[str] = Counter()
        """{client: requests}."""

    @property
    def ready(self) -> bool:
        """Returns whether requests are passed on."""
        return self.engine is not None and self.answers and not self.stopping

    @contextmanager
    def counted(self, owner: str) -> Iterator[None]:
        """Counts a request of a client while it is on its way. Raises RefusedError where there are too many."""
        limits = self.limits
        for there, most, whose in (
            (self.of_key[owner], limits.requests_per_key, "of this key "),
            (self.of_key.total(), limits.requests, ""),
        ):
            if there >= most:
                told = f"{there} requests {whose}are on their way, and no more are taken at once"
                raise RequestError(429, "rate_limit_error", told, 2)
        self.of_key[owner] += 1
        try:
            yield
        finally:
            self.of_key[owner] -= 1

    def check_open(self) -> ClientSession:
        """Returns the session with vLLM. Raises RefusedError while requests are not passed on."""
        if self.engine is None or not self.ready:
            raise RequestError(503, "overloaded_error", "the model is being started", 5)
        return self.engine

    def named(self, model: object) -> tuple[object, bool]:
        """Returns the model that a request names, and whether it is to pass as it is."""
        if isinstance(model, str) and model.endswith(chat_request.RAW_SUFFIX) and model not in self.versions:
            return model.removesuffix(chat_request.RAW_SUFFIX), True
        return model, False

    def task_of(self, of: forwarding.ModelNames) -> Deployment | None:
        """Returns the task of a version, None where it states none."""
        return self.tasks.get(of.model)

    def version_of(self, model: object) -> str:
        """Returns the version that answers for a model. Raises RefusedError where there is none."""
        version = self.versions.get(model) if isinstance(model, str) else None
        if version is None and model in self.deployed:
            raise RequestError(503, "overloaded_error", f"no version of {model!r} can be served now", 30)
        if version is None:
            there = ", ".join(sorted(self.versions)) or "none yet"
            raise RequestError(404, "not_found_error", f"there is no model {model!r}; there are: {there}")
        return version

    @contextmanager
    def under_way(self, inside: str) -> Iterator[None]:
        """Counts a request to a version while it is on its way: it is not taken out of vLLM meanwhile."""
        self.on_their_way[inside] += 1
        try:
            yield
        finally:
            self.on_their_way[inside] -= 1

    def heard(self) -> None:
        """Notes that vLLM sent something."""
        self.heard_at = time.monotonic()


@dataclass
class AccessRecord:
    """What the access log says of a request, beside what aiohttp knows."""

    key: str = ""
    model: str = ""
    answered: Counter[str] = field(default_factory=Counter)
    """Of inputs of a task: who answered them, and why."""


ACCESS_RECORD = web.RequestKey("told", AccessRecord)


def build_application(door: ProxyState) -> web.Application:
    """Returns the door as an aiohttp application."""

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        request[ACCESS_RECORD] = AccessRecord()
        began, status = time.monotonic(), "500"
        try:
            answer = await answered(request, handler)
            status = str(answer.status)
            return answer
        except (asyncio.CancelledError, ConnectionError):
            status = metrics.DISCONNECTED
            raise
        finally:
            door.watch.metrics.requested(normalize_path(request.path), status, time.monotonic() - began)

    async def answered(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            headers = request.headers
            if told := cross_origin_problem(headers.get("Host", ""), headers.get("Origin"), door.keys.required):
                raise RequestError(403, "permission_error", told)
            return await handler(request)
        except RequestError as error:
            return _error_response(error, close=door.stopping)

    async def ask(request: web.Request) -> web.StreamResponse:
        return await _answer_model_request(door, request)

    async def task(request: web.Request) -> web.StreamResponse:
        return await _answer_task_request(door, request)

    async def decide(request: web.Request) -> web.StreamResponse:
        return await _answer_decision_request(door, request)

    async def corrected(request: web.Request) -> web.StreamResponse:
        async with _accept_body(door, request, of_model=False) as sent:
            return await forwarding.send_json(request, await feedback.record_feedback(sent, door.tasks, door.watch), {})

    async def models(request: web.Request) -> web.StreamResponse:
        _require_client(door, request)
        raw = [f"{name}{chat_request.RAW_SUFFIX}" for name in door.tasks]
        listed = [{"id": name, "object": "model", "owned_by": "insource"} for name in sorted([*door.versions, *raw])]
        return web.json_response({"object": "list", "data": listed})

    async def measured(request: web.Request) -> web.StreamResponse:
        _require_client(door, request)
        door.watch.metrics.now(door.ready, door.of_key.total(), door.versions)
        door.watch.drifted(door.tasks)
        said = await run_in_thread(door.watch.exposition, dict(door.tasks))
        return web.Response(body=said, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def alive(request: web.Request) -> web.StreamResponse:
        return web.json_response({"alive": True})

    async def ready(request: web.Request) -> web.StreamResponse:
        return web.json_response({"ready": door.ready}, status=200 if door.ready else 503)

    async def nothing(request: web.Request) -> web.StreamResponse:
        raise RequestError(404, "not_found_error", f"there is no {request.method} {request.path} here")

    app = web.Application(client_max_size=door.limits.body_kib * 2**10, middlewares=[guard])
    for path in FORWARDED_PATHS:
        app.router.add_post(path, ask)
    app.router.add_post(f"{tasks_path.PREFIX}{{name}}", task)
    app.router.add_post(decisions.PATH, decide)
    app.router.add_post(feedback.PATH, corrected)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/metrics", measured)
    app.router.add_get("/healthz", alive)
    for path in ("/readyz", "/health"):
        app.router.add_get(path, ready)
    app.router.add_route("*", "/{anything:.*}", nothing)
    return app


@asynccontextmanager
async def _accept_body(door: ProxyState, request: web.Request, of_model: bool = True) -> AsyncIterator[bytes]:
    """Yields the body of a request that comes in, which counts meanwhile. Raises RefusedError where it does not;
    `of_model`: whether that is so while vLLM is started."""
    owner = _require_client(door, request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError(415, "invalid_request_error", "a packed body (Content-Encoding) is not taken; send it plain")
    with door.counted(owner):
        if of_model:
            door.check_open()
        yield await _read_body(door, request)


async def _answer_model_request(door: ProxyState, request: web.Request) -> web.StreamResponse:
    """Returns the answer to one request, vLLM's or a task's. Raises RefusedError where there is none."""
    async with _accept_body(door, request) as sent:
        told, of, raw = _resolve_model(door, request, sent)
        engine, deployed, watch = door.check_open(), door.task_of(of), door.watch
        with door.under_way(of.inside):
            try:
                answer = None
                if deployed is not None and chat_tasks.accepts_tasks(deployed, request.path, raw):
                    asking, counts = EngineConnection(engine, door.heard), request[ACCESS_RECORD].answered
                    answer = await chat_tasks.answer_chat(
                        asking, deployed, request, sent, of, door.limits, counts, watch
                    )
                if answer is None:
                    answer = await forwarding.forward(
                        engine, request, _rewrite_body(told, of, door.limits), of, door.heard
                    )
                watch.metrics.used(of.model, LOCAL, *answer.get(forwarding.USED_TOKENS, (0, 0)))
                return answer
            except forwarding.ConnectionLostError as error:
                raise RequestError(503, "overloaded_error", str(error), 5) from None
            except forwarding.AnswerTooLargeError as error:
                raise RequestError(413, "request_too_large", str(error)) from None


def normalize_path(path: str) -> str:
    """Returns a path as log and metrics name it: of those that nobody knows there are no end."""
    if path.startswith(tasks_path.PREFIX):
        return tasks_path.PREFIX.rstrip("/")
    return path if path in (*FORWARDED_PATHS, *GATEWAY_PATHS) else "other"


def _rewrite_body(told: model_names.Fields, of: forwarding.ModelNames, limits: Limits) -> bytes:
    """Returns the body that vLLM gets in the place of a client's. Raises RefusedError for more than may be."""
    try:
        return model_names.replace_values(told, model=of.inside, **_apply_limits(told, limits))
    except ValueError:
        raise invalid_request("the body is no JSON object") from None


async def _answer_decision_request(door: ProxyState, request: web.Request) -> web.StreamResponse:
    """Returns the decision on an input of a task. Raises RefusedError where there is none."""
    async with _accept_body(door, request) as sent:
        _, of, _ = _resolve_model(door, request, sent)
        if (deployed := door.task_of(of)) is None:
            raise RequestError(404, "not_found_error", f"the prompt.json of {of.inside} does not state its task")
        with door.under_way(of.inside):
            engine = EngineConnection(door.check_open(), door.heard)
            said = await decisions.answer_questions(sent, deployed, engine, of.outside, door.limits, door.watch)
            return await forwarding.send_json(request, said, {VERSION_HEADER: of.version})


def _resolve_model(
    door: ProxyState, request: web.Request, sent: bytes
) -> tuple[model_names.Fields, forwarding.ModelNames, bool]:
    """Returns a body's fields, the model that it asks, and whether it is to pass as it is. Raises RefusedError."""
    try:
        told = model_names.parse_fields(sent)
        model = model_names.read_value(told, "model")
    except ValueError:
        raise invalid_request("the body is no JSON object") from None
    name, raw = door.named(model)
    version = door.version_of(name)
    request[ACCESS_RECORD].model = f"{name}@{version}"
    return told, forwarding.ModelNames(f"{name}@{version}", str(model), version), raw


async def _answer_task_request(door: ProxyState, request: web.Request) -> web.StreamResponse:
    """Returns the answer to inputs of a task. Raises RefusedError where there is none."""
    async with _accept_body(door, request) as sent:
        name = request.match_info["name"]
        version = door.version_of(name)
        if (deployed := door.tasks.get(name)) is None:
            raise RequestError(404, "not_found_error", f"the prompt.json of {name}@{version} does not state its task")
        request[ACCESS_RECORD].model = deployed.task.inside
        with door.under_way(deployed.task.inside):
            private = chat_request.has_private_header(request.headers)
            engine = EngineConnection(door.check_open(), door.heard)
            said, outcomes = await tasks_path.answer_inputs(sent, deployed, engine, private, door.limits, door.watch)
            request[ACCESS_RECORD].answered.update(one.label for one in outcomes)
            return await forwarding.send_json(request, said, {VERSION_HEADER: version})


def _require_client(door: ProxyState, request: web.Request) -> str:
    """Returns the client that asks. Raises RefusedError where it has no valid key."""
    owner = door.keys.owner(request.headers)
    if owner is None:
        raise RequestError(401, "authentication_error", "a valid key is needed (Authorization: Bearer, or x-api-key)")
    request[ACCESS_RECORD].key = owner
    return owner


async def _read_body(door: ProxyState, request: web.Request) -> bytes:
    """Returns the body of a request. Raises RefusedError where it is too large, too slow, breaks off or is no UTF-8."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        body.decode()  # values of JSON are passed on unread, whatever bytes they are of
        return body
    except UnicodeDecodeError as error:
        raise RequestError(400, "invalid_request_error", f"the body is no UTF-8 at byte {error.start}") from None
    except web.HTTPRequestEntityTooLarge:
        told = f"a request may have {door.limits.body_kib:,} KiB (serve.limits.body_kib)"
        raise RequestError(413, "request_too_large", told) from None
    except TimeoutError:
        raise RequestError(408, "invalid_request_error", f"the body took over {BODY_SECONDS:.0f} s") from None
    except web.RequestPayloadError as error:
        raise RequestError(400, "invalid_request_error", f"the body cannot be read: {error}") from None


def _apply_limits(told: model_names.Fields, limits: Limits) -> dict[str, int]:
    """Returns what the limits put into a request: its tokens, where it names none. Raises RefusedError for more than
    they allow, ValueError for what is no JSON."""
    number = model_names.count_prompts(told) * max(1.0, model_names.read_number(told, "n") or 1.0)
    if number > limits.sequences:
        what = f"{number:.0f} answers were asked for at once, and {limits.sequences} may be (serve.limits.sequences)"
        raise RequestError(413, "request_too_large", what)
    if limits.answer_tokens is None:
        return {}
    asked = {key: model_names.read_number(told, key) for key in ("max_tokens", "max_completion_tokens")}
    for key, tokens in asked.items():
        if tokens is not None and tokens > limits.answer_tokens:
            what = f"{key} is {tokens:.0f}, and {limits.answer_tokens} may be (serve.limits.answer_tokens)"
            raise RequestError(413, "request_too_large", what)
    return {} if any(tokens is not None for tokens in asked.values()) else {"max_tokens": limits.answer_tokens}


def _error_response(error: RequestError, close: bool) -> web.StreamResponse:
    """An error as both SDKs read it."""
    headers = {"Retry-After": str(error.retry_seconds)} if error.retry_seconds else None
    answer = web.json_response({"type": "error", "error": error.json()}, status=error.status, headers=headers)
    if close:
        answer.force_close()
    return answer
