"""Chats with a model's name alone: the conversation is the task's input, and the answer the label or the record."""

import asyncio
import json
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


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"model": TASK_NAME, "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def router(tmp_path: Path) -> Deployment:
    return make_deployed_task(tmp_path, make_recipe(tmp_path))


@pytest.fixture
def hybrid(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The same with an API model that answers below a confidence of 0.9."""
    monkeypatch.setenv("API_KEY", "secret")
    return make_deployed_task(tmp_path, make_recipe(tmp_path, baselines=task_gateway.baseline_yaml(address)))


def test_a_chat_is_asked_as_the_comparison_asks_the_task(router: Deployment) -> None:
    async def ask() -> None:
        async with gateway_client(router) as (client, engine, _):
            said = await client.post("/v1/chat/completions", json=user(" my  parcel\r\nis  late ", temperature=1.5))
            assert said.status == 200
            told = await said.json()
            assert told["model"] == TASK_NAME and told["choices"][0]["message"]["content"] == "late"
            ((path, body),) = engine.asked
            material = router.task.material
            assert path == "/v1/chat/completions" and body["model"] == "router@v1" and body["temperature"] == 0
            assert body["messages"] == material.module.messages(material.spec, {"text": "my parcel\nis late"})
            assert body["structured_outputs"] == {"grammar": material.prompt["grammar"]}
            assert body["max_completion_tokens"] == material.prompt["max_answer_tokens"]

    run(ask)


@pytest.mark.parametrize("model", [TASK_NAME, f"{TASK_NAME}:raw"])
def test_the_tasks_own_prompt_and_raw_requests_pass_unchanged(router: Deployment, model: str) -> None:
    material = router.task.material
    own = material.module.messages(material.spec, {"text": "  my   parcel"})
    sent: dict[str, Any] = {"model": model, "messages": own, "temperature": 0.7, "max_tokens": 3, "n": 2}
    if model != TASK_NAME:
        sent["messages"] = [{"role": "user", "content": "a@b.example  is   late"}]

    async def ask() -> None:
        async with gateway_client(router) as (client, engine, _):
            said = await client.post("/v1/chat/completions", json=sent)
            assert (await said.json())["model"] == model
            assert engine.asked[0][1] == sent | {"model": "router@v1"}

    run(ask)


def test_serve_chat_raw_leaves_every_chat_as_it_is(tmp_path: Path) -> None:
    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path, serve="{chat: raw}"))) as (
            client,
            engine,
            _,
        ):
            await client.post("/v1/chat/completions", json=user("late"))
            assert engine.asked[0][1] == user("late") | {"model": "router@v1"}
            said = await client.post(f"/v1/tasks/{TASK_NAME}", json={"input": "late"})
            assert (await said.json())["answer"] == "late"

    run(ask)


def test_turns_become_one_input_as_in_preparation_and_a_system_prompt_is_left_out(router: Deployment) -> None:
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "it is late"}]},
        {"role": "assistant", "content": "what is?"},
        {"role": "user", "content": "my parcel"},
    ]

    async def ask() -> None:
        async with gateway_client(router) as (client, engine, _):
            await client.post("/v1/chat/completions", json={"model": TASK_NAME, "messages": turns})
            assert engine.inputs == ["user: it is late\nassistant: what is?\nuser: my parcel"]

    run(ask)


def test_personal_data_are_replaced_before_the_model_sees_them_and_not_on_the_raw_path(router: Deployment) -> None:
    text = "write to ann@example.org"

    async def ask() -> None:
        async with gateway_client(router) as (client, engine, _):
            await client.post("/v1/chat/completions", json=user(text))
            await client.post("/v1/chat/completions", json=user(text) | {"model": f"{TASK_NAME}:raw"})
            assert engine.inputs == ["write to [EMAIL_1]", text]

    run(ask)


@pytest.mark.parametrize(
    ("more", "told"),
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
    router: Deployment, more: dict[str, Any], told: str
) -> None:
    async def ask() -> None:
        async with gateway_client(router) as (client, engine, _):
            said = await client.post("/v1/chat/completions", json=user("late") | more)
            error = (await said.json())["error"]
            assert said.status == 400 and told in error["message"] and error["type"] == "invalid_request_error"
            assert engine.asked == []

    run(ask)


def test_bodies_that_are_no_strict_json_are_told(router: Deployment) -> None:
    async def ask() -> None:
        async with gateway_client(router) as (client, _, _made):
            for body in (
                b'{"model": "router", "messages": [], "messages": []}',
                b'{"model": "router", "messages": NaN}',
                b'{"model": "router", "messages": [{"role": "user", "content": "\xff"}]}',
                b'{"model": "router", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            ):
                said = await client.post("/v1/chat/completions", data=body)
                assert said.status == 400 and (await said.json())["error"]["message"]

    run(ask)


@pytest.mark.parametrize("text", ["says lost p=0.99", "says lost p=0.5"])
def test_both_sdks_get_the_label_whole_and_as_a_stream_whoever_answers(
    hybrid: Deployment, provider: Provider, text: str
) -> None:
    provider.answer = lambda prompt: "broken"
    expected = "lost" if "0.99" in text else "broken"

    async def ask() -> None:
        async with gateway_client(hybrid, "secret") as (client, _, _made):
            where = str(client.make_url("/"))
            async with (
                openai.AsyncOpenAI(api_key="secret", base_url=f"{where}v1") as one,
                anthropic.AsyncAnthropic(api_key="secret", base_url=where) as other,
            ):
                asked: Any = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}]}
                whole = await one.chat.completions.create(**asked)
                assert whole.choices[0].message.content == expected and whole.model == TASK_NAME
                chunks = [part async for part in await one.chat.completions.create(**asked, stream=True)]
                assert "".join(part.choices[0].delta.content or "" for part in chunks) == expected
                assert chunks[-1].choices[0].finish_reason == "stop"
                told = await other.messages.create(**asked, max_tokens=1000)
                assert [block.text for block in told.content if block.type == "text"] == [expected]
                assert told.stop_reason == "end_turn" and told.model == TASK_NAME
                async with other.messages.stream(**asked, max_tokens=1000) as stream:
                    assert await stream.get_final_text() == expected

    run(ask)


def test_an_answer_says_in_headers_who_gave_it_and_why(hybrid: Deployment, provider: Provider) -> None:
    provider.answer = lambda prompt: "broken"

    async def ask() -> None:
        async with gateway_client(hybrid) as (client, _, _made):
            for text, by, reason in (
                ("says lost p=0.99", "local", "confident"),
                ("says lost p=0.5", "api", "below_threshold"),
            ):
                said = await client.post("/v1/chat/completions", json=user(text))
                assert said.headers["X-Insource-Answered-By"] == by and said.headers["X-Insource-Reason"] == reason
                assert (await said.json())["insource"]["reason"] == reason

    run(ask)


def test_a_private_chat_never_reaches_the_api(hybrid: Deployment, provider: Provider) -> None:
    text = "says lost p=0.5"

    async def ask() -> None:
        async with gateway_client(hybrid) as (client, engine, _):
            for body, headers in (
                (user(text, private=True), {}),
                (user(text, private="true"), {}),
                (user(text), {"X-Insource-Private": "1"}),
                (user(text), CIMultiDict([("X-Insource-Private", "false"), ("X-Insource-Private", "true")])),
                (user(text, private=True, stream=True), {}),
            ):
                said = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert said.status == 200
                await said.read()
            said = await client.post("/v1/messages", json=user(text, private=True, max_tokens=9))
            assert (await said.json())["content"][0]["text"] == "lost"
            assert len(engine.asked) == 6 and all("private" not in body for _, body in engine.asked)
            assert provider.seen == []

    run(ask)


def test_an_extraction_answers_with_the_record_also_where_json_is_asked_for(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}"))
    text = 'order 17 says {"number": "17", "day": null} p=0.9'

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            body = user(text, response_format={"type": "json_object"}, max_tokens=9)
            for path, said_in in (("/v1/chat/completions", "choices"), ("/v1/messages", "content")):
                said = (await (await client.post(path, json=body)).json())[said_in][0]
                record = said["message"]["content"] if said_in == "choices" else said["text"]
                assert json.loads(record) == {"number": "17", "day": None}

    run(ask)


def test_models_are_listed_with_their_raw_names(router: Deployment) -> None:
    async def ask() -> None:
        async with gateway_client(router) as (client, _, _made):
            listed = await (await client.get("/v1/models")).json()
            assert [one["id"] for one in listed["data"]] == [TASK_NAME, f"{TASK_NAME}:raw"]
            said = await client.post("/v1/chat/completions", json={"model": "other:raw", "messages": []})
            assert said.status == 404

    run(ask)
