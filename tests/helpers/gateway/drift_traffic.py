"""A deployment with a threshold, and traffic like or unlike its calibration rows."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare.decision.answer_profile import AnswerProfile
from compare.decision.routing_policy import RoutingPolicy
from deploy import registry, routing
from deploy.answers.outcome import Deployment
from insource.config.recipe import Recipe
from insource.system import atomic_files
from tests.helpers.gateway.task_gateway import (
    LABELS,
    TASK_NAME,
    TASK_VERSION,
    make_deployed_task,
    make_recipe,
)

PATH = f"/v1/tasks/{TASK_NAME}"
MIX = (0.5, 0.3, 0.2)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def draw_answers(n: int, seed: int, mix: Sequence[float] = MIX, sharpness: float = 8.0) -> list[tuple[str, float]]:
    """Labels and confidences: the larger `sharpness`, the surer."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(LABELS, size=n, p=mix)
    return [
        (str(label), round(float(confidence), 3))
        for label, confidence in zip(labels, rng.beta(sharpness, 1, n), strict=True)
    ]


def profile(rows: Sequence[tuple[str, float]]) -> AnswerProfile:
    built = AnswerProfile()
    for label, confidence in rows:
        built.add(confidence, label)
    return built


def make_registry_dir(
    folder: Path,
    calibration_profile: AnswerProfile | None,
    threshold: float | None = 0.9,
    target: float = 0.95,
    **kwargs: Any,
) -> Path:
    """A registry folder whose current version was deployed with a routing.json."""
    registry_dir = folder / "registry" / TASK_NAME
    (registry_dir / "versions" / TASK_VERSION).mkdir(parents=True)
    (registry_dir / "current").symlink_to(Path("versions") / TASK_VERSION)
    reason = None if threshold else "too few rows"
    settings = {"target_accuracy": target} | kwargs
    payload = RoutingPolicy(
        threshold=threshold, confidence=0.95, calibration_rows=400, no_threshold_reason=reason, **settings
    ).json()
    atomic_files.write_json(
        folder / "routing.json", payload | ({"calibration": calibration_profile.json()} if calibration_profile else {})
    )
    name = f"{atomic_files.sha256(folder / 'routing.json')[:16]}.json"
    (registry_dir / routing.FOLDER).mkdir()
    (folder / "routing.json").rename(registry_dir / routing.FOLDER / name)
    line = {"action": "deploy", "to": TASK_VERSION, "routing": {"file": name, "scale": None, "why_none": reason}}
    (registry_dir / "history.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return registry_dir


def load_routing(registry_dir: Path) -> routing.Routing:
    return routing.load_routing(registry_dir, registry.read_history(registry_dir), TASK_VERSION)


def make_deployment(folder: Path, registry_dir: Path, recipe: Recipe | None = None) -> Deployment:
    return make_deployed_task(folder, recipe or make_recipe(folder), load_routing(registry_dir))


async def send_inputs(client: Any, rows: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Answers to as many inputs, which have these labels and confidences."""
    answers: list[dict[str, Any]] = []
    for start in range(0, len(rows), 256):
        inputs = [f"says {label} p={confidence:.3f}" for label, confidence in rows[start : start + 256]]
        response = await client.post(PATH, json={"inputs": inputs})
        answers += (await response.json())["answers"]
    return answers
