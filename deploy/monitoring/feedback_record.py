"""Right answers that clients sent, recorded in the registry.

registry/<name>/feedback/2026-11.jsonl
{"at": "...", "answer": "9f2c...", "deployment": "51ab...", "local": true, "kept": true, "mirrored": false,
 "confidence": 0.974, "right": false, "right_digest": "07be..."}

The file contains no answer, only keyed digests (deploy/answers/answer_ids.py). The last feedback on an answer counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.answers.answer_ids import AnswerRecord
from deploy.answers.outcome import Deployment
from deploy.monitoring import monthly_record, traffic_record

FOLDER = "feedback"
_DESCRIPTION = "feedback"


@dataclass(frozen=True)
class Feedback:
    """A right answer that a client sent for an answer of the gateway."""

    deployment: Deployment
    record: AnswerRecord
    digest: str
    """Keyed digest of the right answer."""
    value: Any
    """The right answer."""

    @property
    def is_correct(self) -> bool:
        """True if the answer given is the right one."""
        return self.digest == self.record.digest


def write_feedback(entries: list[Feedback]) -> None:
    """Append feedback to the record, and correct the rows of recorded inputs. Raise StageError if that fails."""
    registry_dirs = {entry.deployment.registry_dir for entry in entries}
    for registry_dir in sorted(registry_dirs):
        lines = [_to_line(entry) for entry in entries if entry.deployment.registry_dir == registry_dir]
        monthly_record.append_lines(registry_dir / FOLDER, lines, _DESCRIPTION, flush=True)
    corrections: dict[tuple[Path, int], dict[str, Feedback]] = {}
    for entry in entries:
        if entry.record.recorded:
            corrections.setdefault((entry.deployment.registry_dir, entry.record.day), {})[entry.record.name] = entry
    for (registry_dir, day), by_name in corrections.items():
        correct_answers = {name: entry.value for name, entry in by_name.items()}
        traffic_record.correct_rows(next(iter(by_name.values())).deployment.task, registry_dir, day, correct_answers)


def _to_line(entry: Feedback) -> dict[str, object]:
    record = entry.record
    return {
        "answer": record.name,
        "deployment": record.deployment_id,
        "local": record.local,
        "kept": record.kept,
        "mirrored": record.mirrored,
        "confidence": record.confidence,
        "right": entry.is_correct,
        "right_digest": entry.digest,
    }


def read_feedback(registry_dir: Path, deployment_id: str, since: datetime) -> list[Mapping[str, Any]]:
    """Return the last feedback on each answer of a deployment in registry/<name>, received since `since`."""
    latest: dict[str, Mapping[str, Any]] = {}
    for line in monthly_record.read_lines(registry_dir / FOLDER, deployment_id):
        if datetime.fromisoformat(line["at"]) >= since:
            latest[line["answer"]] = line
    return list(latest.values())
