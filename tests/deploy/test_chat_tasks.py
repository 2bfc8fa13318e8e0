"""Chats with a model's name alone: the conversation is the task's input, and the answer the label or the record."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from multidict import CIMultiDict

from deploy.answers.outcome import Deployment
from tests.helpers.gateway import task_gateway
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    TASK_NAME,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.provider.faulty_provider import Provider


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def user(text: str, **extra: Any) -> dict[str, Any]:
    return {"model": TASK_NAME, "messages": [{"role": "user", "content": text}], **extra}


@pytest.fixture
def router(tmp_path: Path) -> Deployment:
    return make_deployed_task(tmp_path, make_recipe(tmp_path))


@pytest.fixture
def hybrid(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The same with an API model that answers below a confidence of 0.9."""
    monkeypatch.setenv("API_KEY", "secret")
    return make_deployed_task(tmp_path, make_recipe(tmp_path, baselines=task_gateway.baseline_yaml(address)))


def test_a_chat_is_asked_as_the_comparison_asks_the_task(router: Deployment) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            response = await client.post("/v1/chat/completions", json=user(" my  parcel\r\nis  late ", temperature=1.5))
            assert response.status == 200
            payload = await response.json()
            assert payload["model"] == TASK_NAME and payload["choices"][0]["message"]["content"] == "late"
            ((path, body),) = engine.requests
            dataset = router.task.dataset
            assert path == "/v1/chat/completions" and body["model"] == "router@v1" and body["temperature"] == 0
            assert body["messages"] == dataset.task.messages(dataset.spec, {"text": "my parcel\nis late"})
            assert body["structured_outputs"] == {"grammar": dataset.prompt.grammar}
            assert body["max_completion_tokens"] == dataset.prompt.max_answer_tokens

    run(scenario)


@pytest.mark.parametrize(("path", "key"), [("/v1/chat/completions", "choices"), ("/v1/messages", "content")])
def test_a_complete_answer_is_checked_requested_again_and_refused_if_it_fits_no_schema(
    router: Deployment, path: str, key: str
) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            response = await client.post(path, json=user("says lost cut", max_tokens=9))
            part = (await response.json())[key][0]
            assert (part["message"]["content"] if key == "choices" else part["text"]) == "lost"
            first, again = (body["max_completion_tokens"] for _, body in engine.requests)
            assert again == 2 * first
            assert response.headers["X-Insource-Reason"] == "no_api_model"
            assert response.headers["X-Insource-Answer-Id"]
            response = await client.post(path, json=user("says nonsense", max_tokens=9))
            assert response.status == 422
            assert "does not fit the task's schema" in (await response.json())["error"]["message"]

    run(scenario)


def test_a_client_that_wants_log_probabilities_gets_those_of_the_engine(router: Deployment) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, _, _state):
            response = await client.post("/v1/chat/completions", json=user("says lost p=0.5", logprobs=True))
            choice = (await response.json())["choices"][0]
            assert choice["message"]["content"] == "lost"
            (token,) = choice["logprobs"]["content"]
            assert token["logprob"] == pytest.approx(math.log(0.5))

    run(scenario)


@pytest.mark.parametrize("model", [TASK_NAME, f"{TASK_NAME}:raw"])
def test_the_tasks_own_prompt_and_raw_requests_pass_unchanged(router: Deployment, model: str) -> None:
    dataset = router.task.dataset
    messages = dataset.task.messages(dataset.spec, {"text": "  my   parcel"})
    sent: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0.7, "max_tokens": 3, "n": 2}
    if model != TASK_NAME:
        sent["messages"] = [{"role": "user", "content": "a@b.example  is   late"}]

    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            response = await client.post("/v1/chat/completions", json=sent)
            assert (await response.json())["model"] == model
            assert engine.requests[0][1] == sent | {"model": "router@v1"}

    run(scenario)


def test_serve_chat_raw_leaves_every_chat_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path, serve="{chat: raw}"))) as (
            client,
            engine,
            _,
        ):
            await client.post("/v1/chat/completions", json=user("late"))
            assert engine.requests[0][1] == user("late") | {"model": "router@v1"}
            response = await client.post(f"/v1/tasks/{TASK_NAME}", json={"input": "late"})
            assert (await response.json())["answer"] == "late"

    run(scenario)


def test_turns_become_one_input_as_in_preparation_and_a_system_prompt_is_left_out(router: Deployment) -> None:
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "it is late"}]},
        {"role": "assistant", "content": "what is?"},
        {"role": "user", "content": "my parcel"},
    ]

    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            await client.post("/v1/chat/completions", json={"model": TASK_NAME, "messages": turns})
            assert engine.inputs == ["user: it is late\nassistant: what is?\nuser: my parcel"]

    run(scenario)


