"""The data of a comparison: the task with the labels and prompt of training, and the rows of each split."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.stats.metric_stats import MetricStats
from insource.system import atomic_files
from insource.tasks import references, train_subset
from insource.tasks.data_row import DataRow, Rows
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.task_kind import TaskKind
from insource.text.text_keys import duplicate_key
from insource.tracking.data_report import DataReport
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run

OTHER_SPLITS = ("train", "validation", "calibration")


@dataclass(frozen=True)
class EvalDataset:
    """The task and its rows."""

    task: TaskKind
    spec: Any
    prompt: PromptSpec
    """prompt.json of the run: constraint, maximum answer length, chat template."""
    train: Rows
    calibration: Rows
    test: Rows

    @property
    def train_answers(self) -> list[str]:
        """Return the answers of the train rows as text."""
        return [self.task.answer_text(self.spec, row["target"]) for row in self.train]

    def compute_metric_stats(self, rows: Rows, parsed: Sequence[ParsedAnswer]) -> dict[str, MetricStats]:
        """Return the statistics of each metric of the task, for the parsed answers to rows."""
        targets = references.select_targets(self.task, self.spec, rows, parsed)
        return self.task.compute_metric_stats(self.spec, targets, parsed)

    @property
    def cluster_ids(self) -> list[str | None] | None:
        """Return the group of each test row, None if no row has a group."""
        return cluster_ids(self.test)

    @property
    def n_clusters(self) -> int | None:
        """Return the number of groups of the test rows. A row without a group counts as one group."""
        if self.cluster_ids is None:
            return None
        sizes = Counter(self.cluster_ids)
        n_ungrouped = sizes.pop(None, 0)
        return len(sizes) + n_ungrouped


def cluster_ids(rows: Rows) -> list[str | None] | None:
    """Return the group of each row, None if no row has a group."""
    groups = [row.get("group") for row in rows]
    return groups if any(group is not None for group in groups) else None


def sample_rows(rows: Rows, max_rows: int) -> Rows:
    """Return at most `max_rows` rows in their order: those with the smallest hashes of their ids.

    The sample is random, but the same for all systems and for every repetition.
    """
    if len(rows) <= max_rows:
        return rows
    chosen_ids = {
        row["id"] for row in sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())[:max_rows]
    }
    return [row for row in rows if row["id"] in chosen_ids]


def hash_test_set(run: Run) -> str:
    """Return the SHA-256 of the run's test set. Only the bytes of the file are read.

    Raise StageError if the file differs from the hash that data preparation wrote.
    """
    path = run.folder / "data" / "test.jsonl"
    sha256 = atomic_files.sha256(path)
    if sha256 != DataReport.read(path.parent).sha256[path.name]:
        raise StageError(f"{path} was changed after data preparation; run `make data` again", code="INS-D033")
    return sha256


def load_test_dataset(run: Run) -> EvalDataset:
    """Return the dataset of a run with its test rows. This reads the test set.

    Raise StageError if there are no test rows, or if another split contains a test row.
    """
    prompt = PromptSpec.read(run.folder / "adapter")
    task, spec = prompt.load_task()
    data = run.folder / "data"
    rows = {name: _read_rows(data / f"{name}.jsonl") for name in (*OTHER_SPLITS, "test")}
    if not rows["test"]:
        raise StageError(f"{data / 'test.jsonl'} has no rows to compare; set data.split.test above 0", code="INS-D027")
    keys = {duplicate_key(row["input"]["text"]) for row in rows["test"]}
    for name in OTHER_SPLITS:
        if duplicates := [row["id"] for row in rows[name] if duplicate_key(row["input"]["text"]) in keys]:
            raise StageError(
                f"{len(duplicates)} rows of {name} have the text of a test row, the first is {duplicates[0]}: scores "
                "would be too high; prepare the data again (`make data`)",
                code="INS-D034",
            )
    return EvalDataset(task, spec, prompt, _trained_rows(run, rows["train"]), rows["calibration"], rows["test"])


def load_validation_dataset(run: Run) -> EvalDataset:
    """Return the dataset of a run with validation rows as `test`. It can be used before the test set is read."""
    prompt = PromptSpec.read(run.folder / "adapter")
    task, spec = prompt.load_task()
    rows = {name: _read_rows(run.folder / "data" / f"{name}.jsonl") for name in ("train", "validation")}
    return EvalDataset(task, spec, prompt, _trained_rows(run, rows["train"]), [], rows["validation"])


def _trained_rows(run: Run, train: Rows) -> Rows:
    """Return the train rows that the run was trained on: a subset if its recipe has `train.max_train_rows`."""
    return [train[index] for index in train_subset.select_train_rows(train, run.recipe())]


def _read_rows(path: Path) -> list[DataRow]:
    return list(atomic_files.read_jsonl(path)) if path.exists() else []
