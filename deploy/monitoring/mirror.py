"""Before the switch: a share of what the API model answers is also answered by the deployed model, off the client's
path.

route: {mirror: 0.05}

registry/<name>/mirrored/2026-11.jsonl
{"at": "...", "answer": "9f2c...", "deployment": "51ab...", "confidence": 0.974, "digest": "07be...", "agreed": true}

No client waits for this: it begins as the answer goes out. At most AT_ONCE of them are asked at a time and WAITING
wait; more are left out and counted, and so is what fails because vLLM ends. While vLLM is started the gateway answers
nothing, the API model's answers included. No answer stands on the disk, only keyed digests
(deploy/answers/answer_ids.py), which feedback is compared with.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.answers import local_model
from deploy.answers.local_model import LOCAL, EngineConnection, ScoredAnswer
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from deploy.monitoring.metrics import Metrics
from insource.config.errors import StageError
from insource.system import shared_jsonl
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from insource.tasks.pii.inputs import Input
from insource.tracking.run import utc_timestamp

if TYPE_CHECKING:
    from deploy.gateway.paths.router import Deployment

FOLDER = "mirrored"
MAX_CONCURRENT, MAX_WAITING = 4, 64
AGREED, DIFFERED, INVALID, FAILED, LEFT_OUT = "agreed", "differed", "invalid", "failed", "left_out"
_DESCRIPTION = "what was mirrored"


class Mirror:
    """Inputs that are answered once more."""

    def __init__(self, metrics: Metrics, judged: Callable[[Task, str, ScoredAnswer], None]) -> None:
        """`judged` notes an answer of the deployed model."""
        self._metrics, self._judged = metrics, judged
        self._asking: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_CONCURRENT)
        self._told = False
        self.under_way: Callable[[str], AbstractContextManager[None]] = lambda inside: nullcontext()
        """Counts what is asked of a version, which is not taken out of vLLM meanwhile."""

    def chosen(self, task: Task) -> bool:
        """Returns whether an input is to be answered once more, which chance decides."""
        if random.random() >= task.recipe.route.mirror:
            return False
        if len(self._asking) >= MAX_CONCURRENT + MAX_WAITING:
            self._metrics.mirrored(task.name, LEFT_OUT)
            return False
        return True

    def start(
        self,
        engine: EngineConnection,
        deployed: "Deployment",
        given: Input,
        name: str,
        digest: str,
        most_tokens: int | None,
    ) -> None:
        """Has an input answered once more. `name`, `digest`: of the answer that was given."""
        counted = ExitStack()
        counted.enter_context(self.under_way(deployed.task.inside))
        asking = asyncio.create_task(self._mirrored(engine, deployed, given, name, digest, most_tokens))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        asking.add_done_callback(lambda _: counted.close())

    async def settled(self) -> None:
        """Waits until nothing is asked any more."""
        while self._asking:
            await asyncio.gather(*self._asking, return_exceptions=True)

    async def close(self) -> None:
        """Ends what is still asked."""
        for asking in self._asking:
            asking.cancel()
        await self.settled()

    async def _mirrored(
        self,
        engine: EngineConnection,
        deployed: "Deployment",
        given: Input,
        name: str,
        digest: str,
        most_tokens: int | None,
    ) -> None:
        task = deployed.task
        async with self._room:
            try:
                own = await local_model.query_model(engine, task, given, most_tokens)
            except RequestError:
                self._metrics.mirrored(task.name, FAILED)
                return
        self._judged(task, LOCAL, own)
        valid = own.parsed.problem is None
        mine = deployed.ids.digest(task.identity(own.parsed.value)) if valid else None
        self._metrics.mirrored(task.name, AGREED if mine == digest else DIFFERED if valid else INVALID)
        told = {"answer": name, "deployment": task.deployment, "confidence": own.confidence, "digest": mine}
        try:
            await run_in_thread(_write_line, deployed.place, told | {"agreed": mine == digest})
        except StageError as error:
            if not self._told:
                log_line(f"mirror    {error}")
            self._told = True


def read_mirrored(place: Path, deployment: str) -> dict[str, Mapping[str, Any]]:
    """Returns what was mirrored below registry/<name> of a deployment, by the names of the answers."""
    return {line["answer"]: line for line in _read_folder(place) if line["deployment"] == deployment}


def _read_folder(place: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted((place / FOLDER).glob("*.jsonl")):
        yield from (line for line in shared_jsonl.read_lines(path) if isinstance(line, dict) and "deployment" in line)


def _write_line(place: Path, told: Mapping[str, Any]) -> None:
    at = utc_timestamp()
    with shared_jsonl.open_locked(place / FOLDER / f"{at[:7]}.jsonl", _DESCRIPTION) as file:
        shared_jsonl.append_line(file, {"at": at, **told}, _DESCRIPTION, flush=False)
