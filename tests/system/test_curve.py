"""A learning curve with real trainings: what is shared, what a kill costs, and what it leaves alone."""

import os
import signal
import time
from pathlib import Path

import pytest

from insource.system import atomic_files
from insource.tracking.run import Run
from tests.helpers import commands

SETTINGS = ("curve.points=2", "train.max_steps=3", "train.save_steps=3", "accelerate.mixed_precision=no")


@pytest.mark.slow(minutes=2)
def test_a_killed_curve_goes_on_and_trains_nothing_twice(small_recipe: Path, tmp_path: Path) -> None:
    runs, log = tmp_path / "runs", tmp_path / "log"
    with commands.run_in_background(runs, log, "compare.curve", small_recipe, *SETTINGS) as process:
        commands.wait_for(log, "curve     2 of 2", process)
        children = commands.child_pids(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    # Its training ends with it, after a checkpoint.
    deadline = time.monotonic() + commands.TIMEOUT_SECONDS
    while commands.running_pids(children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not commands.running_pids(children)
    parent = runs / "small"
    partial = atomic_files.read_json(parent / "curve.json")
    assert len(partial["curves"]["tuned"]["points"]) == 1 and partial["curves"]["tuned"]["conclusion"] is None

    completed = commands.run_command(runs, "compare.curve", small_recipe, *SETTINGS)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr.count("train     unchanged") == 1
    payload = atomic_files.read_json(parent / "curve.json")
    assert payload["curves"]["tuned"]["title"] == "adapter on pocket/model"
    points = payload["curves"]["tuned"]["points"]
    trained = [point["train_rows"] for point in points]
    assert trained == (payload["planned_sizes"][-len(trained) :]) and len(trained) >= 2
    assert len({point["run"] for point in points}) == len(points)
    for point in points:
        run = Run(parent / point["run"])
        expected = None if point["train_rows"] == payload["train_rows"] else point["train_rows"]
        assert run.recipe().train.max_train_rows == expected
        # All trainings share the prepared data, so validation and test rows are the same.
        assert (run.folder / "data").resolve().name == payload["data"]
        assert (
            run.stage("train").metrics["validation"]["base"]
            == Run(parent / points[0]["run"]).stage("train").metrics["validation"]["base"]
        )
    assert "untuned   the answers of an earlier call" in completed.stderr + log.read_text(encoding="utf-8")
    assert len(list((parent / ".untuned").iterdir())) == 1
    assert not (parent / "latest").exists() and not list(parent.glob("*/scores.json"))
    assert payload["curves"]["linear"]["points"][-1]["train_rows"] == payload["train_rows"]
    assert "tuned" in completed.stdout and (parent / "curve.html").is_file()

    repeated = commands.run_command(runs, "compare.curve", small_recipe, *SETTINGS)
    assert repeated.returncode == 0 and repeated.stderr.count("train     unchanged") == len(points)
    assert atomic_files.read_json(parent / "curve.json")["curves"] == payload["curves"]
