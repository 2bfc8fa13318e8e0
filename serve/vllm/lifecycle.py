"""Start vLLM with progress, stop it on every exit, and limit its restarts."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from insource.config.errors import StageError
from serve.vllm import launch_plan, server_process
from serve.vllm.server_process import Address, VllmProcess

# vLLM is not restarted after more failures than this.
MAX_RESTARTS, RESTART_WINDOW_SECONDS = 3, 600.0


def shell_command(plan: server_process.LaunchPlan, address: Address, with_key: bool) -> str:
    """Return the vLLM command as a shell line, with its environment variables. It refers to a key by its variable."""
    env = server_process.vllm_environment(plan, "$" + launch_plan.API_KEY_VARIABLE if with_key else None)
    variables = [f'{name}="{value}"' if value.startswith("$") else f"{name}={value}" for name, value in env.items()]
    return " ".join([*variables, shlex.join(server_process.vllm_command(plan, address, with_key))])


def start_and_wait(vllm: VllmProcess) -> float:
    """Start vLLM and wait until it is ready, with progress. Return the seconds since the start.

    Raise RecipeError or StageError as `start_vllm` and `wait_until_ready` do.
    """
    start_vllm(vllm)
    return wait_until_ready(vllm)


def start_vllm(vllm: VllmProcess) -> None:
    """Start vLLM and print a line with its log. Raise RecipeError if its port is taken."""
    print(f"vllm      starting {vllm.plan.name}, log {os.path.relpath(vllm.log)}", file=sys.stderr, flush=True)
    vllm.start()


def wait_until_ready(vllm: VllmProcess) -> float:
    """Wait until vLLM is ready, with progress. Return the seconds since its start.

    Raise StageError if it ends or takes longer than `serve.start_seconds`.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting", spinner="dots") as status:

        def show(seconds: float, line: str) -> None:
            width = max(20, console.width - 20)
            status.update(f"{seconds:3.0f} s  {line[:width]}", spinner_style="dim")

        seconds = vllm.wait_ready(show)
    print(f"vllm      {vllm.plan.name} up after {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


def record_failure(failures: list[float], reason: str) -> None:
    """Add a failure of vLLM, with this reason, to the times of earlier ones (time.monotonic).

    Raise StageError if there are more than MAX_RESTARTS in RESTART_WINDOW_SECONDS.
    """
    now = time.monotonic()
    failures[:] = [*(failed_at for failed_at in failures if failed_at > now - RESTART_WINDOW_SECONDS), now]
    if len(failures) > MAX_RESTARTS:
        raise StageError(
            f"vLLM has failed {len(failures)} times within {RESTART_WINDOW_SECONDS / 60:.0f} minutes: {reason}",
            code="INS-E006",
        )


class Stoppable(Protocol):
    """One vLLM process, or several."""

    def stop(self) -> None:
        """Stop the processes."""


@contextmanager
def stop_on_exit(vllm: Stoppable) -> Iterator[None]:
    """Stop vLLM when the block ends, for whatever reason.

    SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does. A signal that was ignored at the start stays ignored
    (nohup).
    """
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
