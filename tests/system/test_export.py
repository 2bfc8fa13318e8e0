"""Export: the merged model is base and adapter, the quantized one holds what it says, and nothing is half there."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.system import atomic_files, environment
from insource.tracking.base_models import base_store
from insource.tracking.prompt_spec import read_trained_base
from insource.tracking.run import Run
from tests.conftest import ROOT
from tests.helpers.commands import command_env, copy_exported_runs, run_command
from train.export import quantize


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one trained, merged and quantized."""
    return copy_exported_runs(tmp_path_factory, small_recipe, "export")


@pytest.fixture
def copied_runs(runs: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(runs, tmp_path / "runs", symlinks=True)


def run_in(runs: Path) -> Run:
    return Run((runs / "small" / "latest").resolve())


@pytest.mark.slow
def test_all_that_a_server_needs_is_there_and_hashed(runs: Path) -> None:
    run = run_in(runs)
    for form in ("merged", "quantized/int8"):
        folder = run.folder / form
        assert atomic_files.find_changes(folder) == []
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "prompt.json",
                "README.md", "export.json", atomic_files.CHECKSUMS} <= names  # fmt: skip
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
        assert (folder / "prompt.json").read_bytes() == (run.folder / "adapter" / "prompt.json").read_bytes()
    prompt = atomic_files.read_json(run.folder / "merged" / "prompt.json")
    tokens = atomic_files.read_json(run.folder / "merged" / "tokenizer.json")["added_tokens"]
    (stop,) = [token["id"] for token in tokens if token["content"] == prompt["stop"]]
    assert atomic_files.read_json(run.folder / "merged" / "generation_config.json")["eos_token_id"] in (stop, [stop])
    assert atomic_files.read_json(run.folder / "merged" / "config.json")["dtype"] == "float32"
    assert atomic_files.read_json(run.folder / "quantized" / "int8" / "config.json")["quantization_config"]
    stage = run.stage("export")
    assert stage.state == "done" and stage.outputs.keys() == {
        "merged/SHA256SUMS",
        "quantized/int8/SHA256SUMS",
    }
    weight_bytes = stage.metrics["weight_bytes"]
    assert weight_bytes["quantized/int8"] < 0.8 * weight_bytes["merged"]


def logits(model: Any, ids: list[int]) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


