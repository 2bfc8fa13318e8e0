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
from insource.tasks.text_keys import clean
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
def place(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    runs = commands.exported_runs(tmp_path_factory, small_recipe, "gateway-tasks")
    (manifest,) = (runs / "small").glob("2*/manifest.json")
    here, provider = Run(manifest.parent), Provider()
    prompt = atomic_files.read_json(here.folder / "adapter" / "prompt.json")
    provider.answer = lambda text: next(iter(prompt["task"]["labels"]))
    folder, scale = runs.parent / "registry" / "small", {"slope": 1.5, "intercept": -0.5}
    policy = runs / "routing.json"
    told = RoutingPolicy(threshold=ALWAYS_UNSURE, target_accuracy=0.95, confidence=0.95, calibration_rows=500)
    atomic_files.write_json(policy, told.json())
    name = f"{atomic_files.sha256(policy)[:16]}.json"
    (folder / "routing").mkdir(parents=True)
    policy.rename(folder / "routing" / name)
    registry.promote(folder, here, ["by hand"], {"file": name, "scale": scale | {"of": "answer"}, "why_none": None})
    port, log = server_process.free_port(), runs.parent / "gateway.log"
    with run_provider(provider) as api:
        baseline = f'[{{provider: openai, model: gpt-6-luna, base_url: "{api}/v1", name: api, api_key_env: API_KEY}}]'
        words = [f"serve.port={port}", f"compare.baselines={baseline}"]
        secrets = {"INSOURCE_API_KEY": KEY, "API_KEY": "secret"}
        with commands.background_command(runs, log, "deploy.gateway", small_recipe, *words, **secrets) as process:
            commands.wait_for(log, "ready     ", process)
            assert "routing   small: below a confidence of 2.0000 api answers" in log.read_text(encoding="utf-8")
            yield Place(
                f"http://127.0.0.1:{port}",
                prompt,
                provider,
                folder.parent / "access.jsonl",
                scale,
                here.folder / "adapter",
            )


@pytest.mark.slow(minutes=2)
def test_a_client_that_knows_nothing_of_prompts_gets_what_the_tasks_own_prompt_gets(place: Place) -> None:
    client, text = place.openai(), "where is my money"
    own = client.chat.completions.create(
        model="small",
        messages=place.own_prompt(text),  # type: ignore[arg-type]
        extra_body={"structured_outputs": {"grammar": place.prompt["grammar"]}},
    )
    asked: Any = {"model": "small", "messages": [{"role": "user", "content": text}]}
    private: Any = {"extra_body": {"private": True}}
    expected = own.choices[0].message.content
    assert expected in place.labels
    said = client.chat.completions.create(**asked, **private)
    assert said.choices[0].message.content == expected
    parts = client.chat.completions.create(**asked, **private, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    other = anthropic.Anthropic(base_url=place.address, api_key=KEY, max_retries=0)
    told = other.messages.create(**asked, **private, max_tokens=5)
    assert [block.text for block in told.content if block.type == "text"] == [expected]
    with other.messages.stream(**asked, **private, max_tokens=5) as stream:
        assert stream.get_final_text() == expected
    raw = client.chat.completions.create(**asked | {"model": "small:raw"}, max_tokens=5)
    assert raw.choices[0].message.content not in place.labels
    assert place.provider.seen == []


@pytest.mark.slow
def test_confidence_is_that_of_the_decoded_path_on_the_deployed_scale(place: Place) -> None:
    texts = [one.message for one in generate_tickets(20, seed=9)]

    async def ask() -> None:
        async with ClientSession(place.address, headers={"Authorization": f"Bearer {KEY}"}) as asking:
            sent = {"inputs": texts, "private": True}
            async with asking.post("/v1/tasks/small", json=sent) as answer:
                told = await answer.json()
            assert answer.status == 200 and len(told["answers"]) == 20
            for text, one in zip(texts[:5], told["answers"], strict=False):
                assert one["answer"] in place.labels and one["reason"] == "private"
                body = {"model": "small", "messages": place.own_prompt(clean(text)), "logprobs": True}
                body |= {"structured_outputs": {"grammar": place.prompt["grammar"]}}
                async with asking.post("/v1/chat/completions", json=body) as answer:
                    choice = (await answer.json())["choices"][0]
                likely = sum(token["logprob"] for token in choice["logprobs"]["content"])
                z = place.scale["slope"] * (likely - math.log(-math.expm1(likely))) + place.scale["intercept"]
                assert one["confidence"] == pytest.approx(1 / (1 + math.exp(-z)), abs=0.02)

    asyncio.run(ask())


@pytest.mark.slow
def test_what_may_leave_is_escalated_and_what_is_private_never_is(place: Place) -> None:
    chance = random.Random(3)
    before = len(place.provider.seen)
    sent = []
    for at in range(60):
        text, private = f"marker-{at} where is my money", at % 3 == 1
        text += chance.choice([" ann\uff20example.org", " call +44 20 7946 0958"]) if at % 3 == 2 else ""
        sent.append((text, private))

    async def ask() -> None:
        async with ClientSession(place.address, headers={"Authorization": f"Bearer {KEY}"}) as asking:

            async def one(text: str, private: bool) -> None:
                async with asking.post("/v1/tasks/small", json={"input": text, "private": private}) as answer:
                    told = await answer.json()
                    assert answer.status == 200 and told["answer"] in place.labels
                    stays = private or "@" in text or "\uff20" in text or "+44" in text
                    assert (told["answered_by"], told["degraded"]) == ("local" if stays else "api", False)

            await asyncio.gather(*(one(*each) for each in sent))

    asyncio.run(ask())
    log = json.dumps([body for _, _, body in place.provider.seen[before:]])
    assert [at for at in range(60) if f"marker-{at} " in log] == list(range(0, 60, 3))
    access = place.access.read_text(encoding="utf-8")
    assert "marker" not in access and '"answered": {"api/below_threshold": 1}' in access


@pytest.mark.slow
def test_decisions_have_the_probability_of_every_label_as_constrained_steps_give_it(place: Place) -> None:
    text = "where is my money"
    asked: Any = [{"type": "choice", "instructions": "-", "choices": [{"value": one} for one in place.labels]}]
    said = place.openai().decisions.create(model="small", input=text, questions=asked)
    (answer,) = said.answers
    assert answer.type == "choice"
    told = {str(one.value): one.probability for one in answer.probabilities}
    assert list(told) == place.labels and sum(told.values()) == pytest.approx(1, abs=1e-9)
    assert answer.choice == max(told, key=told.__getitem__)
    module, spec = load_task_spec(place.prompt["task"])
    ids, tree = label_tree.TaskTokens(place.adapter, module, spec).of(text)

    async def ask() -> None:
        async with ClientSession(place.address, headers={"Authorization": f"Bearer {KEY}"}) as asking:

            async def step(before: label_tree.TokenIds, token: int) -> float:
                """The probability of a token where nothing but labels is allowed."""
                allowed = list(tree.choices[before])
                body = {"model": "small", "prompt": [*ids, *before], "max_tokens": 1, "logprobs": 0, "temperature": 0}
                body |= {"allowed_token_ids": allowed, "logprob_token_ids": allowed, "return_tokens_as_token_ids": True}
                async with asking.post("/v1/completions", json=body) as found:
                    (top,) = (await found.json())["choices"][0]["logprobs"]["top_logprobs"]
                return math.exp(top[f"token_id:{token}"])

            for label, path in tree.paths.items():
                starts = [path[:at] for at in range(len(path)) if path[:at] in tree.choices]
                steps = [await step(start, path[len(start)]) for start in starts]
                assert told[label] == pytest.approx(math.prod(steps), abs=1e-4)

    asyncio.run(ask())
