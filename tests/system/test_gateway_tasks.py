"""Tasks through the gateway as a process with a real vLLM: both SDKs unchanged, confidence, routing, decisions."""

import asyncio
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import ClientSession

from compare.decision.routing_policy import RoutingPolicy
from demo_data.support_tickets import generate_tickets
from deploy import registry
from deploy.answers import label_tree
from insource.system import atomic_files
from insource.tasks import load_task_spec
from insource.text.text_keys import clean
from insource.tracking.run import Run
from serve.vllm import server_process
from tests.helpers import commands
from tests.helpers.provider.faulty_provider import Provider, run_provider

KEY = "key-of-the-gateway"
ALWAYS_UNSURE = 2.0
"""A threshold that no confidence reaches: whatever may leave does."""


@dataclass
class Place:
    address: str
    prompt: dict[str, Any]
    provider: Provider
    access: Path
    scale: dict[str, float]
    adapter: Path

    @property
    def labels(self) -> list[str]:
        return list(self.prompt["task"]["labels"])

    def own_prompt(self, text: str) -> list[dict[str, str]]:
        content = self.prompt["messages"][0]["content"].replace("{input}", text)
        return [{"role": "user", "content": content}]

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def deployed_gateway(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    runs = commands.copy_exported_runs(tmp_path_factory, small_recipe, "gateway-tasks")
    (manifest,) = (runs / "small").glob("2*/manifest.json")
    trained_run, provider = Run(manifest.parent), Provider()
    prompt = atomic_files.read_json(trained_run.folder / "adapter" / "prompt.json")
    provider.answer = lambda text: next(iter(prompt["task"]["labels"]))
    folder, scale = runs.parent / "registry" / "small", {"slope": 1.5, "intercept": -0.5}
    policy = runs / "routing.json"
    route_policy = RoutingPolicy(threshold=ALWAYS_UNSURE, target_accuracy=0.95, confidence=0.95, calibration_rows=500)
    atomic_files.write_json(policy, route_policy.json())
    name = f"{atomic_files.sha256(policy)[:16]}.json"
    (folder / "routing").mkdir(parents=True)
    policy.rename(folder / "routing" / name)
    registry.promote(
        folder, trained_run, ["by hand"], {"file": name, "scale": scale | {"of": "answer"}, "why_none": None}
    )
    port, log = server_process.free_port(), runs.parent / "gateway.log"
    with run_provider(provider) as api:
        baseline = f'[{{provider: openai, model: gpt-6-luna, base_url: "{api}/v1", name: api, api_key_env: API_KEY}}]'
        args = [f"serve.port={port}", f"compare.baselines={baseline}"]
        secrets = {"INSOURCE_API_KEY": KEY, "API_KEY": "secret"}
        with commands.run_in_background(runs, log, "deploy.gateway", small_recipe, *args, **secrets) as process:
            commands.wait_for(log, "ready     ", process)
            assert "routing   small: below a confidence of 2.0000 api answers" in log.read_text(encoding="utf-8")
            yield Place(
                f"http://127.0.0.1:{port}",
                prompt,
                provider,
                folder.parent / "access.jsonl",
                scale,
                trained_run.folder / "adapter",
            )


@pytest.mark.slow(minutes=2)
def test_a_client_that_knows_nothing_of_prompts_gets_what_the_tasks_own_prompt_gets(deployed_gateway: Place) -> None:
    client, text = deployed_gateway.openai(), "where is my money"
    own_completion = client.chat.completions.create(
        model="small",
        messages=deployed_gateway.own_prompt(text),  # type: ignore[arg-type]
        extra_body={"structured_outputs": {"grammar": deployed_gateway.prompt["grammar"]}},
    )
    request: Any = {"model": "small", "messages": [{"role": "user", "content": text}]}
    private: Any = {"extra_body": {"private": True}}
    expected = own_completion.choices[0].message.content
    assert expected in deployed_gateway.labels
    completion = client.chat.completions.create(**request, **private)
    assert completion.choices[0].message.content == expected
    assert completion.model_extra is not None and completion.model_extra["insource"]["reason"] == "private"
    parts = client.chat.completions.create(**request, **private, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    anthropic_client = anthropic.Anthropic(base_url=deployed_gateway.address, api_key=KEY, max_retries=0)
    message = anthropic_client.messages.create(**request, **private, max_tokens=5)
    assert [block.text for block in message.content if block.type == "text"] == [expected]
    with anthropic_client.messages.stream(**request, **private, max_tokens=5) as stream:
        assert stream.get_final_text() == expected
    raw = client.chat.completions.create(**request | {"model": "small:raw"}, max_tokens=5)
    assert raw.choices[0].message.content not in deployed_gateway.labels
    assert deployed_gateway.provider.requests == []


@pytest.mark.slow
def test_confidence_is_that_of_the_decoded_path_on_the_deployed_scale(deployed_gateway: Place) -> None:
    texts = [ticket.message for ticket in generate_tickets(20, seed=9)]

    async def scenario() -> None:
        async with ClientSession(deployed_gateway.address, headers={"Authorization": f"Bearer {KEY}"}) as http_session:
            request_body = {"inputs": texts, "private": True}
            async with http_session.post("/v1/tasks/small", json=request_body) as response:
                payload = await response.json()
            assert response.status == 200 and len(payload["answers"]) == 20
            for text, entry in zip(texts[:5], payload["answers"], strict=False):
                assert entry["answer"] in deployed_gateway.labels and entry["reason"] == "private"
                body = {"model": "small", "messages": deployed_gateway.own_prompt(clean(text)), "logprobs": True}
                body |= {"structured_outputs": {"grammar": deployed_gateway.prompt["grammar"]}}
                async with http_session.post("/v1/chat/completions", json=body) as response:
                    choice = (await response.json())["choices"][0]
                log_probability = sum(token["logprob"] for token in choice["logprobs"]["content"])
                z = (
                    deployed_gateway.scale["slope"] * (log_probability - math.log(-math.expm1(log_probability)))
                    + deployed_gateway.scale["intercept"]
                )
                assert entry["confidence"] == pytest.approx(1 / (1 + math.exp(-z)), abs=0.02)

    asyncio.run(scenario())


@pytest.mark.slow
def test_what_may_leave_is_escalated_and_what_is_private_never_is(deployed_gateway: Place) -> None:
    rng = random.Random(3)
    n_seen = len(deployed_gateway.provider.requests)
    sent = []
    for index in range(60):
        text, private = f"marker-{index} where is my money", index % 3 == 1
        text += rng.choice([" ann\uff20example.org", " call +44 20 7946 0958"]) if index % 3 == 2 else ""
        sent.append((text, private))

    async def scenario() -> None:
        async with ClientSession(deployed_gateway.address, headers={"Authorization": f"Bearer {KEY}"}) as http_session:

            async def send(text: str, private: bool) -> None:
                async with http_session.post("/v1/tasks/small", json={"input": text, "private": private}) as response:
                    payload = await response.json()
                    assert response.status == 200 and payload["answer"] in deployed_gateway.labels
                    must_stay = private or "@" in text or "\uff20" in text or "+44" in text
                    assert (payload["answered_by"], payload["degraded"]) == ("local" if must_stay else "api", False)

            await asyncio.gather(*(send(*case) for case in sent))

    asyncio.run(scenario())
    log = json.dumps([body for _, _, body in deployed_gateway.provider.requests[n_seen:]])
    assert [index for index in range(60) if f"marker-{index} " in log] == list(range(0, 60, 3))
    access = deployed_gateway.access.read_text(encoding="utf-8")
    assert "marker" not in access and '"answered": {"api/below_threshold": 1}' in access


@pytest.mark.slow
def test_decisions_have_the_probability_of_every_label_as_constrained_steps_give_it(deployed_gateway: Place) -> None:
    text = "where is my money"
    questions: Any = [
        {
            "type": "choice",
            "instructions": "-",
            "choices": [{"value": choice_value} for choice_value in deployed_gateway.labels],
        }
    ]
    response = deployed_gateway.openai().decisions.create(model="small", input=text, questions=questions)
    (decision,) = response.answers
    assert decision.type == "choice"
    probabilities = {str(entry.value): entry.probability for entry in decision.probabilities}
    assert list(probabilities) == deployed_gateway.labels and sum(probabilities.values()) == pytest.approx(1, abs=1e-9)
    assert decision.choice == max(probabilities, key=probabilities.__getitem__)
    criteria = dict.fromkeys(deployed_gateway.labels)
    body = {"model": "small", "state": text, "questions": {"q": {"type": "choice", "criteria": criteria}}}
    other: Any = deployed_gateway.openai().post("/systemone", cast_to=object, body=body)
    assert other["answers"]["q"]["probabilities"] == pytest.approx(probabilities, abs=1e-6)
    module, spec = load_task_spec(deployed_gateway.prompt["task"])
    ids, tree = label_tree.TaskTokens(deployed_gateway.adapter, module, spec).encode(text)

    async def scenario() -> None:
        async with ClientSession(deployed_gateway.address, headers={"Authorization": f"Bearer {KEY}"}) as http_session:

            async def step(prefix: label_tree.TokenIds, token: int) -> float:
                """The probability of a token where nothing but labels is allowed."""
                allowed = list(tree.choices[prefix])
                body = {"model": "small", "prompt": [*ids, *prefix], "max_tokens": 1, "logprobs": 0, "temperature": 0}
                body |= {"allowed_token_ids": allowed, "logprob_token_ids": allowed, "return_tokens_as_token_ids": True}
                async with http_session.post("/v1/completions", json=body) as completion:
                    (log_probabilities,) = (await completion.json())["choices"][0]["logprobs"]["top_logprobs"]
                return math.exp(log_probabilities[f"token_id:{token}"])

            for label, path in tree.paths.items():
                starts = [path[:depth] for depth in range(len(path)) if path[:depth] in tree.choices]
                steps = [await step(start, path[len(start)]) for start in starts]
                assert probabilities[label] == pytest.approx(math.prod(steps), abs=1e-4)

    asyncio.run(scenario())
