"""The gateway: load, check, activate and unload versions; probe and restart vLLM."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from aiohttp import ClientError, ClientSession

from deploy import registry
from deploy.gateway.deployments import Deployments
from deploy.gateway.proxy_state import ProxyState
from deploy.gateway.versions import find_incompatibility, iter_candidates, load_version
from insource.config.errors import CodedError, RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from serve.parity import reference_check
from serve.vllm import client, launch_plan
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
        self.registry_dirs = registry_dirs
        self.vllm = vllm
        self.proxy_state = proxy_state
        self.min_agreement = min_agreement
        self.hang_seconds = hang_seconds
        self.deployments = Deployments(proxy_state, recipes)
        self.loaded_versions: dict[str, set[str]] = {registry_dir.name: set() for registry_dir in registry_dirs}
        self.rejected: set[tuple[str, str]] = set()
        self._deployed_at: dict[str, int] = {}
        self._announced = False
        self._last_logged = ""
        self._probe: asyncio.Task[bool] | None = None
        self._silent_since: float | None = None

    async def reconcile(self) -> None:
        """Activate the version in the registry for every model, one model after the other."""
        for registry_dir in self.registry_dirs:
            while version := await run_in_thread(self.next_version, registry_dir):
                started_at = time.monotonic()
                try:
                    agreement = await self.load(registry_dir, version)
                    deployment = await self.deployments.load(registry_dir, version)
                except EngineUnresponsiveError as error:
                    # Not a fault of the version: it is loaded when vLLM answers again.
                    self.log_once(f"vllm      broke off while {registry_dir.name}@{version} was loaded: {error}")
                    return
                except (StageError, RecipeError) as error:
                    self.reject(registry_dir, version, error)
                    continue
                label = "again    " if self.proxy_state.versions.get(registry_dir.name) == version else "current  "
                self.deployments.activate(registry_dir, version, deployment)
                seconds = time.monotonic() - started_at
                log_line(
                    f"{label} {registry_dir.name}@{version}: {agreement:.1%} of its reference answers, after "
                    f"{seconds:.1f} s"
                )
            await self.deployments.refresh(registry_dir)

    def next_version(self, registry_dir: Path) -> str | None:
        """Return the version to load next, None if the active one is right.

        After a restart of vLLM it is the active version, otherwise the current version of the registry. If that was
        rejected and no version is active, it is the one deployed before.
        """
        active, current = self.proxy_state.versions.get(registry_dir.name), registry.current_version(registry_dir)
        if (deployed_at := registry.deployed_at(registry_dir)) != self._deployed_at.get(registry_dir.name):
            # A rejected version is tried again when it is deployed again.
            self._deployed_at[registry_dir.name] = deployed_at
            self.rejected.discard((registry_dir.name, str(current)))
        rejected = {version for name, version in self.rejected if name == registry_dir.name}
        if active and active not in self.loaded_versions[registry_dir.name]:
            return active
        if active:
            return current if current not in {None, active, *rejected} else None
        return next(iter_candidates(registry_dir, rejected), None)

    def reject(self, registry_dir: Path, version: str, error: CodedError) -> None:
        """Mark a version as rejected and log it once."""
        self.rejected.add((registry_dir.name, version))
        if self.proxy_state.versions.get(registry_dir.name) == version:
            self.deployments.deactivate(registry_dir.name)  # it was active until vLLM was restarted
        active = self.proxy_state.versions.get(registry_dir.name)
        log_line(
            f"refused   {registry_dir.name}@{version}: {error.message_with_code}; "
            f"{f'{active} goes on' if active else 'nothing answers'}"
        )

    async def load(self, registry_dir: Path, version: str) -> float:
        """Load a version while others are loaded. Return the fraction of its reference answers that vLLM gives.

        Raise RecipeError if it cannot be served, StageError if vLLM does not load it or its answers differ, and
        EngineUnresponsiveError if vLLM no longer answers.
        """
        served = await run_in_thread(load_version, registry_dir, version)
        if problem := await run_in_thread(find_incompatibility, self.vllm.plan, served):
            raise RecipeError(problem, code="INS-G004")
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_FACTOR * self.hang_seconds):
                agreement = await self._load_and_check(served, version)
        except (ClientError, TimeoutError) as error:
            raise EngineUnresponsiveError(type(error).__name__) from None
        except StageError as error:
            # A rejection is the version's own fault only if vLLM answers other requests.
            if not await self.probe_engine():
                raise EngineUnresponsiveError(str(error)) from None
            raise
        same_weights = launch_plan.has_trained_weights(served, self.vllm.plan.serve)
        min_agreement = self.min_agreement if same_weights else reference_check.MIN_AGREEMENT_OTHER_WEIGHTS
        if agreement < min_agreement:
            raise StageError(
                f"vLLM gives {agreement:.1%} of its reference answers, and at least {min_agreement:.1%} are required "
                "(serve.parity.same_weights)",
                code="INS-G005",
            )
        return agreement

    async def _load_and_check(self, served: ServedModel, version: str) -> float:
        name = f"{served.name}@{version}"
        async with client.open_session(self.vllm.address) as session:
            if version not in self.loaded_versions[served.name]:
                await client.load_adapter(session, name, str(served.folder))
                self.loaded_versions[served.name].add(version)
            if mismatch := await reference_check.find_prompt_mismatch(session, served, name):
                raise StageError(f"vLLM builds other prompt token ids than training, {mismatch}", code="INS-E008")
            rounding = launch_plan.rounding_tolerance(served, self.vllm.plan.serve)
            return await _measure_agreement(session, served, name, rounding)

    async def unload_old_versions(self) -> None:
        """Unload versions that are no longer active, once they have no requests in flight."""
        await self.deployments.close_retired()
        async with client.open_session(self.vllm.address, read_seconds=self.hang_seconds) as session:
            for name, versions in self.loaded_versions.items():
                for version in versions - {self.proxy_state.versions.get(name)}:
                    if self.proxy_state.in_flight[f"{name}@{version}"]:
                        continue
                    try:
                        await client.unload_adapter(session, f"{name}@{version}")
                    except (ClientError, TimeoutError):
                        return
                    except StageError as error:
                        log_line(f"stays     {name}@{version}: {error.message_with_code}")
                    else:
                        log_line(f"drained   {name}@{version}")
                    versions.discard(version)

    async def follow_registry(self, address: Address) -> None:
        """Follow the registry and the key file forever. Raise StageError if no version can be served at first."""
        while True:
            await self.reconcile()
            if self.proxy_state.versions and self.proxy_state.engine is None and not self._unloaded_models():
                self.open_traffic()
                if not self._announced:
                    print(f"ready     {address}/v1; models {', '.join(self.proxy_state.versions)}", flush=True)
                    self._announced = True
            elif not self._announced and not self._last_logged:
                raise StageError("no deployed version can be served", code="INS-G001")
            await self.unload_old_versions()
            if message := await run_in_thread(self.proxy_state.keys.refresh):
                log_line(f"keys      {message}")
            await asyncio.sleep(POLL_SECONDS)

    def _unloaded_models(self) -> list[str]:
        """Return the models whose active version is not loaded in vLLM."""
        return [
            name
            for name, version in self.proxy_state.versions.items()
            if name in self.loaded_versions and version not in self.loaded_versions[name]
        ]

    def open_traffic(self) -> None:
        """Start forwarding requests to vLLM."""
        self.proxy_state.engine = client.open_session(
            self.vllm.address, max_connections=self.proxy_state.limits.requests
        )
        self.proxy_state.engine_responds, self._silent_since, self._last_logged = True, None, ""
        self.proxy_state.record_data()

    async def find_failure(self) -> str | None:
        """Return why vLLM must be restarted, None if it need not be.

        Reasons: the process or a child of it ended, or it sends nothing despite a request. While vLLM is silent the
        gateway is not ready.
        """
        if reason := await run_in_thread(self.vllm.find_death):
            return reason
        silent_seconds = self._silent_seconds()
        self.proxy_state.engine_responds = silent_seconds < self.hang_seconds / 2
        if silent_seconds >= self.hang_seconds:
            return f"hangs: it has requests and has sent nothing for {silent_seconds:.0f} s (serve.hang_seconds)"
        return None

    def _silent_seconds(self) -> float:
        """Return the seconds since a probe without data from vLLM. Start a probe if one is due."""
        now, last_data_at = time.monotonic(), self.proxy_state.last_data_at
        if self._silent_since is not None and last_data_at >= self._silent_since:
            self._silent_since = None
        if now - last_data_at > PROBE_SECONDS and (self._probe is None or self._probe.done()):
            self._silent_since = self._silent_since or now
            self._probe = asyncio.create_task(self.probe_engine())
        return now - self._silent_since if self._silent_since else 0.0

    async def probe_engine(self) -> bool:
        """Return whether vLLM produces a token within hang_seconds.

        Its HTTP server answers `GET /health` although the engine computes nothing.
        """
        available = self.proxy_state.versions.keys() - self._unloaded_models()
        names = [f"{name}@{self.proxy_state.versions[name]}" for name in available] or [self.vllm.plan.name]
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
            self.proxy_state.record_data()
        return response.status < 500

    async def restart_engine(self, reason: str) -> None:
        """Restart vLLM. Raise StageError if it does not become ready."""
        log_line(f"vllm      {reason}")
        await self.close_traffic()
        await run_in_thread(self.vllm.stop)
        await self.start_engine()

    async def close_traffic(self) -> None:
        """Stop forwarding requests to vLLM. Requests in flight are aborted."""
        session, self.proxy_state.engine = self.proxy_state.engine, None
        if self._probe:
            self._probe.cancel()
        if session:
            await session.close()

    def stop(self) -> None:
        """Stop vLLM."""
        self.vllm.stop()

    async def start_engine(self) -> None:
        """Start vLLM without adapters; `follow_registry` loads them. Raise StageError if it does not become ready."""
        self.loaded_versions = {registry_dir.name: set() for registry_dir in self.registry_dirs}
        self.vllm.start()  # in the main thread: vLLM is killed when the thread that started it ends
        seconds = await run_in_thread(self.vllm.wait_ready)
        log_line(f"vllm      up after {seconds:.0f} s")
        self._silent_since = None
        self.proxy_state.record_data()

    def log_once(self, line: str) -> None:
        """Log a line unless it was the last one logged here since vLLM was ready."""
        if line != self._last_logged:
            self._last_logged = line
            log_line(line)


async def _measure_agreement(session: ClientSession, served: ServedModel, name: str, rounding: float) -> float:
    """Return the fraction of a version's reference answers that vLLM gives. Raise StageError if they cannot be read."""
    try:
        return await reference_check.measure_agreement(session, served, name, rounding)
    except ClientError:
        raise
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise StageError(
            f"its reference answers cannot be read: {type(error).__name__}: {error}", code="INS-E011"
        ) from None
