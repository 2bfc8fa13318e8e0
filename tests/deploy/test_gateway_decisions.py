"""POST /v1/decisions: the SDK's call, a probability for every label; what the model was not trained for is told."""

import asyncio
import math
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.answers import label_tree
from deploy.answers.outcome import Deployment
from deploy.gateway.paths import label_questions
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


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.fixture
def router(tmp_path: Path) -> Deployment:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path))
    for path in (ROOT / "pocket" / "model").iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "prompt.json":
            shutil.copyfile(path, deployment.task.folder / path.name)
    return deployment


def choice(*values: Any, **extra: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Choose.", "choices": [{"value": value} for value in values], **extra}


def test_the_sdk_gets_the_probability_of_every_label(router: Deployment) -> None:
    async def scenario() -> None:
        async with gateway_client(router, "secret") as (client, engine, _):
            async with openai.AsyncOpenAI(api_key="secret", base_url=f"{client.make_url('/')}v1") as sdk_client:
                response = await sdk_client.decisions.create(
                    model=TASK_NAME,
                    input=" my  parcel is late ann@example.org",
                    questions=[
                        choice(*LABELS, name="queue"),  # type: ignore[list-item]
                        choice("lost", "late"),  # type: ignore[list-item]
                        {"type": "predicate", "instructions": "broken"},
                    ],
                )
            full, subset, predicate = response.answers
            assert full.type == "choice" and subset.type == "choice" and predicate.type == "predicate"
            probabilities = {str(entry.value): entry.probability for entry in full.probabilities}
            assert list(probabilities) == list(LABELS) and sum(probabilities.values()) == pytest.approx(1, abs=1e-12)
            assert full.name == "queue" and full.choice == max(probabilities, key=probabilities.__getitem__)
            subset_probabilities = {str(entry.value): entry.probability for entry in subset.probabilities}
            assert subset_probabilities["late"] == pytest.approx(
                probabilities["late"] / (probabilities["late"] + probabilities["lost"])
            )
            assert predicate.probability == probabilities["broken"]
            assert response.model == TASK_NAME and response.usage.input_tokens > 0

            # The same as step by step with nothing but labels allowed, behind the prepared input's prompt.
            ids, tree = router.task.tokens.encode("my parcel is late [EMAIL_1]")
            paths = tree.paths
            for label, path in paths.items():
                expected = 1.0
                for depth in range(len(path)):
                    allowed = {other_path[depth] for other_path in paths.values() if other_path[:depth] == path[:depth]}
                    weights = {token: math.exp(fake_log_probability([*ids, *path[:depth]], token)) for token in allowed}
                    expected *= weights[path[depth]] / sum(weights.values())
                assert probabilities[label] == pytest.approx(expected, abs=1e-9)
            assert {body["model"] for _, body in engine.requests} == {"router@v1"}

    run(scenario)


@pytest.mark.parametrize(
    ("body", "message"),
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
    router: Deployment, body: dict[str, Any], message: str
) -> None:
    async def scenario() -> None:
        async with gateway_client(router) as (client, engine, _):
            response = await client.post("/v1/decisions", json={"model": TASK_NAME, "input": "late"} | body)
            assert response.status == 400 and message in (await response.json())["error"]["message"]
            assert engine.requests == []

    run(scenario)


def test_a_task_that_chooses_no_label_decides_nothing(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}"))

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            response = await client.post(
                "/v1/decisions", json={"model": TASK_NAME, "input": "a", "questions": [choice("a", "b")]}
            )
            assert response.status == 400 and "/v1/tasks" in (await response.json())["error"]["message"]
            response = await client.post("/v1/decisions", json={"model": "other", "input": "a", "questions": []})
            assert response.status == 404

    run(scenario)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple), min_size=1, max_size=30, unique=True))
def test_probabilities_of_any_labels_sum_to_one(paths: list[tuple[int, ...]]) -> None:
    tree = label_tree.build_tree({str(number): (*path, 0) for number, path in enumerate(paths)})
    log_probabilities = {
        prefix: {token: fake_log_probability(list(prefix), token) for token in tokens}
        for prefix, tokens in tree.choices.items()
    }
    assert sum(tree.probabilities(log_probabilities).values()) == pytest.approx(1)


def test_unevenness_is_0_for_equal_options_and_1_for_a_certain_one() -> None:
    assert label_questions.compute_certainty([0.25] * 4) == pytest.approx(0)
    assert label_questions.compute_certainty([1.0, 0.0]) == 1
    assert 0 < label_questions.compute_certainty([0.9, 0.1]) < 1


def test_the_first_requests_of_several_tasks_may_come_at_the_same_time() -> None:
    """A new process has not imported the tokenizer's library yet, and each request is encoded in a thread."""
    program = """
import sys, threading
from pathlib import Path
from deploy.answers.label_tree import TaskTokens
from insource.tasks import classification

spec = classification.Spec("Name the queue.", {"late": "", "lost": ""})
tasks = [TaskTokens(Path(sys.argv[1]), classification, spec) for _ in range(8)]
start, lengths = threading.Barrier(8), []

def encode(task):
    start.wait()
    ids, tree = task.encode("my parcel")
    lengths.append(len(ids))

threads = [threading.Thread(target=encode, args=[task]) for task in tasks]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(lengths) == 8 and len(set(lengths)) == 1, lengths
"""
    command = [sys.executable, "-c", program, str(ROOT / "pocket" / "model")]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
