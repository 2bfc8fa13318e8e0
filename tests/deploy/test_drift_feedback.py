"""Feedback on answers, and its test against the guarantee."""

from pathlib import Path
from typing import Any

import pytest

from deploy import drift as drifting
from deploy import routing
from deploy.answers.answer_ids import AnswerIds, AnswerRecord
from deploy.gateway.paths import feedback
from deploy.monitoring import feedback_record
from deploy.monitoring.monitor import Monitor
from tests.helpers.gateway.drift_traffic import (
    PATH,
    draw_answers,
    load_routing,
    make_deployment,
    make_registry_dir,
    profile,
    run,
    send_inputs,
)
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    TASK_NAME,
    TASK_VERSION,
    baseline_yaml,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.provider.faulty_provider import Provider


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def test_feedback_on_answers_that_were_kept_is_tested_against_what_was_promised(
    tmp_path: Path,
    address: str,
    provider: Provider,
    capsys: pytest.CaptureFixture[str],
) -> None:
    provider.answer = lambda prompt: "broken"
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    deployment = make_deployment(tmp_path, registry_dir, make_recipe(tmp_path, baselines=baseline_yaml(address)))
    answers: list[dict[str, Any]] = []

    async def scenario() -> None:
        monitor = Monitor(tmp_path / "registry")
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            answers.extend(await send_inputs(client, [("lost", 0.95)] * 40 + [("lost", 0.5)] * 5))
            items = [
                {"id": answer["id"], "answer": "lost" if index < 30 else "late"} for index, answer in enumerate(answers)
            ]
            response = await client.post(feedback.PATH, json={"feedback": items})
            assert response.status == 200
            results = (await response.json())["results"]
            assert [result["right"] for result in results] == [True] * 30 + [False] * 15
            text = await (await client.get("/metrics")).text()
            assert f'insource_feedback_total{{by="local",model="{TASK_NAME}",right="false"}} 10.0' in text
            assert f'insource_feedback_total{{by="api",model="{TASK_NAME}",right="false"}} 5.0' in text

    run(scenario)
    assert drifting.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 3
    stdout = capsys.readouterr().out
    assert "LOST      feedback: 30 of 40 kept answers right, 75.0%" in stdout
    assert "0 of 5 answers of the API model right" in stdout

    async def correct() -> None:
        async with gateway_client(deployment) as (client, _, _state):  # after a restart
            for answer in answers[:40]:
                response = await client.post(feedback.PATH, json={"id": answer["id"], "answer": " Lost "})
                assert await response.json() == {"recorded": 1, "right": True}

    run(correct)
    assert drifting.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 0
    assert "holds     feedback: 40 of 40" in capsys.readouterr().out
    record_text = next((registry_dir / feedback_record.FOLDER).glob("*.jsonl")).read_text(encoding="utf-8")
    assert "lost" not in record_text and "late" not in record_text


def test_feedback_on_a_record_counts_it_as_the_comparison_does_and_by_header_on_a_chat(
    tmp_path: Path, address: str
) -> None:
    recipe = make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}", baselines=baseline_yaml(address))
    deployment = make_deployed_task(tmp_path, recipe)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            body = {
                "model": TASK_NAME,
                "messages": [{"role": "user", "content": 'says {"number":"17","day":null} p=0.95'}],
            }
            response = await client.post("/v1/chat/completions", json=body)
            name = response.headers["X-Insource-Answer-Id"]
            assert (await response.json())["insource"]["id"] == name
            for answer, correct in (
                ({"day": None, "number": "17"}, True),
                ({"number": "17"}, True),
                ('{"number": "17", "day": null}', True),
                ({"number": "18"}, False),
            ):
                response = await client.post(feedback.PATH, json={"id": name, "answer": answer})
                assert (await response.json())["right"] is correct, answer
            response = await client.post(feedback.PATH, json={"id": name, "answer": {"price": 3}})
            assert response.status == 400

    run(scenario)


def test_wrong_feedback_is_told_and_one_that_is_wrong_fails_alone(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path))
    headers = {"Authorization": "Bearer secret"}

    async def scenario() -> None:
        async with gateway_client(deployment, "secret") as (client, _, state):
            answer = await (await client.post(PATH, json={"input": "says lost"}, headers=headers)).json()
            name = answer["id"]
            assert (await client.post(feedback.PATH, json={"id": name, "answer": "lost"})).status == 401
            forged = AnswerIds().seal(AnswerRecord(deployment.task.deployment_id, "0" * 16, local=True))[0]
            flipped = name[:20] + ("A" if name[20] != "A" else "B") + name[21:]
            for body, status in (
                ({"id": name, "answer": "nowhere"}, 400),
                ({"id": name}, 400),
                ({"id": 7, "answer": "lost"}, 400),
                ({"id": "é", "answer": "lost"}, 400),
                ({"id": name, "answer": ["lost"]}, 400),
                ({"id": forged, "answer": "lost"}, 404),
                ({"id": flipped, "answer": "lost"}, 404),
                ({"id": "", "answer": "lost"}, 404),
                ({"feedback": []}, 400),
                ({"feedback": [], "id": name}, 400),
                ({"feedback": [{"id": name, "answer": "lost"}] * 257}, 413),
            ):
                response = await client.post(feedback.PATH, json=body, headers=headers)
                assert response.status == status, body
                assert (await response.json())["error"]["message"]
            session, state.engine = state.engine, None  # feedback needs no model
            batch = {"feedback": [{"id": name, "answer": "lost"}, {"id": forged, "answer": "lost"}]}
            payload = await (await client.post(feedback.PATH, json=batch, headers=headers)).json()
            assert payload["recorded"] == 1 and payload["results"][0] == {"right": True}
            assert payload["results"][1]["error"]["code"] == 404
            state.engine = session

    run(scenario)


def test_the_target_against_a_baseline_is_not_tested_by_feedback_and_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_dir = make_registry_dir(
        tmp_path, profile(draw_answers(400, 1)), target_accuracy=None, not_worse_than="api", margin=0.02
    )
    line = {"answer": "a", "kept": True, "local": True, "right": False}
    comparison = drifting.compare_feedback(
        drifting.routing_policy.read_policy(registry_dir / routing.FOLDER / str(load_routing(registry_dir).file)),
        [line] * 30,
        {},
    )
    assert (
        comparison.p_value is None
        and "0 of 30 kept answers right" in comparison.message
        and "api" in comparison.message
    )
