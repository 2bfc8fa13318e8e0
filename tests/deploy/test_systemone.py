"""POST /v1/systemone: the probabilities of labels in the format of TypeSafe's Jev."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from deploy.answers.outcome import Deployment
from insource.backends.types import Backend, ChoiceQuestion, Request
from insource.backends.wire import systemone
from tests.helpers.gateway.served_gateway import make_router
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    LABELS,
    TASK_NAME,
    gateway_client,
    make_deployed_task,
    make_recipe,
)

TEXT = " my  parcel is late ann@example.org"
CHOICE = {"type": "choice", "instructions": "Choose.", "criteria": dict.fromkeys(LABELS)}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.fixture
def router(tmp_path: Path) -> Deployment:
    return make_router(tmp_path)


def test_the_answers_have_the_probabilities_of_decisions(router: Deployment) -> None:
    questions = {
        "queue": CHOICE,
        "two": {"type": "choice", "criteria": {"lost": "it does not arrive", "late": None}},
        "broken?": {"type": "noul", "instructions": "broken", "criteria": {"true": "it is damaged"}},
    }
    decision_choice = {"type": "choice", "choices": [{"value": label} for label in LABELS], "instructions": "Choose."}

    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, state):
            response = await client.post(
                "/v1/systemone",
                json={"model": TASK_NAME, "state": TEXT, "questions": questions, "private": True},
            )
            assert response.status == 200
            payload = await response.json()
            decision = await client.post(
                "/v1/decisions", json={"model": TASK_NAME, "input": TEXT, "questions": [decision_choice]}
            )
            (decided,) = (await decision.json())["answers"]
            answers = payload["answers"]
            assert payload["model"] == TASK_NAME and list(answers) == list(questions)
            expected = {entry["value"]: entry["probability"] for entry in decided["probabilities"]}
            assert answers["queue"] == {
                "type": "choice",
                "choice": decided["choice"],
                "confidence": decided["confidence"],
                "probabilities": expected,
            }
            assert answers["two"]["probabilities"]["late"] == pytest.approx(
                expected["late"] / (expected["late"] + expected["lost"])
            )
            assert answers["broken?"] == {"type": "noul", "noul": expected["broken"]}
            assert payload["usage"]["input_tokens"] > 0 and payload["usage"]["output_tokens"] == 0
            # Both inputs were prepared alike, and none was sent with the address in it.
            ids = router.task.tokens.encode("my parcel is late [EMAIL_1]")[0]
            assert all(body["prompt"][: len(ids)] == ids for _, body in engine.requests)
            metrics = await (await client.get("/metrics")).text()
            assert f'insource_tokens_total{{by="local",kind="input",model="{TASK_NAME}"}} {2 * len(ids)}.0' in metrics
            assert 'insource_requests_total{path="/v1/systemone",status="200"} 1.0' in metrics
            assert state.in_flight_by_client.total() == 0

    run(scenario)


def test_the_client_of_the_comparison_gets_a_label(router: Deployment) -> None:
    async def scenario() -> None:
        async with gateway_client(router, "secret") as (client, _, _state):
            backend = Backend("systemone", TASK_NAME)
            question = ChoiceQuestion("Choose.", [(label, "") for label in LABELS], "my parcel is late")
            request = Request("row", [], 16, choices=question)
            async with openai.AsyncOpenAI(api_key="secret", base_url=f"{client.make_url('/')}v1") as sdk_client:
                completion = await systemone.send(sdk_client, backend, request)
            assert completion.output in LABELS and completion.probabilities is not None
            assert sum(completion.probabilities.values()) == pytest.approx(1)

    run(scenario)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"questions": {"q": CHOICE | {"criteria": {"late": None, "other": None}}}}, "not trained for the choice"),
        ({"questions": {"q": CHOICE | {"criteria": {"late": None}}}}, "2 to 255"),
        ({"questions": {"q": CHOICE | {"criteria": ["late", "lost"]}}}, "criteria is an object"),
        ({"questions": {"q": {"type": "noul", "instructions": "Is it late?"}}}, "trained to choose a label"),
        ({"questions": {"q": {"type": "score", "criteria": ["low", "high"]}}}, "type 'score'"),
        ({"questions": {"q": {"type": "box"}}}, "questions['q']"),
        ({"questions": {"q": 3}}, "object"),
        ({"questions": {}}, "1 to 400"),
        ({"questions": [CHOICE]}, "1 to 400"),
        ({}, "questions"),
        ({"questions": {"q": CHOICE}, "assets": {"a": {"type": "image"}}}, "assets"),
        ({"questions": {"q": CHOICE}, "state": ""}, "empty"),
        ({"questions": {"q": CHOICE}, "private": "maybe"}, "private"),
        ({"questions": {"q": CHOICE}, "state": {"ticket": "late"}}, "message"),
    ],
)
def test_what_the_model_was_not_trained_for_is_refused_in_words(
    router: Deployment, body: dict[str, Any], message: str
) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            response = await client.post("/v1/systemone", json={"model": TASK_NAME, "state": "late"} | body)
            assert response.status == 400 and message in (await response.json())["error"]["message"]
            assert engine.requests == []

    run(scenario)


def test_a_task_without_labels_and_a_request_without_a_state_are_refused(tmp_path: Path, router: Deployment) -> None:
    extractor = make_deployed_task(
        tmp_path / "other", make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}")
    )

    async def scenario() -> None:
        questions = {"q": CHOICE}
        for deployment, message in ((extractor, "/v1/tasks"), (router, "state is missing")):
            async with gateway_client(deployment) as (client, _, _state):
                response = await client.post("/v1/systemone", json={"model": TASK_NAME, "questions": questions})
                assert response.status == 400 and message in (await response.json())["error"]["message"]

    run(scenario)
