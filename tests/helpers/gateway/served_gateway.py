"""The gateway's application with deployed tasks and a FakeEngine, served in threads for clients of any kind.

with serve_gateway([deployment]) as (address, state):
    ...
"""

import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aiohttp import ClientSession, web

from deploy.answers.outcome import Deployment
from deploy.gateway import proxy
from deploy.gateway.proxy_state import ProxyState
from tests.conftest import ROOT
from tests.helpers.gateway.stand_in_engine import serve_application
from tests.helpers.gateway.task_gateway import FakeEngine, make_deployed_task, make_recipe


@contextmanager
def serve_gateway(deployments: Sequence[Deployment], api_key: str | None = None) -> Iterator[tuple[str, ProxyState]]:
    """Serve the gateway and its engine. Yield the gateway's address and its state."""
    engine_app = web.Application(client_max_size=2**30)
    engine_app.router.add_route("*", "/{path:.*}", FakeEngine().answer)
    with serve_application(engine_app) as engine_address:
        tasks = {deployment.task.name: deployment for deployment in deployments}
        state = ProxyState(api_key, None, tuple(tasks))
        state.versions = {name: deployment.task.version for name, deployment in tasks.items()}
        state.tasks = tasks
        app = proxy.build_application(state)

        async def connect(_: web.Application) -> AsyncIterator[None]:
            async with ClientSession(engine_address) as session:
                state.engine = session
                yield

        app.cleanup_ctx.append(connect)
        with serve_application(app) as address:
            yield address, state


def make_router(folder: Path) -> Deployment:
    """Return a deployed classification task with the pocket model's tokenizer, which decisions need."""
    deployment = make_deployed_task(folder, make_recipe(folder))
    for path in (ROOT / "pocket" / "model").iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "prompt.json":
            shutil.copyfile(path, deployment.task.folder / path.name)
    return deployment
