"""The run folder: one folder for each run, with a manifest of its stages, their inputs and their outputs.

runs/classifier/20261121T093000Z-x4fd/manifest.json
{"schema_version": 1, "run_id": "20261121T093000Z-x4fd", "recipe": "classifier", "digest": "9f2c...", "stages":
 {"train": {"state": "done", "started": "...", "ended": "...", "inputs": {"data/train.jsonl": "sha256..."},
  "outputs": {"adapter/adapter_model.safetensors": "sha256..."}, "fallbacks": [], "exit_reason": "done",
  "metrics": {"validation": {"tuned": {"accuracy": 0.87, ...}, "base": {...}}}}}}
"""

import argparse
import fcntl
import io
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe, describe_precedence, load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.system.timestamps import utc_timestamp
from insource.tracking import folder_ownership
from insource.tracking.manifest import SCHEMA_VERSION, Manifest, StageRecord, StageState
from insource.tracking.prompt_spec import PromptSpec

MANIFEST_FILE = "manifest.json"
REFERENCES_FILE = "reference.jsonl"
# A reader that tests the lock (`Run.is_locked`) holds it for a moment.
_LOCK_TIMEOUT_SECONDS = 0.5

_locked_folders: set[Path] = set()

# Keys that older versions wrote into recipe.yaml, and that have no effect now.
REMOVED_KEYS = (("export", "replay_nf4"),)


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path

    @property
    def id(self) -> str:
        """The run id: the folder's name."""
        return self.folder.name

    @property
    def recipe_name(self) -> str:
        """The recipe's name below the runs folder."""
        return self.folder.parent.name

    @property
    def manifest(self) -> Manifest:
        """The current content of manifest.json. RecipeError if this version cannot read it."""
        path = self.folder / MANIFEST_FILE
        return Manifest.parse(atomic_files.read_json(path), path)

    def stage(self, name: str) -> StageRecord:
        """Return the record of a stage, one without a state if it never started.

        A running stage of a run that no process holds is reported as interrupted.
        """
        record = self.manifest.get_stage(name)
        return record if self.is_locked else record.mark_interrupted()

    @property
    def references_path(self) -> Path:
        """The file of the reference answers of a run or a deployed version.

        It is beside the adapter folder, which people share. Earlier versions of insource wrote it into that folder.
        """
        path = self.folder / REFERENCES_FILE
        return path if path.exists() else self.folder / "adapter" / REFERENCES_FILE

    def used_current_adapter(self, stage: str) -> bool:
        """Return whether a stage that has started used the adapter that the run has now."""
        checksums = atomic_files.sha256(self.folder / "adapter" / atomic_files.CHECKSUMS)
        return self.stage(stage).inputs.get(f"adapter/{atomic_files.CHECKSUMS}") == checksums

    def check_references(self, prompt: PromptSpec) -> None:
        """Raise StageError if the reference answers are not those that prompt.json records."""
        record = prompt.references
        if record and (
            not self.references_path.is_file() or atomic_files.sha256(self.references_path) != record.sha256
        ):
            raise StageError(
                f"{self.folder / REFERENCES_FILE} was changed after training; copy it again, or train again (FRESH=1)",
                code="INS-E011",
            )

    @property
    def is_locked(self) -> bool:
        """Whether a process holds the run (`lock_run`); True if that is unknown."""
        try:
            with (self.folder / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def recipe(self) -> Recipe:
        """Return the resolved recipe of this run. Raise RecipeError if this version cannot read it."""
        values = YAML(typ="safe").load((self.folder / "recipe.yaml").read_text(encoding="utf-8"))
        for section, key in REMOVED_KEYS:
            values.get(section, {}).pop(key, None)
        try:
            return Recipe.model_validate(values, context={"of_run": True})
        except ValidationError as error:
            keys = sorted({".".join(map(str, detail["loc"])) or str(detail["msg"]) for detail in error.errors()})
            raise RecipeError(
                f"{self.folder / 'recipe.yaml'}: this version of insource cannot read it ({', '.join(keys)}); a "
                "newer version may have written it: update insource",
                code="INS-R014",
            ) from None


def runs_folder(folder: str | None) -> Path:
    """Return the folder of all runs: the argument, else RUNS, else `runs` in the current folder."""
    return Path(folder or os.environ.get("RUNS") or "runs").absolute()


def create(
    parent: Path,
    recipe: Recipe,
    digest: str,
    environment: Mapping[str, object],
    data: Path,
    overrides: Sequence[str] = (),
) -> Run:
    """Create the folder of a new run: recipe.yaml, env.json, manifest.json and the link to its data.

    `overrides` lists the recipe keys that the hardware file and SET changed.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    with atomic_files.atomic_folder(parent / name) as folder:
        atomic_files.write_text(folder / "recipe.yaml", to_yaml(recipe))
        atomic_files.write_json(folder / "env.json", environment)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            run_id=name,
            recipe=parent.name,
            digest=digest,
            replaced=list(overrides),
            stages={},
        )
        atomic_files.write_json(folder / MANIFEST_FILE, manifest.to_json())
        (folder / "data").symlink_to(os.path.relpath(data, folder))
    return Run(parent / name)


def find_by_digest(parent: Path, digest: str) -> list[Run]:
    """Return the runs with this digest below `runs/<recipe>`, newest first."""
    return [run for run in map(Run, reversed(_list_folders(parent))) if run.manifest.digest == digest]


def find(parent: Path, run_id: str | None) -> Run:
    """Return the run with this id below `runs/<recipe>`, by default the newest run that finished training.

    Raise RecipeError if there is none.
    """
    folder = parent / (run_id or "latest")
    if (folder / "manifest.json").is_file():
        # Only the last part is resolved: a recipe's folder may be a link to its former folder.
        return Run(parent / folder.resolve().name)
    if run_id is None:
        raise RecipeError(
            f"no finished run below {parent}: `make train RECIPE={parent.name}` makes one", code="INS-R013"
        )
    names = ", ".join(folder.name for folder in _list_folders(parent))
    available = f"there are {names}" if names else "there are none"
    raise RecipeError(f"RUN={run_id}: no such run below {parent}; {available}", code="INS-R013")


def _list_folders(parent: Path) -> list[Path]:
    """Return the run folders below `runs/<recipe>`, oldest first, without the link `latest`."""
    return sorted(path.parent for path in parent.glob("*/manifest.json") if not path.parent.is_symlink())


def load_recipe_and_run(arguments: argparse.Namespace) -> tuple[LoadedRecipe, Run]:
    """Return the recipe that a command names, and the trained run that it uses. Raise RecipeError if there is none."""
    parent = runs_folder(arguments.runs)
    loaded = folder_ownership.resolve_name(load(arguments.recipe, arguments.set, arguments.hardware), parent)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    return loaded, find(parent / loaded.name, arguments.run)


def start_stage(run: Run, stage: str, inputs: Mapping[str, str]) -> None:
    """Record that a stage is running."""
    _update_stage(
        run,
        stage,
        {
            "state": "running",
            "started": utc_timestamp(),
            "ended": None,
            "inputs": dict(inputs),
            "outputs": {},
            "fallbacks": [],
            "exit_reason": None,
            "metrics": {},
        },
    )


def record_fallback(run: Run, stage: str, message: str) -> None:
    """Record a deviation from the recipe."""
    _update_stage(run, stage, {"fallbacks": [*run.stage(stage).fallbacks, message]})


def end_stage(
    run: Run, stage: str, state: StageState, reason: str, outputs: Sequence[Path] = (), **metrics: object
) -> None:
    """Record the final state of a stage, the hashes of its outputs, and its headline metrics."""
    hashes = {str(path.relative_to(run.folder)): atomic_files.sha256(path) for path in outputs}
    _update_stage(
        run,
        stage,
        {"state": state, "ended": utc_timestamp(), "exit_reason": reason, "outputs": hashes, "metrics": metrics},
    )


@contextmanager
def record_stage(run: Run, stage: str) -> Iterator[None]:
    """Record a stage as failed or interrupted if the block raises; the exception propagates.

    If the manifest cannot be written (a full or read-only disk), a message is printed, and `Run.stage` reports the
    stage as interrupted.
    """
    try:
        yield
    except BaseException as error:
        state: StageState = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            end_stage(run, stage, state, str(error) or type(error).__name__)
        except OSError as write_error:
            message = f"{run.folder / 'manifest.json'} does not record that {stage} {state}: {write_error.strerror}"
            log_line(f"manifest  {message}")
        raise


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Hold the run for this process; the lock ends with the process, however that ends.

    Raise StageError if another process holds it.
    """
    with (run.folder / ".lock").open("w", encoding="utf-8") as file:
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"run {run.id} is in use by another process; wait for it, or end it"
                    raise StageError(message, code="INS-X003") from None
                time.sleep(0.05)
        _locked_folders.add(run.folder.resolve())
        try:
            yield
        finally:
            _locked_folders.discard(run.folder.resolve())


def set_latest(run: Run) -> None:
    """Link `runs/<recipe>/latest` to this run."""
    temp_path = run.folder.parent / f".latest.{secrets.token_hex(4)}"
    temp_path.symlink_to(run.id)
    temp_path.replace(run.folder.parent / "latest")


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, with every default."""
    buffer = io.StringIO()
    writer = YAML()
    writer.width = 110
    writer.dump(recipe.model_dump(mode="json"), buffer)
    return buffer.getvalue()


def _update_stage(run: Run, stage: str, changes: Mapping[str, object]) -> None:
    manifest = run.manifest
    if run.folder.resolve() in _locked_folders or not run.is_locked:
        # No other process works on the run, so other stages that are recorded as running were interrupted.
        manifest = manifest.mark_others_interrupted(stage)
    atomic_files.write_json(run.folder / MANIFEST_FILE, manifest.update_stage(stage, changes).to_json())
