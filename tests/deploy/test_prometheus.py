"""What Prometheus reads of the gateway: who answered what and why, in aggregates alone; and the two probes."""

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from deploy.monitoring.metrics import Metrics
from deploy.routing import Routing
from tests.conftest import ROOT
from tests.helpers.gateway.task_gateway import TASK_NAME, baseline_yaml, gateway_client, make_deployed_task, make_recipe
from tests.helpers.provider.faulty_provider import Provider

PATH = f"/v1/tasks/{TASK_NAME}"


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


async def measured(client: Any, **headers: str) -> dict[tuple[str, ...], float]:
    """The samples of GET /metrics: {(name, label value, ...): value}, labels in the order of their names."""
    answer = await client.get("/metrics", headers=headers)
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain")
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in families(await answer.text())
        for one in family.samples
    }


def test_inputs_are_counted_by_who_answered_and_why_with_validity_tokens_and_spend(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    price = ", price: {input_usd_per_million: 10, output_usd_per_million: 0}"
    asked = make_recipe(tmp_path, baselines=baseline_yaml(address, extra=price), route="{usd_per_month: 5}")
    inputs = ["says lost p=0.94", "says lost p=0.94", "says late p=0.5", "says nonsense", "mail ann@example.org", ""]

    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, asked)) as (client, _, _made):
            assert (await client.post(PATH, json={"inputs": inputs})).status == 200
            assert (await client.post(PATH, json={"input": ""})).status == 400
            await asyncio.sleep(0.1)  # what a call did cost is written aside
            found = await measured(client)
            answers = {key[1:]: value for key, value in found.items() if key[0] == "insource_answers_total"}
            assert answers == {
                ("local", "false", TASK_NAME, "confident"): 2,
                ("api", "false", TASK_NAME, "below_threshold"): 1,
                ("api", "false", TASK_NAME, "own_answer_invalid"): 1,
                ("local", "false", TASK_NAME, "personal_data"): 1,
            }
            assert found["insource_checked_answers_total", "local", TASK_NAME, "valid"] == 4
            assert found["insource_checked_answers_total", "local", TASK_NAME, "not_a_label"] == 1
            assert found["insource_checked_answers_total", "api", TASK_NAME, "valid"] == 2
            assert found["insource_labels_total", "lost", TASK_NAME] == 2
            assert found["insource_labels_total", "late", TASK_NAME] == 2
            assert found["insource_tokens_total", "local", "input", TASK_NAME] >= 30 * 5
            assert found["insource_tokens_total", "api", "input", TASK_NAME] == sum(
                read for read, _ in provider.charged
            )
            assert found["insource_confidence_bucket", "0.6", TASK_NAME] == 1
            assert found["insource_confidence_bucket", "0.95", TASK_NAME] == 3
            assert found["insource_confidence_count", TASK_NAME] == 4
            usd = sum(read for read, _ in provider.charged) * 10 / 1e6
            assert found["insource_api_month_usd", TASK_NAME] == pytest.approx(usd)
            assert found["insource_api_month_limit_usd", TASK_NAME] == 5
            assert found["insource_requests_total", "/v1/tasks", "200"] == 1
            assert found["insource_requests_total", "/v1/tasks", "400"] == 1
            assert found["insource_request_seconds_count", "/v1/tasks"] == 2
            assert found["insource_deployed", TASK_NAME, "v1"] == found["insource_ready",] == 1

    run(ask)


def test_chats_that_pass_unread_are_counted_and_raw_requests_with_their_tokens(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())
    chat = {"messages": [{"role": "user", "content": "says lost"}]}

    async def ask() -> None:
        async with gateway_client(one) as (client, _, _made):
            for body in ({"model": TASK_NAME}, {"model": TASK_NAME, "stream": True}, {"model": f"{TASK_NAME}:raw"}):
                said = await client.post("/v1/chat/completions", json=chat | body)
                assert said.status == 200 and await said.read()
            found = await measured(client)
            assert found["insource_answers_total", "local", "false", TASK_NAME, "no_api_model"] == 2
            assert found["insource_tokens_total", "local", "input", TASK_NAME] == 60, "of the two that came as a whole"
            assert found["insource_requests_total", "/v1/chat/completions", "200"] == 3

    run(ask)


