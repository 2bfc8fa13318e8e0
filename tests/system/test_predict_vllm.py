"""Bulk prediction with a real vLLM on a small trained run: what the comparison says of a row, prediction says too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demo_data.support_tickets import generate_tickets
from insource.system import atomic_files
from insource.text.text_keys import clean
from tests.helpers import commands
from tests.helpers.prediction_run import read_output, write_csv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.copy_exported_runs(tmp_path_factory, small_recipe, "predict")


@pytest.mark.slow(minutes=4)
def test_what_vllm_answers_is_what_the_comparison_had_of_the_same_rows(runs: Path, small_recipe: Path) -> None:
    run_folder = (runs / "small" / "latest").resolve()
    # The adapter and its base share a server.
    settings = ["compare.base_shots=0", "compare.tuned_shots=0", "compare.forms=served", "compare.explore_rows=50"]
    settings += ["serve.model=adapter"]
    completed = commands.run_command(runs, "compare", small_recipe, *settings)
    assert completed.returncode == 0, completed.stderr
    by_id = {row["id"]: row for row in atomic_files.read_jsonl(run_folder / "predictions" / "tuned.jsonl")}
    test = list(atomic_files.read_jsonl(run_folder / "data" / "test.jsonl"))
    rows = [{"id": row["id"], "message": row["input"]["text"]} for row in test]
    path, output_folder = (
        write_csv(runs.parent / "test.csv", [*rows, {"id": "none", "message": " "}]),
        runs.parent / "out",
    )
    args = ("serve.model=adapter", "--input", path, "--output")
    output_rows = predicted(
        runs, small_recipe, *args, output_folder / "test.parquet", "--probabilities", INPUT="", OUTPUT=""
    )
    assert [row["id"] for row in output_rows] == [*(row["id"] for row in rows), "none"]
    assert output_rows[-1]["refused"] == "unusable_input: the input cannot be used: the text is empty"
    labels = list(atomic_files.read_json(run_folder / "adapter" / "prompt.json")["task"]["labels"])
    agreements = [row["answer"] == by_id[row["id"]]["parsed"] for row in output_rows[:-1]]
    # Other rows stand beside a row in a batch: nearly equal probabilities may fall the other way.
    assert sum(agreements) >= 0.98 * len(agreements)
    for row, is_same in zip(output_rows, agreements, strict=False):
        assert row["answered_by"] == "local" and row["answer"] in labels
        if is_same:
            assert row["confidence"] == pytest.approx(by_id[row["id"]]["confidence"], abs=0.02)
        assert list(row["probabilities"]) == labels and sum(row["probabilities"].values()) == pytest.approx(1)
    metadata = atomic_files.read_json(output_folder / "test.parquet.about.json")
    assert metadata["answered_by"].startswith("vLLM with adapter") and metadata["refused"] == {"unusable_input": 1}
    repeated = commands.run_command(
        runs, "predict", small_recipe, *args, output_folder / "test.parquet", "--probabilities"
    )
    assert repeated.returncode == 0 and "unchanged" in repeated.stderr and "starting" not in repeated.stderr


@pytest.mark.nightly
def test_hundreds_of_rows_in_their_order_by_the_merged_model(runs: Path, small_recipe: Path) -> None:
    texts = [ticket.message for ticket in generate_tickets(300, seed=11)]
    path = write_csv(runs.parent / "more.csv", [{"number": index, "message": text} for index, text in enumerate(texts)])
    args = ("--input", path, "--output", runs.parent / "more.jsonl", "serve.model=merged")
    output_rows = predicted(runs, small_recipe, *args)
    assert [clean(row["message"]) for row in output_rows] == [clean(text) for text in texts]
    assert [row["number"] for row in output_rows] == [str(index) for index in range(300)]
    assert all(row["answer"] and 0 <= row["confidence"] <= 1 for row in output_rows)


def predicted(runs: Path, recipe: Path, *args: object, **environment: str) -> list[Mapping[str, Any]]:
    completed = commands.run_command(runs, "predict", recipe, *args, **environment)
    assert completed.returncode == 0, completed.stderr
    return read_output(Path(completed.stdout.strip()))  # type: ignore[return-value]
