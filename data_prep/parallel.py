"""Work spread over processes: the results come in the order of the work, and only a few pieces wait at a time."""

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
    """Where work is done: in `executor`, or in this process where it is None."""

    processes: int
    executor: Executor | None = None

    def map(self, function: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[Result]:
        """Yields function(piece) for each piece, in their order; memory holds a few pieces a process and no more."""
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
    """Yields a Spread over so many processes, which end with the block, whichever way it ends."""
    if processes == 1:
        yield WorkerPool(1)
        return
    # spawn: a forked child would inherit threads of Arrow and of the tokenizer half alive.
    executor = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield WorkerPool(processes, executor)
    except BrokenProcessPool:
        raise StageError(
            f"one of {processes} processes that prepare the data was killed, as the system does when memory is short; "
            "data.num_proc=1 takes least"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
