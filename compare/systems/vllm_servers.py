"""The vLLM servers of a comparison. Those that fit into memory together start before the first request.

A start on a CPU takes half a minute and little more than one core. No request is sent before all of them are ready,
since measured throughputs would be too low. On a GPU a server takes all memory, so that only one starts ahead.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from insource.config.errors import RecipeError, StageError
from insource.system import environment
from serve.vllm import launch_plan, lifecycle
from serve.vllm.server_process import VllmProcess

# Memory of a server beside weights and cache: Python and the libraries of two processes.
PROCESS_OVERHEAD_BYTES = 3 * 2**29


class VllmServers:
    """Servers that were started ahead, by variant."""

    def __init__(self) -> None:
        self._prestarted: dict[str, VllmProcess] = {}
        self._memory_full = False
        self._waited = False

    def start(self, variant: str, vllm: VllmProcess) -> None:
        """Start the server of a variant ahead if it fits into memory beside those started before.

        After the first one that does not fit, no further server starts ahead.
        """
        required_bytes = launch_plan.required_memory_bytes(vllm.plan)
        other_bytes = [launch_plan.required_memory_bytes(process.plan) for process in self._prestarted.values()]
        # Other servers may not have allocated all their memory yet.
        reserved_bytes = sum((required or 0) + PROCESS_OVERHEAD_BYTES for required in other_bytes)
        free_bytes = environment.available_memory_bytes() - reserved_bytes
        all_known = required_bytes is not None and None not in other_bytes
        if (
            self._memory_full
            or (other_bytes and not all_known)
            or (required_bytes is not None and required_bytes + PROCESS_OVERHEAD_BYTES > free_bytes)
        ):
            self._memory_full = True
            return
        lifecycle.start_vllm(vllm)
        self._prestarted[variant] = vllm

    @contextmanager
    def acquire(self, variant: str, vllm: VllmProcess) -> Iterator[VllmProcess]:
        """Yield the running server of a variant, and stop it at the end.

        If no server of the variant was started ahead or it is not running, all others are stopped and `vllm` is
        started: the others may have caused its failure. Raise RecipeError if memory does not suffice, StageError if the
        server exits during its start.
        """
        self._wait()
        process = self._prestarted.pop(variant, None)
        if process is None or not process.is_alive():
            if process:
                process.stop()
            self.stop()
            if problem := launch_plan.memory_problem(vllm.plan, environment.available_memory_bytes()):
                raise RecipeError(problem, code="INS-X008")
            lifecycle.start_vllm(vllm)
            self._prestarted[variant] = vllm
            lifecycle.wait_until_ready(vllm)
            process = self._prestarted.pop(variant)
        try:
            yield process
        finally:
            process.stop()

    def stop(self) -> None:
        """Stop all servers that were started and not taken."""
        while self._prestarted:
            self._prestarted.popitem()[1].stop()

    def _wait(self) -> None:
        """Wait once for all servers that were started ahead, and keep those that are ready."""
        started, self._waited = () if self._waited else tuple(self._prestarted.items()), True
        for variant, vllm in started:
            try:
                lifecycle.wait_until_ready(vllm)
            except StageError as error:
                message = f"{vllm.plan.name}: {error.message_with_code}"
                print(f"vllm      {message}; it is started again by itself", file=sys.stderr, flush=True)
                self._prestarted.pop(variant).stop()


@contextmanager
def open_servers() -> Iterator[VllmServers]:
    """Yield the servers of a comparison, and stop all of them when the block ends in any way."""
    servers = VllmServers()
    with lifecycle.stop_on_exit(servers):
        yield servers
