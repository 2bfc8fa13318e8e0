"""Bulk prediction with a real vLLM on a small trained run: what the comparison says of a row, prediction says too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demo_data.support_tickets import generate_tickets
from insource.system import atomic_files
from insource.tasks.text_keys import clean
from tests.helpers import commands
from tests.helpers.prediction_run import read_output, write_csv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.exported_runs(tmp_path_factory, small_recipe, "predict")


@pytest.mark.slow(minutes=4)
def test_what_vllm_answers_is_what_the_comparison_had_of_the_same_rows(runs: Path, small_recipe: Path) -> None:
    here = (runs / "small" / "latest").resolve()
    only = ["compare.base_shots=0", "compare.tuned_shots=0", "compare.forms=served"]
    compared = commands.run_command(runs, "compare", small_recipe, *only)
    assert compared.returncode == 0, compared.stderr
    by_id = {row["id"]: row for row in atomic_files.read_jsonl(here / "predictions" / "tuned.jsonl")}
    test = list(atomic_files.read_jsonl(here / "data" / "test.jsonl"))
    rows = [{"id": row["id"], "message": row["input"]["text"]} for row in test]
    path, into = write_csv(runs.parent / "test.csv", [*rows, {"id": "none", "message": " "}]), runs.parent / "out"
    words = ("--input", path, "--output")
    found = predicted(runs, small_recipe, *words, into / "test.parquet", "--probabilities", INPUT="", OUTPUT="")
    assert [row["id"] for row in found] == [*(row["id"] for row in rows), "none"]
    assert found[-1]["refused"] == "unusable_input: the input cannot be used: the text is empty"
    labels = list(atomic_files.read_json(here / "adapter" / "prompt.json")["task"]["labels"])
    same = [row["answer"] == by_id[row["id"]]["parsed"] for row in found[:-1]]
    # Other rows stand beside a row in a batch: nearly equal probabilities may fall the other way.
    assert sum(same) >= 0.98 * len(same)
    for row, agrees in zip(found, same, strict=False):
        assert row["answered_by"] == "local" and row["answer"] in labels
        if agrees:
            assert row["confidence"] == pytest.approx(by_id[row["id"]]["confidence"], abs=0.02)
        assert list(row["probabilities"]) == labels and sum(row["probabilities"].values()) == pytest.approx(1)
    about = atomic_files.read_json(into / "test.parquet.about.json")
    assert about["answered_by"].startswith("vLLM with merged") and about["refused"] == {"unusable_input": 1}
    again = commands.run_command(runs, "predict", small_recipe, *words, into / "test.parquet", "--probabilities")
    assert again.returncode == 0 and "unchanged" in again.stderr and "starting" not in again.stderr


def test_hundreds_of_rows_in_their_order_by_the_adapter(runs: Path, small_recipe: Path) -> None:
    texts = [one.message for one in generate_tickets(300, seed=11)]
    path = write_csv(runs.parent / "more.csv", [{"number": at, "message": text} for at, text in enumerate(texts)])
    words = ("--input", path, "--output", runs.parent / "more.jsonl", "serve.model=adapter")
    found = predicted(runs, small_recipe, *words)
    assert [clean(row["message"]) for row in found] == [clean(text) for text in texts]
    assert [row["number"] for row in found] == [str(at) for at in range(300)]
    assert all(row["answer"] and 0 <= row["confidence"] <= 1 for row in found)


def predicted(runs: Path, recipe: Path, *words: object, **environment: str) -> list[Mapping[str, Any]]:
    answer = commands.run_command(runs, "predict", recipe, *words, **environment)
    assert answer.returncode == 0, answer.stderr
    return read_output(Path(answer.stdout.strip()))  # type: ignore[return-value]
