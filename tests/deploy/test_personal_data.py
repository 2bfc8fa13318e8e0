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
    chance = random.Random(7)
    found: list[tuple[dict[str, Any], dict[str, str], bool]] = []
    for at in range(1000):
        kind, sure = at % 5, chance.choice(["p=0.99", "p=0.5", "p=0.2"])
        text = f"marker-{at} says lost {sure}. {chance.choice(HARMLESS)}"
        body: dict[str, Any] = {"text": text}
        headers: dict[str, str] = {}
        if kind == 1:
            body = {"text": text, "private": chance.choice([True, "true"])}
        elif kind == 2:
            headers = {"X-Insource-Private": chance.choice(["1", "true", "TRUE"])}
        elif kind == 3:
            body = {"text": f"{text} {chance.choice(PERSONAL)} thanks"}
        found.append((body, headers, kind in (1, 2, 3)))
    chance.shuffle(found)
    return found


def test_of_a_thousand_mixed_requests_no_private_one_reaches_the_api(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    provider.answer = lambda prompt: "broken"
    one = make_deployed_task(tmp_path, make_recipe(tmp_path, baselines=baseline_yaml(address)))
    sent = requests()

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            room = asyncio.Semaphore(32)

            async def send(at: int, body: dict[str, Any], headers: dict[str, str]) -> None:
                text, more = body["text"], {key: body[key] for key in body if key != "text"}
                chat = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 9} | more
                paths: list[tuple[str, dict[str, Any]]] = [
                    (f"/v1/tasks/{TASK_NAME}", {"input": text} | more),
                    ("/v1/chat/completions", chat),
                    ("/v1/messages", chat),
                    ("/v1/chat/completions", chat | {"stream": True}),
                    (f"/v1/tasks/{TASK_NAME}", {"inputs": [text]} | more),
                ]
                path, asked = paths[at % len(paths)]
                async with room:
                    said = await client.post(path, json=asked, headers=headers)
                    assert said.status == 200, await said.text()
                    await said.read()

            await asyncio.gather(*(send(at, body, headers) for at, (body, headers, _) in enumerate(sent)))

    asyncio.run(ask())
    log = [str(body) for _, _, body in provider.seen]
    stays = {body["text"].split()[0] + " ": stays for body, _, stays in sent}
    reached = [one for one in stays if any(one in line for line in log)]
    assert not [one for one in reached if stays[one]]
    assert len(reached) > 100  # and others do


@pytest.mark.parametrize("why", ["recipe", "version"])
def test_where_the_recipe_says_that_data_may_not_leave_nothing_does(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    may, may_not = (make_recipe(tmp_path, baselines=baseline_yaml(address), may_leave=one) for one in ("true", "false"))
    version, started_with = (may, may_not) if why == "recipe" else (may_not, may)
    one = make_deployed_task(tmp_path, version, gateway_recipe=started_with)

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            told = await (await client.post(f"/v1/tasks/{TASK_NAME}", json={"input": "p=0.5"})).json()
            assert told["reason"] == "data_may_not_leave"

    asyncio.run(ask())
    assert provider.seen == []


def test_personal_data_may_go_redacted_where_the_recipe_says_so(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    provider.answer = lambda prompt: "broken"
    route = "{personal_data: may_leave}"
    one = make_deployed_task(tmp_path, make_recipe(tmp_path, baselines=baseline_yaml(address), route=route))

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            text = "p=0.5 write to ann@example.org"
            told = await (await client.post(f"/v1/tasks/{TASK_NAME}", json={"input": text})).json()
            assert told["answered_by"] == "api" and told["redacted"] == ["email"]

    asyncio.run(ask())
    assert "[EMAIL_1]" in str(provider.seen) and "ann@" not in str(provider.seen)
