"""Files of a run: atomic folders, metrics, digests and the resolved recipe."""

import subprocess
import sys
from pathlib import Path

import pytest

from insource.config.load import load
from insource.system import atomic_files
from insource.tracking import digests, metrics
from insource.tracking import run as runs
from tests.conftest import ROOT

KILLED = """
import os, sys
from pathlib import Path
from insource.system import atomic_files
with atomic_files.atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half.jsonl").touch()
    os.kill(os.getpid(), 9)
"""

MADE = """
import sys
from pathlib import Path
from insource.system import atomic_files
with atomic_files.atomic_folder(Path(sys.argv[1]), keep_existing=sys.argv[2] == "True") as folder:
    (folder / "second.jsonl").touch()
"""


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_files.atomic_folder(tmp_path / "made") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_files.atomic_folder(tmp_path / "made") as folder:
        (folder / "all").write_text("all", encoding="utf-8")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "all"]


def test_metrics_after_the_resumed_step_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (10, 20, 30):
        metrics.append(path, {"step": step, "loss": 1.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')
    metrics.truncate_after(path, 20)
    assert [line["step"] for line in atomic_files.read_jsonl(path)] == [10, 20]


def test_what_a_killed_process_left_of_a_folder_goes_with_the_next_attempt(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "prepared")], cwd=ROOT, capture_output=True, check=False
    )
    assert completed.returncode == -9
    assert [file.name for file in tmp_path.glob("*/*")] == ["half.jsonl"]
    with atomic_files.atomic_folder(tmp_path / "prepared") as folder:
        (folder / "whole.jsonl").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.parametrize("keep", [True, False])
def test_two_processes_that_make_one_folder_remove_nothing_of_each_other(keep: bool, tmp_path: Path) -> None:
    with atomic_files.atomic_folder(tmp_path / "prepared", keep_existing=keep) as folder:
        (folder / "first.jsonl").touch()
        argv = [sys.executable, "-c", MADE, str(tmp_path / "prepared"), str(keep)]
        subprocess.run(argv, cwd=ROOT, check=True)
        assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["second.jsonl"]
        (folder / "more.jsonl").touch()
    remaining = sorted(path.name for path in (tmp_path / "prepared").iterdir())
    assert remaining == (["second.jsonl"] if keep else ["first.jsonl", "more.jsonl"])
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_not_a_number_is_never_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        metrics.append(tmp_path / "metrics.jsonl", {"loss": float("nan")})


def test_digests_change_with_what_they_depend_on_and_with_nothing_else() -> None:
    base_recipe = load("classifier", (), "cpu").recipe
    sources = [("all", "tickets.csv", "sha256 of it")]
    data, training = (
        digests.compute_data_digest(base_recipe, sources),
        digests.compute_training_digest(base_recipe, "data"),
    )

    def changed_digests(setting: str) -> tuple[bool, bool]:
        recipe = load("classifier", [setting], "cpu").recipe
        return digests.compute_data_digest(recipe, sources) != data, digests.compute_training_digest(
            recipe, "data"
        ) != training

    assert changed_digests("data.split.seed=18") == (True, False)
    assert changed_digests("train.learning_rate=1e-4") == (False, True)
    # How long a row is depends on the prompt, and what is too long leaves train.
    assert changed_digests("task.instruction=Do something else entirely.") == (True, True)
    assert changed_digests("train.max_length=512") == (True, True)
    assert changed_digests("data.num_proc=2") == (False, False)
    # Labels stand in the prompt in the recipe's order.
    assert changed_digests("task.labels={b: '', a: ''}") == (True, True)
    label_override, reordered_override = (
        [f"task.labels={{{label_texts}}}"] for label_texts in ("a: '', b: ''", "b: '', a: ''")
    )
    first_recipe, second_recipe = (
        load("classifier", label_override, "cpu").recipe,
        load("classifier", reordered_override, "cpu").recipe,
    )
    assert digests.compute_data_digest(first_recipe, sources) != digests.compute_data_digest(second_recipe, sources)
    assert digests.compute_training_digest(first_recipe, "data") != digests.compute_training_digest(
        second_recipe, "data"
    )
    assert digests.compute_data_digest(base_recipe, [("all", "tickets.csv", "another sha256")]) != data
    assert changed_digests("cost.gpu_usd_per_hour=9") == (False, False)
    assert changed_digests("tracking.wandb.mode=off") == (False, False)


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    recipe = load("classifier", (), "cpu").recipe
    run = runs.create(tmp_path / "classifier", recipe, "digest", {}, tmp_path / "data")
    assert run.recipe() == recipe
