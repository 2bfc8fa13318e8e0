"""The GPU bench on a CPU, in small: its parts run, end in time, fail visibly, and are never taken for a GPU's."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as gpu_bench
from bench.gpu import attention, parts, random_models, table, workload
from bench.gpu.parts import PARTS, Budget
from bench.gpu.spec import RESULT_FILE, CaseLog, Measurement, PartSpec
from bench.training import workloads
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.system import atomic_files
from tests.conftest import Command
from train import launch
from train.model import base, dequantize

RESULTS: dict[str, Any] = {"device": "cuda", "hardware": "NVIDIA H200"}


def make_spec(folder: Path, **changes: Any) -> PartSpec:
    spec = PartSpec("attention", str(folder), on_gpu=False, small=True, dtype="float32", seconds=60.0)
    return replace(spec, **changes)


def make_budget(seconds: float, small: bool = False) -> Budget:
    return Budget(time.monotonic(), seconds, PARTS, small)


@pytest.mark.parametrize("small", [False, True])
def test_shares_of_the_time_add_up_to_all_of_it(small: bool) -> None:
    assert sum(part.small_share if small else part.share for part in PARTS) == pytest.approx(1.0)
    budget = make_budget(480, small)
    ends = [budget.remaining(part) for part in PARTS]
    assert ends == sorted(ends) and ends[-1] == pytest.approx(480, abs=1)


def test_a_part_may_use_what_earlier_parts_have_left() -> None:
    budget = Budget(time.monotonic() - 100, 480, PARTS, small=False)
    assert budget.remaining(PARTS[0]) < 0
    assert budget.remaining(PARTS[-1]) == pytest.approx(380, abs=1)


def test_a_part_without_time_is_skipped_with_the_reason(tmp_path: Path) -> None:
    record = parts.run_part(PARTS[1], make_spec(tmp_path, seconds=-3.0))
    assert record["status"] == parts.SKIPPED and record["reason"] == "0 s of its time are left"
    assert not list(tmp_path.iterdir())


def test_parts_on_a_gpu_allocate_memory_as_training_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PYTORCH_ALLOC_CONF"
    monkeypatch.delenv(name, raising=False)
    settings = launch.worker_environment(load("classifier", [], "gpu").recipe, 1)
    on_cpu = PartSpec("attention", str(tmp_path), on_gpu=False, small=True, dtype="float32", seconds=60.0)
    assert parts.part_environment(replace(on_cpu, on_gpu=True))[name] == settings[name]
    assert name not in parts.part_environment(on_cpu)


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    started_at = time.monotonic()
    status, reason = parts.run_process(["sh", "-c", "sleep 60 & sleep 60"], tmp_path, make_spec(tmp_path, seconds=0.5))
    assert (status, reason) == (parts.SKIPPED, "its 0 s were used up")
    assert time.monotonic() - started_at < 30


def test_a_part_that_fails_is_recorded_with_its_last_line(tmp_path: Path) -> None:
    status, reason = parts.run_process(
        ["sh", "-c", "echo first >&2; echo why >&2; exit 1"], tmp_path, make_spec(tmp_path)
    )
    assert (status, reason) == (parts.FAILED, "ended with 1: why")


def test_finished_cases_are_on_disk_before_the_part_ends(tmp_path: Path) -> None:
    log = CaseLog(make_spec(tmp_path, matmul_flops={"float32": 200.0}))
    log.run("one", lambda: Measurement(8.0, "rows/s", flops_per_second=50.0))
    with pytest.raises(RuntimeError):
        log.run("two", lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    log.skip("three", "not installed")
    result = atomic_files.read_json(tmp_path / RESULT_FILE)
    (case,) = result["cases"]
    assert (case["name"], case["rate"], case["unit"], case["matmul_share"]) == ("one", 8.0, "rows/s", 0.25)
    assert case["peak_memory_bytes"] > 2**20
    assert result["skipped"] == [{"name": "three", "reason": "not installed"}]


def test_a_case_without_time_is_skipped(tmp_path: Path) -> None:
    log = CaseLog(make_spec(tmp_path, seconds=0.0))
    log.run("late", lambda: pytest.fail("it ran"))
    assert log.cases == [] and log.skipped[0]["name"] == "late"


def test_figures_of_a_gpu_are_not_replaced_by_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    gpu_bench.check_device(path, "cpu")
    atomic_files.write_json(path, RESULTS)
    with pytest.raises(RecipeError, match="NVIDIA H200"):
        gpu_bench.check_device(path, "cpu")
    gpu_bench.check_device(path, "cuda")


def test_parts_are_selected_by_the_beginning_of_their_names() -> None:
    assert [part.name for part in gpu_bench.select_parts(["training"])] == [
        "environment",
        "training Qwen3-4B",
        "training Llama-3.1-8B",
    ]
    assert gpu_bench.select_parts(None) == PARTS
    with pytest.raises(RecipeError, match="there is no such part; there are environment, attention"):
        gpu_bench.select_parts(["atention"])


@pytest.mark.parametrize("name", ["Qwen3-4B", "Llama-3.1-8B"])
def test_a_random_nf4_model_computes_as_its_dequantized_weights(name: str, tmp_path: Path) -> None:
    tokenizer = workload.load_tokenizer()
    built = random_models.build_nf4_model(make_spec(tmp_path, model=name), len(tokenizer))
    assert not any(parameter.is_meta for parameter in [*built.model.parameters(), *built.model.buffers()])
    assert built.linear_parameters == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    ids = torch.arange(20, 60)[None]
    with torch.inference_mode():
        quantized = built.model(input_ids=ids).logits
        with dequantize.dequantize_layers(built.model, pytest.fail):
            plain = built.model(input_ids=ids).logits
    torch.testing.assert_close(quantized, plain, rtol=1e-4, atol=1e-5)
    adapted = base.add_adapter(built.model, gpu_lora(), 17)
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 14


def gpu_lora() -> Any:
    from insource.config.schema.lora import Lora

    return Lora()


def test_small_configs_keep_the_class_and_large_ones_the_published_shape() -> None:
    small, large = (random_models.build_config("Llama-3.1-8B", is_small, 4096) for is_small in (True, False))
    assert small.model_type == large.model_type == "llama"
    assert (small.num_hidden_layers, small.vocab_size) == (2, 4096)
    assert (large.num_hidden_layers, large.hidden_size, large.vocab_size) == (32, 4096, 128_256)


def test_the_packs_of_the_attention_part_are_long_enough_for_their_implementation() -> None:
    assert attention.make_pack(100, 640).tokens == pytest.approx(640, abs=40)
    assert attention.make_pack(700, 2560).tokens > 2048


def test_the_labels_of_the_decoding_part_are_those_of_its_rows(tokenizer: Any, tmp_path: Path) -> None:
    import random

    labels = workloads.synthetic_labels(12, random.Random(workloads.SEED))
    rows = workload.load_rows(make_spec(tmp_path), tokenizer, 16)
    answers = {tokenizer.decode(example.completion_ids, skip_special_tokens=True).strip() for example in rows.examples}
    assert answers <= set(labels)


def test_the_table_names_the_device_and_every_reason() -> None:
    results = {
        **{"device": "cpu", "hardware": "2 cores", "small": True, "gib": None, "seconds": 9.0, "budget_seconds": 900.0},
        "date": "2026-11-30",
        "parts": [
            {
                "name": "peers",
                "status": "failed",
                "reason": "ended with 1: trl: it broke",
                "cases": [
                    {
                        "name": "insource", "rate": 12.0, "unit": "examples/s", "matmul_share": 0.123,
                        "peak_memory_bytes": 2**30, "seconds": 3.0,
                    },
                    {"name": "trl", "error": "it broke"},
                ],
                "skipped": [{"name": "unsloth", "reason": "Unsloth needs a GPU"}],
            }
        ],
    }  # fmt: skip
    text = "\n".join(table.format_results(results))
    assert "device: cpu (2 cores), in small: these figures say nothing about a GPU" in text
    assert "| peers | insource | 12.0 examples/s | 12.3% | 1.00 GiB | 3.0 |" in text
    assert "failed: it broke" in text and "skipped: Unsloth needs a GPU" in text and "ended with 1" in text


def test_a_memory_limit_without_a_gpu_is_refused(python: Command) -> None:
    completed = python("bench.gpu", "--gib", "24", CUDA_VISIBLE_DEVICES="")
    assert completed.returncode == 2
    assert "--gib 24 limits the memory of a GPU, and this machine has none" in completed.stderr


@pytest.mark.slow(minutes=2)
def test_the_small_run_passes_on_a_cpu(python: Command, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    selection = [word for name in ("attention", "training Qwen3", "decoding Llama") for word in ("--only", name)]
    completed = python("bench.gpu", *selection, "--minutes", "30", "--out", path, CUDA_VISIBLE_DEVICES="")
    assert completed.returncode == 0, completed.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    assert (results["device"], results["small"]) == ("cpu", True)
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert [(part["name"], part["status"]) for part in results["parts"]] == [
        ("environment", "done"),
        ("attention", "done"),
        ("training Qwen3-4B", "done"),
        ("decoding Llama-3.1-8B", "done"),
    ]
    cases = {(part["name"], case["name"]): case for part in results["parts"] for case in part["cases"]}
    assert set(results["matmul_flops"]) == {"float32", "bfloat16"}
    blocks = cases["attention", "shared_prefix, heads of 16, 610 tokens"]
    assert blocks["gradient_difference"] < 0.2 and blocks["matmul_share"] > 0
    training = cases["training Qwen3-4B", "updates of 8 rows"]
    assert training["rate"] > 0 and training["matmul_share"] > 0 and training["token_ratio"] > 2
    decoding = cases["decoding Llama-3.1-8B", "base with an adapter"]
    assert decoding["rate"] > 0 and decoding["dtype"] == "float32"
