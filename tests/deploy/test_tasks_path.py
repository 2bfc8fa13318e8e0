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
from tests.helpers.errors import raises_error
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


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def hybrid(folder: Path, address: str, api: str = "chat", extra: str = "", **kwargs: str) -> Deployment:
    """A task with an API model that answers below a confidence of 0.9."""
    return make_deployed_task(folder, make_recipe(folder, baselines=baseline_yaml(address, api, extra), **kwargs))


def test_an_input_is_answered_with_its_confidence_by_whom_and_why(tmp_path: Path) -> None:
    scale = Platt(1.0, -1.0)
    deployment = make_deployed_task(
        tmp_path, make_recipe(tmp_path), Routing(Scale(scale, "answer", (), ()), None, "none was found")
    )

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            response = await client.post(PATH, json={"input": "says lost p=0.8, ann@example.org"})
            assert response.status == 200 and response.headers["X-Insource-Version"] == "v1"
            payload = await response.json()
            assert len(payload.pop("id")) > 40
            confidence = scale.confidence(math.log(0.8))
            assert payload.pop("confidence") == payload.pop("local_confidence") == pytest.approx(confidence)
            assert payload == {
                "task": TASK_NAME,
                "version": "v1",
                "answer": "lost",
                "answered_by": "local",
                "reason": "no_api_model",
                "degraded": False,
                "redacted": ["email"],
            }

    run(scenario)


def test_inputs_are_texts_columns_or_messages_and_one_that_fails_fails_alone(tmp_path: Path) -> None:
    columns = "{text: [subject, body], label: queue}"
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, columns=columns))
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

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, engine, _):
            response = await client.post(PATH, json={"inputs": inputs})
            assert response.status == 200
            answers = (await response.json())["answers"]
            assert [answer.get("answer") for answer in answers] == ["lost", "broken", "late", *[None] * 5]
            messages = [answer["error"]["message"] for answer in answers[3:]]
            for message, fragment in zip(
                messages,
                ("'body' is missing", "'more' is none", "an input is", "empty", "maximum context"),
                strict=True,
            ):
                assert fragment in message
            assert {answer["error"]["code"] for answer in answers[3:]} == {400}
            assert "says broken\n\ntoday" in engine.inputs

    run(scenario)


def test_inputs_that_meet_a_model_that_is_started_again_are_told_to_come_back(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path))

    async def scenario() -> None:
        async with gateway_client(deployment, limits=Limits(sequences=4)) as (client, engine, state):
            request = asyncio.create_task(
                client.post(PATH, json={"inputs": [f"{index} wait=0.2" for index in range(40)]})
            )
            while len(engine.requests) < 6:
                await asyncio.sleep(0.01)
            assert state.engine is not None
            await state.engine.close()  # as the gateway does when vLLM has died
            response = await request
            answers = (await response.json())["answers"]
            assert response.status == 200 and sum("answer" in answer for answer in answers) >= 2
            assert {answer["error"]["code"] for answer in answers if "error" in answer} == {503}

    run(scenario)


def test_as_many_inputs_are_on_their_way_as_the_limits_allow(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path))

    async def scenario() -> None:
        async with gateway_client(deployment, limits=Limits(sequences=4)) as (client, engine, state):
            response = await client.post(PATH, json={"inputs": [f"{index} wait=0.02" for index in range(256)]})
            assert len((await response.json())["answers"]) == 256
            assert engine.max_in_flight == 4 and state.in_flight["router@v1"] == 0

    run(scenario)


@pytest.mark.parametrize(
    ("body", "status", "message"),
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
def test_wrong_requests_are_told(tmp_path: Path, body: Any, status: int, message: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path))) as (client, engine, _):
            response = await client.post(PATH, data=io.BytesIO(data))
            assert response.status == status and message in (await response.json())["error"]["message"]
            assert engine.requests == []

    run(scenario)


def test_without_a_key_or_for_another_task_there_is_no_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path)), "secret") as (client, _, state):
            assert (await client.post(PATH, json={"input": "a"})).status == 401
            key = {"Authorization": "Bearer secret"}
            assert (await client.post("/v1/tasks/other", json={"input": "a"}, headers=key)).status == 404
            state.versions, state.tasks = {}, {}
            response = await client.post(PATH, json={"input": "a"}, headers=key)
            assert response.status == 503 and int(response.headers["Retry-After"]) > 0

    run(scenario)


