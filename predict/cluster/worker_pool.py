"""Rows to the workers of a cluster, in shards; a shard of a lost worker goes to another one.

    predict(row) -> queue -> shards of up to SHARD_ROWS -> a worker -> the rows' predictions

A slot keeps one worker: it starts one, sends it shards, and starts the next one when it is lost. A slot whose worker
waits for a place on the cluster holds no shard, so the other slots answer all rows.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from insource.config.errors import GateError, RecipeError, StageError
from predict.execution.job_execution import log_step
from predict.execution.pipeline import first_error
from predict.prediction import NO_ANSWER_CODE, Prediction
from predict.rows.inputs import InputRow

SHARD_ROWS = 16
"""Rows of one call of a worker. A loss of the worker or a kill -9 repeats the rows of all shards in flight."""
MAX_WORKERS_PER_ROW = 3
"""A row whose worker is lost this many times gets no answer in this call: it may be the cause."""
MAX_FAILURES = 3
"""This many workers of a slot in succession that are lost without an answer end the prediction."""
WAIT_LOG_SECONDS = 60.0


@dataclass(eq=False)
class PendingRow:
    """A row without a prediction yet."""

    row: InputRow
    prediction: asyncio.Future[Prediction]
    lost_workers: int = 0


class WorkerPool:
    """The workers of one prediction."""

    def __init__(
        self,
        start_worker: Callable[[], Any],
        stop_worker: Callable[[Any], None],
        worker_errors: tuple[type[Exception], ...],
        n_workers: int,
        worker_concurrency: int,
    ) -> None:
        """Set up the pool.

        `start_worker` returns the handle of a worker (worker.py), which may not run yet. `worker_errors`: exceptions of
        its calls when it is lost. `worker_concurrency`: requests in flight at one worker's server.
        """
        self._start_worker, self._stop_worker, self._worker_errors = start_worker, stop_worker, worker_errors
        self._n_workers = n_workers
        # While half of a worker's rows are in flight at its server, the other half is on its way.
        self._shards_per_worker = max(2, math.ceil(2 * worker_concurrency / SHARD_ROWS))
        self._rows: asyncio.Queue[PendingRow] = asyncio.Queue()
        self._is_over = False
        self.check_node: Callable[[str], None] = lambda node_ip: None
        """Raises RecipeError for a node that may not get rows."""

    @property
    def concurrency(self) -> int:
        """Return the number of rows that keep all workers busy."""
        return self._n_workers * self._shards_per_worker * SHARD_ROWS

    async def predict(self, row: InputRow) -> Prediction:
        """Return the prediction of a row by any worker."""
        pending = PendingRow(InputRow({}, row.raw_input, row.task_input), asyncio.get_running_loop().create_future())
        self._rows.put_nowait(pending)
        return await pending.prediction

    @asynccontextmanager
    async def run_workers(self) -> AsyncIterator[None]:
        """Run the workers while the block runs. Raise RecipeError and StageError if they cannot."""
        try:
            async with asyncio.TaskGroup() as group:
                slots = [group.create_task(self._keep_worker()) for _ in range(self._n_workers)]
                yield
                self._is_over = True
                for slot in slots:
                    slot.cancel()
        except ExceptionGroup as errors:
            raise first_error(errors) from None

    async def _keep_worker(self) -> None:
        """Start workers one after the other, and send shards to each until it is lost."""
        n_failures = 0
        # A TaskGroup that fails while its task is cancelled raises the failure and drops the cancellation: a slot whose
        # worker is lost with the last open row is not ended by it.
        while not self._is_over:
            slot = Slot(self._start_worker())
            try:
                self.check_node(await self._wait_until_started(slot.worker))
                await self._send_all_shards(slot)
            except self._worker_errors as error:
                # A task of the worker that failed has the exception of our code as its cause.
                reason = getattr(error, "cause", None) or error
                if isinstance(reason, RecipeError | GateError):
                    raise reason from None
                n_failures = 1 if slot.has_answered else n_failures + 1
                if n_failures == MAX_FAILURES:
                    raise _make_pool_error(reason) from None
                log_step("lost", f"a worker ({_first_line(reason)}); its rows go to another one, and it is replaced")
            finally:
                self._stop_worker(slot.worker)

    async def _wait_until_started(self, worker: Any) -> str:
        """Return the address of the worker's node; log now and then that the cluster has no place for it yet."""
        started = asyncio.ensure_future(_as_coroutine(worker.start.remote()))
        try:
            while True:
                done, _ = await asyncio.wait([started], timeout=WAIT_LOG_SECONDS)
                if done:
                    return str(started.result())
                log_step("waiting", "for a place on the cluster, or for the start of vLLM, for a worker")
        finally:
            started.cancel()

    async def _send_all_shards(self, slot: "Slot") -> None:
        """Send shards to a worker, several at once, until it is lost. Raise the exception of the first lost shard."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._shards_per_worker):
                    group.create_task(self._send_shards(slot))
        except ExceptionGroup as errors:
            raise first_error(errors) from None

    async def _send_shards(self, slot: "Slot") -> None:
        while True:
            shard = await self._take_shard()
            try:
                predictions = await slot.worker.predict_shard.remote([pending.row for pending in shard])
            except BaseException:
                self._repeat(shard)
                raise
            slot.has_answered = True
            for pending, prediction in zip(shard, predictions, strict=True):
                _settle(pending, prediction)

    async def _take_shard(self) -> list[PendingRow]:
        """Return the next rows, in the order of the segment: rows with a common beginning go to one server."""
        first = await self._rows.get()
        return [first, *(self._rows.get_nowait() for _ in range(min(SHARD_ROWS - 1, self._rows.qsize())))]

    def _repeat(self, shard: Sequence[PendingRow]) -> None:
        """Queue the rows of a lost worker for another one."""
        for pending in shard:
            pending.lost_workers += 1
            if pending.lost_workers == MAX_WORKERS_PER_ROW:
                refused = f"{NO_ANSWER_CODE}: {MAX_WORKERS_PER_ROW} workers were lost with this row"
                _settle(pending, Prediction(refused=refused, final=False))
            else:
                self._rows.put_nowait(pending)


@dataclass
class Slot:
    """A worker and its success."""

    worker: Any
    has_answered: bool = False


async def _as_coroutine(reference: Any) -> Any:
    return await reference


def _settle(pending: PendingRow, prediction: Prediction) -> None:
    if not pending.prediction.done():
        pending.prediction.set_result(prediction)


def _make_pool_error(reason: BaseException) -> StageError:
    if isinstance(reason, StageError):
        return reason
    return StageError(
        f"ENGINE=ray: {MAX_FAILURES} workers in succession were lost without an answer, the last one by "
        f"{_first_line(reason)}; finished answers are kept: run the same command to resume",
        code="INS-P015",
    )


def _first_line(reason: BaseException) -> str:
    lines = str(reason).strip().splitlines() or [""]
    return f"{type(reason).__name__}: {lines[0][:200]}"
