"""manifest.json of a run that a test writes without training."""

from collections.abc import Mapping
from pathlib import Path

from insource.system import atomic_files
from insource.tracking.manifest import SCHEMA_VERSION, Manifest, StageRecord


def write_manifest(run_folder: Path, stages: Mapping[str, StageRecord]) -> None:
    """Write the manifest of a run with these stages."""
    recipe = run_folder.parent.name
    manifest = Manifest(schema_version=SCHEMA_VERSION, run_id=run_folder.name, recipe=recipe, digest="", stages=stages)
    atomic_files.write_json(run_folder / "manifest.json", manifest.to_json())
