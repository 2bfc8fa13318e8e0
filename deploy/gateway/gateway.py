"""The gateway: load, check, activate and unload versions; probe and restart vLLM."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from aiohttp import ClientError

from deploy import registry
from deploy.gateway.deployments import Deployments
from deploy.gateway.proxy_state import ProxyState
from deploy.gateway.versions import find_incompatibility, iter_candidates, load_version
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from serve.parity import reference_check
from serve.vllm import client, launch_plan, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess

POLL_SECONDS = 0.5
PROBE_SECONDS = 5.0
"""Seconds without data from vLLM after which it gets a request for one token."""
LOAD_TIMEOUT_FACTOR = 10
"""Timeout factor on hang_seconds while a version is loaded: its reference rows wait in the queue."""


class EngineUnresponsiveError(Exception):
    """vLLM does not answer any request."""


class Gateway:
    """The proxy, the vLLM behind it, and the loaded versions of each model."""

    def __init__(
        self,
        registry_dirs: Sequence[Path],
        vllm: VllmProcess,
        proxy_state: ProxyState,
        min_agreement: float,
        hang_seconds: float = 60.0,
        recipes: Mapping[str, Recipe] = MappingProxyType({}),
    ) -> None:
        self.places = registry_dirs
        self.vllm = vllm
        self.door = proxy_state
        self.parity = min_agreement
        self.hang_seconds = hang_seconds
        self.deployments = Deployments(proxy_state, recipes)
        self.loaded: dict[str, set[str]] = {registry_dir.name: set() for registry_dir in registry_dirs}
        self.refused: set[tuple[str, str]] = set()
        self._deployed_at: dict[str, int] = {}
        self._announced = False
        self._said = ""
        self._ended_workers: set[int] = set()
        self._probe: asyncio.Task[bool] | None = None
        self._silent_since: float | None = None

    async def change_over(self) -> None:
        """Activate the version in the registry for every model, one model after the other."""
        for registry_dir in self.places:
            while version := await run_in_thread(self.wanted, registry_dir):
                started_at = time.monotonic()
                try:
                    agreement = await self.load(registry_dir, version)
                    deployment = await self.deployments.load(registry_dir, version)
                except EngineUnresponsiveError as error:
                    # Not a fault of the version: it is loaded when vLLM answers again.
                    self.say_once(f"vllm      broke off while {registry_dir.name}@{version} was loaded: {error}")
                    return
                except (StageError, RecipeError) as error:
                    self.refuse(registry_dir, version, error)
                    continue
                label = "again    " if self.door.versions.get(registry_dir.name) == version else "current  "
                self.deployments.put(registry_dir, version, deployment)
                seconds = time.monotonic() - started_at
                log_line(
                    f"{label} {registry_dir.name}@{version}: {agreement:.1%} of its reference answers, after "
                    f"{seconds:.1f} s"
                )
            await self.deployments.refresh(registry_dir)

    def wanted(self, registry_dir: Path) -> str | None:
        """Return the version to load next, None if the active one is right.

        After a restart of vLLM it is the active version, otherwise the current version of the registry. If that was
        rejected and no version is active, it is the one deployed before.
        """
        answering, current = self.door.versions.get(registry_dir.name), registry.current_version(registry_dir)
        if (deployed_at := registry.deployed_at(registry_dir)) != self._deployed_at.get(registry_dir.name):
            # A rejected version is tried again when it is deployed again.
            self._deployed_at[registry_dir.name] = deployed_at
            self.refused.discard((registry_dir.name, str(current)))
        rejected = {version for name, version in self.refused if name == registry_dir.name}
        if answering and answering not in self.loaded[registry_dir.name]:
            return answering
        if answering:
            return current if current not in {None, answering, *rejected} else None
        return next(iter_candidates(registry_dir, rejected), None)

    def refuse(self, registry_dir: Path, version: str, error: Exception) -> None:
        """Mark a version as rejected and log it once."""
        self.refused.add((registry_dir.name, version))
        if self.door.versions.get(registry_dir.name) == version:
            self.deployments.remove(registry_dir.name)  # it was active until vLLM was restarted
        active = self.door.versions.get(registry_dir.name)
        log_line(
            f"refused   {registry_dir.name}@{version}: {error}; {f'{active} goes on' if active else 'nothing answers'}"
        )

    async def load(self, registry_dir: Path, version: str) -> float:
        """Load a version while others are loaded. Return the fraction of its reference answers that vLLM gives.

        Raise RecipeError if it cannot be served, StageError if vLLM does not load it or its answers differ, and
        EngineUnresponsiveError if vLLM no longer answers.
        """
        served = await run_in_thread(load_version, registry_dir, version)
        if problem := await run_in_thread(find_incompatibility, self.vllm.plan, served):
            raise RecipeError(problem)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_FACTOR * self.hang_seconds):
                agreement = await self._loaded(served, version)
        except (ClientError, TimeoutError) as error:
            raise EngineUnresponsiveError(type(error).__name__) from None
        except StageError as error:
            # A rejection is the version's own fault only if vLLM answers other requests.
            if not await self.answers():
                raise EngineUnresponsiveError(str(error)) from None
            raise
        min_agreement = (
            self.parity
            if launch_plan.has_trained_weights(served, self.vllm.plan.serve)
            else reference_check.MIN_AGREEMENT_OTHER_WEIGHTS
        )
        if agreement < min_agreement:
            raise StageError(
                f"vLLM gives {agreement:.1%} of its reference answers, and at least {min_agreement:.1%} are due "
                "(serve.parity.same_weights)"
            )
        return agreement

    async def _loaded(self, served: ServedModel, version: str) -> float:
        name = f"{served.name}@{version}"
        async with client.open_session(self.vllm.address) as session:
            if version not in self.loaded[served.name]:
                await client.load_adapter(session, name, str(served.folder))
                self.loaded[served.name].add(version)
            if mismatch := await run_in_thread(reference_check.find_prompt_mismatch, served, name, self.vllm.address):
                raise StageError(f"vLLM reads other token ids for its prompts than were trained on, {mismatch}")
            rounding = launch_plan.rounding_tolerance(served, self.vllm.plan.serve)
            return await run_in_thread(_measure_agreement, served, name, self.vllm.address, rounding)

    async def tidy(self) -> None:
        """Unload versions that are no longer active, once they have no requests in flight."""
        await self.deployments.tidy()
        async with client.open_session(self.vllm.address, read_seconds=self.hang_seconds) as session:
            for name, versions in self.loaded.items():
                for version in versions - {self.door.versions.get(name)}:
                    if self.door.on_their_way[f"{name}@{version}"]:
                        continue
                    try:
                        await client.unload_adapter(session, f"{name}@{version}")
                    except (ClientError, TimeoutError):
                        return
                    except StageError as error:
                        log_line(f"stays     {name}@{version}: {error}")
                    else:
                        log_line(f"drained   {name}@{version}")
                    versions.discard(version)

    async def follow(self, address: Address) -> None:
        """Follow the registry and the key file forever. Raise StageError if no version can be served at first."""
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
            if message := await run_in_thread(self.door.keys.refresh):
                log_line(f"keys      {message}")
            await asyncio.sleep(POLL_SECONDS)

    def _not_loaded(self) -> list[str]:
        """Return the models whose active version is not loaded in vLLM."""
        return [
            name
            for name, version in self.door.versions.items()
            if name in self.loaded and version not in self.loaded[name]
        ]

    def open(self) -> None:
        """Start forwarding requests to vLLM."""
        self.door.engine = client.open_session(self.vllm.address, max_connections=self.door.limits.requests)
        self.door.answers, self._silent_since, self._said = True, None, ""
        self.door.heard()

    async def failure(self) -> str | None:
        """Return why vLLM must be restarted, None if it need not be.

        Reasons: the process or a child of it ended, or it sends nothing despite a request. While vLLM is silent the
        gateway is not ready.
        """
        if not await run_in_thread(self.vllm.alive):
            return f"died, {await run_in_thread(self.vllm.why)}"
        # A child that ends normally is a zombie until its parent reaps it. Only one seen in two successive checks has
        # died.
        previous, self._ended_workers = (
            self._ended_workers,
            await run_in_thread(server_process.find_dead_children, self.vllm.pid),
        )
        if previous & self._ended_workers:
            return f"died, a process that it started has ended, {await run_in_thread(self.vllm.why)}"
        silent_seconds = self._silence()
        self.door.answers = silent_seconds < self.hang_seconds / 2
        if silent_seconds >= self.hang_seconds:
            return f"hangs: it was asked and has sent nothing for {silent_seconds:.0f} s (serve.hang_seconds)"
        return None

    def _silence(self) -> float:
        """Return the seconds since a probe without data from vLLM. Start a probe if one is due."""
        now, last_data_at = time.monotonic(), self.door.heard_at
        if self._silent_since is not None and last_data_at >= self._silent_since:
            self._silent_since = None
        if now - last_data_at > PROBE_SECONDS and (self._probe is None or self._probe.done()):
            self._silent_since = self._silent_since or now
            self._probe = asyncio.create_task(self.answers())
        return now - self._silent_since if self._silent_since else 0.0

    async def answers(self) -> bool:
        """Return whether vLLM produces a token within hang_seconds.

        Its HTTP server answers `GET /health` although the engine computes nothing.
        """
        available = self.door.versions.keys() - self._not_loaded()
        names = [f"{name}@{self.door.versions[name]}" for name in available] or [self.vllm.plan.name]
        body = {"model": names[0], "prompt": "a", "max_tokens": 1}
        try:
            async with (
                asyncio.timeout(self.hang_seconds),
                client.open_session(self.vllm.address) as session,
                session.post("/v1/completions", json=body) as response,
            ):
                await response.read()
        except (ClientError, TimeoutError):
            return False
        if response.status < 500:
            self.door.heard()
        return response.status < 500

    async def revive(self, reason: str) -> None:
        """Restart vLLM. Raise StageError if it does not become ready."""
        log_line(f"vllm      {reason}")
        await self.close()
        await run_in_thread(self.vllm.stop)
        await self.up()

    async def close(self) -> None:
        """Stop forwarding requests to vLLM. Requests in flight are aborted."""
        session, self.door.engine = self.door.engine, None
        if self._probe:
            self._probe.cancel()
        if session:
            await session.close()

    async def up(self) -> None:
        """Start vLLM without adapters; `follow_registry` loads them. Raise StageError if it does not become ready."""
        self.loaded, self._ended_workers = {registry_dir.name: set() for registry_dir in self.places}, set()
        self.vllm.start()  # in the main thread: vLLM is killed when the thread that started it ends
        seconds = await run_in_thread(self.vllm.wait_ready)
        log_line(f"vllm      up after {seconds:.0f} s")
        self._silent_since = None
        self.door.heard()

    def say_once(self, line: str) -> None:
        """Log a line unless it was the last one logged here since vLLM was ready."""
        if line != self._said:
            self._said = line
            log_line(line)


def _measure_agreement(served: ServedModel, name: str, address: Address, rounding: float) -> float:
    """Return the fraction of a version's reference answers that vLLM gives. Raise StageError if they cannot be read."""
    try:
        return reference_check.measure_agreement(served, name, address, rounding=rounding)
    except ClientError:
        raise
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise StageError(f"its reference answers cannot be read: {type(error).__name__}: {error}") from None
