"""Daily profiles of the answers, without the answers. `make drift` compares them with the calibration rows.

registry/<name>/observed/2026-11-29.5c1f09e2.json     of one process, rewritten every minute and at its end
{"<deployment>": {"version": "3f2a...", "confidences": {"974": 12}, "answers": {"refund_status": 31}, "rows": 43,
                  "reasons": {"local/confident": 40, "api/below_threshold": 3}, "unread": 0, "others": 0}}

There is one profile for each version with each routing.json, since only answers on one scale are comparable. A killed
process loses at most a minute.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compare.decision.answer_profile import AnswerProfile, profile_from_json
from deploy.answers.task import Task
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread

FOLDER = "observed"
WRITE_INTERVAL_SECONDS = 60.0
MIN_ANSWERS = 50
"""Minimum number of answers for a test."""
MAX_UNREAD_FRACTION = 0.01
"""Maximum fraction of inputs with unread answers for a test: they are no random sample, and calibration rows include
such inputs."""
MAX_LABEL_SETS = 2_000
"""Maximum number of different label sets that are counted separately, unless the task has more labels."""


@dataclass
class TrafficProfile:
    """Answers of a deployed version."""

    version: str = ""
    profile: AnswerProfile = field(default_factory=AnswerProfile)
    """Valid answers of the deployed model, also if the API model answered the client."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Number of inputs by answering system and reason."""
    unread: int = 0
    """Inputs whose answer is missing in `profile` for a reason that depends on the input: forwarded chats, and with
    route.mirror the inputs answered locally."""
    others: int = 0
    """Answers beyond MAX_LABEL_SETS different ones. `profile` has only their confidence."""

    def add(self, confidence: float | None, answer: str | None, n_labels: int) -> None:
        """Add a valid answer to the profile.

        `answer` is its text if the task has labels, `n_labels` the number of labels.
        """
        answers = self.profile.answers
        if answer is not None and answer not in answers and len(answers) >= max(MAX_LABEL_SETS, n_labels):
            answer, self.others = None, self.others + 1
        self.profile.add(confidence, answer)

    @property
    def unusable_reason(self) -> str | None:
        """Reason why `profile` does not represent the traffic, None if it does."""
        if (fraction := self.unread / max(1, self.reasons.total())) > MAX_UNREAD_FRACTION:
            return (
                f"{fraction:.1%} of the inputs stay here and their answers are not looked at (chats with a stream "
                "or logprobs, forwarded from vLLM; all of them with route.mirror): the others are not like the "
                "calibration rows, which have all kinds"
            )
        if self.profile.rows < MIN_ANSWERS:
            return f"only {self.profile.rows:,} answers were seen, and {MIN_ANSWERS} are needed"
        return None

    def update(self, other: "TrafficProfile") -> None:
        """Add the counts of another profile."""
        self.version = self.version or other.version
        self.profile.update(other.profile)
        self.reasons.update(other.reasons)
        self.unread += other.unread
        self.others += other.others

    def json(self) -> dict[str, Any]:
        """Return the profile as the JSON object of the files."""
        reasons = dict(sorted(self.reasons.items()))
        payload = {"version": self.version, **self.profile.json(), "reasons": reasons}
        return payload | {"unread": self.unread, "others": self.others}

    def copy(self) -> "TrafficProfile":
        """Return a copy for a thread, unaffected by further counts."""
        copied = TrafficProfile(self.version)
        copied.update(self)
        return copied


class TrafficProfiles:
    """The profiles of one process."""

    def __init__(self, registry: Path | None = None) -> None:
        """`registry` is the folder to write to, None to write none."""
        self._registry, self._process = registry, secrets.token_hex(4)
        self._days: dict[tuple[str, str], dict[str, TrafficProfile]] = {}
        """{(name, day): {deployment id: profile}}"""
        self._changed_keys: set[tuple[str, str]] = set()
        self._written_at = time.monotonic()
        self._failure_logged = False

    def profile_today(self, task: Task) -> TrafficProfile:
        """Return today's profile of a version, to add answers to."""
        key = _today_key(task)
        self._changed_keys.add(key)
        day = self._days.setdefault(key, {})
        return day.setdefault(task.deployment_id, TrafficProfile(task.version))

    def read_today(self, task: Task) -> TrafficProfile:
        """Return today's profile of a version in this process."""
        return self._days.get(_today_key(task), {}).get(task.deployment_id) or TrafficProfile(task.version)

    async def write(self, write_all: bool = False) -> None:
        """Write changed profiles once a minute, or now with `write_all`. Log a failure of the disk once."""
        if self._registry is None or not self._changed_keys:
            return
        if not write_all and time.monotonic() - self._written_at < WRITE_INTERVAL_SECONDS:
            return
        self._written_at, changed = time.monotonic(), sorted(self._changed_keys)
        self._changed_keys.clear()
        copies = {
            self._registry / name / FOLDER / f"{day}.{self._process}.json": {
                deployment_id: profile.copy() for deployment_id, profile in self._days[name, day].items()
            }
            for name, day in changed
        }
        try:
            await run_in_thread(_write_files, copies)
        except OSError as error:
            self._changed_keys.update(changed)
            if not self._failure_logged:
                log_line(f"observed  not written, `make drift` sees nothing of it: {error.strerror or error}")
            self._failure_logged = True
            return
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        for key in [key for key in self._days if key[1] < today and key not in self._changed_keys]:
            del self._days[key]


def _today_key(task: Task) -> tuple[str, str]:
    return task.name, f"{datetime.now(UTC):%Y-%m-%d}"


def read_profile(registry_dir: Path, deployment_id: str, since: str) -> TrafficProfile:
    """Return the profile of a deployment in registry/<name> over all processes, since a day (YYYY-MM-DD)."""
    total = TrafficProfile()
    for path in sorted((registry_dir / FOLDER).glob("*.json")):
        if path.name[: len(since)] < since:
            continue
        record: Mapping[str, Any] = atomic_files.read_json(path).get(deployment_id) or {}
        if "unread" in record:  # files of older versions do not count missing answers
            total.update(
                TrafficProfile(
                    record["version"],
                    profile_from_json(record),
                    Counter(record["reasons"]),
                    record["unread"],
                    record["others"],
                )
            )
    return total


def _write_files(copies: Mapping[Path, Mapping[str, TrafficProfile]]) -> None:
    for path, day in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(
            path, json.dumps({deployment_id: profile.json() for deployment_id, profile in day.items()}) + "\n"
        )
