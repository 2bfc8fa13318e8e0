"""The gateway in front of engines that were started elsewhere (serve.engines).

Every engine has a task that checks its health, and checks the versions on it before they answer clients. An engine that
fails gets no requests until it passes its checks again. A new version is activated when every engine that is up has
checked it, and at least one serves it. An engine that refuses a version gets no requests for it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from aiohttp import ClientSession

from deploy import registry
from deploy.answers.engine_pool import CONNECTION_ERRORS, Engine, EnginePool
from deploy.gateway import engine_checks
from deploy.gateway.deployments import Deployments
from deploy.gateway.proxy_state import ProxyState
from deploy.gateway.versions import iter_candidates, load_version
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.config.schema.serving_and_cost import Serve
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from serve.vllm import client
from serve.vllm.server_process import Address

ENGINE_KEY_VARIABLE = "INSOURCE_ENGINE_KEY"
POLL_SECONDS = 0.5
CHECK_SECONDS = 1.0
"""Seconds between two health checks of an engine. A lost connection causes one immediately."""
LOAD_TIMEOUT_FACTOR = 10
"""Timeout factor on serve.hang_seconds while an engine loads and checks a version."""


class PoolGateway:
    """The proxy, the engines behind it, and the versions on each of them."""

    def __init__(
        self,
        registry_dirs: Sequence[Path],
        serve: Serve,
        proxy_state: ProxyState,
        recipes: Mapping[str, Recipe],
        engine_key: str | None = None,
    ) -> None:
        """`engine_key` is the key that the engines require."""
        self.registry_dirs, self.serve, self.proxy_state = registry_dirs, serve, proxy_state
        self.engine_key = engine_key
        engines = [Engine(url) for url in serve.engines]
        self.pool = proxy_state.pool = EnginePool(engines, proxy_state.monitor.metrics.count_engine_request)
        self.deployments = Deployments(proxy_state, recipes)
        self.candidates: dict[str, str] = {}
        """{model: version that the engines check before it is activated}."""
        self.rejected: set[tuple[str, str]] = set()
        """(model, version) that no engine serves."""
        self._deployed_at: dict[str, int] = {}
        self._last_problems: dict[str, str] = {}
        self._announced = False

    async def run(self, address: Address) -> None:
        """Check the engines and follow the registry and the key file forever."""
        watchers = [asyncio.create_task(self.watch_engine(engine)) for engine in self.pool.engines]
        follow_task = asyncio.create_task(self.follow_registry(address))
        tasks = [*watchers, follow_task]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def watch_engine(self, engine: Engine) -> None:
        """Check an engine, and have the versions checked on it, forever."""
        check_task: asyncio.Task[None] | None = None
        session: ClientSession | None = None
        try:
            while True:
                session = engine.session or self._open_session(engine)
                problem = await engine_checks.find_problem(engine, session, self.serve.hang_seconds)
                engine.suspect.clear()
                if problem:
                    if check_task:
                        check_task.cancel()
                        await asyncio.gather(check_task, return_exceptions=True)
                        check_task = None
                    await self.disconnect(engine, session, problem)
                else:
                    self._connect(engine, session)
                    if check_task is not None and check_task.done():
                        check_task.result()
                        check_task = None
                    if check_task is None and self._find_unchecked(engine):
                        check_task = asyncio.create_task(self.check_versions(engine, session))
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await engine.suspect.wait()
        finally:
            if check_task:
                check_task.cancel()
                await asyncio.gather(check_task, return_exceptions=True)
            if session is not None and session is not engine.session:
                await session.close()

    def _open_session(self, engine: Engine) -> ClientSession:
        return client.open_url_session(engine.url, self.engine_key, self.proxy_state.limits.requests)

    def _connect(self, engine: Engine, session: ClientSession) -> None:
        if engine.session is not None:
            return
        engine.session = session
        self._last_problems.pop(engine.url, None)
        self.rejected.clear()  # this engine may serve what the others refused
        log_line(f"engine    {engine.url} is up")

    async def disconnect(self, engine: Engine, session: ClientSession, problem: str) -> None:
        """Send no more requests to an engine. Its requests in flight are aborted, and sent to other engines."""
        engine.session = None
        for state in (engine.models, engine.refused, engine.loaded):
            state.clear()
        await session.close()
        if self._last_problems.get(engine.url) != problem:
            self._last_problems[engine.url] = problem
            log_line(f"engine    {engine.url} is down: {problem}")

    def _find_unchecked(self, engine: Engine) -> list[tuple[Path, str]]:
        """Return (registry folder, version) of the versions that are not checked on an engine yet."""
        return [
            (registry_dir, version)
            for registry_dir in self.registry_dirs
            for version in self._required_versions(registry_dir.name)
            if f"{registry_dir.name}@{version}" not in engine.models | engine.refused.keys()
        ]

    def _required_versions(self, name: str) -> list[str]:
        """Return the active version of a model and the one that replaces it."""
        versions = (self.proxy_state.versions.get(name), self.candidates.get(name))
        return list(dict.fromkeys(version for version in versions if version is not None))

    async def check_versions(self, engine: Engine, session: ClientSession) -> None:
        """Check the missing versions on an engine. A lost connection ends it: the next health check decides."""
        for registry_dir, version in self._find_unchecked(engine):
            name = f"{registry_dir.name}@{version}"
            try:
                served = await run_in_thread(load_version, registry_dir, version)
                async with asyncio.timeout(LOAD_TIMEOUT_FACTOR * self.serve.hang_seconds):
                    agreement = await engine_checks.check_version(engine, session, served, name, self.serve)
            except (RecipeError, StageError) as error:
                # A refusal is the version's own fault only if the engine answers other requests.
                if await engine_checks.find_problem(engine, session, self.serve.hang_seconds):
                    engine.suspect.set()
                    return
                self._refuse(engine, name, str(error))
            except (KeyError, ValueError, TypeError, ZeroDivisionError, FileNotFoundError) as error:
                self._refuse(engine, name, f"its files or answers cannot be read: {type(error).__name__}: {error}")
            except CONNECTION_ERRORS:
                engine.suspect.set()
                return
            else:
                engine.record_data()
                engine.models.add(name)
                log_line(f"engine    {engine.url} serves {name}: {agreement:.1%} of its reference answers")

    def _refuse(self, engine: Engine, name: str, reason: str) -> None:
        engine.refused[name] = reason
        log_line(f"refused   {name} on {engine.url}: {reason}")

    async def follow_registry(self, address: Address) -> None:
        """Activate deployed versions as the engines serve them, forever."""
        while True:
            for registry_dir in self.registry_dirs:
                await self.update_version(registry_dir)
                await self.deployments.refresh(registry_dir)
            if self.proxy_state.is_ready and not self._announced:
                print(f"ready     {address}/v1; models {', '.join(self.proxy_state.versions)}", flush=True)
                self._announced = True
            await self.unload_old_versions()
            if message := await run_in_thread(self.proxy_state.keys.refresh):
                log_line(f"keys      {message}")
            await asyncio.sleep(POLL_SECONDS)

    async def update_version(self, registry_dir: Path) -> None:
        """Activate the next version of a model once every engine that is up has checked it, or reject it."""
        name, version = registry_dir.name, await run_in_thread(self.next_version, registry_dir)
        if version is None:
            self.candidates.pop(name, None)
            return
        self.candidates[name] = version
        internal_name = f"{name}@{version}"
        engines = [engine for engine in self.pool.engines if engine.session is not None]
        serving = [engine for engine in engines if internal_name in engine.models]
        if len(serving) + sum(internal_name in engine.refused for engine in engines) < len(engines) or not engines:
            return
        try:
            if not serving:
                raise StageError("no engine serves it", code="INS-G010")
            deployment = await self.deployments.load(registry_dir, version)
        except (RecipeError, StageError) as error:
            self.rejected.add((name, version))
            active = self.proxy_state.versions.get(name)
            log_line(f"refused   {internal_name}: {error}; {f'{active} goes on' if active else 'nothing answers'}")
            return
        self.deployments.activate(registry_dir, version, deployment)
        log_line(f"current   {internal_name} on {len(serving)} of {len(self.pool.engines)} engines")

    def next_version(self, registry_dir: Path) -> str | None:
        """Return the version to activate next, None if the active one is right.

        It is the current version of the registry. If that was rejected and no version is active, it is the one deployed
        before.
        """
        name = registry_dir.name
        active, current = self.proxy_state.versions.get(name), registry.current_version(registry_dir)
        if (deployed_at := registry.deployed_at(registry_dir)) != self._deployed_at.get(name):
            # A rejected version is tried again when it is deployed again.
            self._deployed_at[name] = deployed_at
            self.rejected.discard((name, str(current)))
            for engine in self.pool.engines:
                engine.refused.pop(f"{name}@{current}", None)
        rejected = {version for model, version in self.rejected if model == name}
        if active:
            return current if current not in {None, active, *rejected} else None
        return next(iter_candidates(registry_dir, rejected), None)

    async def unload_old_versions(self) -> None:
        """Unload adapters that the gateway loaded and no longer needs, once they have no requests in flight."""
        await self.deployments.close_retired()
        required = {
            f"{registry_dir.name}@{version}"
            for registry_dir in self.registry_dirs
            for version in self._required_versions(registry_dir.name)
        }
        for engine in self.pool.engines:
            for name in engine.loaded - required:
                if self.proxy_state.in_flight[name] or engine.session is None:
                    continue
                engine.models.discard(name)
                try:
                    async with asyncio.timeout(self.serve.hang_seconds):
                        await client.unload_adapter(engine.session, name)
                except CONNECTION_ERRORS:
                    engine.suspect.set()
                    continue
                except StageError as error:
                    log_line(f"stays     {name} on {engine.url}: {error}")
                else:
                    log_line(f"drained   {name} on {engine.url}")
                engine.loaded.discard(name)

    async def close_traffic(self) -> None:
        """Close the connections to the engines. Requests in flight are aborted."""
        for engine in self.pool.engines:
            session, engine.session = engine.session, None
            if session is not None:
                await session.close()

    def stop(self) -> None:
        """Do nothing: the engines belong to whoever started them."""