def test_what_fails_is_counted_by_its_status_and_no_path_of_a_client_is_named(tmp_path: Path) -> None:
    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())) as (
            client,
            engine,
            _made,
        ):
            for path in ("/secret/one", "/secret/two"):
                assert (await client.get(path)).status == 404
            assert (await client.post(PATH, json={"input": "says nonsense"})).status == 422
            engine.down = True
            assert (await client.post(PATH, json={"input": "late"})).status == 503
            found = await measured(client)
            assert found["insource_requests_total", "other", "404"] == 2
            assert found["insource_answers_total", "nobody", "false", TASK_NAME, "error_422"] == 1
            assert found["insource_answers_total", "nobody", "false", TASK_NAME, "error_503"] == 1
            assert not any("secret" in part for key in found for part in key)

    run(ask)


def test_an_error_of_the_gateways_own_counts_as_500_and_a_client_that_left_as_broken_off(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def ask() -> None:
        async with gateway_client(one) as (client, engine, made):
            leaving = asyncio.create_task(client.post(PATH, json={"input": "late wait=0.5"}))
            while not engine.asked:
                await asyncio.sleep(0.01)
            leaving.cancel()
            while made.of_key.total():
                await asyncio.sleep(0.01)
            made.tasks = {TASK_NAME: "no task"}  # type: ignore[dict-item]
            assert (await client.post(PATH, json={"input": "late"})).status == 500
            made.tasks = {}
            found = await measured(client)
            assert found["insource_requests_total", "/v1/tasks", "500"] == 1
            assert found["insource_requests_total", "/v1/tasks", "broken_off"] == 1

    run(ask)


def test_the_version_that_answers_is_named_alone_and_at_every_moment() -> None:
    found, seen, ended = Metrics(), set[int](), threading.Event()
    for version in ("v1", "v2"):
        found.now(True, 0, {TASK_NAME: version})
    text = found.text().decode()
    assert f'insource_deployed{{model="{TASK_NAME}",version="v2"}} 1.0' in text and '"v1"' not in text

    def scrape() -> None:
        while not ended.is_set():
            seen.add(found.text().count(b"insource_deployed{"))

    other = threading.Thread(target=scrape)
    other.start()
    for _ in range(20_000):
        found.now(True, 0, {TASK_NAME: "v2"})
    ended.set()
    other.join()
    assert seen == {1}


def test_metrics_want_a_key_and_hold_no_text_and_no_client(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def ask() -> None:
        async with gateway_client(one, "secret-key") as (client, _, _made):
            assert (await client.get("/metrics")).status == 401
            key = {"Authorization": "Bearer secret-key"}
            for text in ("my parcel of ann@example.org is lost", "zebra-4711"):
                assert (await client.post(PATH, json={"input": text}, headers=key)).status == 200
            text = await (await client.get("/metrics", headers=key)).text()
            assert "insource_answers_total" in text
            for word in ("parcel", "ann@", "EMAIL", "zebra", "secret-key", "default", "127.0.0.1"):
                assert word not in text, word

    run(ask)


def test_the_process_is_alive_while_vllm_is_started_and_ready_once_it_answers(tmp_path: Path) -> None:
    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path), Routing()), "secret") as (
            client,
            _,
            made,
        ):
            session, made.engine = made.engine, None
            for path, status in (("/healthz", 200), ("/readyz", 503), ("/health", 503)):
                assert (await client.get(path)).status == status, path
            made.engine = session
            assert (await client.get("/readyz")).status == 200
            made.stopping = True
            assert (await client.get("/readyz")).status == 503, "so that nobody sends more"
            assert (await client.get("/healthz")).status == 200

    run(ask)


def test_the_dashboard_shows_metrics_that_there_are(tmp_path: Path) -> None:
    board = json.loads((ROOT / "deploy" / "monitoring" / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = {name for expr in asked for name in re.findall(r"\b(?:insource|process)_\w+", expr)}
    assert len(board["panels"]) >= 10 and len({panel["id"] for panel in board["panels"]}) == len(board["panels"])

    async def ask() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())) as (client, _, _made):
            text = await (await client.get("/metrics")).text()
            there = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
            there |= {f"{name}{end}" for name in there for end in ("_bucket", "_count", "_sum")}
            assert named - there == set()

    run(ask)
