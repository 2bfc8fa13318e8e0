"""ENGINE=ray on two local nodes: the file that one process writes, though a node or the driver is killed."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insource.config.errors import RecipeError
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.gateway.stand_in_engine import StandInEngine, answer_by_hash, serve_engine
from tests.helpers.prediction_run import PredictionRun, make_run, write_csv

SEGMENT = 150
TEXTS = [f"parcel {index} of {index * 7919 % 1000}" for index in range(600)]
IN_FLIGHT = 64
"""Rows in flight at one worker: twice compare.concurrency."""
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'ray>=2.60,<2.61'"
)
# ray.init replaces 127.0.0.1 in RAY_ADDRESS by the machine's own address, where such a cluster does not listen.
CLUSTER = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster

options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.2"}
options["include_log_monitor"] = False
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
other = cluster.add_node(**options)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


class TwoNodes:
    """A cluster of two local nodes, each with room for one worker."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._read_line()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return next(line.strip() for line in self._process.stdout if ":" in line or "killed" in line)

    def kill_other_node(self) -> None:
        assert self._process.stdin is not None
        print("kill", file=self._process.stdin, flush=True)
        assert "killed" in self._read_line()

    def stop(self) -> None:
        self._process.communicate()


@pytest.fixture
def two_nodes() -> Iterator[TwoNodes]:
    cluster = TwoNodes()
    yield cluster
    cluster.stop()


@pytest.fixture
def prediction_run(tmp_path: Path) -> PredictionRun:
    return make_run(tmp_path)


@pytest.fixture
def rows(prediction_run: PredictionRun) -> Path:
    return write_csv(
        prediction_run.folder / "in.csv",
        [{"number": index, "message": text} for index, text in enumerate([*TEXTS, " "])],
    )


def cluster_argv(prediction_run: PredictionRun, rows: Path, output: str, address: str) -> list[str]:
    return [*prediction_run.argv(rows, output, address), "--engine", "ray"]


def wait_for_rows(prediction_run: PredictionRun, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 600
    while prediction_run.rows_on_disk() < count:
        assert process.poll() is None and time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.01)


@needs_ray
@pytest.mark.nightly
def test_a_killed_node_and_a_killed_driver_change_no_byte_of_the_file(
    prediction_run: PredictionRun, rows: Path, two_nodes: TwoNodes
) -> None:
    engine = StandInEngine(answer_by_hash)
    with serve_engine(engine) as address:
        expected = prediction_run.predict(rows, "one.jsonl", address).read_bytes()
        engine.answer_counts.clear()
        engine.delay_seconds = 0.5
        argv = cluster_argv(prediction_run, rows, "ray.jsonl", address)
        driver = prediction_run.start(SEGMENT, "", argv, RAY_ADDRESS=two_nodes.address)
        wait_for_rows(prediction_run, driver, 100)
        driver.kill()
        driver.communicate()
        n_on_disk, n_answered = prediction_run.rows_on_disk(), engine.answer_counts.total()
        driver = prediction_run.start(SEGMENT, "", argv, RAY_ADDRESS=two_nodes.address)
        wait_for_rows(prediction_run, driver, n_on_disk + 2 * IN_FLIGHT)
        two_nodes.kill_other_node()
        log_text, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, log_text
    assert "workers   2 on a Ray cluster of 2 nodes" in log_text and "lost      a worker" in log_text
    assert prediction_run.output_path("ray.jsonl").read_bytes() == expected
    n_asked_again = engine.answer_counts.total() - len(TEXTS)
    assert set(engine.answer_counts) == set(TEXTS)
    assert n_asked_again <= (n_answered - n_on_disk) + 2 * IN_FLIGHT, "only what was in flight is asked again"


@needs_ray
@pytest.mark.nightly
def test_without_an_address_a_local_cluster_serves_the_call(prediction_run: PredictionRun, rows: Path) -> None:
    with serve_engine(StandInEngine(answer_by_hash)) as address:
        expected = prediction_run.predict(rows, "one.parquet", address).read_bytes()
        argv = [*cluster_argv(prediction_run, rows, "ray.parquet", address), "--workers", "2"]
        process = prediction_run.start(SEGMENT, "", argv)
        log_text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, log_text
    assert prediction_run.output_path("ray.parquet").read_bytes() == expected


def test_without_ray_the_error_has_the_command_that_installs_it(
    prediction_run: PredictionRun, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        serve_engine(StandInEngine(answer_by_hash)) as address,
        raises_error(RecipeError, "INS-P014", match=r"pip install 'ray>=2\.60,<2\.61'"),
    ):
        prediction_run.predict(rows, "ray.csv", address, "--engine", "ray")
