"""`make serve` from top to bottom: the plan, the start, the check, ready, and watching over it until it is stopped."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from aiohttp import ClientError

from insource.config import cli
from insource.config.errors import GateError, RecipeError, StageError
from insource.config.load import LoadedRecipe, describe_precedence, load
from insource.config.schema.serving_and_cost import Serve
from insource.system import environment
from insource.tracking import folder_ownership, run
from serve.parity import check, reference_check, report_text
from serve.vllm import launch_plan, server_process
from serve.vllm.heartbeat import Heartbeat
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess

# An engine that fails more often than this is not started again.
MAX_RESTARTS, RESTART_WINDOW_SECONDS = 3, 600.0
_POLL_SECONDS = 1.0


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    choices, loaded = resolve_models(arguments)
    serve = loaded.recipe.serve
    address = Address(serve.host, serve.port)
    key = launch_plan.require_api_key(address)
    if arguments.dry_run:
        print(shell_command(launch_plan.plan_launch(choices[0], serve), address, key is not None))
        return cli.OK
    while choices:
        served, *choices = choices
        try:
            serve_until_stopped(served, serve, address, key)
        except (RecipeError, StageError) as error:
            choices = [one for one in choices if may_fall_back(one[0], serve, error)]
            if not choices:
                raise
            fall_back(served[0], choices[0][0].which, error)
    return cli.INTERRUPTED


def may_fall_back(served: ServedModel, serve: Serve, error: Exception) -> bool:
    """Returns whether a form may be served in the place of one that failed. Where that one answered otherwise than was
    trained, a form of other weights is none: nothing would show that it is made of what was trained."""
    return not isinstance(error, GateError) or launch_plan.has_trained_weights(served, serve)


def serve_until_stopped(served: Sequence[ServedModel], serve: Serve, address: Address, key: str | None) -> None:
    """Returns never, where nothing fails. Raises RecipeError where this cannot be served here, StageError where vLLM
    ends, and GateError where what answers is not what was trained."""
    asked = launch_plan.plan_launch(served, serve)
    if told := launch_plan.memory_problem(asked, environment.available_memory_bytes()):
        raise RecipeError(told)
    vllm = VllmProcess(asked, address, served[0].run.folder / "serve.log", key)
    with stop_on_exit(vllm):
        seconds = start_and_wait(vllm)
        found = [(one, check_parity(one, vllm.address, key, serve)) for one in served]
        failures = [f"{one.name}: {told}" for one, here in found for told in here.failures(serve.parity)]
        if failures:
            raise GateError(f"not served: what answers is not what was trained: {'; '.join(failures)}")
        if key is None:
            told = (
                f"every user of this machine may ask; with {launch_plan.API_KEY_VARIABLE} in the environment, "
                "who has it"
            )
            print(f"no key    {told}", file=sys.stderr, flush=True)
        print(*ready_lines(served, address, seconds, key is not None), sep="\n", flush=True)
        restart_loop(vllm, served, key)


def fall_back(served: ServedModel, following: str, error: Exception) -> None:
    """Says, and records with the run, that the next form is taken in the place of one that cannot be served."""
    told = f"serve.model: {served.which} cannot be served, {following} is taken: {error}"
    print(f"fallback  {told}", file=sys.stderr, flush=True)
    run.record_fallback(served.run, "serve", told)


def resolve_models(arguments: argparse.Namespace) -> tuple[list[list[ServedModel]], LoadedRecipe]:
    """Returns what is to be served, the first choice first where one recipe may be served in several forms, and the
    first recipe, which says how: where, with which memory, by which floors."""
    names = [arguments.recipe, *(word for word in arguments.set if "=" not in word)]
    overrides = [word for word in arguments.set if "=" in word]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise RecipeError(f"{twice} stands there twice; each recipe once")
    found: list[list[ServedModel]] = []
    runs = run.runs_folder(arguments.runs)
    every = [folder_ownership.resolve_name(load(name, overrides, arguments.hardware), runs) for name in names]
    print("\n".join(describe_precedence(every[0])), file=sys.stderr)
    for loaded in every:
        here = run.find(run.runs_folder(arguments.runs) / loaded.name, arguments.run)
        trained = here.recipe()
        forms = launch_plan.rank_variants(here, trained, loaded.recipe.serve, shared=len(names) > 1)
        found.append([ServedModel(loaded.name, here, trained, which) for which in forms])
        print(f"serve     {loaded.name}: {forms[0]} of run {here.id}", file=sys.stderr)
    alone = found[0] if len(found) == 1 else []
    return [[one] for one in alone] or [[forms[0] for forms in found]], every[0]


def shell_command(asked: server_process.LaunchPlan, address: Address, with_key: bool) -> str:
    """Returns the vLLM command as one can type it, with the environment that it needs; a key is not shown."""
    told = server_process.vllm_environment(asked, "$" + launch_plan.API_KEY_VARIABLE if with_key else None)
    variables = [f'{name}="{value}"' if value.startswith("$") else f"{name}={value}" for name, value in told.items()]
    return " ".join([*variables, shlex.join(server_process.vllm_command(asked, address, with_key))])


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
            room = max(20, console.width - 20)
            status.update(f"{seconds:3.0f} s  {line[:room]}", spinner_style="dim")

        seconds = vllm.wait_ready(show)
    print(f"vllm      {vllm.plan.name} up after {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


def check_parity(served: ServedModel, address: Address, key: str | None, serve: Serve) -> check.ParityResult:
    """Returns what parity finds of a served model, and says it."""
    probed = check.load_probe(served, serve.parity.start_rows, serve)
    found = check.run_parity(probed, address, key, check.constraint_modes(probed, serve)[:1])
    print_parity(served.name, found)
    return found


def print_parity(name: str, found: check.ParityResult) -> None:
    """Prints what parity found of a served model."""
    for line in report_text.console_lines(name, found):
        print(f"parity    {line}", file=sys.stderr, flush=True)


def ready_lines(served: Sequence[ServedModel], address: Address, seconds: float, with_key: bool) -> list[str]:
    """Returns the lines that say where it answers, and how to ask."""
    where = f"http://{address.host}:{address.port}/v1"
    first = served[0]
    text = "..."
    message = {"role": "user", "content": first.prompt["messages"][-1]["content"].replace("{input}", text)}
    asked = {"model": first.name, "messages": [message], "structured_outputs": {"grammar": first.prompt["grammar"]}}
    if not first.prompt["grammar"]:
        del asked["structured_outputs"]
    body = first.run.folder / "request.json"
    body.write_text(json.dumps(asked, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    bearer = f' -H "Authorization: Bearer ${launch_plan.API_KEY_VARIABLE}"' if with_key else ""
    return [
        f"ready     {where} after {seconds:.0f} s; models {', '.join(one.name for one in served)}",
        f"try       curl -s {where}/chat/completions -H 'Content-Type: application/json'{bearer} "
        f"-d @{os.path.relpath(body)}",
        "stop      Ctrl-C",
    ]


def restart_loop(vllm: VllmProcess, served: Sequence[ServedModel], key: str | None) -> None:
    """Returns never: starts the engine again where it dies, or computes nothing though it is asked. Raises StageError
    where it fails too often, GateError where it reads other prompts than were trained on once it is up again."""
    failures: list[float] = []
    hang_seconds = vllm.plan.serve.hang_seconds
    while True:
        why = wait_for_failure(vllm, Heartbeat(vllm.address, vllm.plan.name, key, hang_seconds), hang_seconds)
        failures = [at for at in failures if at > time.monotonic() - RESTART_WINDOW_SECONDS] + [time.monotonic()]
        vllm.stop()
        if len(failures) > MAX_RESTARTS:
            raise StageError(
                f"vLLM has failed {len(failures)} times within {RESTART_WINDOW_SECONDS / 60:.0f} minutes: {why}"
            )
        print(f"vllm      {why}\nvllm      starting it again", file=sys.stderr, flush=True)
        try:
            seconds = start_and_wait(vllm)
            others = {
                one.name: reference_check.find_prompt_mismatch(one, one.name, vllm.address, key) for one in served
            }
            if not Heartbeat(vllm.address, vllm.plan.name, key, hang_seconds).answers():
                raise StageError(f"it is up and gives no token within {hang_seconds} s (serve.hang_seconds)")
        except (StageError, ClientError) as error:
            # Counted as another failure: the memory of the one before may not be free yet.
            print(f"vllm      did not start again: {error}", file=sys.stderr, flush=True)
            vllm.stop()
            continue
        for name, told in others.items():
            if told:
                raise GateError(f"not served: {name} is asked otherwise than it was trained, {told}")
        print(f"ready     again after {seconds:.0f} s", flush=True)


def wait_for_failure(vllm: VllmProcess, heartbeat: Heartbeat, hang_seconds: float) -> str:
    """Returns why the engine has to be started again, once it has: its process or one of its children has ended, or it
    computes nothing."""
    ended: set[int] = set()
    while True:
        time.sleep(_POLL_SECONDS)
        if not vllm.alive():
            return f"died, {vllm.why()}"
        # A child that ends as it should is there for a moment; twice is no moment.
        before, ended = ended, server_process.find_dead_children(vllm.pid)
        if before & ended:
            return f"died, a process that it started has ended, {vllm.why()}"
        if (silent := heartbeat.silent_seconds()) >= hang_seconds:
            return f"hangs: it was asked and has computed nothing for {silent:.0f} s (serve.hang_seconds)"


class Stoppable(Protocol):
    """An engine, or several."""

    def stop(self) -> None:
        """Ends what was started."""


@contextmanager
def stop_on_exit(vllm: Stoppable) -> Iterator[None]:
    """Stops engines however the block ends; SIGTERM and a lost terminal end it as Ctrl-C does, and what was ignored
    from the start stays ignored (nohup)."""
    heeded = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, signal.default_int_handler) for one in heeded}
    try:
        yield
    except KeyboardInterrupt:
        print("stop      stopping vLLM", file=sys.stderr, flush=True)
        raise
    finally:
        vllm.stop()
        for one, handler in before.items():
            signal.signal(one, handler)
