"""Mirroring before the switch: the deployed model also answers a fraction of the API model's inputs.

route: {mirror: 0.05}

registry/<name>/mirrored/2026-11.jsonl
{"at": "...", "answer": "9f2c...", "deployment": "51ab...", "confidence": 0.974, "digest": "07be...", "agreed": true}

No client waits for it: it starts when the answer is sent. At most MAX_CONCURRENT inputs are in flight and MAX_WAITING
wait. Further ones are skipped and counted; so are those that fail because vLLM ends. While vLLM starts, the gateway
answers nothing, not even by the API model. No answer is stored, only keyed digests (deploy/answers/answer_ids.py) to
compare with feedback.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from deploy.answers import local_model
from deploy.answers.local_model import LOCAL, EngineConnection, ScoredAnswer
from deploy.answers.outcome import Deployment
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from deploy.monitoring import monthly_record
from deploy.monitoring.metrics import Metrics
from insource.config.errors import StageError
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from insource.tasks.pii.inputs import CleanedInput

FOLDER = "mirrored"
MAX_CONCURRENT, MAX_WAITING = 4, 64
AGREED, DIFFERED, INVALID, FAILED, LEFT_OUT = "agreed", "differed", "invalid", "failed", "left_out"
_DESCRIPTION = "what was mirrored"


class Mirror:
    """Mirrored inputs of one gateway."""

    def __init__(self, metrics: Metrics, record_parsed: Callable[[Task, str, ScoredAnswer], None]) -> None:
        """`record_parsed` records an answer of the deployed model."""
        self._metrics, self._record_parsed = metrics, record_parsed
        self._pending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._failure_logged = False
        self.track_in_flight: Callable[[str], AbstractContextManager[None]] = lambda internal_name: nullcontext()
        """Counts a request to a version as in flight, so that the version is not unloaded meanwhile."""

    def sample(self, task: Task) -> bool:
        """Return whether to mirror an input, by chance. Count it as skipped if too many wait."""
        if random.random() >= task.recipe.route.mirror:
            return False
        if len(self._pending) >= MAX_CONCURRENT + MAX_WAITING:
            self._metrics.count_mirrored(task.name, LEFT_OUT)
            return False
        return True

    def start(
        self,
        engine: EngineConnection,
        deployment: Deployment,
        task_input: CleanedInput,
        name: str,
        digest: str,
        max_tokens: int | None,
    ) -> None:
        """Start mirroring an input. `name` and `digest` are of the answer that the client got."""
        in_flight = ExitStack()
        in_flight.enter_context(self.track_in_flight(deployment.task.internal_name))
        pending = asyncio.create_task(self._mirror_input(engine, deployment, task_input, name, digest, max_tokens))
        self._pending.add(pending)
        pending.add_done_callback(self._pending.discard)
        pending.add_done_callback(lambda _: in_flight.close())

    async def wait_idle(self) -> None:
        """Wait until no mirrored input is in flight."""
        while self._pending:
            await asyncio.gather(*self._pending, return_exceptions=True)

    async def close(self) -> None:
        """Cancel all mirrored inputs."""
        for pending in self._pending:
            pending.cancel()
        await self.wait_idle()

    async def _mirror_input(
        self,
        engine: EngineConnection,
        deployment: Deployment,
        task_input: CleanedInput,
        name: str,
        digest: str,
        max_tokens: int | None,
    ) -> None:
        task = deployment.task
        async with self._slots:
            try:
                local_answer = await local_model.query_model(engine, task, task_input, max_tokens)
            except RequestError:
                self._metrics.count_mirrored(task.name, FAILED)
                return
        self._record_parsed(task, LOCAL, local_answer)
        is_valid = local_answer.parsed.problem is None
        local_digest = deployment.ids.digest(task.equality_key(local_answer.parsed.value)) if is_valid else None
        result = AGREED if local_digest == digest else DIFFERED if is_valid else INVALID
        self._metrics.count_mirrored(task.name, result)
        line = {
            "answer": name,
            "deployment": task.deployment_id,
            "confidence": local_answer.confidence,
            "digest": local_digest,
            "agreed": local_digest == digest,
        }
        try:
            folder = deployment.registry_dir / FOLDER
            await run_in_thread(monthly_record.append_lines, folder, [line], _DESCRIPTION, False)
        except StageError as error:
            if not self._failure_logged:
                log_line(f"mirror    {error.message_with_code}")
            self._failure_logged = True


def read_mirrored(registry_dir: Path, deployment_id: str) -> dict[str, Mapping[str, Any]]:
    """Return {answer name: record} of the mirrored answers of a deployment in registry/<name>."""
    return {line["answer"]: line for line in monthly_record.read_lines(registry_dir / FOLDER, deployment_id)}
