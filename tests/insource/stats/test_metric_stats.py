"""Metrics as sums over rows: the same figures as scikit-learn's, and as the tasks' own scores."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.tasks import TASKS, classification, extraction, few_shot
from insource.tasks.parsed_answer import ParsedAnswer

LABELS = ["a", "b", "c", "d"]
ROWS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=40)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"number": {"type": "string", "maxLength": 9}, "total": {"type": "string", "maxLength": 9}},
}


@settings(deadline=None)
@given(ROWS)
def test_accuracy_and_macro_f1_are_scikit_learns(rows: list[tuple[str, str | None]]) -> None:
    targets, predictions = [row[0] for row in rows], [row[1] or "" for row in rows]
    answers = [ParsedAnswer(label) if label else ParsedAnswer(None, "not_a_label") for label in predictions]
    spec = classification.Spec("Choose one of these.", dict.fromkeys(LABELS, ""))
    metrics = classification.compute_metric_stats(spec, targets, answers)
    present_labels = [label for label in LABELS if label in set(targets) | set(predictions)]
    macro = f1_score(targets, predictions, labels=present_labels, average="macro", zero_division=0.0)
    assert metrics["accuracy"].compute_value() == pytest.approx(accuracy_score(targets, predictions))
    assert metrics["macro_f1"].compute_value() == pytest.approx(macro)
    assert classification.score(spec, targets, answers)["macro_f1"] == metrics["macro_f1"].compute_value()


@settings(deadline=None)
@given(ROWS, st.integers(0, 2**31))
def test_a_resample_is_the_sum_of_its_rows(rows: list[tuple[str, str | None]], seed: int) -> None:
    targets, predictions = (
        [LABELS.index(row[0]) for row in rows],
        [LABELS.index(row[1]) if row[1] else -1 for row in rows],
    )
    metric = metric_stats.macro_f1_metric(targets, predictions, len(LABELS))
    sampled = np.random.default_rng(seed).integers(0, len(rows), len(rows))
    counts = np.bincount(sampled, minlength=len(rows)).astype(float)
    resampled = metric_stats.macro_f1_metric(
        [targets[index] for index in sampled], [predictions[index] for index in sampled], len(LABELS)
    )
    assert metric.from_sums((metric.row_stats.T @ counts).reshape(1, -1))[0] == pytest.approx(resampled.compute_value())


def test_field_f1_counts_values_of_all_rows_together() -> None:
    spec = extraction.make_spec(Task(kind="extraction", instruction="Read the document.", json_schema=SCHEMA), {})
    targets = [{"number": "1", "total": None}, {"number": "2", "total": "9"}]
    answers = [ParsedAnswer({"number": "1", "total": "3"}), ParsedAnswer(None, "not_json")]
    metrics = extraction.compute_metric_stats(spec, targets, answers)
    assert metrics["field_f1"].compute_value() == pytest.approx(2 * 1 / (2 + 3))
    assert metrics["exact_match"].compute_value() == 0 and metrics["schema_valid"].compute_value() == 0.5
    assert list(metrics["field_f1"].from_sums(metrics["field_f1"].row_stats)) == pytest.approx([2 / 3, 0.0])


def test_shares_are_known_as_such() -> None:
    assert metric_stats.mean_metric([1.0, 0.0]).is_proportion
    assert not metric_stats.mean_metric([0.5, 1.0]).is_proportion
    assert not metric_stats.micro_f1_metric([1.0], [1.0], [1.0]).is_proportion
    assert not metric_stats.macro_f1_metric([0], [0], 2).is_proportion


def test_examples_stand_before_the_row_as_turns() -> None:
    spec = classification.Spec("Choose one of these.", {"a": "", "b": ""})
    examples = [{"input": {"text": "first"}, "target": "a"}, {"input": {"text": "second"}, "target": "b"}]
    messages = few_shot.messages(classification, spec, examples, {"text": "the row"})
    assert [turn["role"] for turn in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Choose one of these.") and messages[0]["content"].endswith("first")
    assert [messages[1]["content"], messages[3]["content"]] == ["a", "b"] and messages[4][
        "content"
    ] == "Input:\nthe row"


@pytest.mark.parametrize("kind", TASKS)
def test_without_examples_it_is_the_tasks_own_prompt(kind: str) -> None:
    labels = {"a": "", "b": ""}
    task_fields: dict[str, Any] = {"json_schema": SCHEMA} if kind == "extraction" else {}
    task_fields |= {"labels_per_row": "many", "kind": "classification"} if kind == "multilabel" else {"kind": kind}
    spec = TASKS[kind].make_spec(Task(instruction="Do it with care.", **task_fields), labels)
    assert few_shot.messages(TASKS[kind], spec, [], {"text": "row"}) == TASKS[kind].messages(spec, {"text": "row"})
