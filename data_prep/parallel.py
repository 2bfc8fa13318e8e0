"""Parallel map over processes that keeps the order and bounds the number of pending chunks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

from insource.config.errors import StageError

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkerPool:
    """A number of worker processes; with `executor` None the work runs in this process."""

    processes: int
    executor: Executor | None = None

    def map(self, function: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[Result]:
        """Yield function(chunk) for each chunk, in order. At most 2 chunks per process and one more are pending."""
        if self.executor is None:
            yield from map(function, chunks)
            return
        waiting: deque[Future[Result]] = deque()
        for chunk in chunks:
            waiting.append(self.executor.submit(function, chunk))
            if len(waiting) > 2 * self.processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def worker_pool(processes: int) -> Iterator[WorkerPool]:
    """Yield a WorkerPool of `processes` processes that end with the block.

    Raise StageError if the system kills one of them.
    """
    if processes == 1:
        yield WorkerPool(1)
        return
    # spawn: a forked child would inherit the threads of Arrow and of the tokenizer in an undefined state.
    executor = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield WorkerPool(processes, executor)
    except BrokenProcessPool:
        raise StageError(
            f"one of {processes} processes that prepare the data was killed, probably because memory is short; "
            "set data.num_proc=1, which needs least",
            code="INS-X007",
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
