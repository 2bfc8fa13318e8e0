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


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


async def measured(client: Any, **headers: str) -> dict[tuple[str, ...], float]:
    """The samples of GET /metrics: {(name, label value, ...): value}, labels in the order of their names."""
    response = await client.get("/metrics", headers=headers)
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(await response.text())
        for sample in family.samples
    }


def test_inputs_are_counted_by_who_answered_and_why_with_validity_tokens_and_spend(
    tmp_path: Path, address: str, provider: Provider
) -> None:
    provider.answer = lambda prompt: "broken"
    price = ", price: {input_usd_per_million: 10, output_usd_per_million: 0}"
    recipe = make_recipe(tmp_path, baselines=baseline_yaml(address, extra=price), route="{usd_per_month: 5}")
    inputs = ["says lost p=0.94", "says lost p=0.94", "says late p=0.5", "says nonsense", "mail ann@example.org", ""]

    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, recipe)) as (client, _, _state):
            assert (await client.post(PATH, json={"inputs": inputs})).status == 200
            assert (await client.post(PATH, json={"input": ""})).status == 400
            await asyncio.sleep(0.1)  # what a call did cost is written aside
            samples = await measured(client)
            answers = {key[1:]: value for key, value in samples.items() if key[0] == "insource_answers_total"}
            assert answers == {
                ("local", "false", TASK_NAME, "confident"): 2,
                ("api", "false", TASK_NAME, "below_threshold"): 1,
                ("api", "false", TASK_NAME, "own_answer_invalid"): 1,
                ("local", "false", TASK_NAME, "personal_data"): 1,
            }
            assert samples["insource_checked_answers_total", "local", TASK_NAME, "valid"] == 4
            assert samples["insource_checked_answers_total", "local", TASK_NAME, "not_a_label"] == 1
            assert samples["insource_checked_answers_total", "api", TASK_NAME, "valid"] == 2
            assert samples["insource_labels_total", "lost", TASK_NAME] == 2
            assert samples["insource_labels_total", "late", TASK_NAME] == 2
            assert samples["insource_tokens_total", "local", "input", TASK_NAME] >= 30 * 5
            assert samples["insource_tokens_total", "api", "input", TASK_NAME] == sum(
                input_tokens for input_tokens, _ in provider.charged_tokens
            )
            assert samples["insource_confidence_bucket", "0.6", TASK_NAME] == 1
            assert samples["insource_confidence_bucket", "0.95", TASK_NAME] == 3
            assert samples["insource_confidence_count", TASK_NAME] == 4
            usd = sum(input_tokens for input_tokens, _ in provider.charged_tokens) * 10 / 1e6
            assert samples["insource_api_month_usd", TASK_NAME] == pytest.approx(usd)
            assert samples["insource_api_month_limit_usd", TASK_NAME] == 5
            assert samples["insource_requests_total", "/v1/tasks", "200"] == 1
            assert samples["insource_requests_total", "/v1/tasks", "400"] == 1
            assert samples["insource_request_seconds_count", "/v1/tasks"] == 2
            assert samples["insource_deployed", TASK_NAME, "v1"] == samples["insource_ready",] == 1

    run(scenario)


def test_streams_that_are_forwarded_unread_are_counted_and_raw_requests_with_their_tokens(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())
    chat = {"messages": [{"role": "user", "content": "says lost"}]}

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            for body in ({"model": TASK_NAME}, {"model": TASK_NAME, "stream": True}, {"model": f"{TASK_NAME}:raw"}):
                response = await client.post("/v1/chat/completions", json=chat | body)
                assert response.status == 200 and await response.read()
            samples = await measured(client)
            assert samples["insource_answers_total", "local", "false", TASK_NAME, "no_api_model"] == 2
            assert samples["insource_tokens_total", "local", "input", TASK_NAME] == 60, (
                "of the two that came as a whole"
            )
            assert samples["insource_checked_answers_total", "local", TASK_NAME, "valid"] == 1
            assert samples["insource_labels_total", "lost", TASK_NAME] == 1
            assert samples["insource_requests_total", "/v1/chat/completions", "200"] == 3

    run(scenario)


def test_what_fails_is_counted_by_its_status_and_no_path_of_a_client_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())) as (
            client,
            engine,
            _state,
        ):
            for path in ("/secret/one", "/secret/two"):
                assert (await client.get(path)).status == 404
            assert (await client.post(PATH, json={"input": "says nonsense"})).status == 422
            engine.down = True
            assert (await client.post(PATH, json={"input": "late"})).status == 503
            samples = await measured(client)
            assert samples["insource_requests_total", "other", "404"] == 2
            assert samples["insource_answers_total", "nobody", "false", TASK_NAME, "error_422"] == 1
            assert samples["insource_answers_total", "nobody", "false", TASK_NAME, "error_503"] == 1
            assert not any("secret" in part for key in samples for part in key)

    run(scenario)


