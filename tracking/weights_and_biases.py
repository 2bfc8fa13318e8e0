"""Weights & Biases, through its own client: the run, its curves, its adapter.

What is sent is on a list (`ALLOWED`), because a key that gets into a run's configuration stays readable there.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.schema import Recipe
from tracking.run import Run

# Sections and keys of the recipe that may stand in a run's configuration. No path, no host, no text of the data.
ALLOWED: dict[str, tuple[str, ...]] = {
    "task": ("kind",),
    "model": ("revision", "quantization"),
    "lora": (),
    "train": (),
    "accelerate": ("distributed_type", "num_machines", "num_processes", "mixed_precision"),
}


def config(recipe: Recipe, base_name: str) -> dict[str, Any]:
    """Returns the part of the recipe that may be sent; an empty tuple in ALLOWED admits the whole section."""
    sections = recipe.model_dump(mode="json", include=set(ALLOWED))
    allowed = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.items()
        if not ALLOWED[name] or key in ALLOWED[name]
    }
    return {"model.base": base_name, **allowed}


def start(run: Run, recipe: Recipe, settings: Mapping[str, Any]) -> Any:
    """Returns the W&B run of this run, named by its id and grouped by its recipe, or None where mode is off.

    Mode auto is online where the machine is logged in, else offline (`wandb sync` sends it later).
    """
    tracking = recipe.tracking.wandb
    if tracking.mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode = tracking.mode
    if mode == "auto":
        mode = "online" if logged_in() else "offline"
    return wandb.init(
        project=tracking.project,
        entity=tracking.entity,
        group=run.recipe_name,
        name=run.id,
        id=run.id,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=run.folder,
        config=dict(settings),
        # What wandb collects by itself: no source, no console output, no machine's name.
        settings=wandb.Settings(
            disable_git=True,
            disable_code=True,
            console="off",
            x_disable_meta=True,
            x_disable_stats=True,
            host="",
            silent=True,
        ),
    )


def logged_in() -> bool:
    """Returns whether this machine has a W&B key, in the environment or where `wandb login` left it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc

    try:
        hosts = netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def finish(wandb_run: Any, run: Run, summary: Mapping[str, float | int], digests: Mapping[str, str]) -> None:
    """Logs the headline figures and the adapter with the digests of its data in its metadata, and closes the run.

    Does nothing where there is no W&B run (mode off).
    """
    if wandb_run is None:
        return
    import wandb

    wandb_run.summary.update(dict(summary))
    artifact = wandb.Artifact(f"{run.recipe_name}-adapter", type="model", metadata={"run_id": run.id, **digests})
    # Reference answers are prompts from the data: they stay in the run folder.
    for path in sorted((run.folder / "adapter").iterdir()):
        if path.name != "reference.jsonl":
            artifact.add_file(str(path), name=path.name)
    wandb_run.log_artifact(artifact)
    wandb_run.finish()
