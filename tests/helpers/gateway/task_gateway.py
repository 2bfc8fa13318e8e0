"""The gateway with a deployed task, and an engine on loopback whose answers are written in the inputs.

"... says delivery_delay p=0.99"   the answer, and its probability
"... freely lost"                  the answer of a request without a constraint
"... cut"                          the answer is cut off, unless the limit is at least 20 tokens
"... wait=2"                       a delay in seconds
"... too long"                     status 400: the context is too long
"""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from deploy.answers import answer_ids, escalation, task
from deploy.answers.outcome import Deployment
from deploy.gateway import proxy
from deploy.gateway.proxy_state import ProxyState
from deploy.monitoring.monitor import Monitor
from deploy.routing import Routing
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.serving_and_cost import Limits
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking.run import Run
from serve.vllm.launch_plan import ServedModel
from tests.helpers.provider.provider_answers import stable_number

TASK_NAME, TASK_VERSION = "router", "v1"
LABELS = ("late", "lost", "broken")
RECIPE_TEMPLATE = """\
task: {task}
data: {{source: {{path: rows.csv}}, columns: {columns}}}
model: {{base: pocket}}
privacy: {{redact: [email, phone], data_may_leave: {may_leave}}}
compare: {{baselines: {baselines}}}
route: {route}
serve: {serve}
"""
ROUTER_TASK = "{kind: classification, instruction: Route the message to one queue., labels: [late, lost, broken]}"
EXTRACTOR_TASK = """{kind: extraction, instruction: Read the order number and the day., json_schema: {type: object,
  properties: {number: {type: string, maxLength: 20}, day: {type: string, maxLength: 10}}, required: [number]}}"""


def make_recipe(folder: Path, **values: str) -> Recipe:
    """Return a recipe: RECIPE_TEMPLATE with these values instead of the defaults."""
    defaults = {
        "task": ROUTER_TASK,
        "columns": "{text: message, label: queue}",
        "may_leave": "true",
        "baselines": "[]",
        "route": "{}",
        "serve": "{}",
    }
    (folder / "rows.csv").write_text("message,queue\n", encoding="utf-8")
    path = folder / f"{TASK_NAME}.yaml"
    path.write_text(RECIPE_TEMPLATE.format(**defaults | values), encoding="utf-8")
    return load(str(path), [], "cpu").recipe


def baseline_yaml(address: str, api: str = "chat", extra: str = "") -> str:
    """Return compare.baselines with one baseline at the test provider's address."""
    sdks = {"chat": "openai", "messages": "anthropic", "decisions": "openai", "systemone": "openai"}
    model = {"messages": "claude-haiku-5-5"}.get(api, "gpt-6-luna")
    field = f", api: {api}" if api in ("decisions", "systemone") else ""
    url = address if api == "messages" else f"{address}/v1"
    return (
        f'[{{provider: {sdks[api]}, model: {model}, base_url: "{url}", name: api, api_key_env: API_KEY{field}{extra}}}]'
    )


def make_deployed_task(
    folder: Path, recipe: Recipe, routing: Routing | None = None, gateway_recipe: Recipe | None = None
) -> Deployment:
    """Return a recipe's task as a deployed version.

    `gateway_recipe` is the recipe that the gateway was started with, by default the same.
    """
    module, labels = TASKS[recipe.task.task_name], dict.fromkeys(LABELS, "")
    spec = module.make_spec(recipe.task, labels)
    prompt = {
        "task": {"kind": recipe.task.task_name, **spec.__dict__},
        "messages": module.messages(spec, {"text": "{input}"}),
        "output_schema": module.output_schema(spec),
        "grammar": module.grammar(spec),
        "max_answer_tokens": 16,
    }
    adapter = folder / "run" / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(adapter / "prompt.json", prompt)
    served = ServedModel(TASK_NAME, Run(folder / "run"), recipe, "adapter")
    built_task = task.build_task(served, TASK_VERSION, gateway_recipe or recipe, routing or Routing(None, 0.9, None))
    assert built_task is not None
    registry_dir = folder / "registry" / TASK_NAME
    return Deployment(
        built_task,
        escalation.build_escalation(built_task, registry_dir),
        registry_dir,
        answer_ids.load_answer_ids(registry_dir),
    )


def fake_log_probability(ids: list[int], token: int) -> float:
    """Return a number that depends on token and context, instead of a model's log-probability."""
    return -(stable_number(f"{ids} {token}") % 1000) / 100


