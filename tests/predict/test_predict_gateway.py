"""Bulk prediction through a gateway: the real door with a task behind it, an API model for what is unsure."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from deploy import registry
from deploy.answers.escalation import Escalation
from deploy.answers.outcome import Deployment
from deploy.gateway import proxy
from deploy.gateway.proxy_state import ProxyState
from deploy.routing import Routing
from insource.backends import failures
from insource.config.errors import RecipeError, StageError
from insource.system import atomic_files
from predict import __main__
from tests.helpers.errors import raises_error
from tests.helpers.gateway import stand_in_engine, task_gateway
from tests.helpers.gateway.stand_in_engine import StandInEngine, answer_by_hash
from tests.helpers.gateway.task_gateway import TASK_NAME
from tests.helpers.prediction_run import PredictionRun, make_run, read_output, write_csv
from tests.helpers.provider.faulty_provider import Provider

SURE = {"where is it": 0.97, "where is mine": 0.5, "reach me at ann@example.org": 0.6, "again ann@example.org": 0.99}


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@contextmanager
def door(
    deployed: Deployment, engine: StandInEngine, version: str, key: str | None = None
) -> Iterator[tuple[str, ProxyState]]:
    """The gateway's door in a thread of its own, with an engine behind it. Yields its address, and the door."""
    state = ProxyState(key, None, (TASK_NAME,))
    state.versions, state.tasks = {TASK_NAME: version}, {TASK_NAME: deployed}
    with stand_in_engine.serve_engine(engine) as engine_url:

        async def connect_engine(app: web.Application) -> None:
            state.engine = ClientSession(engine_url)

        async def close_engine(app: web.Application) -> None:
            assert state.engine is not None
            await state.engine.close()
            if isinstance(deployed.escalation, Escalation):
                await deployed.escalation.close()

        app = proxy.build_application(state)
        app.on_startup.append(connect_engine)
        app.on_cleanup.append(close_engine)
        with stand_in_engine.serve_application(app) as address:
            yield address, state


def words(prediction_run: PredictionRun, rows: Path, output: str, address: str, *options: str) -> list[str]:
    argv = [
        str(prediction_run.recipe_path),
        "--input",
        str(rows),
        "--output",
        str(prediction_run.output_path(output)),
        "--base-url",
        address,
    ]
    return [*argv, "--hardware", "cpu", "--runs", str(prediction_run.folder / "runs"), *options]


def predicted(
    prediction_run: PredictionRun, rows: Path, output: str, address: str, *options: str
) -> list[dict[str, Any]]:
    assert __main__.main(words(prediction_run, rows, output, address, *options)) == 0
    return read_output(prediction_run.output_path(output))


