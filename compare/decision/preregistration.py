"""The plan, written before the test set is read, and the record of every reading of a test set.

runs/<recipe>/ledger.jsonl, one line per reading:
{"opened": "2026-11-21T10:00:00Z", "run": "20261121T093000Z-x4fd", "test_sha256": "9f2c...", "plan_sha256": "17ab...",
 "plan": {"system": "tuned", "baseline": "openai:gpt-6-luna", "metric": "accuracy", "margin": 0.02, "alpha": 0.05}}

A line with "recorded" instead of "opened" is from `make record`: a system got the test rows. Their texts were read, but
no targets, so that this is no reading of the test set.

The plan of a run is the first with which it read this test set. A later plan is exploratory: with known answers one can
always find a comparison with the desired result.
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
from insource.system.timestamps import utc_timestamp
from insource.tracking.run import Run


@dataclass(frozen=True)
class TestSetAccess:
    """The access to a test set under a plan."""

    plan_sha256: str
    registered_at: str
    """When the plan that counts was written."""
    exploratory_reason: str | None
    """Why this comparison is exploratory; None if it is confirmatory."""
    openings: Sequence[Mapping[str, Any]]
    """All readings of this test set by runs of the recipe, including this one, the oldest first."""


def register_and_open(trained_run: Run, primary: Primary | None, test_sha256: str) -> TestSetAccess:
    """Append the access to the ledger and flush it to disk, before the test set is read.

    The same plan of the same run is one access: nothing is written the second time. Raise StageError if the ledger
    cannot be parsed.
    """
    plan = None if primary is None else primary.model_dump(mode="json")
    sha256 = atomic_files.digest(plan)
    access = {"run": trained_run.id, "test_sha256": test_sha256, "plan_sha256": sha256}
    entries = _append_once(trained_run.folder.parent, "opened", access, plan)
    openings = [entry for entry in entries if entry["test_sha256"] == test_sha256 and "opened" in entry]
    first_opening = next(entry for entry in openings if entry["run"] == trained_run.id)
    return TestSetAccess(sha256, first_opening["opened"], _exploratory_reason(plan, sha256, first_opening), openings)


def register_recording(folder: Path, primary: Primary | None, test_sha256: str, system: str) -> None:
    """Append to the ledger in `folder` (runs/<recipe>) that a system's answers to the test rows are recorded.

    It is written before the requests, once for each system, test set and plan. Raise StageError if the ledger cannot be
    parsed.
    """
    plan = None if primary is None else primary.model_dump(mode="json")
    recording = {"system": system, "test_sha256": test_sha256, "plan_sha256": atomic_files.digest(plan)}
    _append_once(folder, "recorded", recording, plan)


def _append_once(
    folder: Path, action: str, access: Mapping[str, str], plan: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Append an access to the ledger in `folder` and flush it to disk, unless the ledger has it. Return all entries.

    `action` is the key of its time: "opened" or "recorded".
    """
    path = folder / "ledger.jsonl"
    with path.open("a+", encoding="utf-8") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        entries = _parse_ledger(ledger.readlines(), path)
        if not any(action in entry and access.items() <= entry.items() for entry in entries):
            entries.append({action: utc_timestamp(), **access, "plan": plan})
            ledger.write(json.dumps(entries[-1], ensure_ascii=False) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
    return entries


def _exploratory_reason(plan: Mapping[str, Any] | None, sha256: str, first_opening: Mapping[str, Any]) -> str | None:
    if plan is None:
        return "the recipe names no primary comparison (compare.primary)"
    if first_opening["plan_sha256"] == sha256:
        return None
    previous = first_opening["plan"] or {}
    changes = ", ".join(
        f"{name} was {previous.get(name)!r}" for name, value in plan.items() if previous.get(name) != value
    )
    return f"the plan was changed after the test set was read on {first_opening['opened']}: {changes}"


def _parse_ledger(lines: Sequence[str], path: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            raise StageError(
                f"{path}:{number}: this line of the ledger is not JSON: {line[:60]!r}. The ledger records each "
                "reading of the test set; repair the line, or remove it and lose that record",
                code="INS-C005",
            ) from None
    return entries
