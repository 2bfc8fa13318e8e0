"""Checkpoints that are complete or absent, and the search for the last valid one.

checkpoints/checkpoint-4/
  adapter_model.safetensors optimizer.pt scheduler.pt rng_state.pth trainer_state.json ...    as Trainer writes them
  carried_0.json      sums since the last logged row, which Trainer leaves out; one file for each process
  checkpoint.json     {"schema_version": 1, "step": 4, "processes": 1, "versions": {"torch": "2.13.0", ...},
                       "files": {"optimizer.pt": {"bytes": 1204, "sha256": "9f2c..."}, ...}}
checkpoints/.writing/checkpoint-6          in progress, not a checkpoint yet
checkpoints/damaged-checkpoint-2           damaged, renamed and not used

optimizer.pt, scheduler.pt and rng_state.pth are pickles. Trainer reads them with torch.load(weights_only=True), which
loads tensors and plain values and runs no code.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.system import atomic_files, disk_full
from train.distributed import world

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState

SCHEMA_VERSION = 1
FOLDER = "checkpoints"
PREFIX = "checkpoint-"
DAMAGED_PREFIX = "damaged-"
CHECKSUM_FILE = "checkpoint.json"
KEEP_LAST = 2
"""The number of newest checkpoints that are kept besides the best one."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class CheckpointScan:
    """The result of the search for a checkpoint to resume from."""

    latest: Path | None
    """The newest valid checkpoint."""
    damaged: tuple[str, ...] = ()
    """A message for each damaged checkpoint, with its name and its problem."""


def find_latest_valid(folder: Path) -> CheckpointScan:
    """Return the newest checkpoint with unchanged files, and messages about damaged ones.

    Damaged checkpoints are renamed, so that they are not found again and do not block the next checkpoint of their
    step. Partial files of a killed process are removed. Only one process may call this, before any process writes.
    """
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        problem = find_corruption(path)
        if problem is None:
            return CheckpointScan(path, tuple(damaged))
        damaged_path = path.with_name(DAMAGED_PREFIX + path.name)
        _remove(damaged_path)
        path.rename(damaged_path)
        damaged.append(f"{path.name} is damaged: {problem}; it is now called {damaged_path.name} and not used")
    return CheckpointScan(None, tuple(damaged))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, damaged ones included."""
    return sorted((path for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()), key=step)


def step(path: Path) -> int:
    """Return the update after which a checkpoint was written."""
    return int(path.name.rpartition("-")[2])


def find_corruption(path: Path) -> str | None:
    """Return the problem of a checkpoint, or None if every file is unchanged."""
    try:
        expected_files = atomic_files.read_json(path / CHECKSUM_FILE)["files"]
        for name, expected in expected_files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (size := (path / name).stat().st_size) < expected["bytes"]:
                return f"{name} is cut short, {size:,} of {expected['bytes']:,} bytes"
            if atomic_files.sha256(path / name) != expected["sha256"]:
                return f"{name} is not what was written, its hash differs"
    except FileNotFoundError:
        return f"{CHECKSUM_FILE} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUM_FILE} cannot be read"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def save(trainer: "Trainer", write: Callable[[], None], extra_state: Mapping[str, object]) -> None:
    """Let Trainer write a checkpoint to a temporary folder, then rename it into place.

    `write` is Trainer's own `_save_checkpoint`. `extra_state` is JSON that `restore_trainer_sums` returns. Every
    process calls this function and writes its part. The main process hashes the files, renames the folder and removes
    older checkpoints. Raise StageError if the disk is full; earlier checkpoints are unchanged.
    """
    args, state = trainer.args, trainer.state
    folder = Path(args.output_dir)
    target, temp_dir = folder / f"{PREFIX}{state.global_step}", folder / ".writing"
    if world.is_main_process():
        shutil.rmtree(temp_dir, ignore_errors=True)
    world.barrier()
    args.output_dir = str(temp_dir)
    try:
        with disk_full.raise_on_full_disk(target):
            write()
            temp_checkpoint = temp_dir / target.name
            atomic_files.write_json(
                temp_checkpoint / _extra_state_name(), {"trainer": _trainer_sums(trainer), "ours": dict(extra_state)}
            )
            world.barrier()
            if world.is_main_process():
                # The name without a path: the runs folder may be moved, and Trainer's path is that of the temporary
                # folder.
                best = state.best_global_step
                state.best_model_checkpoint = None if best is None else f"{PREFIX}{best}"
                state.save_to_json(str(temp_checkpoint / "trainer_state.json"))
                write_checksums(temp_checkpoint)
                _remove(target)
                temp_checkpoint.rename(target)
                _fsync(folder)
                rotate(folder, state.best_global_step)
    finally:
        args.output_dir = str(folder)
        if world.is_main_process():
            shutil.rmtree(temp_dir, ignore_errors=True)
    world.barrier()
    set_best_checkpoint(state, folder)


def write_checksums(path: Path) -> None:
    """Flush every file of a checkpoint to disk and write their hashes.

    training_args.bin is removed: it is a pickle that nothing reads, with paths of this machine.
    """
    (path / "training_args.bin").unlink(missing_ok=True)
    checksums: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            _fsync(file)
            checksums[file.relative_to(path).as_posix()] = {
                "bytes": file.stat().st_size,
                "sha256": atomic_files.sha256(file),
            }
    record = {"schema_version": SCHEMA_VERSION, "step": step(path), "processes": world.world_size()}
    atomic_files.write_json(
        path / CHECKSUM_FILE, {**record, "versions": {name: version(name) for name in PACKAGES}, "files": checksums}
    )
    for directory in (path, *filter(Path.is_dir, path.rglob("*"))):
        _fsync(directory)


def rotate(folder: Path, best_step: int | None) -> None:
    """Remove all checkpoints but the newest two and the best, and older damaged ones."""
    newest = list_checkpoints(folder)[-KEEP_LAST:]
    kept_names = {path.name for path in newest} | {f"{PREFIX}{best_step}"}
    for path in (*list_checkpoints(folder), *folder.glob(f"{DAMAGED_PREFIX}{PREFIX}*")):
        if path.name not in kept_names and step(path) < step(newest[0]):
            _remove(path)


def set_best_checkpoint(state: "TrainerState", folder: Path) -> None:
    """Set the current path of the best checkpoint in Trainer's state."""
    best = folder / f"{PREFIX}{state.best_global_step}"
    state.best_model_checkpoint = str(best) if best.is_dir() else None


def restore_trainer_sums(trainer: "Trainer", path: Path) -> dict[str, Any]:
    """Restore Trainer's sums and return the `extra_state` that `save` received.

    The next logged loss and the mean over training are then as without the interruption.
    """
    extra_state = atomic_files.read_json(path / _extra_state_name())
    sums = extra_state["trainer"]
    trainer._tr_loss += sums["since_logged"]
    trainer._total_loss_scalar = sums["total"]
    trainer._globalstep_last_logged = sums["last_logged"]
    trainer._initial_global_step = 0
    return extra_state["ours"]  # type: ignore[no-any-return]


def _extra_state_name() -> str:
    return f"carried_{world.rank()}.json"


def _trainer_sums(trainer: "Trainer") -> dict[str, object]:
    return {
        "since_logged": trainer._tr_loss.item(),
        "total": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
    }


def _remove(path: Path) -> None:
    """Remove a checkpoint atomically: a kill in between must not leave a partial folder under its name."""
    if path.exists():
        trash_path = path.with_name(f".{path.name}")
        shutil.rmtree(trash_path, ignore_errors=True)
        path.rename(trash_path)
        shutil.rmtree(trash_path, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