def test_the_gateway_says_who_answered_and_what_it_is_not_sure_of_abstains(
    tmp_path: Path, address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    monkeypatch.setenv("INSOURCE_API_KEY", "key-of-the-gateway")
    provider.answer = lambda text: "broken"
    prediction_run = make_run(tmp_path, baselines=task_gateway.baseline_yaml(address), route="{usd_per_month: 5}")
    prediction_run.add_comparison(threshold=0.9)
    version = registry.compute_version(prediction_run.run.folder / "adapter")
    deployed = task_gateway.make_deployed_task(
        tmp_path / "gateway", prediction_run.run.recipe(), Routing(None, 0.9, None)
    )
    engine = StandInEngine(lambda text: ("late", SURE.get(text.replace("[EMAIL_1]", "ann@example.org"), 0.99)))
    rows = write_csv(tmp_path / "in.csv", [{"message": text} for text in (*SURE, " ")])
    with door(deployed, engine, version, "key-of-the-gateway") as (gateway, _):
        output_rows = predicted(prediction_run, rows, "out.jsonl", f"{gateway}/v1")
        n_queries = engine.request_counts.total()
        predicted(prediction_run, rows, "out.jsonl", gateway)
        assert engine.request_counts.total() == n_queries, "called again, no row is asked"
    assert [row["answered_by"] for row in output_rows] == ["local", "api", "local", "local", None]
    assert [row["answer"] for row in output_rows] == ["late", "broken", "late", "late", None]
    # What has personal data in it stayed, and is judged by the threshold of the run that is deployed.
    assert [row["abstain"] for row in output_rows] == [False, False, True, False, None]
    assert output_rows[4]["refused"].startswith("unusable_input")
    assert atomic_files.read_json(prediction_run.output_path("out.jsonl.about.json"))["engine"] == ["gateway", version]


def test_answers_of_another_version_are_not_mixed_in(tmp_path: Path) -> None:
    prediction_run = make_run(tmp_path)
    prediction_run.add_comparison(threshold=0.9)
    deployed = task_gateway.make_deployed_task(
        tmp_path / "gateway", prediction_run.run.recipe(), Routing(None, None, "none")
    )
    rows = write_csv(tmp_path / "in.csv", [{"message": f"parcel {index}"} for index in range(40)])
    engine = StandInEngine(answer_by_hash)
    with door(deployed, engine, "another") as (gateway, state):

        def change(text: str, attempts: int) -> int:
            state.versions[TASK_NAME] = "newer"
            return 0

        output_rows = predicted(prediction_run, rows, "out.csv", gateway)
        assert [row["answer"] for row in output_rows] == [answer_by_hash(f"parcel {index}")[0] for index in range(40)]
        assert {row["abstain"] for row in output_rows} == {""}, (
            "the threshold is of the run, which is not what is deployed"
        )
        engine.refusal_status = change
        with raises_error(StageError, "INS-P012", match="changed from version another to newer"):
            predicted(prediction_run, rows, "second.csv", gateway)
    assert not prediction_run.output_path("second.csv").exists()


def test_the_probabilities_of_a_gateway_are_those_of_its_decisions(tmp_path: Path, tokenizer: Any) -> None:
    prediction_run = make_run(tmp_path)
    deployed = task_gateway.make_deployed_task(
        tmp_path / "gateway", prediction_run.run.recipe(), Routing(None, None, "none")
    )
    tokenizer.save_pretrained(tmp_path / "gateway" / "run" / "adapter")
    rows = write_csv(tmp_path / "in.csv", [{"message": "where is it"}])
    with door(deployed, StandInEngine(answer_by_hash), "v1") as (gateway, _):
        (output_row,) = predicted(prediction_run, rows, "out.parquet", gateway, "--probabilities")
    assert list(output_row["probabilities"]) == list(task_gateway.LABELS)
    assert sum(output_row["probabilities"].values()) == pytest.approx(1)


def test_probabilities_of_another_version_than_the_answer_are_not_mixed_in(tmp_path: Path, tokenizer: Any) -> None:
    prediction_run = make_run(tmp_path)
    deployed = task_gateway.make_deployed_task(
        tmp_path / "gateway", prediction_run.run.recipe(), Routing(None, None, "none")
    )
    tokenizer.save_pretrained(tmp_path / "gateway" / "run" / "adapter")
    rows = write_csv(tmp_path / "in.csv", [{"message": "where is it"}])
    engine = StandInEngine(answer_by_hash)
    with door(deployed, engine, "v1") as (gateway, state):

        def change(text: str, attempts: int) -> int:
            state.versions[TASK_NAME] = "v2"
            return 0

        engine.refusal_status = change
        with raises_error(StageError, "INS-P012", match="changed from version v1 to v2"):
            predicted(prediction_run, rows, "out.jsonl", gateway, "--probabilities")
    assert not prediction_run.output_path("out.jsonl").exists()


def test_what_is_no_gateway_or_wants_another_key_is_said_before_a_row_is_asked(tmp_path: Path) -> None:
    prediction_run = make_run(tmp_path)
    deployed = task_gateway.make_deployed_task(
        tmp_path / "gateway", prediction_run.run.recipe(), Routing(None, None, "none")
    )
    rows = write_csv(tmp_path / "in.csv", [{"message": "where is it"}])
    engine = StandInEngine(answer_by_hash)
    with (
        stand_in_engine.serve_engine(engine) as address,
        raises_error(RecipeError, "INS-P007", match="not a gateway of insource"),
    ):
        predicted(prediction_run, rows, "out.csv", address)
    with (
        door(deployed, engine, "v1", "key") as (gateway, _),
        raises_error(StageError, "INS-P010", match="INSOURCE_API_KEY"),
    ):
        predicted(prediction_run, rows, "out.csv", gateway)
    assert not engine.request_counts and not prediction_run.output_path("").exists()
