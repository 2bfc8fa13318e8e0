"""The tasks behind the gateway: read with each version that is loaded, and again where a version is deployed again."""

import time
from collections.abc import Mapping
from pathlib import Path

from deploy import registry, routing
from deploy.answers import answer_ids, escalation, task
from deploy.answers.escalation import Escalation, NoEscalation
from deploy.gateway import versions
from deploy.gateway.paths.router import Deployment
from deploy.gateway.proxy import ProxyState
from deploy.monitoring import traffic_record
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread

RETIRED_CLIENT_SECONDS = 300.0
"""An API client that answers no new request is closed after so long."""


class Deployments:
    """What the door knows of the deployed tasks."""

    def __init__(self, door: ProxyState, recipes: Mapping[str, Recipe]) -> None:
        """`recipes`: by their names, as the gateway was started with them."""
        self.door, self.recipes = door, recipes
        self._read_at: dict[str, int] = {}
        self._retired: list[tuple[float, Escalation]] = []

    async def load(self, place: Path, version: str) -> Deployment | None:
        """Returns the task of a version, None where its prompt.json does not state it. Raises RecipeError or StageError
        where it cannot be read."""
        return await run_in_thread(
            load_deployment, place, version, self.recipes.get(place.name), registry.deployed_at(place)
        )

    def put(self, place: Path, version: str, deployed: Deployment | None) -> None:
        """Has new requests answered by a version, in one step."""
        name, before = place.name, self.door.tasks.pop(place.name, None)
        self.door.versions[name] = version
        if deployed is not None:
            self.door.tasks[name] = deployed
            self._read_at[name] = deployed.deployed_at
            self.door.watch.traffic.keep(place, deployed.task.recipe.serve.record.days)
            log_line(f"routing   {name}: {_describe_routing(deployed)}")
        self._retire(before)

    def _retire(self, before: Deployment | None) -> None:
        if before is not None and isinstance(before.escalation, Escalation):
            self._retired.append((time.monotonic(), before.escalation))

    def remove(self, name: str) -> None:
        """Has a model answer no more."""
        del self.door.versions[name]
        self._retire(self.door.tasks.pop(name, None))

    async def refresh(self, place: Path) -> None:
        """Reads the task of the version that answers again where it was deployed again: its threshold may be new."""
        name = place.name
        answering, at = self.door.versions.get(name), registry.deployed_at(place)
        if name not in self.door.tasks or at == self._read_at[name] or answering != registry.current_version(place):
            return
        self._read_at[name] = at
        try:
            self.put(place, str(answering), await self.load(place, str(answering)))
        except (RecipeError, StageError) as error:
            log_line(f"routing   {name} goes on as before: {error}")

    async def tidy(self) -> None:
        """Closes API clients that are not asked any more."""
        while self._retired and self._retired[0][0] < time.monotonic() - RETIRED_CLIENT_SECONDS:
            await self._retired.pop(0)[1].close()

    async def close(self) -> None:
        """Closes every API client."""
        asked = [one.escalation for one in self.door.tasks.values()]
        for one in [*asked, *(one for _, one in self._retired)]:
            if isinstance(one, Escalation):
                await one.close()


def load_deployment(place: Path, version: str, started_with: Recipe | None, deployed_at: int) -> Deployment | None:
    """Returns the task of a version below registry/<name>, see `Deployments.load`."""
    served = versions.load_version(place, version)
    try:
        routed = routing.load_routing(place, registry.read_history(place), version)
        found = task.build_task(served, version, started_with, routed)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(
            f"the task of version {version} below {place} cannot be read: {type(error).__name__}: {str(error)[:300]}"
        ) from None
    if found is None:
        return None
    traffic_record.check_recordable(found.recipe)
    ids = answer_ids.load_answer_ids(place)
    try:
        return Deployment(found, escalation.build_escalation(found, place), place, ids, deployed_at)
    except RecipeError as error:
        return Deployment(found, NoEscalation("no_api_model", str(error)), place, ids, deployed_at)


def _describe_routing(deployed: Deployment) -> str:
    one, route = deployed.escalation, deployed.task.recipe.route
    if isinstance(one, NoEscalation):
        return f"every request stays local: {one.words}"
    if route.mirror:
        money = f", for at most {route.usd_per_month:g} USD a month" if one.priced else ""
        return f"before the switch: {one.name} answers{money}; {route.mirror:.1%} are also answered here, aside"
    money = f", at most {route.usd_per_month:g} USD a month" if one.priced else ""
    return f"below a confidence of {deployed.task.routing.threshold:.4f} {one.name} answers{money}"
