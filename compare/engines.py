"""The vLLM servers of a comparison. Those that fit into memory side by side start together, before the first is asked.

A start on a CPU takes half a minute and little more than one core. Nothing is asked before all of them are up, since
the rates that are measured would be too low. On a GPU a server takes the memory, so that one alone starts ahead.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from recipes.errors import RecipeError, StageError
from serve import plan, stay
from serve.engine import Engine
from tracking import environment

# What a server takes beside weights and cache: Python and the libraries of two processes.
PROCESS_BYTES = 3 * 2**29


class Engines:
    """Servers by the form that they serve, and what became of those that were started ahead."""

    def __init__(self) -> None:
        self._starting: dict[str, Engine] = {}
        self._up: dict[str, Engine] = {}
        self._failed: dict[str, StageError] = {}

    def start(self, form: str, vllm: Engine) -> None:
        """Starts the server of a form ahead where it fits into memory beside those that were started before."""
        needed = plan.memory_needed(vllm.plan)
        others = [plan.memory_needed(one.plan) for one in self._starting.values()]
        if others and (needed is None or None in others):
            return
        # What the others need is not all taken yet.
        free = environment.available_memory_bytes() - sum((one or 0) + PROCESS_BYTES for one in others)
        if needed is None or needed + PROCESS_BYTES <= free:
            stay.begin(vllm)
            self._starting[form] = vllm

    @contextmanager
    def take(self, form: str, vllm: Engine) -> Iterator[Engine]:
        """Yields the server of a form, up, and stops it at the end: the given one where none was started ahead. Raises
        RecipeError where memory does not suffice, and StageError where the server ends while it starts."""
        self._wait()
        if form in self._failed:
            raise self._failed.pop(form)
        if form not in self._up:
            if problem := plan.memory_problem(vllm.plan, environment.available_memory_bytes()):
                raise RecipeError(problem)
            stay.begin(vllm)
            self._starting[form] = vllm
            stay.wait(vllm)
            self._up[form] = self._starting.pop(form)
        try:
            yield self._up[form]
        finally:
            self._up.pop(form).stop()

    def stop(self) -> None:
        """Stops all servers."""
        for engines in (self._starting, self._up):
            while engines:
                engines.popitem()[1].stop()

    def _wait(self) -> None:
        while self._starting:
            form = next(iter(self._starting))
            try:
                stay.wait(self._starting[form])
                self._up[form] = self._starting.pop(form)
            except StageError as error:
                self._failed[form] = error
                self._starting.pop(form).stop()


@contextmanager
def opened() -> Iterator[Engines]:
    """Yields the servers of a comparison, and stops all of them however the block ends."""
    engines = Engines()
    with stay.stopped_at_the_end(engines):
        yield engines
