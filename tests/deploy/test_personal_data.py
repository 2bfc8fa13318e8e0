"""What stays on this machine: requests that say so, recipes that say so, and personal data in any spelling."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.answers import personal_data
from tests.helpers.gateway.task_gateway import TASK_NAME, baseline_yaml, gateway_client, make_deployed_task, make_recipe
from tests.helpers.provider.faulty_provider import Provider

PERSONAL = (
    "ann.smith@example.org",
    "ANN.SMITH@EXAMPLE.ORG",
    "ann\uff20example\uff0eorg",
    "ann@exa\u200bmple.org",
    "a\u00adnn@exam\u00adple.org",
    "ann&#64;example.org",
    "ann%40example.org",
    "ann (at) example (dot) org",
    "ann[at]example[dot]org",
    "ann at example dot org",
    "ann at gmail.com",
    "ann -at- example -dot- org",
    "ann_AT_example_DOT_org",
    "ann@\nexample.org",
    "4\ufe0f\u20e31\ufe0f\u20e3" + "1\ufe0f\u20e3" * 14,
    "\U0001d7d2\U0001d7cf" + "\U0001d7cf" * 14,
    "020.7946.0958",
    "ann @ example . org",
    "анна@пример.рф",
    "+44 20 7946 0958",
    "(415) 555-2671",
    "0044\u00a020\u00a07946\u00a00958",
    "\u0660\u0662\u0660\u0667\u0669\u0664\u0666\u0660\u0669\u0665\u0668",
    "+44 20 79\u200b46 0958",
    "０２０７９４６０９５８",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "4111.1111.1111.1111",
    "4111/1111/1111/1111",
    "DE89.3704.0044.0532.0130.00",
    "ann%2540example.org",
    "ann@example\u3002org",
    "4111 1111 1111 111\u200b1",
    "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "four one one one one one one one one one one one one one one one",
    "GB29 NWBK 6016 1331 9268 19",
    "gb29nwbk60161331926819",
    "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000",
    "password: hunter2secret!",
)
HARMLESS = (
    "where is my parcel, order 4829104",
    "I ordered two at example.com on 2026-11-29 at 10:30",
    "it costs 12.50 and came at 9 . Then it broke",
    "size 10 x 12 x 14, item 3 of 5",
    "the dot at the top is red",
    "a state-of-the-art one - at last - in size 10-12",
    "arrived at 10.30, at 12.15 and at 14.00",
    "100% wool & cotton",
)


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data_are_found_however_they_are_spelled(text: str) -> None:
    assert personal_data.find_kinds(f"Hello, {text} is mine. Where is my parcel?")


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_is_taken_for_what_it_is(text: str) -> None:
    assert personal_data.find_kinds(text) == frozenset()


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    personal_data.find_kinds(text)


def requests() -> list[tuple[dict[str, Any], dict[str, str], bool]]:
    """1,000 requests in an order of chance: (body, headers, whether the input has to stay)."""
    rng = random.Random(7)
    cases: list[tuple[dict[str, Any], dict[str, str], bool]] = []
    for index in range(1000):
        kind, confidence_text = index % 5, rng.choice(["p=0.99", "p=0.5", "p=0.2"])
        text = f"marker-{index} says lost {confidence_text}. {rng.choice(HARMLESS)}"
        body: dict[str, Any] = {"text": text}
        headers: dict[str, str] = {}
        if kind == 1:
            body = {"text": text, "private": rng.choice([True, "true"])}
        elif kind == 2:
            headers = {"X-Insource-Private": rng.choice(["1", "true", "TRUE"])}
        elif kind == 3:
            body = {"text": f"{text} {rng.choice(PERSONAL)} thanks"}
        cases.append((body, headers, kind in (1, 2, 3)))
    rng.shuffle(cases)
    return cases


def test_of_a_thousand_mixed_requests_no_private_one_reaches_the_api(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    provider.answer = lambda prompt: "broken"
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, baselines=baseline_yaml(address)))
    sent = requests()

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            semaphore = asyncio.Semaphore(32)

            async def send(index: int, body: dict[str, Any], headers: dict[str, str]) -> None:
                text, extra = body["text"], {key: body[key] for key in body if key != "text"}
                chat = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 9} | extra
                paths: list[tuple[str, dict[str, Any]]] = [
                    (f"/v1/tasks/{TASK_NAME}", {"input": text} | extra),
                    ("/v1/chat/completions", chat),
                    ("/v1/messages", chat),
                    ("/v1/chat/completions", chat | {"stream": True}),
                    (f"/v1/tasks/{TASK_NAME}", {"inputs": [text]} | extra),
                ]
                path, request_body = paths[index % len(paths)]
                async with semaphore:
                    response = await client.post(path, json=request_body, headers=headers)
                    assert response.status == 200, await response.text()
                    await response.read()

            await asyncio.gather(*(send(index, body, headers) for index, (body, headers, _) in enumerate(sent)))

    asyncio.run(scenario())
    log = [str(body) for _, _, body in provider.requests]
    must_stay = {body["text"].split()[0] + " ": must_stay for body, _, must_stay in sent}
    reached = [marker for marker in must_stay if any(marker in line for line in log)]
    assert not [marker for marker in reached if must_stay[marker]]
    assert len(reached) > 100  # and others do


@pytest.mark.parametrize("source", ["recipe", "version"])
def test_where_the_recipe_says_that_data_may_not_leave_nothing_does(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    allowing, forbidding = (
        make_recipe(tmp_path, baselines=baseline_yaml(address), may_leave=value) for value in ("true", "false")
    )
    version, started_with = (allowing, forbidding) if source == "recipe" else (forbidding, allowing)
    deployment = make_deployed_task(tmp_path, version, gateway_recipe=started_with)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            payload = await (await client.post(f"/v1/tasks/{TASK_NAME}", json={"input": "p=0.5"})).json()
            assert payload["reason"] == "data_may_not_leave"

    asyncio.run(scenario())
    assert provider.requests == []


def test_personal_data_may_go_redacted_where_the_recipe_says_so(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    provider.answer = lambda prompt: "broken"
    route = "{personal_data: may_leave}"
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, baselines=baseline_yaml(address), route=route))

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            text = "p=0.5 write to ann@example.org"
            payload = await (await client.post(f"/v1/tasks/{TASK_NAME}", json={"input": text})).json()
            assert payload["answered_by"] == "api" and payload["redacted"] == ["email"]

    asyncio.run(scenario())
    assert "[EMAIL_1]" in str(provider.requests) and "ann@" not in str(provider.requests)
