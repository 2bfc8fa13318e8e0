"""One run on several machines: machine 0 prepares data and creates the run, the others wait in the shared folder.

    runs/classifier/.launched.json   {"run": "20261121T093000Z-x4fd", "beat": 41, "state": "running", "reason": "",
                                      "recipe": {"train.seed": 17, "accelerate.num_processes": 16, ...}}

Machine 0 rewrites the file every two seconds, starting before it prepares data. The state is `preparing`, then
`running`, and at the end `over`, or `unchanged` if an earlier run is finished. A file that changes while another
machine reads it is no leftover of an earlier launch. So the clocks of the machines do not matter.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.config.schema.train import Accelerate
from insource.system import atomic_files
from insource.tracking.run import Run

LAUNCH_FILE = ".launched.json"
HEARTBEAT_SECONDS = 2.0
# Other machines wait this long for a first message of machine 0: a cluster may start it much later.
WAIT_SECONDS = 1800.0
# Machine 0 publishes this long that it launched no run.
LINGER_SECONDS = 60.0
PREPARING, RUNNING, UNCHANGED, OVER = "preparing", "running", "unchanged", "over"

# Settings that may differ between the machines of a training, or between two launches of it.
_NODE_SETTINGS = ("machine_rank", "main_process_ip", "main_process_port", "rdzv_backend")


def without_node_settings(recipe: Recipe) -> Recipe:
    """Return the recipe without the settings of one machine: the same on all machines and at the next launch."""
    defaults = {name: Accelerate.model_fields[name].default for name in _NODE_SETTINGS}
    return recipe.model_copy(update={"accelerate": recipe.accelerate.model_copy(update=defaults)})


class Announcement:
    """The launch file of machine 0, rewritten every two seconds."""

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        self.path, self.settings = path, settings
        self.run: str | None = None
        self.state, self.reason, self.sequence = PREPARING, "", 0
        self._write_lock = threading.Lock()

    def set_running(self, run: Run) -> None:
        """Publish that this run is running, so that the other machines join it."""
        self.run, self.state = run.id, RUNNING
        self.write()

    def set_unchanged(self, reason: str) -> None:
        """Publish that there is nothing to launch."""
        self.state, self.reason = UNCHANGED, reason
        self.write()

    def set_over(self, reason: str) -> None:
        """Publish that the launch is over."""
        if self.state != UNCHANGED:
            self.state, self.reason = OVER, reason
        self.write()

    def write(self) -> None:
        with self._write_lock:
            self.sequence += 1
            payload = {"run": self.run, "beat": self.sequence, "state": self.state, "reason": self.reason}
            atomic_files.write_json(self.path, {**payload, "recipe": self.settings})


@contextmanager
def publish_launch(recipe_folder: Path, recipe: Recipe) -> Iterator[Announcement]:
    """Publish the state of the launch below `recipe_folder` to the other machines, from the beginning of the block.

    If no run was launched, the final state is published for LINGER_SECONDS more. Machines that start later would
    otherwise take a file that does not change for a leftover of an earlier launch.
    """
    recipe_folder.mkdir(parents=True, exist_ok=True)
    announcement, stop_event = Announcement(recipe_folder / LAUNCH_FILE, _shared_settings(recipe)), threading.Event()

    def heartbeat() -> None:
        announcement.write()
        while not stop_event.wait(HEARTBEAT_SECONDS):
            announcement.write()

    heartbeat_thread = threading.Thread(target=heartbeat, daemon=True)
    heartbeat_thread.start()
    try:
        try:
            yield announcement
            announcement.set_over("done")
        except BaseException as error:
            reason = f"it ended with exit code {error.code}" if isinstance(error, SystemExit) else str(error)
            announcement.set_over(reason or type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                stop_event.set()
            raise
        finally:
            if announcement.run is None and not stop_event.is_set():
                print(
                    f"machine   0: launches nothing, and reports that to the others for {LINGER_SECONDS:.0f} s",
                    file=sys.stderr,
                )
                stop_event.wait(LINGER_SECONDS)
    finally:
        stop_event.set()
        heartbeat_thread.join()


def wait_for_run(recipe_folder: Path, recipe: Recipe, wait_seconds: float = WAIT_SECONDS) -> Run | None:
    """Return the run that machine 0 launches below `recipe_folder`, once it exists; None if it launches nothing.

    Raise StageError if machine 0 trains with other settings, ends without a run, or publishes nothing within
    `wait_seconds`.
    """
    path, deadline = recipe_folder / LAUNCH_FILE, time.monotonic() + wait_seconds
    initial = previous = _read_announcement(path)
    while time.monotonic() < deadline:
        announcement = _read_announcement(path)
        if announcement is not None and announcement != initial:
            if differences := _diff_settings(announcement["recipe"], _shared_settings(recipe)):
                raise StageError(
                    "machine 0 trains with different settings:\n  "
                    + "\n  ".join(differences)
                    + "\n  Run the same command on every machine; only accelerate.machine_rank differs.",
                    code="INS-T018",
                )
            if announcement["state"] == RUNNING:
                return Run(recipe_folder / str(announcement["run"]))
            if announcement["state"] == UNCHANGED:
                print(f"machine   0: has nothing to launch, {announcement['reason']}", file=sys.stderr)
                return None
            if announcement["state"] == OVER:
                raise StageError(
                    f"machine 0 launched no run below {recipe_folder}: {announcement['reason']}", code="INS-T018"
                )
            if announcement != previous:  # it prepares data, which may take any time
                deadline = time.monotonic() + wait_seconds
        previous = announcement
        time.sleep(HEARTBEAT_SECONDS / 4)
    last_launch = f"; the last launch there, of run {initial['run']}, has ended" if initial else ""
    raise StageError(
        f"machine 0 launched no run below {recipe_folder} within {wait_seconds / 60:.0f} minutes{last_launch}.\n"
        "  Start the same command there with accelerate.machine_rank=0; RUNS must be the same folder on all machines.",
        code="INS-T018",
    )


def _read_announcement(path: Path) -> dict[str, Any] | None:
    try:
        return atomic_files.read_json(path)  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None


def _shared_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all machines must have in common, by dotted key. Paths are left out: they may differ."""
    sections = without_node_settings(recipe).model_dump(
        mode="json", include={"task", "model", "lora", "train", "accelerate"}
    )
    sections["model"].pop("base")
    return {f"{section}.{name}": value for section, keys in sections.items() for name, value in keys.items()}


def _diff_settings(remote: dict[str, object], local: dict[str, object]) -> list[str]:
    names = sorted({*remote, *local})
    return [
        f"{name}: {remote.get(name)} there, {local.get(name)} here"
        for name in names
        if remote.get(name) != local.get(name)
    ]
