"""The vLLM servers of a comparison. Those that fit into memory side by side start together, before the first is asked.

A start on a CPU takes half a minute and little more than one core. Nothing is asked before all of them are up, since
the rates that are measured would be too low. On a GPU a server takes the memory, so that one alone starts ahead.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from insource.config.errors import RecipeError, StageError
from insource.system import environment
from serve.vllm import launch_plan, lifecycle
from serve.vllm.server_process import VllmProcess

# What a server takes beside weights and cache: Python and the libraries of two processes.
PROCESS_OVERHEAD_BYTES = 3 * 2**29


class VllmServers:
    """Servers that were started ahead, by the form that they serve."""

    def __init__(self) -> None:
        self._ahead: dict[str, VllmProcess] = {}
        self._full = False
        self._waited = False

    def start(self, variant: str, vllm: VllmProcess) -> None:
        """Starts the server of a form ahead where it fits into memory beside those that were started before; behind the
        first one that does not, none starts ahead."""
        required_bytes = launch_plan.required_memory_bytes(vllm.plan)
        other_bytes = [launch_plan.required_memory_bytes(process.plan) for process in self._ahead.values()]
        # What the others need is not all taken yet.
        free = environment.available_memory_bytes() - sum(
            (required or 0) + PROCESS_OVERHEAD_BYTES for required in other_bytes
        )
        all_known = required_bytes is not None and None not in other_bytes
        if (
            self._full
            or (other_bytes and not all_known)
            or (required_bytes is not None and required_bytes + PROCESS_OVERHEAD_BYTES > free)
        ):
            self._full = True
            return
        lifecycle.start_vllm(vllm)
        self._ahead[variant] = vllm

    @contextmanager
    def take(self, variant: str, vllm: VllmProcess) -> Iterator[VllmProcess]:
        """Yields the server of a form, up, and stops it at the end: the given one where none that was started ahead is
        up, and then alone, since it may have failed beside others. Raises RecipeError where memory does not suffice,
        and StageError where the server ends while it starts."""
        self._wait()
        process = self._ahead.pop(variant, None)
        if process is None or not process.alive():
            if process:
                process.stop()
            self.stop()
            if problem := launch_plan.memory_problem(vllm.plan, environment.available_memory_bytes()):
                raise RecipeError(problem)
            lifecycle.start_vllm(vllm)
            self._ahead[variant] = vllm
            lifecycle.wait_until_ready(vllm)
            process = self._ahead.pop(variant)
        try:
            yield process
        finally:
            process.stop()

    def stop(self) -> None:
        """Stops all servers that were started and not taken."""
        while self._ahead:
            self._ahead.popitem()[1].stop()

    def _wait(self) -> None:
        """Waits, the first time, for all that were started ahead: those that come up stay."""
        started, self._waited = () if self._waited else tuple(self._ahead.items()), True
        for variant, vllm in started:
            try:
                lifecycle.wait_until_ready(vllm)
            except StageError as error:
                print(f"vllm      {vllm.plan.name}: {error}; it is tried again alone", file=sys.stderr, flush=True)
                self._ahead.pop(variant).stop()


@contextmanager
def open_servers() -> Iterator[VllmServers]:
    """Yields the servers of a comparison, and stops all of them however the block ends."""
    servers = VllmServers()
    with lifecycle.stop_on_exit(servers):
        yield servers
