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


def recipe(*changes: str) -> Recipe:
    return load("classifier", changes, "cpu").recipe


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
    again, same = dequantize.load_training_base(recipe(), tmp_path, print)
    assert same == folder and torch.equal(logits(again), logits(model))
    copied = dequantize._copy_to_main_memory(quantized)
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in copied.state_dict().items())


def test_int8_is_trained_quantized_and_kept_dequantized(tmp_path: Path) -> None:
    model, folder = dequantize.load_training_base(recipe("model.quantization=int8"), tmp_path, print)
    assert model.is_quantized and folder is not None
    kept = base.load_base_model(recipe(f"model.base={folder}", "model.quantization=none"))
    # LLM.int8 rounds what it reads too, so that its answers are near and not equal.
    assert 0 < (logits(kept) - logits(model)).abs().max() < 1.0
    assert base_store.read_record(folder, folder.name)["quantization"] == "int8"


def test_an_unquantized_base_is_written_nowhere(tmp_path: Path) -> None:
    model, folder = dequantize.load_training_base(recipe("model.quantization=none"), tmp_path, print)
    assert folder is None and not list(tmp_path.iterdir()) and not getattr(model, "is_quantized", False)


def test_an_adapter_that_changes_its_base_is_said_to_be_served_on_the_published_one(tmp_path: Path) -> None:
    told: list[str] = []
    model, folder = dequantize.load_training_base(recipe("lora.init_lora_weights=pissa"), tmp_path, told.append)
    assert folder is None and model.is_quantized and "published base" in told[0]


def test_other_weights_have_another_folder_and_a_changed_one_is_written_again(tmp_path: Path) -> None:
    _, folder = dequantize.load_training_base(recipe(), tmp_path / "store", print)
    assert folder is not None
    other = shutil.copytree(POCKET, tmp_path / "base")
    config = atomic_files.read_json(other / "config.json")
    atomic_files.write_json(other / "config.json", config | {"rope_theta": 20000.0})
    _, another = dequantize.load_training_base(recipe(f"model.base={other}"), tmp_path / "store", print)
    assert another is not None and another != folder
    weights = folder / "model.safetensors"
    before = atomic_files.sha256(weights)
    weights.write_bytes(weights.read_bytes()[:-64])
    _, folder = dequantize.load_training_base(recipe(), tmp_path / "store", print)
    assert folder is not None and atomic_files.sha256(weights) == before


def test_without_room_the_published_base_is_announced(tmp_path: Path) -> None:
    assert base_store.disk_space_problem(tmp_path, 0) is None
    told = base_store.disk_space_problem(tmp_path, 10**18)
    assert told is not None and "1,000,000,000.0 GB on disk" in told
    model = base.load_base_model(recipe())
    said: list[str] = []
    assert dequantize._write_if_missing(recipe(), model, tmp_path / "x", 10**18, said.append) is None
    assert "The published base is served" in said[0] and "GB" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]


WRITER = """
import sys
from pathlib import Path
from insource.config.load import load
from train.model import dequantize
print(dequantize.load_training_base(load("classifier", (), "cpu").recipe, Path(sys.argv[1]), print)[1])
"""


