"""The bench of labelling, on a few synthetic rows."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import labelling, labelling_choice
from bench.labelling_pools import Rows
from bench.linear_refits import LinearRefits, Refit
from tests.conftest import Command

TOPICS = {"parcel": "parcel courier delivery", "refund": "refund money account", "login": "login password reset"}


def make_rows(count: int, first: int) -> list[tuple[str, str]]:
    labels = [*TOPICS]
    return [
        (f"{TOPICS[labels[row % 3]]} {'abcdefghij'[row % 10] * 6}{row * 7919}", labels[row % 3])
        for row in range(first, first + count)
    ]


def test_all_arms_start_from_one_model_and_label_as_many_new_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = labelling.Schedule(start_rows=6, rounds=2, round_rows=5)
    sizes: list[int] = []
    fit_rows = labelling.fit_rows

    def count_and_fit(refits: LinearRefits, rows: Rows, chosen: Sequence[int]) -> Refit:
        assert len({*chosen}) == len(chosen) and max(chosen) < 60, "no row is labelled twice, and none is held out"
        sizes.append(len(chosen))
        return fit_rows(refits, rows, chosen)

    monkeypatch.setattr(labelling, "fit_rows", count_and_fit)
    train, held_out = make_rows(60, 0), make_rows(30, 100)
    refits = LinearRefits([text for text, _ in [*train, *held_out]])
    start = list(range(6))
    fitted = fit_rows(refits, train, start)
    curves = [labelling.measure_arm(arm, 1, schedule, refits, train, held_out, start, fitted) for arm in labelling.ARMS]
    assert sizes == [11, 16] * len(labelling.ARMS)
    right = [label == truth for label, (_, truth) in zip(fitted.labels[60:], held_out, strict=True)]
    assert {curve[0] for curve in curves} == {sum(right) / 30}
    assert all(0 <= accuracy <= 1 for curve in curves for accuracy in curve)


def test_one_command_measures_all_arms_and_prints_the_table(python: Command, tmp_path: Path) -> None:
    for name, rows in (("train", make_rows(120, 0)), ("test", make_rows(60, 200))):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *rows])
    path = tmp_path / "labelling.json"
    completed = python("bench.labelling", "--banking77", tmp_path, "--small", "--seeds", "2", "--results", path)
    assert completed.returncode == 0, completed.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert (results["pool_rows"], results["held_out_rows"]) == (120, 60)
    assert results["labelled_rows"] == [30, 40, 50]
    runs = {(run["arm"], run["seed"]): run["accuracy"] for run in results["runs"]}
    assert sorted(runs) == sorted((arm, seed) for arm in labelling.ARMS for seed in (0, 1))
    for (_, seed), accuracy in runs.items():
        assert len(accuracy) == 3 and accuracy[0] == runs[labelling.BASELINE, seed][0] > 0.5
    assert labelling.results_table(results) in completed.stdout


def test_the_tables_of_the_docs_are_those_of_the_published_results() -> None:
    page = labelling.DOCS.read_text(encoding="utf-8")
    for bench in (labelling, labelling_choice):
        table = bench.results_table(json.loads(bench.RESULTS.read_text(encoding="utf-8")))
        assert table in page, f"{bench.RESULTS.name} is newer: python -m bench.labelling --write-docs"


def test_a_difference_is_paired_by_seed_and_has_an_interval() -> None:
    accuracies = {labelling.BASELINE: [0.5, 0.6, 0.7], labelling.CURRENT: [0.52, 0.63, 0.71]}
    runs = [
        {"seed": seed, "arm": arm, "accuracy": [0.4, values[seed]]}
        for arm, values in accuracies.items()
        for seed in (2, 0, 1)
    ]
    results = {
        **{"hardware": "2 cores", "date": "2026-11-30", "command": "bench", "cpu_seconds": 5},
        **{"pool_rows": 10, "held_out_rows": 5, "labelled_rows": [500, 750], "runs": runs},
    }
    difference, low, high = labelling.compare_with_random(results, labelling.CURRENT, 1)
    assert difference == pytest.approx(0.02) and low < 0.02 < high
    assert high - low == pytest.approx(2 * 4.30265 * 0.01 / 3**0.5, rel=1e-4)
    assert "| 750 | 60.0% | 62.0% | +2.0 points (-0.5 to +4.5) |" in labelling.results_table(results)
