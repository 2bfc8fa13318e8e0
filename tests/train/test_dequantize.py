"""The base as quantization left it: the same weights, written once, whole or not at all, and found by serving."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy import registry
from insource.config.base_models import POCKET
from insource.config.errors import StageError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from insource.tracking.base_models import base_store
from insource.tracking.run import Run
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel
from tests.conftest import ROOT
from train.model import base, dequantize

IDS = torch.tensor([[5, 17, 400, 23, 9, 1200, 77, 8]])


def recipe(*overrides: str) -> Recipe:
    return load("classifier", overrides, "cpu").recipe


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_the_dequantized_base_answers_as_the_nf4_one_to_the_bit(tmp_path: Path) -> None:
    model, folder = dequantize.load_training_base(recipe(), tmp_path, print)
    assert folder is not None and folder.parent == tmp_path and atomic_files.find_changes(folder) == []
    quantized = base.load_base_model(recipe())
    assert torch.equal(logits(model), logits(quantized))
    assert not torch.equal(logits(model), logits(base.load_base_model(recipe("model.quantization=none"))))
    # What a second run loads from disk, and what a GPU would write layer by layer.
    second_base, second_folder = dequantize.load_training_base(recipe(), tmp_path, print)
    assert second_folder == folder and torch.equal(logits(second_base), logits(model))
    copied_model = dequantize._copy_to_main_memory(quantized)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in copied_model.state_dict().items())


def test_int8_is_trained_quantized_and_kept_dequantized(tmp_path: Path) -> None:
    model, folder = dequantize.load_training_base(recipe("model.quantization=int8"), tmp_path, print)
    assert model.is_quantized and folder is not None
    dequantized = base.load_base_model(recipe(f"model.base={folder}", "model.quantization=none"))
    # LLM.int8 rounds what it reads too, so that its answers are near and not equal.
    assert 0 < (logits(dequantized) - logits(model)).abs().max() < 1.0
    assert base_store.read_record(folder, folder.name).quantization == "int8"


def test_an_unquantized_base_is_written_nowhere(tmp_path: Path) -> None:
    model, folder = dequantize.load_training_base(recipe("model.quantization=none"), tmp_path, print)
    assert folder is None and not list(tmp_path.iterdir()) and not getattr(model, "is_quantized", False)


def test_an_adapter_that_changes_its_base_is_said_to_be_served_on_the_published_one(tmp_path: Path) -> None:
    messages: list[str] = []
    model, folder = dequantize.load_training_base(recipe("lora.init_lora_weights=pissa"), tmp_path, messages.append)
    assert folder is None and model.is_quantized and "published base" in messages[0]


def test_other_weights_have_another_folder_and_a_changed_one_is_written_again(tmp_path: Path) -> None:
    _, folder = dequantize.load_training_base(recipe(), tmp_path / "store", print)
    assert folder is not None
    other_base = shutil.copytree(POCKET, tmp_path / "base")
    config = atomic_files.read_json(other_base / "config.json")
    atomic_files.write_json(other_base / "config.json", config | {"rope_theta": 20000.0})
    _, other_folder = dequantize.load_training_base(recipe(f"model.base={other_base}"), tmp_path / "store", print)
    assert other_folder is not None and other_folder != folder
    weights = folder / "model.safetensors"
    digest = atomic_files.sha256(weights)
    weights.write_bytes(weights.read_bytes()[:-64])
    _, folder = dequantize.load_training_base(recipe(), tmp_path / "store", print)
    assert folder is not None and atomic_files.sha256(weights) == digest


def test_without_room_the_published_base_is_announced(tmp_path: Path) -> None:
    assert base_store.disk_space_problem(tmp_path, 0) is None
    problem = base_store.disk_space_problem(tmp_path, 10**18)
    assert problem is not None and "1,000,000,000.0 GB on disk" in problem
    model = base.load_base_model(recipe())
    messages: list[str] = []
    assert dequantize._write_if_missing(recipe(), model, tmp_path / "x", 10**18, messages.append) is None
    assert "The published base is served" in messages[0] and "GB" in messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]


WRITER = """
import sys
from pathlib import Path
from insource.config.load import load
from train.model import dequantize
print(dequantize.load_training_base(load("classifier", (), "cpu").recipe, Path(sys.argv[1]), print)[1])
"""


def start_writer(store: Path) -> subprocess.Popen[str]:
    settings = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", WRITER, str(store)]
    return subprocess.Popen(
        argv, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_two_runs_that_need_it_together_write_it_once(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in writers]
    assert [process.returncode for process in writers] == [0, 0]
    assert outputs[0][0] == outputs[1][0] != "None\n"
    assert sum(stderr.count("base      writing") for _, stderr in outputs) == 1


@pytest.mark.slow
def test_killed_while_it_writes_nothing_half_is_found(tmp_path: Path) -> None:
    store = tmp_path / "runs" / base_store.BASES_FOLDER
    for seconds in (0.0, 0.02, 0.1):
        process = start_writer(store)
        while not list(store.glob(".*.*")) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        complete_folders = [path for path in store.iterdir() if path.is_dir() and not path.name.startswith(".")]
        assert all(atomic_files.find_changes(path) == [] for path in complete_folders)
        for path in complete_folders:
            shutil.rmtree(path)
    process = start_writer(store)
    folder = Path(process.communicate(timeout=300)[0].strip())
    assert atomic_files.find_changes(folder) == []
    assert [path.name for path in store.iterdir() if path.is_dir()] == [folder.name]


def make_trained_run(folder: Path, store: Path, **is_trained: Any) -> ServedModel:
    """A run whose adapter belongs to a base."""
    example_run = Run(folder / "classifier" / "20261129T000000Z-abcd")
    (example_run.folder / "adapter").mkdir(parents=True)
    atomic_files.write_text(example_run.folder / "recipe.yaml", "")
    _, dequantized_folder = dequantize.load_training_base(recipe(), store, print)
    assert dequantized_folder is not None
    prompt = {
        "max_answer_tokens": 16,
        "base": {
            "name": "pocket/model",
            "commit": None,
            "sha256": None,
            "trained": base_store.read_record(dequantized_folder, dequantized_folder.name).to_json(),
        },
    }
    atomic_files.write_json(example_run.folder / "adapter" / "prompt.json", prompt)
    atomic_files.write_checksums(example_run.folder / "adapter")
    return ServedModel("classifier", example_run, recipe(), "adapter")


def test_adapters_are_served_on_the_base_that_they_were_trained_on(tmp_path: Path) -> None:
    served = make_trained_run(tmp_path, tmp_path / base_store.BASES_FOLDER)
    trained_serve, published_serve = recipe().serve, recipe("serve.base=published").serve
    folder, revision = launch_plan.locate_base(served, trained_serve)
    assert Path(folder).parent == tmp_path / base_store.BASES_FOLDER and revision is None
    assert launch_plan.locate_base(served, published_serve)[0] == str(POCKET)
    assert launch_plan.has_trained_weights(served, trained_serve) and not launch_plan.has_trained_weights(
        served, published_serve
    )
    assert not launch_plan.has_trained_weights(replace(served, variant="quantized/int8"), trained_serve)
    shutil.rmtree(folder)
    (problem,) = launch_plan.find_adapter_problems(served, trained_serve)
    assert "make export" in problem and "serve.base=published" in problem


def test_a_registry_keeps_the_base_of_what_is_deployed(tmp_path: Path) -> None:
    served = make_trained_run(tmp_path / "runs", tmp_path / "runs" / base_store.BASES_FOLDER)
    registry_dir = tmp_path / "registry" / "classifier"
    version = registry.promote(registry_dir, served.run, [])
    version_info = atomic_files.read_json(registry_dir / "versions" / version / "version.json")
    base_folder = tmp_path / "registry" / base_store.BASES_FOLDER / version_info["base"]["digest"]
    assert (
        atomic_files.find_changes(base_folder) == []
        and base_store.find(registry_dir / "versions" / version, base_folder.name) == base_folder
    )
    shutil.rmtree(tmp_path / "runs" / base_store.BASES_FOLDER)
    assert atomic_files.find_changes(base_folder) == []
    shutil.rmtree(base_folder)
    with pytest.raises(StageError, match="make export"):
        registry.copy_base(registry_dir, served.run)


def test_large_dequantized_weights_stay_quantized_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "memory_bytes", lambda: 10**7)
    model, folder = dequantize.load_training_base(recipe(), tmp_path, print)
    assert model.is_quantized and folder is not None
    # And again, with the folder there: a run that goes on computes as before.
    assert dequantize.load_training_base(recipe(), tmp_path, print)[0].is_quantized


def layers(model: Any) -> set[str]:
    return {type(module).__name__ for module in model.modules() if isinstance(module, torch.nn.Linear)}


def test_validation_holds_dequantized_weights_that_answer_as_nf4_does_to_the_bit() -> None:
    messages: list[str] = []
    settings = recipe()
    model = base.add_adapter(base.load_base_model(settings), settings.lora, seed=3)
    quantized, layers_before = logits(model), layers(model)
    with dequantize.dequantize_layers(model, messages.append):
        assert "Linear4bit" in layers_before and "Linear4bit" not in layers(model)
        assert torch.equal(logits(model), quantized)
    assert layers(model) == layers_before and torch.equal(logits(model), quantized) and messages == []


def test_where_memory_is_short_validation_stays_quantized_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "memory_bytes", lambda: 10**7)
    messages: list[str] = []
    model = base.load_base_model(recipe())
    layers_before = layers(model)
    with dequantize.dequantize_layers(model, messages.append):
        assert layers(model) == layers_before
    assert len(messages) == 1 and "dequantizes 4-bit weights in every pass" in messages[0]


def test_where_too_little_memory_is_free_validation_stays_quantized_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raise_out_of_memory(*_: Any) -> Any:
        # bitsandbytes' own allocation, which is no torch.OutOfMemoryError.
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("peft.utils.integrations.dequantize_module_weight", raise_out_of_memory)
    messages: list[str] = []
    model = base.load_base_model(recipe())
    layers_before = layers(model)
    with dequantize.dequantize_layers(model, messages.append):
        assert layers(model) == layers_before
    assert len(messages) == 1 and "too little memory is free" in messages[0]


def test_a_model_that_is_not_quantized_stays_as_it_is() -> None:
    model = base.load_base_model(recipe("model.quantization=none"))
    modules = list(model.modules())
    with dequantize.dequantize_layers(model, pytest.fail):
        assert list(model.modules()) == modules


def test_one_warning_of_a_missing_kernel_is_set_aside_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING):
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "No module")
        logger.warning("another warning")
    assert [record.getMessage() for record in caplog.records] == ["another warning"]
