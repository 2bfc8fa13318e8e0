"""The typed records of manifest.json: the stages of a run, their inputs and their outputs."""

from collections.abc import Mapping
from typing import Any, Literal

from insource.tracking.record import StoredRecord

SCHEMA_VERSION = 1
UNRECORDED_EXIT = "its process ended without recording how: it was killed, or the disk could not be written"

StageState = Literal["running", "done", "failed", "interrupted"]


class StageRecord(StoredRecord):
    """One stage of a run."""

    state: StageState | None = None
    """None: the stage never started."""
    started: str | None = None
    """UTC time."""
    ended: str | None = None
    """UTC time; None while the stage runs."""
    inputs: Mapping[str, str] = {}
    """{file: hash} of what it read."""
    outputs: Mapping[str, str] = {}
    """{file: hash} of what it wrote."""
    fallbacks: list[str] = []
    """Deviations from the recipe."""
    exit_reason: str | None = None
    metrics: Mapping[str, Any] = {}
    """Headline figures; each stage has its own keys."""

    def mark_interrupted(self) -> "StageRecord":
        """Return the record; as interrupted if it says that the stage runs."""
        if self.state != "running":
            return self
        return self.model_copy(update={"state": "interrupted", "exit_reason": UNRECORDED_EXIT})


class Manifest(StoredRecord):
    """Contents of manifest.json."""

    schema_version: int
    run_id: str
    recipe: str
    digest: str
    replaced: list[str] = []
    """Recipe keys that the hardware file and SET changed."""
    stages: Mapping[str, StageRecord] = {}

    def get_stage(self, name: str) -> StageRecord:
        """Return the record of a stage; an empty one if it never started."""
        return self.stages.get(name, StageRecord())

    def update_stage(self, name: str, changes: Mapping[str, object]) -> "Manifest":
        """Return the manifest with changed fields of one stage."""
        stage = self.get_stage(name).model_copy(update=dict(changes))
        return self.model_copy(update={"stages": {**self.stages, name: stage}})

    def mark_others_interrupted(self, name: str) -> "Manifest":
        """Return the manifest with all other running stages as interrupted."""
        stages = {other: stage if other == name else stage.mark_interrupted() for other, stage in self.stages.items()}
        return self.model_copy(update={"stages": stages})
