"""A deployment that records its traffic, and its rows."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from deploy.answers.outcome import Deployment
from deploy.monitoring import traffic_record
from deploy.monitoring.monitor import Monitor
from tests.helpers.gateway.task_gateway import (
    TASK_NAME,
    gateway_client,
)

PATH = f"/v1/tasks/{TASK_NAME}"
RECORD_ALL = "{record: {share: 1.0, days: 30}}"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def send_bodies(deployment: Deployment, *bodies: Any, path: str = PATH, **headers: str) -> list[Any]:
    """What a gateway answers, which ends then."""
    payloads = []

    async def scenario() -> None:
        monitor = Monitor(deployment.registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            for body in bodies:
                response = await client.post(path, json=body, headers=headers)
                assert response.status == 200, await response.text()
                payloads.append(await response.json())
            await monitor.close()

    run(scenario)
    return payloads


def read_recorded(deployment: Deployment) -> list[dict[str, Any]]:
    paths = sorted(path for path in (deployment.registry_dir / traffic_record.FOLDER).glob("*.jsonl") if path.is_file())
    return [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
