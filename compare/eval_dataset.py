"""What systems are compared on: the task as the model learnt it, and the rows of each split."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.system import atomic_files
from insource.tasks import load_task_spec
from insource.tasks.task_kind import TaskKind
from insource.tasks.text_keys import duplicate_key
from insource.tracking.run import Run

Rows = Sequence[Mapping[str, Any]]
OTHER_SPLITS = ("train", "validation", "calibration")


@dataclass(frozen=True)
class EvalDataset:
    """The task, and its rows."""

    module: TaskKind
    spec: Any
    prompt: Mapping[str, Any]
    """prompt.json of the run: constraint, longest answer, template."""
    train: Rows
    calibration: Rows
    test: Rows

    @property
    def answers(self) -> list[str]:
        """Returns the answers of the train rows, as text."""
        return [self.module.answer_text(self.spec, row["target"]) for row in self.train]

    @property
    def clusters(self) -> list[str | None] | None:
        """Returns the group of each test row, None where rows have none."""
        return cluster_ids(self.test)

    @property
    def n_clusters(self) -> int | None:
        """Returns how many groups the test rows are of; a row without a group is one of its own."""
        if self.clusters is None:
            return None
        sizes = Counter(self.clusters)
        n_ungrouped = sizes.pop(None, 0)
        return len(sizes) + n_ungrouped


def cluster_ids(rows: Rows) -> list[str | None] | None:
    """Returns the group of each row, None where rows have none."""
    groups = [row.get("group") for row in rows]
    return groups if any(group is not None for group in groups) else None


def sample_rows(rows: Rows, max_rows: int) -> Rows:
    """Returns so many of the rows, in their order: those whose ids have the smallest hashes, which is a random choice
    that is the same for all systems and for every repetition."""
    if len(rows) <= max_rows:
        return rows
    chosen_ids = {
        row["id"] for row in sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())[:max_rows]
    }
    return [row for row in rows if row["id"] in chosen_ids]


def hash_test_set(run: Run) -> str:
    """Returns the hash of the run's test set, read as bytes alone. Raises StageError where it is not as data
    preparation wrote it."""
    path = run.folder / "data" / "test.jsonl"
    sha256 = atomic_files.sha256(path)
    if sha256 != atomic_files.read_json(path.with_name("data.json"))["sha256"][path.name]:
        raise StageError(f"{path} is not as `make data` wrote it; prepare the data anew")
    return sha256


def load_test_dataset(run: Run) -> EvalDataset:
    """Returns what a run is compared on; opens the test set. Raises StageError where another split has a test row."""
    prompt = atomic_files.read_json(run.folder / "adapter" / "prompt.json")
    task, spec = load_task_spec(prompt["task"])
    data = run.folder / "data"
    rows = {name: _read_rows(data / f"{name}.jsonl") for name in (*OTHER_SPLITS, "test")}
    if not rows["test"]:
        raise StageError(f"{data / 'test.jsonl'} has no rows: nothing can be compared; give data.split.test a share")
    keys = {duplicate_key(row["input"]["text"]) for row in rows["test"]}
    for name in OTHER_SPLITS:
        if duplicates := [row["id"] for row in rows[name] if duplicate_key(row["input"]["text"]) in keys]:
            raise StageError(
                f"{len(duplicates)} rows of {name} say the same as a test row, first {duplicates[0]}: a score "
                "would flatter; "
                "prepare the data anew (`make data`)"
            )
    return EvalDataset(task, spec, prompt, rows["train"], rows["calibration"], rows["test"])


def load_validation_dataset(run: Run) -> EvalDataset:
    """Returns the same with validation rows in the place of test rows: what can be told before the test is opened."""
    prompt = atomic_files.read_json(run.folder / "adapter" / "prompt.json")
    task, spec = load_task_spec(prompt["task"])
    rows = {name: _read_rows(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")}
    return EvalDataset(task, spec, prompt, rows["train"], [], rows["validation"])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return list(atomic_files.read_jsonl(path)) if path.exists() else []
