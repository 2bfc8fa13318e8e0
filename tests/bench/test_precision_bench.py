"""The bench of float32 against bfloat16: its smallest forms, and its difference of scores."""

import json
from pathlib import Path

import pytest

from bench import precision_scores
from bench.precision_scores import ScoreCase, ScoredRow
from tests.conftest import Command


@pytest.mark.nightly
@pytest.mark.slow
def test_a_small_run_trains_the_same_rows_in_both_precisions(python: Command, tmp_path: Path) -> None:
    path = tmp_path / "precision.json"
    completed = python("bench.precision", "--small", "--runs", "1", "--results", path)
    assert completed.returncode == 0, completed.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert results["command"] == "python -m bench.precision --small --runs 1"
    assert set(results["matmul_flops"]) == {"float32", "bfloat16"}
    (case,) = results["cases"]
    assert (case["base"], case["shape"], case["batch_size"]) == ("pocket", "classifier", 4)
    float32, bfloat16 = case["float32"], case["bfloat16"]
    assert (float32["product_dtype"], bfloat16["product_dtype"]) == ("float32", "bfloat16")
    assert float32["token_ids_sha256"] == bfloat16["token_ids_sha256"]
    assert len(float32["losses"]) == len(bfloat16["losses"]) == 3
    assert bfloat16["losses"] == pytest.approx(float32["losses"], rel=0.05)
    assert bfloat16["losses"] != float32["losses"]
    for figures in (float32, bfloat16):
        assert figures["examples_per_second"] > 0 and figures["matmul_share"] > 0 and figures["peak_memory_bytes"] > 0
        assert [len(run) for run in figures["raw_seconds"]] == [3]
    assert "| pocket | 4 |" in completed.stdout


@pytest.mark.nightly
@pytest.mark.slow(minutes=2)
def test_scores_of_both_precisions_are_compared_on_the_same_rows_and_continue(python: Command, tmp_path: Path) -> None:
    path, folder = tmp_path / "scores.json", tmp_path / "trainings"
    words = ("bench.precision", "--scores", "--small", "--folder", folder, "--results", path)
    completed = python(*words)
    assert completed.returncode == 0, completed.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    (case,) = results["cases"]
    splits = [list((folder / "runs" / "small").glob(f".data/*/{split}.jsonl")) for split in case["splits"]]
    assert case["rows"] == sum(len(file.read_text(encoding="utf-8").splitlines()) for (file,) in splits)
    assert case["groups"] and case["over_seeds"] is None
    assert [(run["seed"], run["precision"]) for run in case["runs"]] == [(17, "float32"), (17, "bfloat16")]
    assert len({run["adapter_sha256"] for run in case["runs"]}) == 2, "the precision made no difference"
    assert case["over_rows"]["low"] <= case["over_rows"]["delta"] <= case["over_rows"]["high"]
    assert "| pocket, small |" in completed.stdout and "one seed" in completed.stdout
    again = python(*words)
    assert again.returncode == 0 and "unchanged" in again.stderr
    assert json.loads(path.read_text(encoding="utf-8"))["cases"] == results["cases"]


def score_rows(right: list[bool]) -> list[ScoredRow]:
    return [ScoredRow(f"row{number}", None, value) for number, value in enumerate(right)]


def test_a_row_counts_with_its_mean_over_the_seeds() -> None:
    truth = [number % 4 > 0 for number in range(400)]
    # With the first seed bfloat16 has 4 more rows right, with the second 4 fewer: in the mean eight rows move by half.
    more = [right or number < 16 for number, right in enumerate(truth)]
    fewer = [right and number not in (41, 42, 43, 45) for number, right in enumerate(truth)]
    rows = {"float32": [score_rows(truth)] * 2, "bfloat16": [score_rows(more), score_rows(fewer)]}
    case = precision_scores.summarize_case(ScoreCase("pocket", "classifier", "cpu"), ["validation"], [], rows)
    assert (case["rows"], case["seeds"], case["groups"]) == (400, 2, None)
    assert case["accuracy"] == pytest.approx({"float32": 0.75, "bfloat16": 0.75})
    assert case["over_rows"]["delta"] == pytest.approx(0) and case["within_one_point"]
    standard_error = (8 * 0.25) ** 0.5 / 400
    assert case["over_rows"]["high"] == pytest.approx(1.96 * standard_error, rel=0.2)
    # The seeds differ by +1 and -1 point: t with one degree of freedom.
    assert case["over_seeds"]["high"] == pytest.approx(0.01 * 12.706, rel=1e-3)
    (line,) = precision_scores.format_table([case])[2:]
    assert line.startswith("| pocket, classifier | 400 | 2 | 75.0% | 75.0% | ")


def test_seeds_on_different_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different rows"):
        precision_scores.compare_rows([score_rows([True, False])], [score_rows([True])])
