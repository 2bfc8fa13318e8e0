"""Training on recurrent bases, killed with kill -9 and called again: the same bytes come out.

In bfloat16 if the processor has instructions for it, else in float32. The bases have random weights.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kills
from insource.config import hardware
from tests.conftest import ROOT
from tests.helpers.recurrent_models import CONFIGS, save_base

HAS_BFLOAT16 = hardware.cpu_has_bfloat16()


@pytest.mark.slow
def test_the_loop_killed_and_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    names = ("qwen3_5", "lfm2")
    bases = [save_base(name, tmp_path / "bases" / name) for name in names]
    completed = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_training", str(tmp_path), *map(str, bases)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    for name in names:
        assert completed.stdout.count(f"{name}: shared_prefix, mixed precision {'bf16' if HAS_BFLOAT16 else 'no'}") == 3
        undisturbed, killed = (kills.run_hashes(tmp_path / name / run) for run in ("undisturbed", "killed"))
        assert killed == undisturbed
    assert completed.stderr.count("resuming  from checkpoint-") == len(names)


@pytest.mark.nightly
@pytest.mark.slow(minutes=3)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_command_killed_and_called_again_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    recipe = kills.write_recipe(tmp_path)
    settings = (f"model.base={save_base(name, tmp_path / 'base')}", "model.quantization=none", "--hardware", "cpu")
    printed = kills.run_training(recipe, tmp_path / "undisturbed", *settings)
    assert f"multiplied in {'bfloat16' if HAS_BFLOAT16 else 'float32'}" in printed
    assert "packing   shared_prefix" in printed
    runs = tmp_path / "killed"
    for checkpoint in ("checkpoint-2", ".writing/checkpoint-6", "checkpoint-10"):
        process = kills.start_training(recipe, runs, *settings)
        checkpoint_glob = f"*/*/checkpoints/{checkpoint}"
        assert kills.kill_when(process, lambda pattern=checkpoint_glob: list(runs.glob(pattern)))  # type: ignore[misc]
    assert "going on with the unfinished run" in kills.run_training(recipe, runs, *settings)
    folders = [kills.find_run(path) for path in (tmp_path / "undisturbed", runs)]
    assert folders[0] and folders[1] and kills.run_hashes(folders[1]) == kills.run_hashes(folders[0])
