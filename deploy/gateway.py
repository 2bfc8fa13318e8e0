"""`python -m deploy.gateway RECIPE ...`: serves what is deployed, on one address, and changes over when that changes.

    clients -> door (key, allow-list, names) -> Unix socket that only this user can open -> vLLM with versioned adapters

A version is loaded beside the one that answers, held to its reference answers, and only then made the one that answers;
the old one is taken out when its last request has ended. One that fails the check is not made current, and the old one
goes on answering. vLLM is started again when it dies; meanwhile the door answers 503 with Retry-After.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from deploy import proxy, registry
from recipes import command
from recipes.errors import RecipeError, StageError
from recipes.load import load, precedence
from recipes.schema_verdict import Serve
from serve import engine, plan, recall, servable, stay, wire
from serve.engine import Address, Engine
from serve.plan import Served
from tracking import identity
from tracking.run import Run

POLL_SECONDS = 0.5
LEAST_RANK = 64
"""Later versions may have larger ranks than the first one; a larger one than this asks for a restart."""


class Gateway:
    """The door, the engine behind it, and which version of each model is loaded there."""

    def __init__(self, places: Sequence[Path], vllm: Engine, door: proxy.Door, parity: float) -> None:
        self.places, self.vllm, self.door, self.parity = places, vllm, door, parity
        self.loaded: dict[str, set[str]] = {place.name: set() for place in places}
        self.refused: set[tuple[str, str]] = set()

    async def change_over(self) -> None:
        """Makes every model answer with the version that its registry folder says, one after the other."""
        for place in self.places:
            wanted = registry.current(place)
            if wanted is None or wanted == self.door.versions.get(place.name) or (place.name, wanted) in self.refused:
                continue
            try:
                began = time.monotonic()
                agreement = await self.load(place, wanted)
            except (StageError, RecipeError) as error:
                self.refused.add((place.name, wanted))
                stays = self.door.versions.get(place.name)
                say(f"refused   {place.name}@{wanted}: {error}; {f'{stays} goes on' if stays else 'nothing answers'}")
                continue
            self.door.versions[place.name] = wanted
            seconds = time.monotonic() - began
            say(f"current   {place.name}@{wanted}: {agreement:.1%} of its reference answers, after {seconds:.1f} s")

    async def load(self, place: Path, version: str) -> float:
        """Loads a version beside the others. Returns the share of its reference answers that vLLM gives.

        Raises RecipeError where it cannot be served, StageError where vLLM does not load it or answers otherwise.
        """
        served = of_version(place, version)
        if told := not_beside(self.vllm.plan, served):
            raise RecipeError(told)
        name = f"{place.name}@{version}"
        async with wire.session(self.vllm.address) as asking:
            if version not in self.loaded[place.name]:
                await wire.load_adapter(asking, name, str(served.folder))
                self.loaded[place.name].add(version)
            agreement = await asyncio.to_thread(recall.agreement, served, name, self.vllm.address)
            floor = self.parity if plan.same_weights(served, self.vllm.plan.serve) else recall.OTHER_WEIGHTS
            if agreement < floor:
                await wire.unload_adapter(asking, name)
                self.loaded[place.name].discard(version)
                raise StageError(
                    f"vLLM gives {agreement:.1%} of its reference answers, and at least {floor:.1%} are due "
                    "(serve.parity.same_weights)"
                )
        return agreement

    async def tidy(self) -> None:
        """Takes out versions that answer no more, once nothing is on its way to them."""
        async with wire.session(self.vllm.address) as asking:
            for name, versions in self.loaded.items():
                for version in versions - {self.door.versions.get(name)}:
                    if self.door.on_their_way[f"{name}@{version}"] == 0:
                        await wire.unload_adapter(asking, f"{name}@{version}")
                        versions.discard(version)
                        say(f"drained   {name}@{version}")

    async def revive(self) -> None:
        """Starts vLLM again after it has died, with the versions that answered."""
        asking, self.door.engine = self.door.engine, None
        if asking:
            await asking.close()
        say(f"vllm      died, {self.vllm.why()}")
        await asyncio.to_thread(self.vllm.stop)
        await self.up()

    async def up(self) -> None:
        """Starts vLLM and opens the door to it. Raises StageError where it does not come up."""
        answering = dict(self.door.versions)
        self.loaded = {place.name: set() for place in self.places}
        self.vllm.start()  # in this thread, the main one: the process ends with the thread that started it
        seconds = await asyncio.to_thread(self.vllm.wait_ready)
        say(f"vllm      up after {seconds:.0f} s")
        for place in self.places:
            if version := answering.get(place.name):
                await self.load(place, version)
        self.door.engine = wire.session(self.vllm.address, at_once=0)


def main() -> int:
    parser = command.parser("deploy.gateway", "Serve what is deployed, on one address, without a gap at a change.")
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    arguments = parser.parse_intermixed_args()
    names = [arguments.recipe, *(word for word in arguments.set if "=" not in word)]
    overrides = [word for word in arguments.set if "=" in word]
    deployed = registry.folder(arguments.registry)
    loaded = [identity.named(load(name, overrides, arguments.hardware), deployed) for name in names]
    print("\n".join(precedence(loaded[0])), file=sys.stderr)
    places = [deployed / one.name for one in loaded]
    serve = loaded[0].recipe.serve
    address = Address(serve.host, serve.port)
    key = plan.key_for(address)
    asked = behind(places, serve)
    if arguments.dry_run:
        print(stay.shown(asked, Address(socket=Path("vllm.sock")), with_key=False))
        return command.DONE
    engine.check_free(serve.host, serve.port)
    with tempfile.TemporaryDirectory(prefix="insource-") as private:  # readable by this user alone
        vllm = Engine(asked, Address(socket=Path(private) / "vllm.sock"), log_file(arguments))
        gateway = Gateway(places, vllm, proxy.Door(key), serve.parity.same_weights)
        try:
            asyncio.run(serving(gateway, address))
        finally:
            vllm.stop()
    return command.INTERRUPTED


def log_file(arguments: argparse.Namespace) -> Path:
    """Returns where vLLM's log goes."""
    return registry.folder(arguments.registry) / "vllm.log"