def test_an_answer_that_does_not_fit_is_asked_for_once_more(tmp_path: Path) -> None:
    serve = "{structured_output: false}"

    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path, serve=serve))) as (
            client,
            engine,
            _,
        ):
            # Without the grammar it says something else; under the grammar a label.
            payload = await (await client.post(PATH, json={"input": "freely nonsense says lost"})).json()
            assert payload["answer"] == "lost" and len(engine.requests) == 2
            payload = await (await client.post(PATH, json={"input": "it was cut"})).json()
            assert payload["answer"] == "late" and len(engine.requests) == 4
            assert engine.requests[-1][1]["max_completion_tokens"] == 32
            response = await client.post(PATH, json={"input": "says nonsense"})
            assert response.status == 422 and "not_a_label" in (await response.json())["error"]["message"]
            assert len(engine.requests) == 6

    run(scenario)


@pytest.mark.parametrize("api", ["chat", "messages", "decisions", "systemone"])
def test_what_the_model_is_not_sure_of_is_asked_of_the_api_model(
    tmp_path: Path, address: str, provider: Provider, api: str
) -> None:
    provider.answer = lambda prompt: "broken"
    deployment = hybrid(tmp_path, address, api)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            for text, expected in (
                ("says lost p=0.95", ("lost", "local", "confident")),
                ("says lost p=0.85", ("broken", "api", "below_threshold")),
                ("says nonsense", ("broken", "api", "own_answer_invalid")),
            ):
                payload = await (await client.post(PATH, json={"input": text})).json()
                assert (payload["answer"], payload["answered_by"], payload["reason"]) == expected
                assert payload["degraded"] is False
            assert len(provider.requests) == 2
            sent = json.dumps(provider.requests[0][2])
            assert "says lost p=0.85" in sent

    run(scenario)


