"""Before the switch: the API model answers, and a share is answered by the deployed model too, aside."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import drift, routing
from deploy.answers.outcome import Deployment
from deploy.gateway.paths import feedback
from deploy.monitoring import mirror
from deploy.monitoring.monitor import Monitor
from deploy.routing import Routing
from tests.helpers.gateway.drift_traffic import draw_answers, load_routing, make_registry_dir, profile
from tests.helpers.gateway.task_gateway import (
    TASK_NAME,
    TASK_VERSION,
    baseline_yaml,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.provider.faulty_provider import Provider

PATH = f"/v1/tasks/{TASK_NAME}"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def mirrored(
    folder: Path, address: str, fraction: float, extra: str = "", route: str = "", **kwargs: str
) -> Deployment:
    """A task before its switch, without a threshold."""
    recipe = make_recipe(
        folder, baselines=baseline_yaml(address, extra=extra), route=f"{{mirror: {fraction}{route}}}", **kwargs
    )
    return make_deployed_task(folder, recipe, Routing())


def test_the_api_model_answers_and_the_deployed_model_is_asked_off_the_clients_path(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    deployment = mirrored(tmp_path, address, 1.0)

    async def scenario() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, engine, state):
            response = await client.post(PATH, json={"input": "says broken p=0.97 wait=30"})
            payload = await response.json()
            assert (payload["answer"], payload["answered_by"], payload["reason"]) == ("broken", "api", "before_switch")
            assert payload["local_confidence"] is None and payload["degraded"] is False
            async with asyncio.timeout(60):
                while not engine.requests:
                    await asyncio.sleep(0.01)
            assert engine.in_flight == 1, "the client has its answer, and the deployed model is still asked"
            assert state.in_flight[deployment.task.internal_name] == 1, "so that its version stays in vLLM"
            await monitor.mirror.close()
            assert state.in_flight[deployment.task.internal_name] == 0
            for text in ("says broken p=0.97", "says lost p=0.4", "says nonsense"):
                assert (await client.post(PATH, json={"input": text})).status == 200
            chat = {"model": TASK_NAME, "messages": [{"role": "user", "content": "says broken p=0.97"}]}
            response = await client.post("/v1/chat/completions", json=chat)
            assert response.headers["X-Insource-Reason"] == "before_switch"
            await monitor.mirror.wait_idle()
            text = await (await client.get("/metrics")).text()
            for result, n in (("agreed", 2), ("differed", 1), ("invalid", 1)):
                assert f'insource_mirrored_total{{model="{TASK_NAME}",result="{result}"}} {n}.0' in text
            await monitor.close()

    run(scenario)
    record_text = "".join(
        path.read_text(encoding="utf-8") for path in (deployment.registry_dir / mirror.FOLDER).iterdir()
    )
    assert record_text.count("\n") == 4 and "broken" not in record_text and "lost" not in record_text


def test_a_share_is_mirrored(tmp_path: Path, address: str, provider: Provider) -> None:
    provider.answer = lambda prompt: "broken"
    deployment = mirrored(tmp_path, address, 0.1)

    async def scenario() -> None:
        monitor = Monitor()
        async with gateway_client(deployment, monitor=monitor) as (client, engine, _):
            response = await client.post(PATH, json={"inputs": [f"{index} says broken" for index in range(200)]})
            assert Counter(answer["reason"] for answer in (await response.json())["answers"]) == {"before_switch": 200}
            await monitor.mirror.wait_idle()
            assert 5 <= len(engine.requests) <= 45

    run(scenario)


def test_what_stays_here_is_answered_here_and_where_the_api_model_fails_the_recipe_decides(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    price = ", price: {input_usd_per_million: 1000, output_usd_per_million: 0}, retries: 0"
    deployment = mirrored(tmp_path, address, 1.0, price, ", usd_per_month: 1.0")
    reasons = Counter[str]()

    async def scenario() -> None:
        monitor = Monitor()
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            for text in ("mail ann@example.org", *["says lost"] * 30):
                payload = await (await client.post(PATH, json={"input": text})).json()
                reasons[payload["reason"]] += 1
                assert payload["degraded"] is (payload["reason"] == "over_budget")
            payload = await (await client.post(PATH, json={"input": "says lost", "private": True})).json()
            assert (payload["answered_by"], payload["reason"]) == ("local", "private")
            await monitor.mirror.wait_idle()
            observed = monitor.profiles.read_today(deployment.task).profile
            assert observed.rows == reasons["before_switch"], "what is not mirrored would bias the sample"

    run(scenario)
    assert reasons["personal_data"] == 1 and reasons["before_switch"] > 0 and reasons["over_budget"] > 0
    assert sum(input_tokens for input_tokens, _ in provider.charged_tokens) * 1000 / 1e6 <= 1.0, "under the monthly cap"
    assert not any("ann@" in str(body) for _, _, body in provider.requests)


def test_without_money_or_a_key_nothing_changes(tmp_path: Path, address: str, provider: Provider) -> None:
    price = ", price: {input_usd_per_million: 1000, output_usd_per_million: 0}"
    deployment = mirrored(tmp_path, address, 1.0, price)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            payload = await (await client.post(PATH, json={"input": "says lost"})).json()
            assert (payload["answer"], payload["reason"]) == ("lost", "no_budget")

    run(scenario)
    assert provider.requests == []


def test_mirrored_inputs_beyond_the_room_are_left_out_and_counted(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    deployment = mirrored(tmp_path, address, 1.0)
    n = mirror.MAX_CONCURRENT + mirror.MAX_WAITING + 10

    async def scenario() -> None:
        monitor = Monitor()
        async with gateway_client(deployment, monitor=monitor) as (client, engine, _):
            response = await client.post(PATH, json={"inputs": [f"{index} says lost wait=30" for index in range(n)]})
            assert len((await response.json())["answers"]) == n
            assert engine.max_in_flight <= mirror.MAX_CONCURRENT
            text = await (await client.get("/metrics")).text()
            assert f'insource_mirrored_total{{model="{TASK_NAME}",result="left_out"}} 10.0' in text
            await monitor.close()

    run(scenario)


def test_drift_tells_agreement_and_with_feedback_the_accuracy_of_both(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.answer = lambda prompt: "broken"
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    recipe = make_recipe(tmp_path, baselines=baseline_yaml(address), route="{mirror: 1.0}")
    deployment = make_deployed_task(tmp_path, recipe, load_routing(registry_dir))

    async def scenario() -> None:
        monitor = Monitor(registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            inputs = [
                f"says {'broken' if index < 30 else 'lost'} p={0.95 if index % 2 else 0.5}" for index in range(40)
            ]
            answers: list[Any] = (await (await client.post(PATH, json={"inputs": inputs})).json())["answers"]
            await monitor.mirror.wait_idle()
            items = [{"id": answer["id"], "answer": "broken"} for answer in answers[:38]]
            assert (await client.post(feedback.PATH, json={"feedback": items})).status == 200
            await monitor.close()

    run(scenario)
    assert drift.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "mirror    30 of 40 mirrored answers the same, 75.0%" in stdout
    assert "mirror    30 of 38 of them right, 78.9%" in stdout and "38 of 38 of the API model right" in stdout
    assert "difference -21.1 points" in stdout
    # Of those that the threshold of 0.9 would keep, 15 are right and 4 are not.
    assert "feedback: 15 of 19 kept answers right" in stdout


def test_feedback_of_today_on_what_was_mirrored_before_the_window_counts(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.answer = lambda prompt: "broken"
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    recipe = make_recipe(tmp_path, baselines=baseline_yaml(address), route="{mirror: 1.0}")
    deployment = make_deployed_task(tmp_path, recipe, load_routing(registry_dir))

    async def scenario() -> None:
        monitor = Monitor(registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            inputs = {"inputs": ["says broken p=0.95"] * 40}
            answers: list[Any] = (await (await client.post(PATH, json=inputs)).json())["answers"]
            await monitor.mirror.wait_idle()
            (path,) = (registry_dir / mirror.FOLDER).glob("*.jsonl")
            lines = [json.loads(line) | {"at": "2026-01-05T12:00:00+00:00"} for line in path.read_text().splitlines()]
            path.unlink()
            path.with_name("2026-01.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            items = [{"id": answer["id"], "answer": "broken"} for answer in answers]
            assert (await client.post(feedback.PATH, json={"feedback": items})).status == 200
            await monitor.close()

    run(scenario)
    assert drift.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "mirrored answers the same" not in stdout, "they were mirrored before"
    assert "mirror    40 of 40 of them right" in stdout and "feedback: 40 of 40 kept answers right" in stdout


def test_while_vllm_is_started_nothing_is_answered_with_mirror_either(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    deployment = mirrored(tmp_path, address, 1.0)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, state):
            state.engine = None
            response = await client.post(PATH, json={"input": "says lost"})
            assert response.status == 503 and response.headers["Retry-After"]

    run(scenario)
    assert provider.requests == []


def test_drift_tells_agreement_before_there_is_a_comparison(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.answer = lambda prompt: "broken"
    deployment = mirrored(tmp_path, address, 1.0)

    async def scenario() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            assert (await client.post(PATH, json={"input": "says broken"})).status == 200
            await monitor.mirror.wait_idle()

    run(scenario)
    assert drift.report_drift(deployment.registry_dir, TASK_VERSION, routing.Routing(), 7) == 0
    stdout = capsys.readouterr().out
    assert "1 of 1 mirrored answers the same" in stdout and "no guarantee to lose" in stdout
