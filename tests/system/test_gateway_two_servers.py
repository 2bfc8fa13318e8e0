"""The gateway between two real vLLM servers: its own, and one that is the API model in both API formats.

The access log of the second server contains the body of every request, so it shows what left the gateway.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import ClientSession

from compare.decision.routing_policy import RoutingPolicy
from deploy import registry
from insource.config.base_models import POCKET
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking import folder_ownership
from insource.tracking.run import Run
from serve.vllm.server_process import Address, LaunchPlan, free_port, is_healthy, vllm_command, vllm_environment
from tests.conftest import ROOT
from tests.deploy.test_personal_data import PERSONAL
from tests.helpers import commands
from tests.helpers.gateway.body_log import FILE_VARIABLE
from tests.system.test_gateway_tasks import ALWAYS_UNSURE

KEY = "key-of-the-gateway"
API_MODELS = {"openai": "stand-in-a", "anthropic": "stand-in-b"}
"""{provider: name of its model}. A recipe for each of them is deployed under the provider's name. A model that is known
to reason would be allowed more tokens than the pocket model has positions."""
N_REQUESTS, CONCURRENCY = 1000, 32
MAY_LEAVE, PRIVATE, HAS_PERSONAL_DATA = "may_leave", "private", "personal"


@dataclass(frozen=True)
class Case:
    """A request: its kind, its model and client, and its text with a marker."""

    number: int
    kind: str
    model: str
    client: str
    text: str


@dataclass(frozen=True)
class Clients:
    """Both SDKs and a plain HTTP client of the gateway."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic
    http: ClientSession


