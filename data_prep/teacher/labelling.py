"""Labels of a teacher for unlabelled rows, in `runs/<recipe>/.teacher/<digest>/`.

    labels.jsonl    {"id": "teacher/unlabelled.csv:3", "text": "Where is my parcel", "target": "delivery_delay",
                     "confidence": 0.93, "probabilities": {"delivery_delay": 0.93, ...}, ...}
    teacher.json    the report: who labelled, how many rows were sent, labelled and left out, and the cost

The digest covers the settings of the teacher, the bytes of the unlabelled files and the prepared rows of people.
With the same digest nothing is read or sent. `labels.jsonl` is then a source of the prepared data, by its hash.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.readers import sources
from data_prep.selection.linear_model import linear_uncertainty
from data_prep.selection.row_ranking import rank_rows
from data_prep.teacher import answers, requests, unlabelled_rows
from data_prep.teacher.answers import TeacherLabel
from data_prep.teacher.unlabelled_rows import Candidate, Pool
from insource.backends.budgets import estimate_cost
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.teacher import CONNECTION_KEYS, Teacher
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.system.number_format import format_usd
from insource.tasks import TASKS
from insource.tasks.task_kind import TaskKind
from insource.text.split_hash import hash_texts
from insource.tracking.data_report import DataReport, TeacherReport, TeacherRows

VERSION = 1
"""Incremented when the same settings and files give other labels."""
MAX_FITTED_ROWS = 20_000
"""Train rows that the linear model of the ranking is fitted on: those with the smallest keyed hashes."""
CACHE_FILE = Path(".answers", "teacher.jsonl")


@dataclass(frozen=True)
class TeacherLabels:
    """The labels of a teacher on disk."""

    labels: Sequence[TeacherLabel]
    sha256: str
    """Of labels.jsonl."""
    report: TeacherReport
    """The content of teacher.json."""

    def extra_columns(self) -> dict[str, dict[str, Any]]:
        """Return {row id: keys that a row of train.jsonl has in addition}."""
        return {
            label.id: {"labelled_by": self.report.name}
            | ({"probabilities": label.probabilities} if label.probabilities else {})
            for label in self.labels
        }


def label_rows(recipe: Recipe, data: Path, runs: Path) -> TeacherLabels:
    """Return the labels of the recipe's teacher; ask for them unless they are on disk.

    `data` is the folder of the rows that people labelled, `runs` the folder of the recipe's runs. Raise RecipeError if
    the unlabelled rows or the settings cannot be used, StageError if the provider does not answer.
    """
    teacher = _teacher(recipe)
    files = unlabelled_rows.find_unlabelled_files(recipe)
    hashes = [(file.name, sources.sha256(file, teacher.source)) for file in files]
    settings = teacher.model_dump(mode="json", exclude={"source", *CONNECTION_KEYS})
    dialect = teacher.source.model_dump(mode="json", exclude={"path", "paths"})
    folder = runs / ".teacher" / atomic_files.digest([VERSION, settings, dialect, hashes, data.name])
    if not (folder / "teacher.json").exists():
        pool, ranked = choose_rows(recipe, data)
        task, spec = load_task(recipe, data)
        teacher_requests = requests.build_requests(
            teacher, task, spec, ranked, DataReport.read(data).max_answer_tokens, runs / CACHE_FILE
        )
        collected, teacher_requests = requests.send_requests(teacher_requests, teacher)
        outcomes = [
            answers.read_answer(candidate, collected.answers.get((candidate.id, 0)), task, spec, recipe)
            for candidate in ranked
        ]
        labels = [outcome for outcome in outcomes if isinstance(outcome, TeacherLabel)]
        reasons = Counter[str](outcome for outcome in outcomes if not isinstance(outcome, TeacherLabel))
        report = _make_report(teacher, pool, len(ranked), labels, reasons, teacher_requests.spent_usd)
        with atomic_files.atomic_folder(folder, keep_existing=True) as temp_folder:
            lines = (json.dumps(label.to_json(), ensure_ascii=False) + "\n" for label in labels)
            atomic_files.write_text(temp_folder / "labels.jsonl", "".join(lines))
            atomic_files.write_json(temp_folder / "teacher.json", {**report.to_json(), "unlabelled": dict(hashes)})
        log_line(_summary_line(report))
    path, report_path = folder / "labels.jsonl", folder / "teacher.json"
    read_labels = [TeacherLabel(**line) for line in atomic_files.read_jsonl(path)]
    written_report = TeacherReport.parse(atomic_files.read_json(report_path), report_path)
    return TeacherLabels(read_labels, atomic_files.sha256(path), written_report)


def estimate_lines(recipe: Recipe, data: Path, runs: Path) -> list[str]:
    """Return the console lines of --dry-run: the number of requests and their estimated cost. Nothing is sent."""
    teacher, name = _teacher(recipe), _teacher(recipe).baseline.display_name
    pool, ranked = choose_rows(recipe, data)
    task, spec = load_task(recipe, data)
    teacher_requests = requests.build_requests(
        teacher, task, spec, ranked, DataReport.read(data).max_answer_tokens, runs / CACHE_FILE
    )
    pending = teacher_requests.list_pending()
    cached_note = f", {len(ranked) - len(pending):,} of them have answers" if len(pending) < len(ranked) else ""
    lines = [f"would request labels from {name} for {len(ranked):,} of {pool.n_read:,} unlabelled rows{cached_note}"]
    if teacher_requests.price is None:
        return [*lines, f"cost      {name}: unknown, because it is a stand-in on this machine"]
    estimate = estimate_cost(pending, teacher_requests.price)
    return [
        *lines,
        f"cost      {name}: about {format_usd(estimate.expected_usd)}, with one attempt each at most "
        f"{format_usd(estimate.upper_usd)}",
        f"budget    {format_usd(teacher.budget_usd)} (data.teacher.budget_usd), "
        f"{format_usd(teacher_requests.spent_usd)} of it spent",
    ]


def choose_rows(recipe: Recipe, data: Path) -> tuple[Pool, list[Candidate]]:
    """Return all unlabelled rows, and those to label in order: the rows that would help most first.

    Rows that repeat a labelled row of any split, exactly or nearly, are not among them. Raise RecipeError if no row is
    left.
    """
    teacher, split = _teacher(recipe), recipe.data.split
    exclusions = unlabelled_rows.find_exclusions(recipe, data)
    pool = unlabelled_rows.read_candidates(recipe, unlabelled_rows.find_unlabelled_files(recipe), exclusions)
    texts = [candidate.text for candidate in pool.candidates]
    rows = list(unlabelled_rows.iter_texts(data))
    uncertainty = None
    if recipe.task.kind == "classification":
        train = [(text, target) for name, text, target in rows if name == "train"]
        order = hash_texts((text for text, _ in train), split.seed).argsort(kind="stable")[:MAX_FITTED_ROWS]
        fitted = [train[index] for index in sorted(order.tolist())]
        uncertainty = linear_uncertainty([text for text, _ in fitted], [target for _, target in fitted], texts)
    ranked = rank_rows(
        texts,
        uncertainty=uncertainty,
        labelled_texts=[text for _, text, _ in rows],
        count=teacher.rows,
        seed=split.seed,
        deduplicate=recipe.data.deduplicate,
    )
    if not ranked:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in pool.left_out.most_common())
        raise RecipeError(
            f"data.teacher.source: none of {pool.n_read:,} rows can be labelled"
            f"{f' ({reasons})' if reasons else ''}; the others repeat labelled rows",
            code="INS-D039",
        )
    return pool, [pool.candidates[index] for index in ranked]


def load_task(recipe: Recipe, data: Path) -> tuple[TaskKind, Any]:
    """Return the task and its Spec, with the labels of the prepared rows in `data`."""
    task = TASKS[recipe.task.task_name]
    spec = task.make_spec(recipe.task, DataReport.read(data).label_descriptions)
    if hasattr(spec, "normalize_labels"):
        spec = replace(spec, normalize_labels=recipe.data.normalize_labels)
    return task, spec


def _teacher(recipe: Recipe) -> Teacher:
    assert recipe.data.teacher is not None
    return recipe.data.teacher


def _make_report(
    teacher: Teacher,
    pool: Pool,
    n_chosen: int,
    labels: Sequence[TeacherLabel],
    reasons: Mapping[str, int],
    spent_usd: float,
) -> TeacherReport:
    """Return the content of teacher.json."""
    model_ids = Counter(label.model_id for label in labels if label.model_id)
    return TeacherReport(
        name=teacher.baseline.display_name,
        model_ids=dict(model_ids.most_common()),
        stand_in=teacher.baseline.is_loopback,
        rows=TeacherRows(
            read=pool.n_read,
            unusable=dict(pool.left_out.most_common()),
            sent=n_chosen - reasons.get("not_sent", 0),
            labelled=len(labels),
            left_out=dict(sorted(reasons.items())),
        ),
        min_confidence=teacher.min_confidence,
        has_probabilities=any(label.probabilities for label in labels),
        spent_usd=round(spent_usd, 6),
        budget_usd=teacher.budget_usd,
    )


def _summary_line(report: TeacherReport) -> str:
    rows = report.rows
    n_left_out = sum(rows.left_out.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rows.left_out.items())
    left_out = f", {n_left_out:,} left out ({reasons})" if n_left_out else ""
    return (
        f"teacher   {report.name}: {rows.sent:,} of {rows.read:,} unlabelled rows sent, "
        f"{rows.labelled:,} labels{left_out}; {format_usd(report.spent_usd)} of {format_usd(report.budget_usd)} spent"
    )