def test_the_api_model_is_asked_as_the_comparison_asks_it_and_once_more_for_a_valid_answer(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    queued_answers = ["perhaps late", "broken"]
    provider.answer = lambda prompt: queued_answers.pop(0)
    deployment = hybrid(tmp_path, address)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            payload = await (await client.post(PATH, json={"input": "p=0.5"})).json()
            assert payload["answer"] == "broken" and payload["answered_by"] == "api"
            (_, _, first), (_, _, second) = provider.requests
            assert first["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
            assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
            queued_answers.extend(["perhaps late", "still no label"])
            payload = await (await client.post(PATH, json={"input": "p=0.5"})).json()
            assert (payload["answer"], payload["reason"], payload["degraded"]) == ("late", "api_answer_invalid", True)

    run(scenario)


def test_a_record_of_the_api_model_is_checked_by_the_tasks_schema(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: json.dumps({"number": "17", "day": None})
    deployment = hybrid(tmp_path, address, task=EXTRACTOR_TASK, columns="{text: message}")

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            payload = await (await client.post(PATH, json={"input": 'says {"number":"1"} p=0.5'})).json()
            assert payload["answer"] == {"number": "17", "day": None} and payload["answered_by"] == "api"

    run(scenario)


@pytest.mark.parametrize("when", ["local", "error"])
@pytest.mark.parametrize("down", ["503", "slow", "gone"])
def test_while_the_api_model_is_down_every_request_has_an_answer_or_a_clear_error(
    tmp_path: Path, address: str, provider: Provider, when: str, down: str
) -> None:
    base_url = "http://127.0.0.1:9" if down == "gone" else address
    route = f"{{when_api_fails: {when}, api_seconds: 0.5}}"
    deployment = hybrid(tmp_path, base_url, extra=", retries: 0", route=route)
    provider.delay_seconds = 30.0 if down == "slow" else 0.0
    provider.refuse = lambda prompt, attempts: (503, {}) if down == "503" else None

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            for _ in range(escalation.MAX_FAILURES + 2):
                response = await client.post(PATH, json={"input": "says lost p=0.5"})
                payload = await response.json()
                if when == "local":
                    assert (payload["answer"], payload["degraded"], payload["reason"]) == ("lost", True, "api_failed")
                else:
                    assert response.status == 503 and int(response.headers["Retry-After"]) > 0
            # After so many failures in succession it is left alone.
            assert len(provider.requests) == (0 if down == "gone" else escalation.MAX_FAILURES)
            payload = await (await client.post(PATH, json={"input": "says lost p=0.99"})).json()
            assert payload["answered_by"] == "local" and not payload["degraded"]

    run(scenario)


def test_a_parameter_that_the_provider_refuses_by_name_is_left_out_from_then_on(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.rejected_parameters, provider.answer = ("response_format",), lambda prompt: "broken"

    async def scenario() -> None:
        async with gateway_client(hybrid(tmp_path, address)) as (client, _, _state):
            for _ in range(2):
                payload = await (await client.post(PATH, json={"input": "p=0.5"})).json()
                assert payload["answered_by"] == "api"
            assert len(provider.requests) == 3

    run(scenario)


def test_a_month_costs_no_more_than_the_recipe_says_across_restarts(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    reasons = Counter[str]()

    def make_task() -> Deployment:
        return hybrid(tmp_path, address, extra=PRICED, route="{usd_per_month: 1.0}")

    async def scenario() -> None:
        async with gateway_client(make_task()) as (client, _, _state):
            for _ in range(6):
                payload = await (await client.post(PATH, json={"input": "says lost p=0.5"})).json()
                assert (payload["reason"] == "over_budget") == payload["degraded"]
                reasons[payload["reason"]] += 1

    for _ in range(2):
        run(scenario)
    usd = sum(input_tokens for input_tokens, _ in provider.charged_tokens) * 1000 / 1e6
    assert reasons["below_threshold"] == len(provider.charged_tokens) > 0 and reasons["over_budget"] > 0
    assert usd <= 1.0


def test_calls_of_clients_that_left_go_on_up_to_a_limit_and_each_has_its_cost_on_disk(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escalation, "MAX_ABANDONED", 3)
    provider.answer, provider.hang_after = lambda prompt: "broken", 0
    route = "{usd_per_month: 1000.0, api_seconds: 300}"
    deployment = hybrid(tmp_path, address, extra=f"{PRICED}, concurrency: 8, timeout_seconds: 300", route=route)
    api_model = deployment.escalation
    assert isinstance(api_model, escalation.Escalation)

    def lines() -> list[dict[str, Any]]:
        (path,) = (deployment.registry_dir / "spend").glob("*.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    async def scenario() -> None:
        calls = [asyncio.create_task(api_model.query(deployment.task.prepare(f"text {index}"))) for index in range(8)]
        async with asyncio.timeout(300):
            while len(provider.requests) < 8:
                await asyncio.sleep(0.02)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            provider.hang_after = None
            while len(lines()) < 16:
                await asyncio.sleep(0.05)
        await api_model.close()

    run(scenario)
    reserved = {line["attempt"]: line["usd"] for line in lines() if "usd" in line}
    in_full = [line["spent_usd"] == reserved[line["attempt"]] for line in lines() if "spent_usd" in line]
    assert len(reserved) == len(in_full) == 8 and in_full.count(True) == 5, "three continued, and five were cancelled"


def test_without_a_budget_nothing_that_costs_is_asked(tmp_path: Path, address: str, provider: Provider) -> None:
    deployment = hybrid(tmp_path, address, extra=PRICED)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            payload = await (await client.post(PATH, json={"input": "p=0.5"})).json()
            assert (payload["reason"], payload["degraded"]) == ("no_budget", False)

    run(scenario)
    assert provider.requests == []


def test_an_engine_that_breaks_off_is_told_to_come_back_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path))) as (client, engine, _):
            engine.down = True
            response = await client.post(PATH, json={"input": "a"})
            assert response.status == 503 and int(response.headers["Retry-After"]) > 0

    run(scenario)


@pytest.mark.parametrize(
    ("baselines", "route", "message"),
    [
        ("[]", "{baseline: api}", "there are no API models"),
        ("http://127.0.0.1:9", "{baseline: other}", "given 'other', there are api"),
        ("http://127.0.0.1:9, shots: 3", "{baseline: api}", "not deployed"),
        ("http://127.0.0.1:9", "{personal_data: redacted}", "personal_data"),
    ],
)
def test_a_recipe_that_routes_to_what_cannot_be_asked_is_told(
    tmp_path: Path, baselines: str, route: str, message: str
) -> None:
    address, _, extra = baselines.partition(", ")
    baselines_text = baseline_yaml(address, extra=f", {extra}" if extra else "") if address != "[]" else "[]"
    with raises_error(RecipeError, "INS-R001", match=message):
        make_recipe(tmp_path, baselines=baselines_text, route=route)
