"""`python -m deploy.gateway RECIPE ...`: serves what is deployed, on one address, and changes over when that changes.

    clients -> door (key, allow-list, names) -> Unix socket that only this user can open -> vLLM with versioned adapters

A version is loaded beside the one that answers, held to its reference answers, and only then made the one that answers;
the old one is taken out when its last request has ended. One that fails the check is not made current, and the old one
goes on answering. vLLM is started again when it dies, loses a process or sends nothing though it is asked; meanwhile
the door answers 503 with Retry-After.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from aiohttp import ClientError

from deploy import registry
from deploy.gateway import http_server, keys, proxy
from deploy.gateway.control_loop import POLL_SECONDS, serve_forever
from deploy.gateway.deployments import Deployments
from deploy.gateway.versions import find_incompatibility, iter_candidates, load_version, plan_backend
from deploy.monitoring.monitor import Monitor
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import describe_precedence, load
from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from insource.tracking import folder_ownership
from serve import server
from serve.parity import reference_check
from serve.vllm import client, launch_plan, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess

PROBE_SECONDS = 5.0
"""vLLM that has sent nothing for so long is asked for one token."""
LOAD_TIMEOUT_FACTOR = 10
"""How much longer than hang_seconds an answer may take while a version is loaded: its reference rows queue up."""
STOP_SECONDS = 3.0
"""For vLLM to end, until it is killed."""


class EngineUnresponsiveError(Exception):
    """vLLM answers nothing, whatever it is asked."""


class Gateway:
    """The door, the engine behind it, and which version of each model is loaded there."""

    def __init__(
        self,
        places: Sequence[Path],
        vllm: VllmProcess,
        door: proxy.ProxyState,
        parity: float,
        hang_seconds: float = 60.0,
        recipes: Mapping[str, Recipe] = MappingProxyType({}),
    ) -> None:
        self.places, self.vllm, self.door, self.parity, self.hang_seconds = places, vllm, door, parity, hang_seconds
        self.deployments = Deployments(door, recipes)
        self.loaded: dict[str, set[str]] = {place.name: set() for place in places}
        self.refused: set[tuple[str, str]] = set()
        self._deployed_at: dict[str, int] = {}
        self._announced = False
        self._said = ""
        self._ended_workers: set[int] = set()
        self._probe: asyncio.Task[bool] | None = None
        self._silent_since: float | None = None

    async def change_over(self) -> None:
        """Makes every model answer with the version that its registry folder says, one after the other."""
        for place in self.places:
            while wanted := await run_in_thread(self.wanted, place):
                began = time.monotonic()
                try:
                    agreement = await self.load(place, wanted)
                    deployed = await self.deployments.load(place, wanted)
                except EngineUnresponsiveError as error:
                    # No fault of the version: it is loaded when vLLM answers again.
                    self.say_once(f"vllm      broke off while {place.name}@{wanted} was loaded: {error}")
                    return
                except (StageError, RecipeError) as error:
                    self.refuse(place, wanted, error)
                    continue
                told = "again    " if self.door.versions.get(place.name) == wanted else "current  "
                self.deployments.put(place, wanted, deployed)
                seconds = time.monotonic() - began
                log_line(
                    f"{told} {place.name}@{wanted}: {agreement:.1%} of its reference answers, after {seconds:.1f} s"
                )
            await self.deployments.refresh(place)

    def wanted(self, place: Path) -> str | None:
        """Returns the version that is to be loaded next, None where the one that answers is right: after a restart of
        vLLM the one that answered, then the current version, or where that was refused and nothing answers, the one
        that was deployed before it."""
        answering, current = self.door.versions.get(place.name), registry.current_version(place)
        if (deployed := registry.deployed_at(place)) != self._deployed_at.get(place.name):
            # What was refused is looked at again where it is deployed again.
            self._deployed_at[place.name] = deployed
            self.refused.discard((place.name, str(current)))
        refused = {version for name, version in self.refused if name == place.name}
        if answering and answering not in self.loaded[place.name]:
            return answering
        if answering:
            return current if current not in {None, answering, *refused} else None
        return next(iter_candidates(place, refused), None)

    def refuse(self, place: Path, version: str, error: Exception) -> None:
        """Sets a version aside, and says so once."""
        self.refused.add((place.name, version))
        if self.door.versions.get(place.name) == version:
            self.deployments.remove(place.name)  # it answered until vLLM was started again
        stays = self.door.versions.get(place.name)
        log_line(f"refused   {place.name}@{version}: {error}; {f'{stays} goes on' if stays else 'nothing answers'}")

    async def load(self, place: Path, version: str) -> float:
        """Loads a version beside the others. Returns the share of its reference answers that vLLM gives.

        Raises RecipeError where it cannot be served, StageError where vLLM does not load it or answers otherwise, and
        BrokeOffError where vLLM answers nothing any more.
        """
        served = await run_in_thread(load_version, place, version)
        if told := await run_in_thread(find_incompatibility, self.vllm.plan, served):
            raise RecipeError(told)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_FACTOR * self.hang_seconds):
                agreement = await self._loaded(served, version)
        except (ClientError, TimeoutError) as error:
            raise EngineUnresponsiveError(type(error).__name__) from None
        except StageError as error:
            # A refusal of one version is its own, if another one is answered.
            if not await self.answers():
                raise EngineUnresponsiveError(str(error)) from None
            raise
        floor = (
            self.parity
            if launch_plan.has_trained_weights(served, self.vllm.plan.serve)
            else reference_check.MIN_AGREEMENT_OTHER_WEIGHTS
        )
        if agreement < floor:
            raise StageError(
                f"vLLM gives {agreement:.1%} of its reference answers, and at least {floor:.1%} are due "
                "(serve.parity.same_weights)"
            )
        return agreement

    async def _loaded(self, served: ServedModel, version: str) -> float:
        name = f"{served.name}@{version}"
        async with client.open_session(self.vllm.address) as asking:
            if version not in self.loaded[served.name]:
                await client.load_adapter(asking, name, str(served.folder))
                self.loaded[served.name].add(version)
            if told := await run_in_thread(reference_check.find_prompt_mismatch, served, name, self.vllm.address):
                raise StageError(f"vLLM reads other token ids for its prompts than were trained on, {told}")
            rounding = launch_plan.rounding_tolerance(served, self.vllm.plan.serve)
            return await run_in_thread(_measure_agreement, served, name, self.vllm.address, rounding)

    async def tidy(self) -> None:
        """Takes out versions that answer no more, once nothing is on its way to them."""
        await self.deployments.tidy()
        async with client.open_session(self.vllm.address, read_seconds=self.hang_seconds) as asking:
            for name, versions in self.loaded.items():
                for version in versions - {self.door.versions.get(name)}:
                    if self.door.on_their_way[f"{name}@{version}"]:
                        continue
                    try:
                        await client.unload_adapter(asking, f"{name}@{version}")
                    except (ClientError, TimeoutError):
                        return
                    except StageError as error:
                        log_line(f"stays     {name}@{version}: {error}")
                    else:
                        log_line(f"drained   {name}@{version}")
                    versions.discard(version)

    async def follow(self, address: Address) -> None:
        """Follows the registry and the file of keys, for ever. Raises StageError where at first nothing is served."""
        while True:
            await self.change_over()
            if self.door.versions and self.door.engine is None and not self._not_loaded():
                self.open()
                if not self._announced:
                    print(f"ready     {address}/v1; models {', '.join(self.door.versions)}", flush=True)
                    self._announced = True
            elif not self._announced and not self._said:
                raise StageError("no deployed version can be served")
            await self.tidy()
            if told := await run_in_thread(self.door.keys.refresh):
                log_line(f"keys      {told}")
            await asyncio.sleep(POLL_SECONDS)

    def _not_loaded(self) -> list[str]:
        """Names of models whose version vLLM does not have."""
        return [name for name, of in self.door.versions.items() if name in self.loaded and of not in self.loaded[name]]

    def open(self) -> None:
        """Lets requests pass to vLLM."""
        self.door.engine = client.open_session(self.vllm.address, at_once=self.door.limits.requests)
        self.door.answers, self._silent_since, self._said = True, None, ""
        self.door.heard()

    async def failure(self) -> str | None:
        """Returns why vLLM has to be started again, None where it has not: its process or one of its children has
        ended, or it sends nothing though it is asked. Closes the door while it is silent."""
        if not await run_in_thread(self.vllm.alive):
            return f"died, {await run_in_thread(self.vllm.why)}"
        # A child that ends as it should is there for a moment until it is asked for; twice is no moment.
        before, self._ended_workers = (
            self._ended_workers,
            await run_in_thread(server_process.find_dead_children, self.vllm.pid),
        )
        if before & self._ended_workers:
            return f"died, a process that it started has ended, {await run_in_thread(self.vllm.why)}"
        silent = self._silence()
        self.door.answers = silent < self.hang_seconds / 2
        if silent >= self.hang_seconds:
            return f"hangs: it was asked and has sent nothing for {silent:.0f} s (serve.hang_seconds)"
        return None

    def _silence(self) -> float:
        """Seconds since vLLM was asked without sending anything."""
        now, heard = time.monotonic(), self.door.heard_at
        if self._silent_since is not None and heard >= self._silent_since:
            self._silent_since = None
        if now - heard > PROBE_SECONDS and (self._probe is None or self._probe.done()):
            self._silent_since = self._silent_since or now
            self._probe = asyncio.create_task(self.answers())
        return now - self._silent_since if self._silent_since else 0.0

    async def answers(self) -> bool:
        """Returns whether vLLM gives a token within hang_seconds. Its wire answers `GET /health` although nothing
        computes any more behind it."""
        there = self.door.versions.keys() - self._not_loaded()
        names = [f"{name}@{self.door.versions[name]}" for name in there] or [self.vllm.plan.name]
        body = {"model": names[0], "prompt": "a", "max_tokens": 1}
        try:
            async with (
                asyncio.timeout(self.hang_seconds),
                client.open_session(self.vllm.address) as asking,
                asking.post("/v1/completions", json=body) as answer,
            ):
                await answer.read()
        except (ClientError, TimeoutError):
            return False
        if answer.status < 500:
            self.door.heard()
        return answer.status < 500

    async def revive(self, why: str) -> None:
        """Starts vLLM again. Raises StageError where it does not come up."""
        log_line(f"vllm      {why}")
        await self.close()
        await run_in_thread(self.vllm.stop)
        await self.up()

    async def close(self) -> None:
        """Lets nothing pass to vLLM; requests that are with it break off."""
        asking, self.door.engine = self.door.engine, None
        if self._probe:
            self._probe.cancel()
        if asking:
            await asking.close()

    async def up(self) -> None:
        """Starts vLLM, which `follow` loads and opens. Raises StageError where it does not come up."""
        self.loaded, self._ended_workers = {place.name: set() for place in self.places}, set()
        self.vllm.start()  # in this thread, the main one: the process ends with the thread that started it
        seconds = await run_in_thread(self.vllm.wait_ready)
        log_line(f"vllm      up after {seconds:.0f} s")
        self._silent_since = None
        self.door.heard()

    def say_once(self, line: str) -> None:
        """Says a line unless it was the last one that was said so, and vLLM has not been up since."""
        if line != self._said:
            self._said = line
            log_line(line)


def _measure_agreement(served: ServedModel, name: str, address: Address, rounding: float) -> float:
    """Share of its reference answers that vLLM gives. Raises StageError where they cannot be read."""
    try:
        return reference_check.measure_agreement(served, name, address, rounding=rounding)
    except ClientError:
        raise
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise StageError(f"its reference answers cannot be read: {type(error).__name__}: {error}") from None


def main() -> int:
    parser = cli.build_parser("deploy.gateway", "Serve what is deployed, on one address, without a gap at a change.")
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    arguments = parser.parse_intermixed_args()
    names = [arguments.recipe, *(word for word in arguments.set if "=" not in word)]
    overrides = [word for word in arguments.set if "=" in word]
    folder = registry.registry_root(arguments.registry)
    loaded = [folder_ownership.resolve_name(load(name, overrides, arguments.hardware), folder) for name in names]
    print("\n".join(describe_precedence(loaded[0])), file=sys.stderr)
    places = [folder / one.name for one in loaded]
    serve = loaded[0].recipe.serve
    address = Address(serve.host, serve.port)
    asked = plan_backend(places, serve)
    if arguments.dry_run:
        print(server.shell_command(asked, Address(socket=Path("vllm.sock")), with_key=False))
        return cli.OK
    valid = keys.load_keys(address, serve.loopback_without_key)
    door = proxy.ProxyState(valid, serve.limits, tuple(place.name for place in places), Monitor(folder))
    server_process.check_port_free(serve.host, serve.port)
    with tempfile.TemporaryDirectory(prefix="insource-") as private:  # readable by this user alone
        vllm = VllmProcess(
            asked, Address(socket=Path(private) / "vllm.sock"), folder / "vllm.log", stop_seconds=STOP_SECONDS
        )
        recipes = {place.name: one.recipe for place, one in zip(places, loaded, strict=True)}
        gateway = Gateway(places, vllm, door, serve.parity.same_weights, serve.hang_seconds, recipes)
        try:
            with http_server.open_access_log(folder / "access.jsonl") as access:
                asyncio.run(serve_forever(gateway, address, access))
        finally:
            vllm.stop()
    return cli.INTERRUPTED


if __name__ == "__main__":
    cli.run_cli(main)
