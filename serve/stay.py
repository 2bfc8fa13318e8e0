"""`make serve` from top to bottom: the plan, the start, the check, ready, and watching over it until it is stopped."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from recipes import command
from recipes.errors import RecipeError, StageError
from recipes.load import Loaded, load
from recipes.schema_verdict import Serve
from serve import engine, plan, probe, table
from serve.engine import Address, Engine
from serve.plan import Served
from tracking import environment, identity, run

# An engine that dies more often than this is not started again.
RESTARTS, WITHIN_SECONDS = 3, 600.0
_WATCH_SECONDS = 1.0


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    served, loaded = chosen(arguments)
    serve = loaded.recipe.serve
    address = Address(serve.host, serve.port)
    asked, key = plan.of(served, serve), plan.key_for(address)
    if arguments.dry_run:
        print(shown(asked, address, key is not None))
        return command.DONE
    if told := plan.memory_problem(asked, environment.available_memory_bytes()):
        raise RecipeError(told)
    vllm = Engine(asked, address, served[0].run.folder / "serve.log", key)
    with stopped_at_the_end(vllm):
        seconds = started(vllm)
        found = [(one, checked(one, vllm.address, key, serve)) for one in served]
        failures = [(one.name, told) for one, here in found for told in here.failures(serve.parity)]
        if failures:
            for name, told in failures:
                print(f"parity    {name}: {told}", file=sys.stderr)
            print("gate      not served: what answers is not what was trained", file=sys.stderr)
            return command.GATE
        print(*ready(served, address, seconds, key is not None), sep="\n", flush=True)
        watch(vllm)
    return command.INTERRUPTED


def chosen(arguments: argparse.Namespace) -> tuple[list[Served], Loaded]:
    """Returns what is to be served, and the first recipe, which says how: where, with which memory, by which floors."""
    names = [arguments.recipe, *(word for word in arguments.set if "=" not in word)]
    overrides = [word for word in arguments.set if "=" in word]
    found: list[Served] = []
    first: Loaded | None = None
    for name in names:
        loaded = identity.named(load(name, overrides, arguments.hardware), run.runs_folder(arguments.runs))
        first = first or loaded
        here = run.find(run.runs_folder(arguments.runs) / loaded.name, arguments.run)
        trained = here.recipe()
        which = loaded.recipe.serve.model
        if "model" not in loaded.recipe.serve.model_fields_set and trained.lora.unservable:
            which = "merged"
        if any(one.name == loaded.name for one in found):
            raise RecipeError(f"{loaded.name} stands there twice; each recipe once")
        found.append(Served(loaded.name, here, trained, which))
        print(f"serve     {loaded.name}: {which} of run {here.id}", file=sys.stderr)
    assert first is not None
    return found, first


def shown(asked: engine.Plan, address: Address, with_key: bool) -> str:
    """Returns the vLLM command as one can type it, with the environment that it needs; a key is not shown."""
    told = engine.settings(asked, "$" + plan.API_KEY if with_key else None)
    variables = [f'{name}="{value}"' if value.startswith("$") else f"{name}={value}" for name, value in told.items()]
    return " ".join([*variables, shlex.join(engine.command(asked, address))])


def started(vllm: Engine, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> float:
    """Starts vLLM and waits for it, with progress. Returns the seconds that it took."""
    from rich.console import Console

    console = Console(stderr=True)
    say(f"vllm      starting {vllm.plan.name}, log {os.path.relpath(vllm.log)}")
    vllm.start()
    with console.status("starting", spinner="dots") as status:

        def show(seconds: float, line: str) -> None:
            room = max(20, console.width - 20)
            status.update(f"{seconds:3.0f} s  {line[:room]}", spinner_style="dim")

        seconds = vllm.wait_ready(show)
    say(f"vllm      up after {seconds:.0f} s")
    return seconds


def checked(served: Served, address: Address, key: str | None, serve: Serve) -> probe.Found:
    """Returns what parity finds of a served model, and says it."""
    probed = probe.of(served, serve.parity.start_rows)
    found = probe.measure(probed, address, key, probe.ways(probed, serve)[:1])
    for line in table.lines(served.name, found):
        print(f"parity    {line}", file=sys.stderr, flush=True)
    return found


def ready(served: Sequence[Served], address: Address, seconds: float, with_key: bool) -> list[str]:
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
    bearer = f' -H "Authorization: Bearer ${plan.API_KEY}"' if with_key else ""
    return [
        f"ready     {where} after {seconds:.0f} s; models {', '.join(one.name for one in served)}",
        f"try       curl -s {where}/chat/completions -H 'Content-Type: application/json'{bearer} "
        f"-d @{os.path.relpath(body)}",
        "stop      Ctrl-C",
    ]


def watch(vllm: Engine) -> None:
    """Returns never: starts the engine again where it dies. Raises StageError where it dies too often."""
    deaths: list[float] = []
    while True:
        time.sleep(_WATCH_SECONDS)
        if vllm.alive() and engine.workers_alive(vllm.pid):
            continue
        deaths = [at for at in deaths if at > time.monotonic() - WITHIN_SECONDS] + [time.monotonic()]
        why = vllm.why()
        vllm.stop()
        if len(deaths) > RESTARTS:
            raise StageError(f"vLLM has died {len(deaths)} times within {WITHIN_SECONDS / 60:.0f} minutes, {why}")
        print(f"vllm      died, {why}\nvllm      starting it again", file=sys.stderr, flush=True)
        print(f"ready     again after {started(vllm):.0f} s", flush=True)


@contextmanager
def stopped_at_the_end(vllm: Engine) -> Iterator[None]:
    """Stops the engine however the block ends; SIGTERM and a lost terminal end it as Ctrl-C does."""
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        print("stop      stopping vLLM", file=sys.stderr, flush=True)
        raise
    finally:
        vllm.stop()
        for one, handler in before.items():
            signal.signal(one, handler)
