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


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


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
    one = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def say() -> None:
        watch = Monitor(one.place.parent)
        watch.traffic = faulty = Faulty()
        running = asyncio.create_task(watch.run())
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            assert (await client.post(PATH, json={"input": "says lost"})).status == 200
            while faulty.calls < 3 and not running.done():
                await asyncio.sleep(0.01)
            assert not running.done()
            await watch.close()
        await running

    run(say)
    assert traffic_profiles.read_profile(one.place, one.task.deployment, "2000-01-01").profile.rows == 1
    said = capsys.readouterr()
    assert (said.out + said.err).count("not written: ValueError: a fault") == 1


def test_what_is_being_written_when_the_gateway_stops_is_waited_for(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path, serve=RECORDED), Routing())
    folder = one.place / traffic_record.FOLDER

    async def say() -> None:
        watch = Monitor(one.place.parent)
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            assert (await client.post(PATH, json={"input": "says lost"})).status == 200
            await watch.write()
            (path,) = folder.glob("*.jsonl")
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # somebody reads it
                assert (await client.post(PATH, json={"input": "says late"})).status == 200
                running = asyncio.create_task(watch.run())
                while watch.traffic._waiting:
                    await asyncio.sleep(0.01)
                closing = asyncio.create_task(watch.close())
                await asyncio.sleep(0.1)
                assert not closing.done()
                fcntl.flock(file, fcntl.LOCK_UN)
            await closing
            assert len(list(atomic_files.read_jsonl(path))) == 2
        await running

    run(say)


def test_sets_of_labels_without_end_are_counted_up_to_a_limit_and_then_not_tested(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path), Routing())

    async def say() -> None:
        watch = Monitor(one.place.parent)
        seen = watch.observed.of(one.task)
        for at in range(3_000):
            seen.add(0.95, json.dumps([f"label {at}"]), 30)
            seen.reasons["local/confident"] += 1
        seen.add(0.95, json.dumps(["label 7"]), 30)
        await watch.close()

    run(say)
    seen = traffic_profiles.read_profile(one.place, one.task.deployment, "2000-01-01")
    assert len(seen.profile.answers) == traffic_profiles.MAX_LABEL_SETS == 2_000
    assert (seen.profile.rows, seen.others, seen.profile.answers['["label 7"]']) == (3_001, 1_000, 2)
    assert seen.profile.confidences == {950: 3_001}
    before = AnswerProfile(400, Counter({950: 400}), Counter({'["label 1"]': 400}))
    confidence, labels = drift.compare_traffic(before, seen)
    assert confidence.p_value == 1 and labels.p_value is None and "1,000 answers" in labels.told


def test_many_labels_of_one_answer_each_are_all_counted() -> None:
    seen = traffic_profiles.TrafficProfile()
    for at in range(3_000):
        seen.add(0.95, f"label {at}", 3_000)
    assert len(seen.profile.answers) == 3_000 and seen.others == 0


def test_files_that_do_not_say_what_they_leave_out_are_left_out(tmp_path: Path) -> None:
    place = tmp_path / TASK_NAME
    (place / traffic_profiles.FOLDER).mkdir(parents=True)
    before = {"version": "v1", "rows": 60, "confidences": {"950": 60}, "answers": {"lost": 60}, "reasons": {}}
    for process, more in (("a", {}), ("b", {"unread": 3, "others": 0})):
        atomic_files.write_json(place / traffic_profiles.FOLDER / f"2026-11-29.{process}.json", {"d": before | more})
    seen = traffic_profiles.read_profile(place, "d", "2026-11-29")
    assert (seen.profile.rows, seen.unread) == (60, 3)