def behind(places: Sequence[Path], serve: Serve) -> engine.Plan:
    """Returns the plan of the vLLM behind the door. Raises RecipeError where what is deployed cannot be served."""
    served = []
    for place in places:
        version = registry.current(place)
        if version is None:
            raise RecipeError(f"nothing is deployed below {place}; `make deploy RECIPE={place.name}` deploys")
        served.append(of_version(place, version))
    found = plan.of(served, serve)
    rank = max(LEAST_RANK, found.max_lora_rank)
    # At a change the old and the new version of a model are there together.
    return replace(found, adapters={}, max_lora_rank=rank, runtime_adapters=2 * len(places))


def of_version(place: Path, version: str) -> Served:
    """Returns a deployed version as what is served. Raises RecipeError where it is not whole."""
    there = Run(place / "versions" / version)
    if not registry.whole(there.folder):
        raise RecipeError(f"version {version} below {place} is not whole")
    return Served(place.name, there, there.recipe(), "adapter")


def not_beside(running: engine.Plan, served: Served) -> str | None:
    """Returns why a version cannot be loaded into the vLLM that runs, None where it can."""
    if told := plan.adapter_problems(served, running.serve):
        return "; ".join(told)
    model, _ = plan.base_of(served, running.serve)
    if model != running.model:
        return f"its base is {model}, and {running.model} is served; start the gateway again"
    if (rank := servable.max_lora_rank({served.name: served.folder})) > running.max_lora_rank:
        return f"its rank needs {rank}, and vLLM was started for {running.max_lora_rank}; start the gateway again"
    return None


async def serving(gateway: Gateway, address: Address) -> None:
    """Serves until it is told to stop."""
    from aiohttp import web

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(proxy.application(gateway.door), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address.host, address.port).start()
    watching = asyncio.create_task(watched(gateway, address))
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        say("stop      answering what is on its way, then stopping vLLM")
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await runner.cleanup()
        if gateway.door.engine:
            await gateway.door.engine.close()


async def watched(gateway: Gateway, address: Address) -> None:
    """Brings up what is deployed, then follows the registry and keeps vLLM alive. Raises StageError where it dies too
    often."""
    await gateway.up()
    await gateway.change_over()
    if not gateway.door.versions:
        raise StageError("no deployed version can be served")
    print(f"ready     {address}/v1; models {', '.join(gateway.door.versions)}", flush=True)
    deaths: list[float] = []
    while True:
        await asyncio.sleep(POLL_SECONDS)
        if not gateway.vllm.alive() or not engine.workers_alive(gateway.vllm.pid):
            now = time.monotonic()
            deaths = [at for at in deaths if at > now - stay.WITHIN_SECONDS] + [now]
            if len(deaths) > stay.RESTARTS:
                raise StageError(f"vLLM has died {len(deaths)} times, {gateway.vllm.why()}")
            await gateway.revive()
        await gateway.change_over()
        await gateway.tidy()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