def score_tokens(body: dict[str, Any]) -> dict[str, Any]:
    """Return vLLM's response with the log-probabilities of `logprob_token_ids`."""
    log_probabilities = {
        f"token_id:{token_id}": fake_log_probability(body["prompt"], token_id) for token_id in body["logprob_token_ids"]
    }
    return {"model": body["model"], "choices": [{"text": "", "logprobs": {"top_logprobs": [log_probabilities]}}]}


def refuse(message: str) -> web.Response:
    """Return a refusal as vLLM sends it."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return web.json_response({"error": error}, status=400)


@dataclass
class FakeEngine:
    """A stand-in for vLLM, with the requests that it got."""

    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of each request."""
    in_flight: int = 0
    max_in_flight: int = 0
    """Largest number of concurrent requests."""
    down: bool = False
    """Whether connections are aborted."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
        except RecursionError:
            return refuse("error parsing the body")
        self.requests.append((request.path, body))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            if self.down:
                assert request.transport is not None
                request.transport.abort()
            return await self._respond(request, body)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:  # as vLLM refuses a request
            return refuse(f"{type(error).__name__}: {error}")
        finally:
            self.in_flight -= 1

    async def _respond(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if "logprob_token_ids" in body:
            return web.json_response(score_tokens(body))
        if request.path == "/v1/completions":
            return web.json_response({"model": body["model"], "choices": [{"text": str(body["prompt"])[:5]}]})
        text = body["messages"][-1]["content"].rpartition("Input:\n")[2]
        if wait := re.search(r"wait=([\d.]+)", text):
            await asyncio.sleep(float(wait[1]))
        else:
            await asyncio.sleep(0)
        if "too long" in text:
            return refuse("maximum context length is 2048 tokens")
        fixed = re.search(r"says (\{.*\}|\S+)", text)
        unconstrained = re.search(r"freely (\S+)", text) if "structured_outputs" not in body else None
        answer = unconstrained[1] if unconstrained else fixed[1] if fixed else "late"
        probability = re.search(r"p=(\d\.\d+)", text)
        log_probability = math.log(float(probability[1])) if probability else -0.01
        truncated = "cut" in text.split() and body.get("max_completion_tokens", 0) < 20
        if body.get("stream"):
            return await self._stream(request, body, answer)
        if request.path == "/v1/messages":
            message = {"id": "m1", "type": "message", "role": "assistant", "model": body["model"]}
            message |= {"content": [{"type": "text", "text": answer}], "stop_reason": "end_turn"}
            return web.json_response({**message, "usage": {"input_tokens": 30, "output_tokens": 3}})
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer[:2] if truncated else answer},
            "finish_reason": "length" if truncated else "stop",
            "logprobs": {"content": [{"token": answer, "logprob": log_probability, "bytes": None, "top_logprobs": []}]}
            if body.get("logprobs")
            else None,
        }
        usage = {"prompt_tokens": 30, "completion_tokens": 3, "total_tokens": 33}
        head = {"id": "c1", "object": "chat.completion", "created": int(time.time()), "model": body["model"]}
        return web.json_response({**head, "choices": [choice], "usage": usage})

    async def _stream(self, request: web.Request, body: dict[str, Any], answer: str) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for delta in ({"role": "assistant"}, {"content": answer[:2]}, {"content": answer[2:]}, {}):
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            await stream.write(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream

    @property
    def inputs(self) -> list[str]:
        """Return the input of each request: the text after the prompt."""
        return [body["messages"][-1]["content"].rpartition("Input:\n")[2] for _, body in self.requests]


@asynccontextmanager
async def gateway_client(
    deployment: Deployment, api_key: str | None = None, limits: Limits | None = None, monitor: Monitor | None = None
) -> AsyncIterator[tuple[TestClient[Any, Any], FakeEngine, ProxyState]]:
    """Yield a client of the gateway, the engine behind it, and the gateway's state."""
    engine = FakeEngine()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", engine.answer)
    state = ProxyState(api_key, limits, (TASK_NAME,), monitor)
    state.versions, state.tasks = {TASK_NAME: TASK_VERSION}, {TASK_NAME: deployment}
    async with TestServer(app) as server, ClientSession(str(server.make_url("/"))) as session:
        state.engine = session
        async with TestClient(TestServer(proxy.build_application(state))) as client:
            yield client, engine, state
        if isinstance(deployment.escalation, escalation.Escalation):
            await deployment.escalation.close()