def writer(store: Path) -> subprocess.Popen[str]:
    settings = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    asked = [sys.executable, "-c", WRITER, str(store)]
    return subprocess.Popen(
        asked, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_two_runs_that_need_it_together_write_it_once(tmp_path: Path) -> None:
    both = [writer(tmp_path) for _ in range(2)]
    ended = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert ended[0][0] == ended[1][0] != "None\n"
    assert sum(stderr.count("base      writing") for _, stderr in ended) == 1


@pytest.mark.slow
def test_killed_while_it_writes_nothing_half_is_found(tmp_path: Path) -> None:
    store = tmp_path / "runs" / base_store.BASES_FOLDER
    for seconds in (0.0, 0.02, 0.1):
        process = writer(store)
        while not list(store.glob(".*.*")) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        whole = [path for path in store.iterdir() if path.is_dir() and not path.name.startswith(".")]
        assert all(atomic_files.find_changes(path) == [] for path in whole)
        for path in whole:
            shutil.rmtree(path)
    process = writer(store)
    folder = Path(process.communicate(timeout=300)[0].strip())
    assert atomic_files.find_changes(folder) == []
    assert [path.name for path in store.iterdir() if path.is_dir()] == [folder.name]


def run_on(folder: Path, store: Path, **trained: Any) -> ServedModel:
    """A run whose adapter belongs to a base."""
    here = Run(folder / "classifier" / "20261129T000000Z-abcd")
    (here.folder / "adapter").mkdir(parents=True)
    atomic_files.write_text(here.folder / "recipe.yaml", "")
    _, kept = dequantize.load_training_base(recipe(), store, print)
    assert kept is not None
    prompt = {
        "base": {
            "name": "pocket/model",
            "commit": None,
            "sha256": None,
            "trained": base_store.read_record(kept, kept.name),
        }
    }
    atomic_files.write_json(here.folder / "adapter" / "prompt.json", prompt)
    atomic_files.write_checksums(here.folder / "adapter")
    return ServedModel("classifier", here, recipe(), "adapter")


def test_adapters_are_served_on_the_base_that_they_were_trained_on(tmp_path: Path) -> None:
    served = run_on(tmp_path, tmp_path / base_store.BASES_FOLDER)
    trained, published = recipe().serve, recipe("serve.base=published").serve
    folder, revision = launch_plan.locate_base(served, trained)
    assert Path(folder).parent == tmp_path / base_store.BASES_FOLDER and revision is None
    assert launch_plan.locate_base(served, published)[0] == str(POCKET)
    assert launch_plan.has_trained_weights(served, trained) and not launch_plan.has_trained_weights(served, published)
    assert not launch_plan.has_trained_weights(replace(served, which="quantized/int8"), trained)
    shutil.rmtree(folder)
    (told,) = launch_plan.adapter_problems(served, trained)
    assert "make export" in told and "serve.base=published" in told


def test_a_registry_keeps_the_base_of_what_is_deployed(tmp_path: Path) -> None:
    served = run_on(tmp_path / "runs", tmp_path / "runs" / base_store.BASES_FOLDER)
    place = tmp_path / "registry" / "classifier"
    version = registry.promote(place, served.run, [])
    about = atomic_files.read_json(place / "versions" / version / "version.json")
    kept = tmp_path / "registry" / base_store.BASES_FOLDER / about["base"]["digest"]
    assert atomic_files.find_changes(kept) == [] and base_store.find(place / "versions" / version, kept.name) == kept
    shutil.rmtree(tmp_path / "runs" / base_store.BASES_FOLDER)
    assert atomic_files.find_changes(kept) == []
    shutil.rmtree(kept)
    with pytest.raises(StageError, match="make export"):
        registry.copy_base(place, served.run)


def test_large_dequantized_weights_stay_quantized_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "memory_bytes", lambda: 10**7)
    model, folder = dequantize.load_training_base(recipe(), tmp_path, print)
    assert model.is_quantized and folder is not None
    # And again, with the folder there: a run that goes on computes as before.
    assert dequantize.load_training_base(recipe(), tmp_path, print)[0].is_quantized


def layers(model: Any) -> set[str]:
    return {type(one).__name__ for one in model.modules() if isinstance(one, torch.nn.Linear)}


def test_validation_holds_dequantized_weights_that_answer_as_nf4_does_to_the_bit() -> None:
    told: list[str] = []
    asked = recipe()
    model = base.add_adapter(base.load_base_model(asked), asked.lora, seed=3)
    quantized, before = logits(model), layers(model)
    with dequantize.dequantize_layers(model, told.append):
        assert "Linear4bit" in before and "Linear4bit" not in layers(model)
        assert torch.equal(logits(model), quantized)
    assert layers(model) == before and torch.equal(logits(model), quantized) and told == []


def test_where_memory_is_short_validation_stays_quantized_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "memory_bytes", lambda: 10**7)
    told: list[str] = []
    model = base.load_base_model(recipe())
    before = layers(model)
    with dequantize.dequantize_layers(model, told.append):
        assert layers(model) == before
    assert len(told) == 1 and "dequantizes 4-bit weights in every pass" in told[0]


def test_a_model_that_is_not_quantized_stays_as_it_is() -> None:
    model = base.load_base_model(recipe("model.quantization=none"))
    before = list(model.modules())
    with dequantize.dequantize_layers(model, pytest.fail):
        assert list(model.modules()) == before


def test_one_warning_of_a_missing_kernel_is_set_aside_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING):
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "No module")
        logger.warning("another warning")
    assert [record.getMessage() for record in caplog.records] == ["another warning"]