@pytest.mark.slow
def test_the_merged_model_is_base_and_adapter(runs: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = run_in(runs)
    trained = read_trained_base(run.folder / "adapter")
    assert trained is not None and trained.quantization == "nf4"
    base = AutoModelForCausalLM.from_pretrained(base_store.find(run.folder, trained.digest), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "merged", dtype=torch.float32)
    (reference, *_) = atomic_files.read_jsonl(run.references_path)
    base_logits = logits(base, reference["prompt_ids"])
    adapter_logits = logits(PeftModel.from_pretrained(base, run.folder / "adapter"), reference["prompt_ids"])
    merged_logits = logits(merged, reference["prompt_ids"])
    # The order of the sums alone differs.
    assert (merged_logits - adapter_logits).norm() < 1e-3 * (adapter_logits - base_logits).norm()
    published = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    assert not torch.equal(logits(published, reference["prompt_ids"]), base_logits)


@pytest.mark.slow
def test_references_are_the_answers_of_the_trained_weights(runs: Path) -> None:
    run = run_in(runs)
    references = list(atomic_files.read_jsonl(run.references_path))
    validation = [row["id"] for row in atomic_files.read_jsonl(run.folder / "data" / "validation.jsonl")]
    assert [reference["id"] for reference in references] == validation[:500]
    fields = {"id", "prompt_ids", "answer", "token_ids", "log_probability", "field_log_probability", "margin"}
    assert all(reference.keys() == fields for reference in references)
    assert not (run.folder / "merged" / "reference.jsonl").exists()


@pytest.mark.slow
def test_called_again_it_writes_only_what_is_not_as_it_was(copied_runs: Path, small_recipe: Path) -> None:
    run = run_in(copied_runs)
    completed = run_command(copied_runs, "train.export", small_recipe)
    assert completed.returncode == 0 and completed.stderr.count("unchanged") == 2
    weights = run.folder / "merged" / "model.safetensors"
    weights_sha256 = atomic_files.sha256(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    (run.folder / "quantized" / "int8" / "SHA256SUMS").unlink()
    completed = run_command(copied_runs, "train.export", small_recipe)
    assert completed.returncode == 0, completed.stderr
    assert "unchanged" not in completed.stderr
    assert atomic_files.sha256(weights) == weights_sha256
    published = run_command(copied_runs, "train.export", small_recipe, "serve.base=published", "export.quantize=none")
    assert published.returncode == 0, published.stderr
    assert atomic_files.sha256(weights) != weights_sha256
    assert atomic_files.read_json(weights.parent / "export.json")["base"] == "published"


@pytest.mark.slow
def test_a_base_that_was_removed_is_written_again(copied_runs: Path, small_recipe: Path) -> None:
    (base,) = [path for path in (copied_runs / base_store.BASES_FOLDER).iterdir() if path.is_dir()]
    checksums = atomic_files.read_checksums(base)
    shutil.rmtree(base)
    shutil.rmtree(run_in(copied_runs).folder / "merged")
    refused = run_command(copied_runs, "serve", small_recipe, "serve.model=adapter", "--dry-run")
    assert refused.returncode == 2 and "make export" in refused.stderr
    completed = run_command(copied_runs, "train.export", small_recipe)
    assert completed.returncode == 0, completed.stderr
    assert atomic_files.read_checksums(base) == checksums


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [(0.4,), pytest.param((0.0, 0.4, 1.5), marks=pytest.mark.nightly)])
def test_killed_at_any_moment_it_leaves_nothing_half_and_goes_on(
    seconds: tuple[float, ...], copied_runs: Path, small_recipe: Path
) -> None:
    run = run_in(copied_runs)
    for seconds_of_writing in seconds:
        shutil.rmtree(run.folder / "merged", ignore_errors=True)
        argv = [sys.executable, "-m", "train.export", str(small_recipe), "--hardware", "cpu"]
        process = subprocess.Popen(
            argv, cwd=ROOT, env=command_env(copied_runs), stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not list(run.folder.glob(".merged.*")) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(seconds_of_writing)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (run.folder / "merged").exists()
    completed = run_command(copied_runs, "train.export", small_recipe)
    assert completed.returncode == 0, completed.stderr
    assert (
        atomic_files.find_changes(run.folder / "merged") == []
        and atomic_files.find_changes(run.folder / "quantized" / "int8") == []
    )
    assert not list(run.folder.glob(".merged.*"))


@pytest.mark.slow
def test_an_adapter_that_was_changed_is_not_exported(copied_runs: Path, small_recipe: Path) -> None:
    run = run_in(copied_runs)
    (run.folder / "adapter" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    completed = run_command(copied_runs, "train.export", small_recipe)
    assert completed.returncode == 1
    assert "chat_template.jinja was changed" in completed.stderr and "train again" in completed.stderr


def test_no_run_is_told_with_what_would_do(small_recipe: Path, tmp_path: Path) -> None:
    completed = run_command(tmp_path / "runs", "train.export", small_recipe)
    assert (
        completed.returncode == 2
        and "no finished run" in completed.stderr
        and "make train RECIPE=small" in completed.stderr
    )


def test_what_the_hardware_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def schemes(*overrides: str) -> list[str]:
        return quantize.list_schemes(load("classifier", overrides, "cpu").recipe)

    assert schemes() == ["int8"] and schemes("export.quantize=none") == []
    monkeypatch.setattr(environment, "cpu_serves_w4a16", lambda: True)
    assert schemes("export.quantize=[w4a16, int8, int8]") == ["w4a16", "int8"]
    monkeypatch.setattr(environment, "cpu_serves_w4a16", lambda: False)
    with pytest.raises(RecipeError, match="w4a16 needs a GPU or a CPU with AVX-512"):
        schemes("export.quantize=[w4a16]")
    with pytest.raises(RecipeError, match=r"fp8 needs a GPU of compute capability 8\.9 .* serves on a CPU; set int8"):
        schemes("export.quantize=[fp8]")


def test_four_bit_weights_are_within_half_a_step_of_the_merged_ones(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    quantize.quantize_data_free(POCKET, "W4A16", tmp_path / "w4a16", "5GB")
    config = atomic_files.read_json(tmp_path / "w4a16" / "config.json")["quantization_config"]
    assert config["format"] == "pack-quantized" and config["config_groups"]["group_0"]["weights"]["num_bits"] == 4
    original = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32).state_dict()
    with warnings.catch_warnings():
        # transformers tells that the folder has a config of its own, and that unpacking is taken from this one.
        warnings.simplefilter("ignore")
        unpacked = CompressedTensorsConfig(dequantize=True)
        restored = AutoModelForCausalLM.from_pretrained(tmp_path / "w4a16", quantization_config=unpacked).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    groups = original[name].unflatten(1, (-1, 64))  # 704 wide, no multiple of 128
    step = groups.abs().amax(-1, keepdim=True) / 7.5
    assert (restored[name].unflatten(1, (-1, 64)) - groups).abs().le(0.6 * step).all()  # half a step, and bfloat16
