"""POST /v1/tasks/<recipe>: inputs in, valid typed answers out, with who answered and why."""

import asyncio
import io
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from compare.records import Scale
from deploy.answers import escalation
from deploy.answers.outcome import Deployment
from deploy.routing import Routing
from insource.config.errors import RecipeError
from insource.config.schema.serving_and_cost import Limits
from insource.stats.calibration import Platt
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    TASK_NAME,
    baseline_yaml,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.provider.faulty_provider import Provider

PATH = f"/v1/tasks/{TASK_NAME}"
PRICED = ", price: {input_usd_per_million: 1000, output_usd_per_million: 0}, retries: 0"
"""Dear enough to use a budget up within a test."""


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def hybrid(folder: Path, address: str, api: str = "chat", more: str = "", **told: str) -> Deployment:
    """A task with an API model that answers below a confidence of 0.9."""
    return make_deployed_task(folder, make_recipe(folder, baselines=baseline_yaml(address, api, more), **told))


def test_an_input_is_answered_with_its_confidence_by_whom_and_why(tmp_path: Path) -> None:
    scale = Platt(1.0, -1.0)
    one = make_deployed_task(
        tmp_path, make_recipe(tmp_path), Routing(Scale(scale, "answer", (), ()), None, "none was found")
    )

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            said = await client.post(PATH, json={"input": "says lost p=0.8, ann@example.org"})
            assert said.status == 200 and said.headers["X-Insource-Version"] == "v1"
            told = await said.json()
            assert len(told.pop("id")) > 40
            sure = scale.confidence(math.log(0.8))
            assert told.pop("confidence") == told.pop("local_confidence") == pytest.approx(sure)
            assert told == {
                "task": TASK_NAME,
                "version": "v1",
                "answer": "lost",
                "answered_by": "local",
                "reason": "no_api_model",
                "degraded": False,
                "redacted": ["email"],
            }

    run(ask)


def test_inputs_are_texts_columns_or_messages_and_one_that_fails_fails_alone(tmp_path: Path) -> None:
    several = "{text: [subject, body], label: queue}"
    one = make_deployed_task(tmp_path, make_recipe(tmp_path, columns=several))
    inputs: list[Any] = [
        "says lost",
        {"subject": "says broken", "body": "today"},
        [{"role": "user", "content": "says late"}],
        {"subject": "x"},
        {"subject": "x", "body": "y", "more": 1},
        7,
        "",
        "too long",
    ]

    async def ask() -> None:
        async with gateway_client(one) as (client, engine, _):
            said = await client.post(PATH, json={"inputs": inputs})
            assert said.status == 200
            answers = (await said.json())["answers"]
            assert [found.get("answer") for found in answers] == ["lost", "broken", "late", *[None] * 5]
            told = [found["error"]["message"] for found in answers[3:]]
            for message, words in zip(
                told, ("'body' is missing", "'more' is none", "an input is", "empty", "maximum context"), strict=True
            ):
                assert words in message
            assert {found["error"]["code"] for found in answers[3:]} == {400}
            assert "says broken\n\ntoday" in engine.inputs

    run(ask)


def test_inputs_that_meet_a_model_that_is_started_again_are_told_to_come_back(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path))

    async def ask() -> None:
        async with gateway_client(one, limits=Limits(sequences=4)) as (client, engine, made):
            asking = asyncio.create_task(client.post(PATH, json={"inputs": [f"{at} wait=0.2" for at in range(40)]}))
            while len(engine.asked) < 6:
                await asyncio.sleep(0.01)
            assert made.engine is not None
            await made.engine.close()  # as the gateway does when vLLM has died
            said = await asking
            answers = (await said.json())["answers"]
            assert said.status == 200 and sum("answer" in one for one in answers) >= 2
            assert {one["error"]["code"] for one in answers if "error" in one} == {503}

    run(ask)


