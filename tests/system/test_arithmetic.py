"""Other arithmetic than the machine's own: what is trained and served under it agrees all the same.

`make bench BENCH=arithmetic` does this with the demo recipe, from train to verdict, under more settings.
"""

from pathlib import Path

import pytest

from insource.system import atomic_files
from insource.tracking.run import Run
from tests.helpers import commands

# torch's kernels without vector instructions, and sums in one thread: other roundings than on any machine of today.
OTHER = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow(minutes=3)
def test_served_answers_are_the_trained_ones_under_other_arithmetic(small_recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    stages = (
        ("train", *commands.TRAIN_SETTINGS),
        ("train.export", "export.quantize=none"),
        ("serve.parity", "export.quantize=none"),
    )
    for stage, *args in stages:
        completed = commands.run_command(runs, stage, small_recipe, *args, **OTHER)
        assert completed.returncode == 0, completed.stderr
        assert "gemm_4bit_forward" not in completed.stderr
    report = atomic_files.read_json(Run((runs / "small" / "latest").resolve()).folder / "parity.json")
    assert [form["which"] for form in report["forms"]] == ["merged", "adapter"]
    for form in report["forms"]:
        assert form["prompt_ids_equal"] == 1 and form["same"]["agreement"] >= 0.995
