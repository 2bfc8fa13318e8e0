"""Start vLLM with progress, stop it on every exit, and limit its restarts."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from serve.vllm import launch_plan, server_process
from serve.vllm.server_process import Address, VllmProcess

# An engine that fails more often than this is not started again.
MAX_RESTARTS, RESTART_WINDOW_SECONDS = 3, 600.0


def shell_command(plan: server_process.LaunchPlan, address: Address, with_key: bool) -> str:
    """Returns the vLLM command as one can type it, with the environment that it needs; a key is not shown."""
    env = server_process.vllm_environment(plan, "$" + launch_plan.API_KEY_VARIABLE if with_key else None)
    variables = [f'{name}="{value}"' if value.startswith("$") else f"{name}={value}" for name, value in env.items()]
    return " ".join([*variables, shlex.join(server_process.vllm_command(plan, address, with_key))])


def start_and_wait(vllm: VllmProcess) -> float:
    """Starts vLLM and waits for it, with progress. Returns the seconds that it took."""
    start_vllm(vllm)
    return wait_until_ready(vllm)


def start_vllm(vllm: VllmProcess) -> None:
    """Starts vLLM, and says so. Raises RecipeError where its port is taken."""
    print(f"vllm      starting {vllm.plan.name}, log {os.path.relpath(vllm.log)}", file=sys.stderr, flush=True)
    vllm.start()


def wait_until_ready(vllm: VllmProcess) -> float:
    """Waits for vLLM with progress. Returns the seconds since its start. Raises StageError where it ends or takes too
    long."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting", spinner="dots") as status:

        def show(seconds: float, line: str) -> None:
            width = max(20, console.width - 20)
            status.update(f"{seconds:3.0f} s  {line[:width]}", spinner_style="dim")

        seconds = vllm.wait_ready(show)
    print(f"vllm      {vllm.plan.name} up after {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


class Stoppable(Protocol):
    """An engine, or several."""

    def stop(self) -> None:
        """Ends what was started."""


@contextmanager
def stop_on_exit(vllm: Stoppable) -> Iterator[None]:
    """Stops engines however the block ends; SIGTERM and a lost terminal end it as Ctrl-C does, and what was ignored
    from the start stays ignored (nohup)."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous_handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        print("stop      stopping vLLM", file=sys.stderr, flush=True)
        raise
    finally:
        vllm.stop()
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
