"""Removal of old traffic rows, and who may read the record."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.answers import answer_ids
from deploy.answers.outcome import Deployment, Outcome
from deploy.gateway.deployments import Deployments
from deploy.monitoring import traffic_record
from deploy.monitoring.monitor import Monitor
from deploy.routing import Routing
from insource.system.timestamps import utc_timestamp
from tests.helpers.gateway.task_gateway import (
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.gateway.traffic import RECORD_ALL, read_recorded, run, send_bodies


def test_old_rows_are_removed(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    folder = deployment.registry_dir / traffic_record.FOLDER
    folder.mkdir(parents=True)
    days = [f"{datetime.now(UTC) - timedelta(days=ago):%Y-%m-%d}" for ago in (31, 29)]
    for day in days:
        (folder / f"{day}.jsonl").write_text("{}\n", encoding="utf-8")
    send_bodies(deployment, {"input": "says lost"})
    assert not (folder / f"{days[0]}.jsonl").exists() and (folder / f"{days[1]}.jsonl").exists()
    assert len(list(folder.iterdir())) == 2


def aged(deployment: Deployment, ago: int) -> Path:
    path = deployment.registry_dir / traffic_record.FOLDER / f"{datetime.now(UTC) - timedelta(days=ago):%Y-%m-%d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n", encoding="utf-8")
    return path


def test_old_rows_are_removed_where_nothing_is_recorded_any_more(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve="{record: {share: 0, days: 30}}"), Routing())
    old, young = aged(deployment, 31), aged(deployment, 29)

    async def serve() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (_, _, state):
            Deployments(state, {}).activate(deployment.registry_dir, "v1", deployment)
            await monitor.write()

    run(serve)
    assert not old.exists() and young.exists()


def test_what_cannot_be_removed_or_written_is_told_once_and_recording_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
    (deployment.registry_dir / traffic_record.FOLDER / "2020-01-01.jsonl").mkdir(parents=True)
    send_bodies(deployment, {"input": "one says lost"})
    assert [line["message"] for line in read_recorded(deployment)] == ["one says lost"]

    async def write() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        for value in (object(), "lost"):  # no task gives the first
            outcome = Outcome(value, "", None, None, "local", "")
            monitor.traffic.add(traffic_record.RecordedAnswer(deployment, outcome, "a" * 16, "two", utc_timestamp()))
            await monitor.traffic.write()

    run(write)
    assert len(read_recorded(deployment)) == 2
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("2020-01-01.jsonl") == 2, "once a process"


def test_the_record_and_the_key_of_ids_are_read_by_their_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORD_ALL), Routing())
        send_bodies(deployment, {"input": "says lost"})
    finally:
        os.umask(previous)
    for path in (
        deployment.registry_dir / answer_ids.KEY_FILE,
        *(deployment.registry_dir / traffic_record.FOLDER).glob("*.jsonl"),
    ):
        assert path.stat().st_mode & 0o777 == 0o600, path
