"""The bench of recurrent bases in its smallest form: equal gradients and answers, and complete results."""

import json
from pathlib import Path

import pytest

from bench.recurrent import FAMILIES, SMALL
from tests.conftest import Command


@pytest.mark.slow
def test_a_small_run_has_equal_gradients_and_answers_of_every_family(python: Command, tmp_path: Path) -> None:
    path = tmp_path / "recurrent.json"
    completed = python("bench.recurrent", "--small", "--runs", "1", "--results", path)
    assert completed.returncode == 0, completed.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert (results["weights"], results["shape"], results["batch_size"]) == ("random", "classifier", SMALL.rows)
    assert results["command"] == "python -m bench.recurrent --small --runs 1"
    assert 100 < results["prefix_tokens"] < results["row_tokens"]
    assert [figures["family"] for figures in results["families"]] == [family.name for family in FAMILIES]
    for figures in results["families"]:
        ways = [figures["row_by_row"], figures["shared_prefix"]]
        assert all(way["examples_per_second"] > 0 and len(way["raw_seconds"]) == 2 for way in ways)
        assert figures["packs"] == 1
        assert 0 < figures["shared_prefix"]["largest_gradient_difference"] <= 1e-5
        decoding = figures["decoding"]
        assert decoding["rows"] == decoding["equal_answers"] == SMALL.rows
        assert f"| {figures['family']} ({figures['models']}) |" in completed.stdout
