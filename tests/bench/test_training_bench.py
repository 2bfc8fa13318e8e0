"""The training bench: its shapes are what it says, what it says was trained on was trained on, its tables are whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.training_probe import split_rows
from bench.training import __main__ as training
from bench.training import table
from bench.training.cases import CASES, Case
from bench.training.workloads import WORKLOADS, Workload, count_tokens, load_workload
from insource.config import hardware
from insource.config.errors import RecipeError
from insource.system import atomic_files
from tests.conftest import Command
from tests.helpers.errors import raises_error
from train.packing import collate
from train.packing.packing_plan import Pack, TokenizedRow

NOWHERE = Path("nowhere")
# What DESIGN section 4 promises of every row of bench/results/*.json.
CONTRACT = {
    "shape",
    "system",
    "version",
    "command",
    "token_ids_sha256",
    "examples_per_second",
    "raw_seconds",
    "peak_memory_bytes",
    "final_loss",
    "hardware",
    "date",
}


def bound(workload: Workload, rows: int) -> float:
    """How many times fewer tokens one prefix for so many rows can make of them."""
    suffix_tokens = workload.row_tokens - workload.prefix_tokens
    return rows * workload.row_tokens / (workload.prefix_tokens + rows * suffix_tokens)


def test_banking77_has_the_proportions_that_are_promised(tokenizer: Any, banking77: Path) -> None:
    workload = load_workload("banking77", tokenizer, 160, 32, banking77)
    assert 600 <= workload.prefix_tokens <= 800
    assert 20 <= workload.row_tokens - workload.prefix_tokens <= 40
    assert bound(workload, 16) == pytest.approx(10, abs=0.5)
    assert bound(workload, 64) == pytest.approx(18, abs=1)


def test_without_banking77_one_is_told_what_to_say(tokenizer: Any) -> None:
    with raises_error(RecipeError, "INS-X010", match="--banking77"):
        load_workload("banking77", tokenizer, 16, 0, NOWHERE)


@pytest.mark.parametrize(
    ("name", "min_tokens", "max_tokens"),
    [("classifier", 150, 250), ("extractor", 200, 300), ("labels_12", 100, 200), ("labels_150", 1200, 1600)],
)
def test_prompts_of_a_shape_open_alike(name: str, min_tokens: int, max_tokens: int, tokenizer: Any) -> None:
    workload = load_workload(name, tokenizer, 48, 8, NOWHERE)
    assert (len(workload.examples), len(workload.held_out)) == (48, 8)
    assert min_tokens <= workload.prefix_tokens <= max_tokens
    assert all(example.prompt_ids[: workload.prefix_tokens] == workload.examples[0].prompt_ids[: workload.prefix_tokens]
               for example in workload.held_out)  # fmt: skip
    assert all(example.completion_ids[-1] == tokenizer.eos_token_id for example in workload.examples)


def test_free_text_shares_no_opening_and_differs_in_length(tokenizer: Any) -> None:
    workload = load_workload("no_prefix", tokenizer, 200, 8, NOWHERE)
    lengths = [count_tokens(example) for example in workload.examples]
    assert workload.prefix_tokens == 0
    assert max(lengths) > 5 * min(lengths)


def test_the_prefix_grows_with_the_number_of_labels(tokenizer: Any) -> None:
    few, many = (load_workload(f"labels_{count}", tokenizer, 16, 0, NOWHERE) for count in (12, 300))
    assert 15 <= (many.prefix_tokens - few.prefix_tokens) / (few.prefix_tokens / 12) <= 288


def test_every_case_has_a_shape() -> None:
    assert {case.shape for case in CASES} == set(WORKLOADS)


ids = st.lists(st.integers(1, 50), min_size=1, max_size=6)


@given(ids, st.lists(st.tuples(ids, ids), min_size=1, max_size=8))
def test_what_went_through_the_model_is_read_back_from_every_kind_of_batch(
    opening: list[int], rows: list[tuple[list[int], list[int]]]
) -> None:
    token_rows = tuple(
        TokenizedRow(str(index), opening + suffix, (completed,)) for index, (suffix, completed) in enumerate(rows)
    )
    expected = sorted(tuple(row.prompt_ids + row.completions[0]) for row in token_rows)
    for kind, prefix in (("shared_prefix", len(opening)), ("bfd", 0), ("none", 0)):
        inputs = collate.collate_pack(Pack(token_rows, prefix), kind, "cpu", pad_token_id=0).inputs  # type: ignore[arg-type]
        mask = inputs.get("attention_mask")
        positions = inputs["position_ids"].tolist() if "position_ids" in inputs else None
        padding = mask.tolist() if mask is not None and mask.dim() == 2 else None
        assert sorted(split_rows(inputs["input_ids"].tolist(), positions, padding)) == expected


def result(system: str, rate: float, losses: list[float], **fields: Any) -> dict[str, Any]:
    defaults = {"shape": "banking77", "batch_size": 16, "quantization": "none", "quality_updates_sha256": "a"}
    return {**defaults, "system": system, "examples_per_second": rate, "losses": losses, **fields}


def test_systems_are_compared_with_trl_in_the_order_of_the_case() -> None:
    case = Case("banking77")
    results = [
        result("trl", 2.0, [3.0, 2.0]),
        table.skipped_result(case, "unsloth", "Unsloth needs a GPU"),
        result("insource", 18.0, [3.0, 2.0005], token_ratio=10.0),
        result("trl_bfd", 1.5, [3.1, 2.2], quality_updates_sha256="b"),
    ]
    ours, trl, bfd, unsloth = table.compare_systems(results, case.systems)
    assert ours["times_trl"] == 9.0
    assert ours["times_trl_bfd"] == 12.0
    assert ours["ratio_reached"] == pytest.approx(0.9)
    assert ours["loss_from_trl"] == pytest.approx(5e-4)
    assert trl["times_trl"] == 1.0
    assert "loss_from_trl" not in bfd, "other updates than TRL's cannot have its losses"
    assert unsloth["not_run"] == "Unsloth needs a GPU"


def test_a_case_that_is_measured_anew_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    path, other_result = tmp_path / "training.json", result("trl", 1.0, []) | {"shape": "labels_12"}
    training.write_results(path, [other_result, result("trl", 2.0, []), result("insource", 3.0, [])])
    training.write_results(path, [result("insource", 4.0, [])])
    rows = [(row["shape"], row["system"], row["examples_per_second"]) for row in atomic_files.read_json(path)]
    assert rows == [("banking77", "insource", 4.0), ("labels_12", "trl", 1.0)]


def test_the_length_of_the_rows_that_were_timed_does_not_move_the_rate() -> None:
    long_rows = {"update_tokens": [500, 2000, 2000], "raw_seconds": [9.0, 2.0, 2.0]}
    short_rows = {"update_tokens": [500, 1000, 1000], "raw_seconds": [9.0, 1.0, 1.0]}
    assert (
        table.examples_per_second(long_rows, row_tokens=100)
        == table.examples_per_second(short_rows, row_tokens=100)
        == 10.0
    )


def test_a_shape_that_there_is_none_of_is_refused(python: Command) -> None:
    completed = python("bench.training", "--only", "banking78")
    assert completed.returncode == 2
    assert "there is no such shape; allowed: banking77" in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
def test_a_quick_run_compares_equal_losses_on_the_same_token_ids(python: Command, tmp_path: Path) -> None:
    path = tmp_path / "training.json"
    completed = python("bench.training", "--quick", "--systems", "insource", "trl", "unsloth", "--results", path)
    assert completed.returncode == 0, completed.stderr
    assert "insource" in completed.stdout and "Unsloth did not run" in completed.stdout
    ours, trl, unsloth = json.loads(path.read_text(encoding="utf-8"))
    assert (ours["system"], trl["system"]) == ("insource", "trl")
    assert set(ours) >= CONTRACT and set(trl) >= CONTRACT
    precision = "bfloat16" if hardware.cpu_has_bfloat16() else "float32"
    assert {row[name] for row in (ours, trl) for name in ("precision", "product_dtype")} == {precision}
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert ours["token_ids_sha256"] == trl["token_ids_sha256"]
    assert ours["updates_sha256"] == trl["updates_sha256"]
    assert ours["loss_from_trl"] < 1e-3
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["validation_loss"] == pytest.approx(trl["validation_loss"], abs=1e-3)
    assert sum(ours["computed_tokens"]) < sum(trl["computed_tokens"]) / 3
    assert ours["token_ratio"] > 3
    assert "not_run" in unsloth
