"""The workers of a cluster: every row gets its prediction, whichever workers are lost. Ray's handles are stand-ins."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from insource.config.errors import GateError, RecipeError, StageError
from insource.tasks.pii.inputs import prepare_input
from predict.cluster import connection
from predict.cluster.worker_pool import WorkerPool
from predict.prediction import Prediction
from predict.rows.inputs import InputRow
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.gateway import task_gateway

ROWS = [InputRow({"number": str(index)}, f"row {index}", prepare_input(f"row {index}", ())) for index in range(200)]


class LostWorkerError(Exception):
    """What Ray raises for a lost worker; the exception of a failed task is its cause."""

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__("the worker is gone")
        self.cause = cause


class Method:
    """A method of an actor's handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


IsLost = Callable[[int, Sequence[InputRow]], bool]


class Cluster:
    """Workers on loopback: `is_lost(worker, shard)` decides whether a worker is lost with a shard."""

    def __init__(
        self, is_lost: Callable[[int, Sequence[InputRow]], bool], start_error: Exception | None = None
    ) -> None:
        self._is_lost, self._start_error = is_lost, start_error
        self.n_workers, self.calls, self.rows = 0, Counter[str](), list[InputRow]()

    def start_worker(self) -> Any:
        number, self.n_workers = self.n_workers, self.n_workers + 1

        async def start() -> str:
            if self._start_error is not None:
                raise LostWorkerError(self._start_error)
            return "127.0.0.1"

        async def predict_shard(rows: Sequence[InputRow]) -> list[Prediction]:
            self.rows += rows
            await asyncio.sleep(0.001)
            if self._is_lost(number, rows):
                raise LostWorkerError
            self.calls.update(row.raw_input for row in rows)
            return [Prediction(row.raw_input.upper(), answered_by="local") for row in rows]

        return type("Handle", (), {"start": Method(start), "predict_shard": Method(predict_shard)})()

    def predict(self, n_workers: int, rows: Sequence[InputRow] = ROWS) -> list[Prediction]:
        pool = WorkerPool(self.start_worker, lambda worker: None, (LostWorkerError,), n_workers, worker_concurrency=8)

        async def run() -> list[Prediction]:
            async with pool.run_workers():
                return list(await asyncio.gather(*map(pool.predict, rows)))

        return asyncio.run(run())


EXPECTED = [row.raw_input.upper() for row in ROWS]


@pytest.mark.parametrize("n_workers", [1, 2, 7])
def test_every_row_gets_its_own_prediction_once(n_workers: int) -> None:
    cluster = Cluster(lambda number, rows: False)
    assert [prediction.answer for prediction in cluster.predict(n_workers)] == EXPECTED
    assert set(cluster.calls.values()) == {1} and len(cluster.calls) == len(ROWS)


def test_workers_get_no_columns_that_they_do_not_need() -> None:
    cluster = Cluster(lambda number, rows: False)
    cluster.predict(2)
    assert all(row.columns == {} for row in cluster.rows)


def test_the_rows_of_lost_workers_are_answered_by_others() -> None:
    cluster = Cluster(lambda number, rows: number in (0, 2))
    predictions = cluster.predict(2)
    assert [prediction.answer for prediction in predictions] == EXPECTED
    assert set(cluster.calls.values()) == {1}, "no answer was thrown away"
    assert cluster.n_workers > 2


def test_a_row_that_ends_its_workers_is_left_out_and_the_others_are_answered() -> None:
    cluster = Cluster(lambda number, rows: len(rows) > 0 and any(row.raw_input == "row 150" for row in rows))
    predictions = cluster.predict(3)
    failed = [prediction for prediction in predictions if prediction.refused]
    assert failed and not any(prediction.final for prediction in failed)
    assert (predictions[150].refused or "").startswith("no_answer: 3 workers were lost")
    assert len(failed) < len(ROWS) / 2


def test_the_prediction_ends_when_the_last_open_row_ends_its_workers() -> None:
    [prediction] = Cluster(lambda number, rows: True).predict(3, ROWS[150:151])
    assert (prediction.refused or "").startswith("no_answer: 3 workers were lost")


def test_workers_that_are_lost_again_and_again_end_the_prediction() -> None:
    with raises_error(StageError, "INS-P015", match="3 workers in succession"):
        Cluster(lambda number, rows: True).predict(1)


@pytest.mark.parametrize(
    "error",
    [
        RecipeError("not enough memory", code="INS-X008"),
        GateError("the served model does not match", code="INS-E007"),
        StageError("vLLM ended while it started", code="INS-E005"),
    ],
)
def test_a_worker_that_cannot_start_ends_the_prediction_with_its_own_reason(error: Any) -> None:
    with raises_error(type(error), error.code, match=str(error)):
        Cluster(lambda number, rows: False, start_error=error).predict(2)


def test_a_node_that_may_not_see_the_data_gets_no_row(tmp_path: Any) -> None:
    recipe = task_gateway.make_recipe(tmp_path, may_leave="false")
    connection.check_node_allowed("10.0.0.7", "10.0.0.7", recipe)
    connection.check_node_allowed("127.0.0.1", "10.0.0.7", recipe)
    with raises_error(RecipeError, "INS-P008", match=r"10\.0\.0\.8 is neither this machine"):
        connection.check_node_allowed("10.0.0.8", "10.0.0.7", recipe)
    privacy = recipe.privacy.model_copy(update={"trusted_hosts": ["10.0.0.8"]})
    connection.check_node_allowed("10.0.0.8", "10.0.0.7", recipe.model_copy(update={"privacy": privacy}))


@pytest.mark.parametrize("host", ["127.0.0.2", "127.0.0.1"])
def test_an_address_where_nothing_listens_is_named_at_once(host: str) -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        connection.check_reachable(f"{host}:{port}", "127.0.0.2")
    with raises_error(RecipeError, "INS-P015", match=f"RAY_ADDRESS: given {host}:{port}.*ray start"):
        connection.check_reachable(f"{host}:{port}", "127.0.0.2")
    connection.check_reachable("auto", "127.0.0.2")


def test_the_command_in_the_error_installs_the_version_of_the_extra() -> None:
    assert f'ray = ["{connection.REQUIREMENT}"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
