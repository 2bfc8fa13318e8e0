"""What is noted of answers reaches the disk: through faults of one of its writers, and when the gateway stops."""

import asyncio
import fcntl
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from compare.decision.answer_profile import AnswerProfile
from deploy import drift
from deploy.monitoring import traffic_profiles, traffic_record
from deploy.monitoring.monitor import Monitor
from deploy.routing import Routing
from insource.system import atomic_files
from tests.helpers.gateway.task_gateway import TASK_NAME, gateway_client, make_deployed_task, make_recipe

PATH = f"/v1/tasks/{TASK_NAME}"
RECORDED = "{record: {share: 1.0}}"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


class Faulty(traffic_record.TrafficRecord):
    """A writer with a fault."""

    calls = 0

    async def write(self) -> None:
        """Raises ValueError."""
        self.calls += 1
        raise ValueError("a fault")


def test_a_fault_of_one_writer_is_said_once_and_the_other_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.monitoring.monitor.WRITE_INTERVAL_SECONDS", 0.01)
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def scenario() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        monitor.traffic = faulty = Faulty()
        running = asyncio.create_task(monitor.run())
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            assert (await client.post(PATH, json={"input": "says lost"})).status == 200
            while faulty.calls < 3 and not running.done():
                await asyncio.sleep(0.01)
            assert not running.done()
            await monitor.close()
        await running

    run(scenario)
    assert (
        traffic_profiles.read_profile(deployment.registry_dir, deployment.task.deployment_id, "2000-01-01").profile.rows
        == 1
    )
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("not written: ValueError: a fault") == 1


def test_what_is_being_written_when_the_gateway_stops_is_waited_for(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORDED), Routing())
    folder = deployment.registry_dir / traffic_record.FOLDER

    async def scenario() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            assert (await client.post(PATH, json={"input": "says lost"})).status == 200
            await monitor.write()
            (path,) = folder.glob("*.jsonl")
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # somebody reads it
                assert (await client.post(PATH, json={"input": "says late"})).status == 200
                running = asyncio.create_task(monitor.run())
                while monitor.traffic._queue:
                    await asyncio.sleep(0.01)
                closing = asyncio.create_task(monitor.close())
                await asyncio.sleep(0.1)
                assert not closing.done()
                fcntl.flock(file, fcntl.LOCK_UN)
            await closing
            assert len(list(atomic_files.read_jsonl(path))) == 2
        await running

    run(scenario)


def test_sets_of_labels_without_end_are_counted_up_to_a_limit_and_then_not_tested(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def scenario() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        observed = monitor.profiles.profile_today(deployment.task)
        for index in range(3_000):
            observed.add(0.95, json.dumps([f"label {index}"]), 30)
            observed.reasons["local/confident"] += 1
        observed.add(0.95, json.dumps(["label 7"]), 30)
        await monitor.close()

    run(scenario)
    observed = traffic_profiles.read_profile(deployment.registry_dir, deployment.task.deployment_id, "2000-01-01")
    assert len(observed.profile.answers) == traffic_profiles.MAX_LABEL_SETS == 2_000
    assert (observed.profile.rows, observed.others, observed.profile.answers['["label 7"]']) == (3_001, 1_000, 2)
    assert observed.profile.confidences == {950: 3_001}
    calibration = AnswerProfile(400, Counter({950: 400}), Counter({'["label 1"]': 400}))
    confidence, labels = drift.compare_traffic(calibration, observed)
    assert confidence.p_value == 1 and labels.p_value is None and "1,000 answers" in labels.message


def test_many_labels_of_one_answer_each_are_all_counted() -> None:
    observed = traffic_profiles.TrafficProfile()
    for index in range(3_000):
        observed.add(0.95, f"label {index}", 3_000)
    assert len(observed.profile.answers) == 3_000 and observed.others == 0


def test_files_that_do_not_say_what_they_leave_out_are_left_out(tmp_path: Path) -> None:
    registry_dir = tmp_path / TASK_NAME
    (registry_dir / traffic_profiles.FOLDER).mkdir(parents=True)
    old_entry = {"version": "v1", "rows": 60, "confidences": {"950": 60}, "answers": {"lost": 60}, "reasons": {}}
    for process, extra in (("a", {}), ("b", {"unread": 3, "others": 0})):
        atomic_files.write_json(
            registry_dir / traffic_profiles.FOLDER / f"2026-11-29.{process}.json", {"d": old_entry | extra}
        )
    observed = traffic_profiles.read_profile(registry_dir, "d", "2026-11-29")
    assert (observed.profile.rows, observed.unread) == (60, 3)
