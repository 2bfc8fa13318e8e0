"""POST /v1/decisions: the SDK's call, a probability for every label; what the model was not trained for is told."""

import asyncio
import math
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.answers import label_tree
from deploy.answers.outcome import Deployment
from deploy.gateway.paths import decisions
from tests.conftest import ROOT
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    LABELS,
    TASK_NAME,
    fake_log_probability,
    gateway_client,
    make_deployed_task,
    make_recipe,
)


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


@pytest.fixture
def router(tmp_path: Path) -> Deployment:
    found = make_deployed_task(tmp_path, make_recipe(tmp_path))
    for path in (ROOT / "pocket" / "model").iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "prompt.json":
            shutil.copyfile(path, found.task.folder / path.name)
    return found


def choice(*values: Any, **more: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Choose.", "choices": [{"value": one} for one in values], **more}


def test_the_sdk_gets_the_probability_of_every_label(router: Deployment) -> None:
    async def ask() -> None:
        async with gateway_client(router, "secret") as (client, engine, _):
            async with openai.AsyncOpenAI(api_key="secret", base_url=f"{client.make_url('/')}v1") as one:
                said = await one.decisions.create(
                    model=TASK_NAME,
                    input=" my  parcel is late ann@example.org",
                    questions=[
                        choice(*LABELS, name="queue"),  # type: ignore[list-item]
                        choice("lost", "late"),  # type: ignore[list-item]
                        {"type": "predicate", "instructions": "broken"},
                    ],
                )
            whole, some, predicate = said.answers
            assert whole.type == "choice" and some.type == "choice" and predicate.type == "predicate"
            told = {str(one.value): one.probability for one in whole.probabilities}
            assert list(told) == list(LABELS) and sum(told.values()) == pytest.approx(1, abs=1e-12)
            assert whole.name == "queue" and whole.choice == max(told, key=told.__getitem__)
            two = {str(one.value): one.probability for one in some.probabilities}
            assert two["late"] == pytest.approx(told["late"] / (told["late"] + told["lost"]))
            assert predicate.probability == told["broken"]
            assert said.model == TASK_NAME and said.usage.input_tokens > 0

            # The same as step by step with nothing but labels allowed, behind the prepared input's prompt.
            ids, tree = router.task.tokens.of("my parcel is late [EMAIL_1]")
            paths = tree.paths
            for label, path in paths.items():
                expected = 1.0
                for at in range(len(path)):
                    allowed = {other[at] for other in paths.values() if other[:at] == path[:at]}
                    likely = {token: math.exp(fake_log_probability([*ids, *path[:at]], token)) for token in allowed}
                    expected *= likely[path[at]] / sum(likely.values())
                assert told[label] == pytest.approx(expected, abs=1e-9)
            assert {body["model"] for _, body in engine.asked} == {"router@v1"}

    run(ask)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"questions": [choice("late", "other")]}, "not trained for the choice 'other'"),
        ({"questions": [choice("late", True)]}, "not trained for the choice 'True'"),
        ({"questions": [choice("late")]}, "2 to 255"),
        ({"questions": [choice("late", "late")]}, "twice"),
        ({"questions": [{"type": "predicate", "instructions": "Is it late?"}]}, "trained to choose a label"),
        ({"questions": [{"type": "score", "instructions": "How late?", "levels": []}]}, "type 'score'"),
        ({"questions": []}, "1 to 400"),
        ({"questions": [3]}, "object"),
        ({}, "questions"),
        ({"questions": [choice(*LABELS)], "temperature": 1}, "temperature"),
        ({"questions": [choice(*LABELS)], "input": ""}, "empty"),
        ({"questions": [choice(*LABELS)], "input": 3}, "an input is"),
    ],
)
def test_what_the_model_was_not_trained_for_is_refused_in_words(
    router: Deployment, body: dict[str, Any], told: str
) -> None:
    async def ask() -> None:
        async with gateway_client(router) as (client, engine, _):
            said = await client.post("/v1/decisions", json={"model": TASK_NAME, "input": "late"} | body)
            assert said.status == 400 and told in (await said.json())["error"]["message"]
            assert engine.asked == []

    run(ask)


def test_a_task_that_chooses_no_label_decides_nothing(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}"))

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            said = await client.post(
                "/v1/decisions", json={"model": TASK_NAME, "input": "a", "questions": [choice("a", "b")]}
            )
            assert said.status == 400 and "/v1/tasks" in (await said.json())["error"]["message"]
            said = await client.post("/v1/decisions", json={"model": "other", "input": "a", "questions": []})
            assert said.status == 404

    run(ask)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple), min_size=1, max_size=30, unique=True))
def test_probabilities_of_any_labels_sum_to_one(ways: list[tuple[int, ...]]) -> None:
    tree = label_tree.build_tree({str(number): (*way, 0) for number, way in enumerate(ways)})
    told = {
        at: {token: fake_log_probability(list(at), token) for token in tokens} for at, tokens in tree.choices.items()
    }
    assert sum(tree.probabilities(told).values()) == pytest.approx(1)


def test_unevenness_is_0_for_equal_options_and_1_for_a_certain_one() -> None:
    assert decisions.compute_certainty([0.25] * 4) == pytest.approx(0)
    assert decisions.compute_certainty([1.0, 0.0]) == 1
    assert 0 < decisions.compute_certainty([0.9, 0.1]) < 1
