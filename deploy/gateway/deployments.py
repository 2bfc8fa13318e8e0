"""Deployments of the active versions: read when a version is loaded, and again when it is deployed again."""

import time
from collections.abc import Mapping
from pathlib import Path

from deploy import registry, routing
from deploy.answers import answer_ids, escalation, task
from deploy.answers.escalation import Escalation, NoEscalation
from deploy.answers.outcome import Deployment
from deploy.gateway import versions
from deploy.gateway.proxy_state import ProxyState
from deploy.monitoring import traffic_record
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread

RETIRED_CLIENT_SECONDS = 300.0
"""An API client without new requests is closed after this time."""


class Deployments:
    """The deployments of the active versions."""

    def __init__(self, proxy_state: ProxyState, recipes: Mapping[str, Recipe]) -> None:
        """`recipes` are the gateway's recipes by their names."""
        self.proxy_state, self.recipes = proxy_state, recipes
        self._deployed_at: dict[str, int] = {}
        self._retired: list[tuple[float, Escalation]] = []

    async def load(self, registry_dir: Path, version: str) -> Deployment | None:
        """Return the deployment of a version, None if its prompt.json states no task.

        Raise RecipeError or StageError if it cannot be read.
        """
        recipe, deployed_at = self.recipes.get(registry_dir.name), registry.deployed_at(registry_dir)
        return await run_in_thread(load_deployment, registry_dir, version, recipe, deployed_at)

    def activate(self, registry_dir: Path, version: str, deployment: Deployment | None) -> None:
        """Activate a version: new requests go to it from now on."""
        name, previous = registry_dir.name, self.proxy_state.tasks.pop(registry_dir.name, None)
        self.proxy_state.versions[name] = version
        if deployment is not None:
            self.proxy_state.tasks[name] = deployment
            self._deployed_at[name] = deployment.deployed_at
            self.proxy_state.monitor.traffic.set_retention(registry_dir, deployment.task.recipe.serve.record.days)
            log_line(f"routing   {name}: {_describe_routing(deployment)}")
        self._retire(previous)

    def _retire(self, previous: Deployment | None) -> None:
        if previous is not None and isinstance(previous.escalation, Escalation):
            self._retired.append((time.monotonic(), previous.escalation))

    def deactivate(self, name: str) -> None:
        """Deactivate a model: it answers no more requests."""
        del self.proxy_state.versions[name]
        self._retire(self.proxy_state.tasks.pop(name, None))

    async def refresh(self, registry_dir: Path) -> None:
        """Read the task of the active version again if it was deployed again, since its threshold may have changed."""
        name = registry_dir.name
        active_version, deployed_at = self.proxy_state.versions.get(name), registry.deployed_at(registry_dir)
        if (
            name not in self.proxy_state.tasks
            or deployed_at == self._deployed_at[name]
            or active_version != registry.current_version(registry_dir)
        ):
            return
        self._deployed_at[name] = deployed_at
        try:
            self.activate(registry_dir, str(active_version), await self.load(registry_dir, str(active_version)))
        except (RecipeError, StageError) as error:
            log_line(f"routing   {name} goes on as before: {error.message_with_code}")

    async def close_retired(self) -> None:
        """Close API clients that no longer get requests."""
        while self._retired and self._retired[0][0] < time.monotonic() - RETIRED_CLIENT_SECONDS:
            await self._retired.pop(0)[1].close()

    async def close(self) -> None:
        """Close all API clients."""
        clients = [deployment.escalation for deployment in self.proxy_state.tasks.values()]
        for client in [*clients, *(client for _, client in self._retired)]:
            if isinstance(client, Escalation):
                await client.close()


def load_deployment(
    registry_dir: Path, version: str, gateway_recipe: Recipe | None, deployed_at: int
) -> Deployment | None:
    """Return the deployment of a version in registry/<name>; see `Deployments.load`."""
    served = versions.load_version(registry_dir, version)
    try:
        deployed_routing = routing.load_routing(registry_dir, registry.read_history(registry_dir), version)
        loaded_task = task.build_task(served, version, gateway_recipe, deployed_routing)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(
            f"the task of version {version} below {registry_dir} cannot be read: {type(error).__name__}: "
            f"{str(error)[:300]}",
            code="INS-G003",
        ) from None
    if loaded_task is None:
        return None
    traffic_record.check_recordable(loaded_task.recipe)
    ids = answer_ids.load_answer_ids(registry_dir)
    api_model: Escalation | NoEscalation
    try:
        api_model = escalation.build_escalation(loaded_task, registry_dir)
    except RecipeError as error:
        api_model = NoEscalation("no_api_model", str(error))
    return Deployment(loaded_task, api_model, registry_dir, ids, deployed_at)


def _describe_routing(deployment: Deployment) -> str:
    api_model, route = deployment.escalation, deployment.task.recipe.route
    if isinstance(api_model, NoEscalation):
        return f"every request stays local: {api_model.message}"
    budget = f"at most {route.usd_per_month:g} USD a month" if api_model.ledger else ""
    if route.mirror:
        limit = f", for {budget}" if budget else ""
        mirror = f"{route.mirror:.1%} are also answered here, for comparison"
        return f"before the switch: {api_model.name} answers{limit}; {mirror}"
    limit = f", {budget}" if budget else ""
    return f"below a confidence of {deployment.task.routing.threshold:.4f} {api_model.name} answers{limit}"
