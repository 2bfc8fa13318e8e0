"""Several machines, one run: machine 0 prepares data and makes the run, the others wait for it in the shared folder.

    runs/classifier/.launched.json   {"run": "20261121T093000Z-x4fd", "beat": 41, "state": "running",
                                      "recipe": {"train.seed": 17, "accelerate.num_processes": 16, ...}}

Machine 0 writes the file anew every two seconds. What another machine has seen change is no left-over of an earlier
launch, whatever the clocks of the machines say.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.errors import StageError
from recipes.schema import Recipe
from recipes.schema_train import Accelerate
from tracking import files
from tracking.run import Run

NAME = ".launched.json"
BEAT_SECONDS = 2.0
# Machine 0 may have millions of rows to prepare before there is a run.
WAIT_SECONDS = 1800.0

# What differs between the machines of a training, or between two launches of the same one.
_OF_A_MACHINE = ("machine_rank", "main_process_ip", "main_process_port", "rdzv_backend")


def alike(recipe: Recipe) -> Recipe:
    """Returns the recipe as all machines of a training have it, and the next launch of it."""
    plain = {name: Accelerate.model_fields[name].default for name in _OF_A_MACHINE}
    return recipe.model_copy(update={"accelerate": recipe.accelerate.model_copy(update=plain)})


@contextmanager
def announced(run: Run, recipe: Recipe) -> Iterator[None]:
    """Tells the other machines of a run for as long as the block lasts, and how the launch ended after it."""
    path, told, over = run.folder.parent / NAME, _settings(recipe), threading.Event()

    def write(beat: int, state: str) -> None:
        files.write_json(path, {"run": run.id, "beat": beat, "state": state, "recipe": told})

    def tell() -> None:
        beat = 0
        while not over.wait(BEAT_SECONDS if beat else 0.0):
            beat += 1
            write(beat, "running")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        write(-1, "over")


def joined(parent: Path, recipe: Recipe, wait_seconds: float = WAIT_SECONDS) -> Run:
    """Returns the run that machine 0 has launched below `parent`, once there is one.

    Raises StageError where machine 0 trains something else, or launches nothing in that time.
    """
    path, deadline = parent / NAME, time.monotonic() + wait_seconds
    first = _read(path)
    while time.monotonic() < deadline:
        found = _read(path)
        if found is not None and found["state"] == "running" and found != first:
            if differing := _differing(found["recipe"], _settings(recipe)):
                raise StageError(
                    "machine 0 trains something else:\n  "
                    + "\n  ".join(differing)
                    + "\n  Type the same command on every machine, but for accelerate.machine_rank."
                )
            return Run(parent / str(found["run"]))
        time.sleep(BEAT_SECONDS / 4)
    last = f"; the last launch there, of run {first['run']}, is over" if first else ""
    raise StageError(
        f"machine 0 launched no run below {parent} within {wait_seconds / 60:.0f} minutes{last}.\n"
        "  Start the same command there with accelerate.machine_rank=0; RUNS must be one folder on all machines."
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return files.read_json(path)  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What all machines must agree on, by dotted key; no paths, which may differ."""
    sections = alike(recipe).model_dump(mode="json", include={"task", "model", "lora", "train", "accelerate"})
    sections["model"].pop("base")
    return {f"{section}.{name}": value for section, keys in sections.items() for name, value in keys.items()}


def _differing(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    names = sorted({*there, *here})
    return [
        f"{name}: {there.get(name)} there, {here.get(name)} here" for name in names if there.get(name) != here.get(name)
    ]
