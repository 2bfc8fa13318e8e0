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
from tests.deploy.test_drift import drawn, place_of, profile, routed
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


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def mirrored(folder: Path, address: str, share: float, more: str = "", route: str = "", **told: str) -> Deployment:
    """A task before its switch, without a threshold."""
    asked = make_recipe(
        folder, baselines=baseline_yaml(address, extra=more), route=f"{{mirror: {share}{route}}}", **told
    )
    return make_deployed_task(folder, asked, Routing())


def test_the_api_model_answers_and_the_deployed_model_is_asked_off_the_clients_path(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    one = mirrored(tmp_path, address, 1.0)

    async def ask() -> None:
        watch = Monitor(one.place.parent)
        async with gateway_client(one, monitor=watch) as (client, engine, made):
            said = await client.post(PATH, json={"input": "says broken p=0.97 wait=30"})
            told = await said.json()
            assert (told["answer"], told["answered_by"], told["reason"]) == ("broken", "api", "before_switch")
            assert told["local_confidence"] is None and told["degraded"] is False
            while not engine.asked:
                await asyncio.sleep(0.01)
            assert engine.on_their_way == 1, "the client has its answer, and the deployed model is still asked"
            assert made.on_their_way[one.task.inside] == 1, "so that its version stays in vLLM"
            await watch.mirror.close()
            assert made.on_their_way[one.task.inside] == 0
            for text in ("says broken p=0.97", "says lost p=0.4", "says nonsense"):
                assert (await client.post(PATH, json={"input": text})).status == 200
            chat = {"model": TASK_NAME, "messages": [{"role": "user", "content": "says broken p=0.97"}]}
            said = await client.post("/v1/chat/completions", json=chat)
            assert said.headers["X-Insource-Reason"] == "before_switch"
            await watch.mirror.settled()
            text = await (await client.get("/metrics")).text()
            for result, n in (("agreed", 2), ("differed", 1), ("invalid", 1)):
                assert f'insource_mirrored_total{{model="{TASK_NAME}",result="{result}"}} {n}.0' in text
            await watch.close()

    run(ask)
    written = "".join(path.read_text(encoding="utf-8") for path in (one.place / mirror.FOLDER).iterdir())
    assert written.count("\n") == 4 and "broken" not in written and "lost" not in written


def test_a_share_is_mirrored(tmp_path: Path, address: str, provider: Provider) -> None:
    provider.answer = lambda prompt: "broken"
    one = mirrored(tmp_path, address, 0.1)

    async def ask() -> None:
        watch = Monitor()
        async with gateway_client(one, monitor=watch) as (client, engine, _):
            said = await client.post(PATH, json={"inputs": [f"{at} says broken" for at in range(200)]})
            assert Counter(one["reason"] for one in (await said.json())["answers"]) == {"before_switch": 200}
            await watch.mirror.settled()
            assert 5 <= len(engine.asked) <= 45

    run(ask)


def test_what_stays_here_is_answered_here_and_where_the_api_model_fails_the_recipe_decides(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    price = ", price: {input_usd_per_million: 1000, output_usd_per_million: 0}, retries: 0"
    one = mirrored(tmp_path, address, 1.0, price, ", usd_per_month: 1.0")
    reasons = Counter[str]()

    async def ask() -> None:
        watch = Monitor()
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            for text in ("mail ann@example.org", *["says lost"] * 30):
                told = await (await client.post(PATH, json={"input": text})).json()
                reasons[told["reason"]] += 1
                assert told["degraded"] is (told["reason"] == "over_budget")
            told = await (await client.post(PATH, json={"input": "says lost", "private": True})).json()
            assert (told["answered_by"], told["reason"]) == ("local", "private")
            await watch.mirror.settled()
            seen = watch.observed.today(one.task).profile
            assert seen.rows == reasons["before_switch"], "what is not mirrored would bias the sample"

    run(ask)
    assert reasons["personal_data"] == 1 and reasons["before_switch"] > 0 and reasons["over_budget"] > 0
    assert sum(read for read, _ in provider.charged) * 1000 / 1e6 <= 1.0, "under the monthly cap"
    assert not any("ann@" in str(body) for _, _, body in provider.seen)


def test_without_money_or_a_key_nothing_changes(tmp_path: Path, address: str, provider: Provider) -> None:
    price = ", price: {input_usd_per_million: 1000, output_usd_per_million: 0}"
    one = mirrored(tmp_path, address, 1.0, price)

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            told = await (await client.post(PATH, json={"input": "says lost"})).json()
            assert (told["answer"], told["reason"]) == ("lost", "no_budget")

    run(ask)
    assert provider.seen == []


def test_mirrored_inputs_beyond_the_room_are_left_out_and_counted(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    one = mirrored(tmp_path, address, 1.0)
    n = mirror.MAX_CONCURRENT + mirror.MAX_WAITING + 10

    async def ask() -> None:
        watch = Monitor()
        async with gateway_client(one, monitor=watch) as (client, engine, _):
            said = await client.post(PATH, json={"inputs": [f"{at} says lost wait=30" for at in range(n)]})
            assert len((await said.json())["answers"]) == n
            assert engine.most <= mirror.MAX_CONCURRENT
            text = await (await client.get("/metrics")).text()
            assert f'insource_mirrored_total{{model="{TASK_NAME}",result="left_out"}} 10.0' in text
            await watch.close()

    run(ask)


def test_drift_tells_agreement_and_with_feedback_the_accuracy_of_both(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.answer = lambda prompt: "broken"
    place = place_of(tmp_path, profile(drawn(400, 1)))
    asked = make_recipe(tmp_path, baselines=baseline_yaml(address), route="{mirror: 1.0}")
    one = make_deployed_task(tmp_path, asked, routed(place))

    async def ask() -> None:
        watch = Monitor(place.parent)
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            inputs = [f"says {'broken' if at < 30 else 'lost'} p={0.95 if at % 2 else 0.5}" for at in range(40)]
            answers: list[Any] = (await (await client.post(PATH, json={"inputs": inputs})).json())["answers"]
            await watch.mirror.settled()
            told = [{"id": answer["id"], "answer": "broken"} for answer in answers[:38]]
            assert (await client.post(feedback.PATH, json={"feedback": told})).status == 200
            await watch.close()

    run(ask)
    assert drift.report_drift(place, TASK_VERSION, routed(place), 7) == 0
    said = capsys.readouterr().out
    assert "mirror    30 of 40 mirrored answers the same, 75.0%" in said
    assert "mirror    30 of 38 of them right, 78.9%" in said and "38 of 38 of the API model right" in said
    assert "difference -21.1 points" in said
    # Of those that the threshold of 0.9 would keep, 15 are right and 4 are not.
    assert "feedback: 15 of 19 kept answers right" in said


def test_feedback_of_today_on_what_was_mirrored_before_the_window_counts(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.answer = lambda prompt: "broken"
    place = place_of(tmp_path, profile(drawn(400, 1)))
    asked = make_recipe(tmp_path, baselines=baseline_yaml(address), route="{mirror: 1.0}")
    one = make_deployed_task(tmp_path, asked, routed(place))

    async def ask() -> None:
        watch = Monitor(place.parent)
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            inputs = {"inputs": ["says broken p=0.95"] * 40}
            answers: list[Any] = (await (await client.post(PATH, json=inputs)).json())["answers"]
            await watch.mirror.settled()
            (path,) = (place / mirror.FOLDER).glob("*.jsonl")
            lines = [json.loads(line) | {"at": "2026-01-05T12:00:00+00:00"} for line in path.read_text().splitlines()]
            path.unlink()
            path.with_name("2026-01.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            told = [{"id": answer["id"], "answer": "broken"} for answer in answers]
            assert (await client.post(feedback.PATH, json={"feedback": told})).status == 200
            await watch.close()

    run(ask)
    assert drift.report_drift(place, TASK_VERSION, routed(place), 7) == 0
    said = capsys.readouterr().out
    assert "mirrored answers the same" not in said, "they were mirrored before"
    assert "mirror    40 of 40 of them right" in said and "feedback: 40 of 40 kept answers right" in said


def test_while_vllm_is_started_nothing_is_answered_with_mirror_either(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    one = mirrored(tmp_path, address, 1.0)

    async def ask() -> None:
        async with gateway_client(one) as (client, _, made):
            made.engine = None
            said = await client.post(PATH, json={"input": "says lost"})
            assert said.status == 503 and said.headers["Retry-After"]

    run(ask)
    assert provider.seen == []


def test_drift_tells_agreement_before_there_is_a_comparison(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.answer = lambda prompt: "broken"
    one = mirrored(tmp_path, address, 1.0)

    async def ask() -> None:
        watch = Monitor(one.place.parent)
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            assert (await client.post(PATH, json={"input": "says broken"})).status == 200
            await watch.mirror.settled()

    run(ask)
    assert drift.report_drift(one.place, TASK_VERSION, routing.Routing(), 7) == 0
    said = capsys.readouterr().out
    assert "1 of 1 mirrored answers the same" in said and "no guarantee to lose" in said
