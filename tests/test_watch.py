"""What is noted of answers reaches the disk: through faults of one of its writers, and when the gateway stops."""

import asyncio
import fcntl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deploy import observed, traffic
from deploy.routing import Routing
from deploy.watch import Watch
from tests.task_door import NAME, deployed, door, recipe
from tracking import files

PATH = f"/v1/tasks/{NAME}"
RECORDED = "{record: {share: 1.0}}"


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


class Faulty(traffic.Traffic):
    """A writer with a fault."""

    calls = 0

    async def write(self) -> None:
        """Raises ValueError."""
        self.calls += 1
        raise ValueError("a fault")


def test_a_fault_of_one_writer_is_said_once_and_the_other_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.watch.EVERY_SECONDS", 0.01)
    one = deployed(tmp_path, recipe(tmp_path), Routing())

    async def say() -> None:
        watch = Watch(one.place.parent)
        watch.traffic = faulty = Faulty()
        running = asyncio.create_task(watch.run())
        async with door(one, watch=watch) as (client, _, _made):
            assert (await client.post(PATH, json={"input": "says lost"})).status == 200
            while faulty.calls < 3 and not running.done():
                await asyncio.sleep(0.01)
            assert not running.done()
            await watch.close()
        await running

    run(say)
    assert observed.read(one.place, one.task.deployment, "2000-01-01").profile.rows == 1
    said = capsys.readouterr()
    assert (said.out + said.err).count("not written: ValueError: a fault") == 1


def test_what_is_being_written_when_the_gateway_stops_is_waited_for(tmp_path: Path) -> None:
    one = deployed(tmp_path, recipe(tmp_path, serve=RECORDED), Routing())
    folder = one.place / traffic.FOLDER

    async def say() -> None:
        watch = Watch(one.place.parent)
        async with door(one, watch=watch) as (client, _, _made):
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
            assert len(list(files.read_jsonl(path))) == 2
        await running

    run(say)
