"""The plan, written down before the test set is opened, and every opening of a test set.

runs/<recipe>/ledger.jsonl, one line an opening:
{"opened": "2026-11-21T10:00:00Z", "run": "20261121T093000Z-x4fd", "test_sha256": "9f2c...", "plan_sha256": "17ab...",
 "plan": {"system": "tuned", "baseline": "openai:gpt-6-luna", "metric": "accuracy", "margin": 0.02, "alpha": 0.05}}

A line with "recorded" in the place of "opened" says that a system was asked the test rows by `make record`: their texts
were read and no target, so that it is no opening.

The plan that counts for a run is the first that it opened this test set with. What was planned otherwise afterwards is
exploratory: whoever has seen the answers can always find a question that they answer well.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.config.schema.compare import Primary
from insource.system import atomic_files
from insource.tracking import run
from insource.tracking.run import Run


@dataclass(frozen=True)
class TestSetAccess:
    """A test set that was opened by a plan."""

    plan_sha256: str
    written: str
    """When the plan that counts was written down."""
    why_not_confirmatory: str | None
    """Why this comparison only explores; None where it confirms."""
    openings: Sequence[Mapping[str, Any]]
    """Of this test set by any run of the recipe, this one included, the oldest first."""


def register_and_open(trained_run: Run, primary: Primary | None, test_sha256: str) -> TestSetAccess:
    """Writes the opening into the ledger, flushed to disk, before anything of the test set is read.

    The same plan of the same run again is the same opening: nothing is written. Raises StageError where the ledger
    cannot be read.
    """
    plan = None if primary is None else primary.model_dump(mode="json")
    sha256 = atomic_files.digest(plan)
    path = trained_run.folder.parent / "ledger.jsonl"
    with path.open("a+", encoding="utf-8") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        lines = _parse_ledger(ledger.readlines(), path)
        openings = [entry for entry in lines if entry["test_sha256"] == test_sha256 and "opened" in entry]
        if not any(entry["run"] == trained_run.id and entry["plan_sha256"] == sha256 for entry in openings):
            opening = {
                "opened": run.utc_timestamp(),
                "run": trained_run.id,
                "test_sha256": test_sha256,
                "plan_sha256": sha256,
            }
            ledger.write(json.dumps({**opening, "plan": plan}, ensure_ascii=False) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
            openings.append({**opening, "plan": plan})
    first_opening = next(entry for entry in openings if entry["run"] == trained_run.id)
    return TestSetAccess(sha256, first_opening["opened"], _exploratory_reason(plan, sha256, first_opening), openings)


def register_recording(folder: Path, primary: Primary | None, test_sha256: str, system: str) -> None:
    """Writes into the ledger below `folder` (runs/<recipe>) that a system's answers to the test rows are recorded,
    before they are asked for; once for each system, test set and plan. Raises StageError where the ledger cannot be
    read."""
    plan = None if primary is None else primary.model_dump(mode="json")
    recording = {"system": system, "test_sha256": test_sha256, "plan_sha256": atomic_files.digest(plan)}
    path = folder / "ledger.jsonl"
    with path.open("a+", encoding="utf-8") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        lines = _parse_ledger(ledger.readlines(), path)
        if not any("recorded" in entry and recording.items() <= entry.items() for entry in lines):
            ledger.write(
                json.dumps({"recorded": run.utc_timestamp(), **recording, "plan": plan}, ensure_ascii=False) + "\n"
            )
            ledger.flush()
            os.fsync(ledger.fileno())


def _exploratory_reason(plan: Mapping[str, Any] | None, sha256: str, first_opening: Mapping[str, Any]) -> str | None:
    if plan is None:
        return "the recipe names no primary comparison (compare.primary)"
    if first_opening["plan_sha256"] == sha256:
        return None
    previous = first_opening["plan"] or {}
    changes = ", ".join(
        f"{name} was {previous.get(name)!r}" for name, value in plan.items() if previous.get(name) != value
    )
    return f"the plan was changed after the test set was opened on {first_opening['opened']}: {changes}"


def _parse_ledger(lines: Sequence[str], path: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            raise StageError(
                f"{path}:{number}: this line of the ledger cannot be read: {line[:60]!r}. It says who opened the test "
                "set; mend the line or remove it knowingly"
            ) from None
    return entries
