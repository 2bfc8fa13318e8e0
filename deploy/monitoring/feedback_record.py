"""TODO"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.answers.answer_ids import AnswerRecord
from deploy.answers.outcome import Deployment
from deploy.monitoring import traffic_record
from insource.system import shared_jsonl
from insource.tracking.run import utc_timestamp

FOLDER = "feedback"
_DESCRIPTION = "feedback"


@dataclass(frozen=True)
class Feedback:
    """A right answer that was given for an answer."""

    deployed: Deployment
    answered: AnswerRecord
    digest: str
    """Of the right answer."""
    value: Any
    """The right answer."""

    @property
    def right(self) -> bool:
        """Returns whether what was answered is right."""
        return self.digest == self.answered.digest


def write_feedback(entries: list[Feedback]) -> None:
    """Writes feedback down. Raises StageError where that fails."""
    registry_dirs = {entry.deployed.place for entry in entries}
    for registry_dir in sorted(registry_dirs):
        recorded_at = utc_timestamp()
        with shared_jsonl.open_locked(registry_dir / FOLDER / f"{recorded_at[:7]}.jsonl", _DESCRIPTION) as file:
            group = [entry for entry in entries if entry.deployed.place == registry_dir]
            for number, entry in enumerate(group, 1):
                shared_jsonl.append_line(file, _to_line(entry, recorded_at), _DESCRIPTION, flush=number == len(group))
    corrections: dict[tuple[Path, int], dict[str, Feedback]] = {}
    for entry in entries:
        if entry.answered.recorded:
            corrections.setdefault((entry.deployed.place, entry.answered.day), {})[entry.answered.name] = entry
    for (registry_dir, day), by_name in corrections.items():
        right_answers = {name: entry.value for name, entry in by_name.items()}
        traffic_record.correct_rows(next(iter(by_name.values())).deployed.task, registry_dir, day, right_answers)


def _to_line(entry: Feedback, recorded_at: str) -> dict[str, object]:
    record = entry.answered
    return {
        "at": recorded_at,
        "answer": record.name,
        "deployment": record.deployment,
        "local": record.local,
        "kept": record.kept,
        "mirrored": record.mirrored,
        "confidence": record.confidence,
        "right": entry.right,
        "right_digest": entry.digest,
    }


def read_feedback(registry_dir: Path, deployment_id: str, since: datetime) -> list[Mapping[str, Any]]:
    """Returns the feedback below registry/<name> on answers of a deployment that came from then on, of each answer the
    last."""
    latest: dict[str, Mapping[str, Any]] = {}
    for line in _read_folder(registry_dir):
        if line["deployment"] == deployment_id and datetime.fromisoformat(line["at"]) >= since:
            latest[line["answer"]] = line
    return list(latest.values())


def _read_folder(registry_dir: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted((registry_dir / FOLDER).glob("*.jsonl")):
        yield from (line for line in shared_jsonl.read_lines(path) if isinstance(line, dict) and "deployment" in line)
