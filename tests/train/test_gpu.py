"""What a GPU needs before anything is loaded, as far as a machine without one can show it."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from insource.config import hardware
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking import doctor
from tests.conftest import Command
from train import launch
from train.device import gpu
from train.packing import attention
from train.packing.attention_blocks import SHARED_PREFIX


@pytest.mark.parametrize(
    ("cuda", "gpus", "environment", "expected"),
    [
        (None, ["NVIDIA L4"], {}, "built for CPUs: `make setup HARDWARE=gpu`"),
        ("13.0", ["NVIDIA L4"], {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        ("13.0", ["NVIDIA L4"], {}, "the driver (570.86) is too old for PyTorch 2.13.0"),
        ("13.0", [], {}, "nvidia-smi shows no GPU"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_with_its_reason(
    cuda: str | None, gpus: list[str], environment: dict[str, str], expected: str
) -> None:
    message = gpu.explain_missing_gpu("2.13.0", cuda, "570.86", gpus, environment)
    assert expected in message and message.endswith("HARDWARE=cpu trains on the CPU")


def test_gpus_without_bfloat16_are_refused() -> None:
    assert "Tesla T4 has compute capability 7.5" in str(gpu.explain_old_gpu("Tesla T4", (7, 5)))
    assert gpu.explain_old_gpu("NVIDIA A100", (8, 0)) is None and gpu.explain_old_gpu("NVIDIA B200", (10, 0)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_hardware_gpu_without_one_ends_before_the_base_is_read_and_is_recorded(
    small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    completed = python("train", small_recipe, "--hardware", "gpu", CUDA_VISIBLE_DEVICES="")
    assert completed.returncode == 2, completed.stderr
    assert "error[INS-X005]: accelerate.use_cpu: false, and PyTorch can use no GPU here" in completed.stderr
    assert "Traceback" not in completed.stderr and "untuned" not in completed.stderr
    (manifest,) = (tmp_path / "runs").glob("small/*/manifest.json")
    stage = atomic_files.read_json(manifest)["stages"]["train"]
    assert stage["state"] == "failed" and "PyTorch can use no GPU here" in stage["exit_reason"]


def test_a_compiler_and_pythons_headers_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = hardware.compiler_problem()
    assert (
        problem
        and "no C compiler" in problem
        and "Python.h" in problem
        and "apt install build-essential python3-dev" in problem
    )
    (tmp_path / "Python.h").touch()
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert hardware.compiler_problem() is None


def test_the_doctor_tells_of_driver_and_compiler_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.describe_gpu_software() == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f"#!{shutil.which('sh', path='/bin:/usr/bin')}\ncase $1 in *driver*) echo 570.86.10;; *) echo L4;; esac\n"
    )
    smi.chmod(0o755)
    report = dict(doctor.describe_gpu_software())
    assert "driver is 570.86.10" in report["driver"] and "580 or newer" in report["driver"]
    assert report["compiler"]


def test_which_lock_a_machine_gets_follows_what_it_computes_on() -> None:
    assert {name for name in hardware.list_names() if hardware.uses_cpu(name)} == {"cpu", "cpu-smollm2", "multi-cpu"}


def test_flex_attention_is_taken_where_its_kernels_fit_and_given_up_where_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_flex_disabled", False)
    device, config = torch.device("cuda"), transformers.Qwen3Config()
    # A100, H100; RTX 3090, 4090, 5090, A10 and L4.
    for shared_bytes, expected in ((166_912, "flex_attention"), (232_448, "flex_attention"), (101_376, SHARED_PREFIX)):
        properties = SimpleNamespace(shared_memory_per_block_optin=shared_bytes)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, properties=properties: properties)
        assert attention.preferred_implementation(device, config) == expected
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(shared_memory_per_block_optin=232_448)
    )
    assert attention.disable_unsupported_flex(torch.OutOfMemoryError("CUDA out of memory")) is None
    assert attention.disable_unsupported_flex(RuntimeError("CUDA error: device-side assert triggered")) is None
    assert attention.preferred_implementation(device, config) == "flex_attention"
    # transformers' FlexAttention refuses dropout, which this model has by default.
    assert attention.preferred_implementation(device, transformers.SeedOssConfig()) == SHARED_PREFIX
    message = attention.disable_unsupported_flex(
        RuntimeError("InductorError: No valid triton configs. OutOfMemoryError: out of resource")
    )
    assert message and "out of resource" in message and message.endswith("long packs attend by blocks of rows")
    assert attention.preferred_implementation(device, config) == SHARED_PREFIX
    # Once: by blocks nothing of the kind can come, and a second error is another one.
    assert attention.disable_unsupported_flex(RuntimeError("No valid triton configs")) is None


@pytest.mark.parametrize(
    "reason",
    ["Failed to find C compiler. Please specify via CC environment variable.", "ptxas fatal : Value 'sm_121a' is not"],
)
def test_a_kernel_that_cannot_be_compiled_makes_long_packs_attend_by_blocks(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InductorError

    monkeypatch.setattr(attention, "_flex_disabled", False)
    # As compile_fx.py of torch 2.13 raises them: the compiler's error inside of one of its own.
    message = attention.disable_unsupported_flex(InductorError(RuntimeError(reason), None))
    assert message and reason in message


def test_one_process_sees_one_gpu_and_a_person_is_told_of_the_idle_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "list_gpus", lambda: ["NVIDIA H100"] * 8)
    single_process = load("classifier", [], "gpu")
    assert "processes 1 on one GPU; 7 more are idle: HARDWARE=multi-gpu takes all" in launch.header_lines(
        single_process
    )
    for loaded in (single_process, load("classifier", ["accelerate.num_processes=1"], "multi-gpu")):
        settings = launch.worker_environment(loaded.recipe, 1)
        assert settings["CUDA_VISIBLE_DEVICES"] == "0"
        assert settings["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        assert loaded.recipe.train.optim == "adamw_torch_fused"
    assert "CUDA_VISIBLE_DEVICES" not in launch.worker_environment(load("classifier", [], "multi-gpu").recipe, 1)
    assert "PYTORCH_ALLOC_CONF" not in launch.worker_environment(load("classifier", [], "cpu").recipe, 1)


def test_the_launcher_of_a_gpu_is_named_in_words_by_install(tmp_path: Path) -> None:
    """Set-up for a GPU ends before it downloads anything where Triton could compile nothing."""
    root = Path(hardware.__file__).parents[2]
    for name in (
        "insource/__init__.py",
        "insource/config/__init__.py",
        "insource/config/hardware.py",
        "recipes/hardware/gpu.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tmp_path / name)
    shutil.copytree(root / "requirements", tmp_path / "requirements")
    argv = [sys.executable, str(tmp_path / "requirements" / "install.py")]
    settings = {"PATH": str(tmp_path), "HARDWARE": "gpu"}
    completed = subprocess.run(argv, env=settings, capture_output=True, text=True, check=False)
    assert completed.returncode == 1 and "no C compiler" in completed.stderr and "apt install" in completed.stderr
    assert not list(tmp_path.glob(".venv*"))