def test_personal_data_are_replaced_before_the_model_sees_them_and_not_on_the_raw_path(router: Deployment) -> None:
    text = "write to ann@example.org"

    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            await client.post("/v1/chat/completions", json=user(text))
            await client.post("/v1/chat/completions", json=user(text) | {"model": f"{TASK_NAME}:raw"})
            assert engine.inputs == ["write to [EMAIL_1]", text]

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": [{"role": "user", "content": "\u200b"}]}, "invisible"),
        ({"messages": [{"role": "user", "content": "a\x00"}]}, "NUL"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "system", "content": "late"}]}, "user turn"),
        ({"messages": "late"}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"n": 2}, "n:"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"private": "maybe"}, "private"),
        ({"messages": [{"role": "user", "content": "x" * 70_000}]}, "characters"),
    ],
)
def test_what_is_no_input_of_the_task_is_told_and_how_to_ask_else(
    router: Deployment, changes: dict[str, Any], message: str
) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            response = await client.post("/v1/chat/completions", json=user("late") | changes)
            error = (await response.json())["error"]
            assert response.status == 400 and message in error["message"] and error["type"] == "invalid_request_error"
            assert engine.requests == []

    run(scenario)


def test_bodies_that_are_no_strict_json_are_told(router: Deployment) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, _, _state):
            for body in (
                b'{"model": "router", "messages": [], "messages": []}',
                b'{"model": "router", "messages": NaN}',
                b'{"model": "router", "messages": [{"role": "user", "content": "\xff"}]}',
                b'{"model": "router", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            ):
                response = await client.post("/v1/chat/completions", data=body)
                assert response.status == 400 and (await response.json())["error"]["message"]

    run(scenario)


@pytest.mark.parametrize("text", ["says lost p=0.99", "says lost p=0.5"])
def test_both_sdks_get_the_label_whole_and_as_a_stream_whoever_answers(
    hybrid: Deployment, provider: Provider, text: str
) -> None:
    provider.answer = lambda prompt: "broken"
    expected = "lost" if "0.99" in text else "broken"

    async def scenario() -> None:
        async with gateway_client(hybrid, "secret") as (client, _, _state):
            base_url = str(client.make_url("/"))
            async with (
                openai.AsyncOpenAI(api_key="secret", base_url=f"{base_url}v1") as openai_client,
                anthropic.AsyncAnthropic(api_key="secret", base_url=base_url) as anthropic_client,
            ):
                request: Any = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}]}
                completion = await openai_client.chat.completions.create(**request)
                assert completion.choices[0].message.content == expected and completion.model == TASK_NAME
                chunks = [part async for part in await openai_client.chat.completions.create(**request, stream=True)]
                assert "".join(part.choices[0].delta.content or "" for part in chunks) == expected
                assert chunks[-1].choices[0].finish_reason == "stop"
                message = await anthropic_client.messages.create(**request, max_tokens=1000)
                assert [block.text for block in message.content if block.type == "text"] == [expected]
                assert message.stop_reason == "end_turn" and message.model == TASK_NAME
                async with anthropic_client.messages.stream(**request, max_tokens=1000) as stream:
                    assert await stream.get_final_text() == expected

    run(scenario)


def test_an_answer_says_in_headers_who_gave_it_and_why(hybrid: Deployment, provider: Provider) -> None:
    provider.answer = lambda prompt: "broken"

    async def scenario() -> None:
        async with gateway_client(hybrid) as (client, _, _state):
            for text, answered_by, reason in (
                ("says lost p=0.99", "local", "confident"),
                ("says lost p=0.5", "api", "below_threshold"),
            ):
                response = await client.post("/v1/chat/completions", json=user(text))
                assert (
                    response.headers["X-Insource-Answered-By"] == answered_by
                    and response.headers["X-Insource-Reason"] == reason
                )
                assert (await response.json())["insource"]["reason"] == reason

    run(scenario)


def test_a_private_chat_never_reaches_the_api(hybrid: Deployment, provider: Provider) -> None:
    text = "says lost p=0.5"

    async def scenario() -> None:
        async with gateway_client(hybrid) as (client, engine, _):
            for body, headers in (
                (user(text, private=True), {}),
                (user(text, private="true"), {}),
                (user(text), {"X-Insource-Private": "1"}),
                (user(text), CIMultiDict([("X-Insource-Private", "false"), ("X-Insource-Private", "true")])),
                (user(text, private=True, stream=True), {}),
            ):
                response = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert response.status == 200
                await response.read()
            response = await client.post("/v1/messages", json=user(text, private=True, max_tokens=9))
            assert (await response.json())["content"][0]["text"] == "lost"
            assert len(engine.requests) == 6 and all("private" not in body for _, body in engine.requests)
            assert provider.requests == []

    run(scenario)


def test_an_extraction_answers_with_the_record_also_where_json_is_asked_for(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}"))
    text = 'order 17 says {"number": "17", "day": null} p=0.9'

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            body = user(text, response_format={"type": "json_object"}, max_tokens=9)
            for path, key in (("/v1/chat/completions", "choices"), ("/v1/messages", "content")):
                part = (await (await client.post(path, json=body)).json())[key][0]
                record = part["message"]["content"] if key == "choices" else part["text"]
                assert json.loads(record) == {"number": "17", "day": None}

    run(scenario)


def test_models_are_listed_with_their_raw_names(router: Deployment) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, _, _state):
            listed = await (await client.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == [TASK_NAME, f"{TASK_NAME}:raw"]
            response = await client.post("/v1/chat/completions", json={"model": "other:raw", "messages": []})
            assert response.status == 404

    run(scenario)