def test_as_many_inputs_are_on_their_way_as_the_limits_allow(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path))

    async def ask() -> None:
        async with gateway_client(one, limits=Limits(sequences=4)) as (client, engine, made):
            said = await client.post(PATH, json={"inputs": [f"{at} wait=0.02" for at in range(256)]})
            assert len((await said.json())["answers"]) == 256
            assert engine.most == 4 and made.on_their_way["router@v1"] == 0

    run(ask)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "either input or inputs"),
        ({"input": "a", "inputs": ["b"]}, 400, "either input or inputs"),
        ({"inputs": []}, 400, "one input or more"),
        ({"inputs": "a"}, 400, "list"),
        ({"inputs": ["a"] * 257}, 413, "256"),
        ({"input": "a", "temperature": 1}, 400, "temperature"),
        ({"input": "a", "private": "perhaps"}, 400, "private"),
        (["a"], 400, "no JSON object"),
        (b'{"input": "a", "input": "b"}', 400, "twice"),
        (b'{"input": "\xff"}', 400, "UTF-8"),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "deeply"),
        (b"{" + b" " * 2**21 + b"}", 413, "KiB"),
    ],
)
def test_wrong_requests_are_told(tmp_path: Path, body: Any, status: int, told: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path))) as (client, engine, _):
            said = await client.post(PATH, data=io.BytesIO(data))
            assert said.status == status and told in (await said.json())["error"]["message"]
            assert engine.asked == []

    run(ask)


def test_without_a_key_or_for_another_task_there_is_no_answer(tmp_path: Path) -> None:
    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path)), "secret") as (client, _, made):
            assert (await client.post(PATH, json={"input": "a"})).status == 401
            key = {"Authorization": "Bearer secret"}
            assert (await client.post("/v1/tasks/other", json={"input": "a"}, headers=key)).status == 404
            made.versions, made.tasks = {}, {}
            said = await client.post(PATH, json={"input": "a"}, headers=key)
            assert said.status == 503 and int(said.headers["Retry-After"]) > 0

    run(ask)


def test_an_answer_that_does_not_fit_is_asked_for_once_more(tmp_path: Path) -> None:
    free = "{structured_output: false}"

    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path, serve=free))) as (
            client,
            engine,
            _,
        ):
            # Without the grammar it says something else; under the grammar a label.
            told = await (await client.post(PATH, json={"input": "freely nonsense says lost"})).json()
            assert told["answer"] == "lost" and len(engine.asked) == 2
            told = await (await client.post(PATH, json={"input": "it was cut"})).json()
            assert told["answer"] == "late" and len(engine.asked) == 4
            assert engine.asked[-1][1]["max_completion_tokens"] == 32
            said = await client.post(PATH, json={"input": "says nonsense"})
            assert said.status == 422 and "not_a_label" in (await said.json())["error"]["message"]
            assert len(engine.asked) == 6

    run(ask)


@pytest.mark.parametrize("api", ["chat", "messages", "decisions", "systemone"])
def test_what_the_model_is_not_sure_of_is_asked_of_the_api_model(
    tmp_path: Path, address: str, provider: Provider, api: str
) -> None:
    provider.answer = lambda prompt: "broken"
    one = hybrid(tmp_path, address, api)

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            for text, expected in (
                ("says lost p=0.95", ("lost", "local", "confident")),
                ("says lost p=0.85", ("broken", "api", "below_threshold")),
                ("says nonsense", ("broken", "api", "own_answer_invalid")),
            ):
                told = await (await client.post(PATH, json={"input": text})).json()
                assert (told["answer"], told["answered_by"], told["reason"]) == expected
                assert told["degraded"] is False
            assert len(provider.seen) == 2
            sent = json.dumps(provider.seen[0][2])
            assert "says lost p=0.85" in sent

    run(ask)