def test_an_error_of_the_gateways_own_counts_as_500_and_a_client_that_left_as_broken_off(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, engine, state):
            request = asyncio.create_task(client.post(PATH, json={"input": "late wait=0.5"}))
            async with asyncio.timeout(60):
                while not engine.requests:
                    await asyncio.sleep(0.01)
                request.cancel()
                while state.in_flight_by_client.total():
                    await asyncio.sleep(0.01)
            state.tasks = {TASK_NAME: "no task"}  # type: ignore[dict-item]
            assert (await client.post(PATH, json={"input": "late"})).status == 500
            state.tasks = {}
            samples = await measured(client)
            assert samples["insource_requests_total", "/v1/tasks", "500"] == 1
            assert samples["insource_requests_total", "/v1/tasks", "broken_off"] == 1

    run(scenario)


def test_the_version_that_answers_is_named_alone_and_at_every_moment() -> None:
    collected, counts, stop = Metrics(), set[int](), threading.Event()
    for version in ("v1", "v2"):
        collected.set_state(True, 0, {TASK_NAME: version})
    text = collected.render().decode()
    assert f'insource_deployed{{model="{TASK_NAME}",version="v2"}} 1.0' in text and '"v1"' not in text

    def scrape() -> None:
        while not stop.is_set():
            counts.add(collected.render().count(b"insource_deployed{"))

    scraper = threading.Thread(target=scrape)
    scraper.start()
    for _ in range(20_000):
        collected.set_state(True, 0, {TASK_NAME: "v2"})
    stop.set()
    scraper.join()
    assert counts == {1}


def test_metrics_want_a_key_and_hold_no_text_and_no_client(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def scenario() -> None:
        async with gateway_client(deployment, "secret-key") as (client, _, _state):
            assert (await client.get("/metrics")).status == 401
            key = {"Authorization": "Bearer secret-key"}
            for text in ("my parcel of ann@example.org is lost", "zebra-4711"):
                assert (await client.post(PATH, json={"input": text}, headers=key)).status == 200
            text = await (await client.get("/metrics", headers=key)).text()
            assert "insource_answers_total" in text
            for word in ("parcel", "ann@", "EMAIL", "zebra", "secret-key", "default", "127.0.0.1"):
                assert word not in text, word

    run(scenario)


def test_the_process_is_alive_while_vllm_is_started_and_ready_once_it_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path), Routing()), "secret") as (
            client,
            _,
            state,
        ):
            session, state.engine = state.engine, None
            for path, status in (("/healthz", 200), ("/readyz", 503), ("/health", 503)):
                assert (await client.get(path)).status == status, path
            state.engine = session
            assert (await client.get("/readyz")).status == 200
            state.stopping = True
            assert (await client.get("/readyz")).status == 503, "so that nobody sends more"
            assert (await client.get("/healthz")).status == 200

    run(scenario)


def test_the_dashboard_shows_metrics_that_there_are(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "deploy" / "monitoring" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    used = {name for expr in expressions for name in re.findall(r"\b(?:insource|process)_\w+", expr)}
    assert len(dashboard["panels"]) >= 10 and len({panel["id"] for panel in dashboard["panels"]}) == len(
        dashboard["panels"]
    )

    async def scenario() -> None:
        async with gateway_client(make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())) as (
            client,
            _,
            _state,
        ):
            text = await (await client.get("/metrics")).text()
            available = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
            available |= {f"{name}{suffix}" for name in available for suffix in ("_bucket", "_count", "_sum")}
            assert used - available == set()

    run(scenario)


def test_the_dashboard_uses_labels_that_the_metrics_have() -> None:
    metrics = Metrics()
    metrics.count_request("/v1/tasks", "200", 0.1)
    metrics.count_answer(TASK_NAME, "local", "confident")
    metrics.count_checked_answer(TASK_NAME, "local", None)
    metrics.count_tokens(TASK_NAME, "local", 1, 1)
    metrics.count_prediction(TASK_NAME, 0.9, ["late"])
    metrics.count_feedback(TASK_NAME, "local", is_correct=True)
    metrics.count_mirrored(TASK_NAME, "agreed")
    metrics.set_drift({(TASK_NAME, "v1", "labels"): 0.1})
    metrics.set_state(ready=True, in_flight=0, versions={TASK_NAME: "v1"})
    metrics.set_spend(TASK_NAME, 1.0, 2.0)
    labels: dict[str, set[str]] = {}
    for name, values in re.findall(r"^(\w+)(?:\{(.*)\})? ", metrics.render().decode(), re.MULTILINE):
        labels[name] = set(re.findall(r'(\w+)="', values))
    dashboard = json.loads((ROOT / "deploy" / "monitoring" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for expression in expressions:
        name, selector = re.findall(r"\b((?:insource|process)_\w+)(?:\{([^}]*)\})?", expression)[0]
        used = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", selector))
        used |= {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        assert used <= labels[name], expression
