"""Records of answers in one file a month: registry/<name>/<folder>/2026-11.jsonl.

Each line has the id of its deployment. Several gateways may append to a file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from insource.system import shared_jsonl
from insource.system.timestamps import utc_timestamp


def append_lines(folder: Path, lines: Sequence[Mapping[str, object]], description: str, flush: bool) -> None:
    """Append lines with the current time to the file of this month.

    With `flush` they are on disk afterwards. Raise StageError with `description` if that fails.
    """
    recorded_at = utc_timestamp()
    with shared_jsonl.open_locked(folder / f"{recorded_at[:7]}.jsonl", description) as file:
        shared_jsonl.append_lines(file, [{"at": recorded_at, **line} for line in lines], description, flush)


def read_lines(folder: Path, deployment_id: str) -> Iterator[Mapping[str, Any]]:
    """Yield the lines on a deployment, oldest first."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in shared_jsonl.read_lines(path):
            if isinstance(line, dict) and line.get("deployment") == deployment_id:
                yield line