def test_the_api_model_is_asked_as_the_comparison_asks_it_and_once_more_for_a_valid_answer(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    said_first = ["perhaps late", "broken"]
    provider.answer = lambda prompt: said_first.pop(0)
    one = hybrid(tmp_path, address)

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            told = await (await client.post(PATH, json={"input": "p=0.5"})).json()
            assert told["answer"] == "broken" and told["answered_by"] == "api"
            (_, _, first), (_, _, second) = provider.seen
            assert first["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
            assert [one["role"] for one in second["messages"]] == ["user", "assistant", "user"]
            said_first.extend(["perhaps late", "still no label"])
            told = await (await client.post(PATH, json={"input": "p=0.5"})).json()
            assert (told["answer"], told["reason"], told["degraded"]) == ("late", "api_answer_invalid", True)

    run(ask)


def test_a_record_of_the_api_model_is_checked_by_the_tasks_schema(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: json.dumps({"number": "17", "day": None})
    one = hybrid(tmp_path, address, task=EXTRACTOR_TASK, columns="{text: message}")

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            told = await (await client.post(PATH, json={"input": 'says {"number":"1"} p=0.5'})).json()
            assert told["answer"] == {"number": "17", "day": None} and told["answered_by"] == "api"

    run(ask)


@pytest.mark.parametrize("when", ["local", "error"])
@pytest.mark.parametrize("down", ["503", "slow", "gone"])
def test_while_the_api_model_is_down_every_request_has_an_answer_or_a_clear_error(
    tmp_path: Path, address: str, provider: Provider, when: str, down: str
) -> None:
    where = "http://127.0.0.1:9" if down == "gone" else address
    route = f"{{when_api_fails: {when}, api_seconds: 0.5}}"
    one = hybrid(tmp_path, where, more=", retries: 0", route=route)
    provider.delay_seconds = 30.0 if down == "slow" else 0.0
    provider.refuse = lambda prompt, before: (503, {}) if down == "503" else None

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            for _ in range(escalation.MAX_FAILURES + 2):
                said = await client.post(PATH, json={"input": "says lost p=0.5"})
                told = await said.json()
                if when == "local":
                    assert (told["answer"], told["degraded"], told["reason"]) == ("lost", True, "api_failed")
                else:
                    assert said.status == 503 and int(said.headers["Retry-After"]) > 0
            # After so many failures in succession it is left alone.
            assert len(provider.seen) == (0 if down == "gone" else escalation.MAX_FAILURES)
            told = await (await client.post(PATH, json={"input": "says lost p=0.99"})).json()
            assert told["answered_by"] == "local" and not told["degraded"]

    run(ask)


def test_a_parameter_that_the_provider_refuses_by_name_is_left_out_from_then_on(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.picky, provider.answer = ("response_format",), lambda prompt: "broken"

    async def ask() -> None:
        async with gateway_client(hybrid(tmp_path, address)) as (client, _, _made):
            for _ in range(2):
                told = await (await client.post(PATH, json={"input": "p=0.5"})).json()
                assert told["answered_by"] == "api"
            assert len(provider.seen) == 3

    run(ask)


def test_a_month_costs_no_more_than_the_recipe_says_across_restarts(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    reasons = Counter[str]()

    def made() -> Deployment:
        return hybrid(tmp_path, address, more=PRICED, route="{usd_per_month: 1.0}")

    async def ask() -> None:
        async with gateway_client(made()) as (client, _, _made):
            for _ in range(6):
                told = await (await client.post(PATH, json={"input": "says lost p=0.5"})).json()
                assert (told["reason"] == "over_budget") == told["degraded"]
                reasons[told["reason"]] += 1

    for _ in range(2):
        run(ask)
    usd = sum(asked for asked, _ in provider.charged) * 1000 / 1e6
    assert reasons["below_threshold"] == len(provider.charged) > 0 and reasons["over_budget"] > 0
    assert usd <= 1.0


def test_without_a_budget_nothing_that_costs_is_asked(tmp_path: Path, address: str, provider: Provider) -> None:
    one = hybrid(tmp_path, address, more=PRICED)

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            told = await (await client.post(PATH, json={"input": "p=0.5"})).json()
            assert (told["reason"], told["degraded"]) == ("no_budget", False)

    run(ask)
    assert provider.seen == []


def test_an_engine_that_breaks_off_is_told_to_come_back_later(tmp_path: Path) -> None:
    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path))) as (client, engine, _):
            engine.down = True
            said = await client.post(PATH, json={"input": "a"})
            assert said.status == 503 and int(said.headers["Retry-After"]) > 0

    run(ask)


@pytest.mark.parametrize(
    ("baselines", "route", "told"),
    [
        ("[]", "{baseline: api}", "there are no API models"),
        ("http://127.0.0.1:9", "{baseline: other}", "given 'other', there are api"),
        ("http://127.0.0.1:9, shots: 3", "{baseline: api}", "not deployed"),
        ("http://127.0.0.1:9", "{personal_data: redacted}", "personal_data"),
    ],
)
def test_a_recipe_that_routes_to_what_cannot_be_asked_is_told(
    tmp_path: Path, baselines: str, route: str, told: str
) -> None:
    address, _, more = baselines.partition(", ")
    made = baseline_yaml(address, extra=f", {more}" if more else "") if address != "[]" else "[]"
    with pytest.raises(RecipeError, match=told):
        make_recipe(tmp_path, baselines=made, route=route)