def make_cases(count: int) -> list[Case]:
    """Return requests of all kinds to both models by all clients, in random order."""
    rng, cases = random.Random(7), []
    for number in range(count):
        kind = (MAY_LEAVE, PRIVATE, HAS_PERSONAL_DATA)[number % 3]
        client = ("openai", "anthropic", "task", "decision")[number // 6 % 4]
        personal = f" {rng.choice(PERSONAL)}" if kind == HAS_PERSONAL_DATA else ""
        text = f"marker-{number}-end where is my money{personal}"
        cases.append(Case(number, kind, list(API_MODELS)[number // 3 % 2], client, text))
    rng.shuffle(cases)
    return cases


@contextmanager
def run_api_server(folder: Path, port: int) -> Iterator[Path]:
    """Run a vLLM as the API models until the block ends. Yield its access log."""
    body_log, recipe = folder / "api-access.jsonl", load("classifier", [], "cpu").recipe
    template = POCKET / "chat_template.jinja"
    plan = LaunchPlan(str(POCKET), "api", recipe.serve, use_cpu=True, chat_template=template, tokenizer=POCKET)
    argv = vllm_command(plan, Address("127.0.0.1", port), with_key=True)
    argv += ["--served-model-name", *API_MODELS.values(), "--middleware", "tests.helpers.gateway.body_log.BodyLog"]
    environment = commands.command_env(folder) | vllm_environment(plan, "secret") | {FILE_VARIABLE: str(body_log)}
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while not is_healthy(Address("127.0.0.1", port)):
            assert process.poll() is None, (folder / "api.log").read_text(encoding="utf-8")[-3000:]
            time.sleep(0.2)
        body_log.write_text("", encoding="utf-8")
        yield body_log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def deploy_models(folder: Path, recipe: Path, run: Run, api: str) -> list[Path]:
    """Deploy a run under the name of each provider, with a threshold that no confidence reaches. Return the recipes."""
    recipes, registry_root = [], folder / "registry"
    policy = RoutingPolicy(threshold=ALWAYS_UNSURE, target_accuracy=0.95, confidence=0.95, calibration_rows=500)
    (folder / "tickets.csv").write_bytes((recipe.parent / "tickets.csv").read_bytes())
    for provider, model in API_MODELS.items():
        address = f"{api}/v1" if provider == "openai" else api
        baseline = f"{{provider: {provider}, model: {model}, base_url: '{address}', name: api, api_key_env: API_KEY}}"
        path = folder / f"{provider}.yaml"
        path.write_text(f"{recipe.read_text(encoding='utf-8')}compare: {{baselines: [{baseline}]}}\n", encoding="utf-8")
        folder_ownership.claim_folder(load(str(path), [], "cpu"), registry_root)
        routing_folder = registry_root / provider / "routing"
        routing_folder.mkdir()
        atomic_files.write_json(routing_folder / "new", policy.json())
        name = f"{atomic_files.sha256(routing_folder / 'new')[:16]}.json"
        (routing_folder / "new").rename(routing_folder / name)
        scale = {"of": "answer", "slope": 1.0, "intercept": 0.0}
        registry.promote(registry_root / provider, run, [], {"file": name, "scale": scale, "why_none": None})
        recipes.append(path)
    return recipes


async def send(clients: Clients, case: Case, labels: list[str]) -> None:
    """Send a request with its client, and check that the answer is a label, or a probability for each."""
    private, extra = case.kind == PRIVATE, {"extra_body": {"private": True}} if case.kind == PRIVATE else {}
    messages: Any = [{"role": "user", "content": case.text}]
    if case.client == "openai":
        completion = await clients.openai.chat.completions.create(model=case.model, messages=messages, **extra)  # type: ignore[call-overload]
        assert completion.choices[0].message.content in labels
    elif case.client == "anthropic":
        message = await clients.anthropic.messages.create(model=case.model, max_tokens=64, messages=messages, **extra)  # type: ignore[call-overload]
        assert message.content[0].text in labels
    elif case.client == "decision":
        choices = [{"value": label} for label in labels]
        questions: Any = [{"type": "choice", "instructions": "-", "choices": choices}]
        decision = await clients.openai.decisions.create(model=case.model, input=case.text, questions=questions)
        (answer,) = decision.answers
        assert answer.type == "choice" and sum(entry.probability for entry in answer.probabilities) == pytest.approx(1)
    else:
        async with clients.http.post(
            f"/v1/tasks/{case.model}", json={"input": case.text, "private": private}
        ) as response:
            payload = await response.json()
        assert response.status == 200 and payload["answer"] in labels
        assert (payload["answered_by"] == "api" or payload["degraded"]) == (case.kind == MAY_LEAVE), payload


async def send_all(address: str, cases: list[Case], labels: list[str]) -> None:
    """Send all requests, CONCURRENCY at a time."""
    slots, headers = asyncio.Semaphore(CONCURRENCY), {"Authorization": f"Bearer {KEY}"}
    async with (
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as openai_client,
        anthropic.AsyncAnthropic(base_url=address, api_key=KEY, max_retries=0) as anthropic_client,
        ClientSession(address, headers=headers) as http,
    ):
        clients = Clients(openai_client, anthropic_client, http)

        async def send_in_slot(case: Case) -> None:
            async with slots:
                await send(clients, case, labels)

        await asyncio.gather(*map(send_in_slot, cases))


def read_markers(body_log: Path) -> Mapping[str, set[int]]:
    """Return the numbers of the requests that reached the API server, by path."""
    markers: dict[str, set[int]] = {}
    for line in body_log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        numbers = {int(part.partition("-end")[0]) for part in entry["body"].split("marker-")[1:]}
        markers.setdefault(entry["path"], set()).update(numbers)
    return markers


@pytest.mark.nightly
@pytest.mark.slow(minutes=6)
def test_of_a_thousand_mixed_requests_no_private_one_reaches_the_api_server(
    small_recipe: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = commands.copy_exported_runs(tmp_path_factory, small_recipe, "two-servers")
    (manifest,) = (runs / "small").glob("2*/manifest.json")
    run, api_port, port, log = Run(manifest.parent), free_port(), free_port(), tmp_path / "gateway.log"
    labels = list(atomic_files.read_json(run.folder / "adapter" / "prompt.json")["task"]["labels"])
    recipes = deploy_models(runs.parent, small_recipe, run, f"http://127.0.0.1:{api_port}")
    cases = make_cases(N_REQUESTS)
    secrets = {"INSOURCE_API_KEY": KEY, "API_KEY": "secret"}
    with (
        run_api_server(tmp_path, api_port) as body_log,
        commands.run_in_background(
            runs, log, "deploy.gateway", *recipes, f"serve.port={port}", "serve.cpu_cache_gib=0.25", **secrets
        ) as process,
    ):
        commands.wait_for(log, "ready     ", process)
        asyncio.run(send_all(f"http://127.0.0.1:{port}", cases, labels))
        markers = read_markers(body_log)
    expected = {
        provider: {case.number for case in cases if leaves(case) and case.model == provider} for provider in API_MODELS
    }
    assert markers.get("/v1/chat/completions") == expected["openai"]
    assert markers.get("/v1/messages") == expected["anthropic"]
    assert min(Counter(case.kind for case in cases).values()) > N_REQUESTS // 4
    assert set().union(*markers.values()).isdisjoint(case.number for case in cases if not leaves(case))


def leaves(case: Case) -> bool:
    """Return whether a request goes to the API model: decisions are only computed by the deployed one."""
    return case.kind == MAY_LEAVE and case.client != "decision"
