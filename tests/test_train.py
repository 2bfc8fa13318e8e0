"""The stage as a user calls it: one command, its exit codes, what it leaves on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command
from tracking import files

ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "prompt.json",
    "reference.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
}


def only_run(runs: Path) -> Path:
    (folder,) = [path.parent for path in runs.glob("*/*/manifest.json") if not path.parent.is_symlink()]
    return folder


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("clasifier", [], "Did you mean classifier?"),
        ("classifier", ["train.learning_rat=1"], "did you mean learning_rate?"),
        ("classifier", ["train.num_train_epochs=three", "lora.r=600"], "2 mistakes"),
        ("classifier", ["data.columns.text=mesage"], "did you mean 'message'?"),
        ("classifier", ["data.source.path=nowhere.csv"], "there is no file"),
        ("/nowhere/mine.yaml", [], "no such recipe file"),
    ],
)
def test_a_wrong_call_exits_2_with_one_message_and_leaves_nothing(
    recipe: str, settings: list[str], told: str, python: Command, tmp_path: Path
) -> None:
    answer = python("train", recipe, *settings)
    assert answer.returncode == 2
    assert told in answer.stderr
    assert answer.stderr.count("error:") == 1
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert not list(tmp_path.rglob("*.json*"))


def test_make_shows_the_same_message_last(tmp_path: Path) -> None:
    # Under `make check` this make would call itself make[1].
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    settings["RUNS"] = str(tmp_path)
    answer = subprocess.run(
        ["make", "train", "RECIPE=clasifier"], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    *message, last = answer.stderr.strip().splitlines()
    assert last.startswith("make: ***")
    assert "Did you mean classifier?" in message[-2]


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(python: Command, tmp_path: Path) -> None:
    answer = python("train", "classifier", "--dry-run")
    assert answer.returncode == 0
    assert "learning_rate: 0.002" in answer.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_one_command_leaves_a_whole_run_and_the_second_call_leaves_it_unchanged(
    small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    answer = python("train", small_recipe)
    assert answer.returncode == 0, answer.stderr
    assert "untuned" in answer.stdout
    run = only_run(tmp_path / "runs")
    assert {path.name for path in (run / "adapter").iterdir()} == ADAPTER_FILES
    manifest = files.read_json(run / "manifest.json")
    train = manifest["stages"]["train"]
    assert train["state"] == "done"
    assert set(train["metrics"]["validation"]) == {"tuned", "base"}
    for name, sha256 in train["outputs"].items():
        assert files.sha256(run / name) == sha256
    assert [line["step"] for line in files.read_jsonl(run / "metrics.jsonl")] == [2, 4, 6]
    assert (run.parent / "latest").resolve() == run
    assert list((run / "wandb").rglob("*.wandb"))
    probes = list(files.read_jsonl(run / "adapter" / "reference.jsonl"))
    assert probes and all(one["answer"] and one["prompt_ids"] and one["log_probability"] <= 0 for one in probes)
    config = files.read_json(run / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "pocket/model"

    again = python("train", small_recipe)
    assert again.returncode == 0
    assert again.stdout == answer.stdout
    assert "data      unchanged" in again.stderr and "train     unchanged" in again.stderr
    assert only_run(tmp_path / "runs") == run


@pytest.mark.slow
def test_the_same_recipe_and_seed_give_the_same_bytes_and_fresh_trains_anew(
    small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    assert python("train", small_recipe).returncode == 0
    first = only_run(tmp_path / "runs")
    assert python("train", small_recipe, FRESH="1").returncode == 0
    second = (first.parent / "latest").resolve()
    assert second != first
    weights = [files.sha256(run / "adapter" / "adapter_model.safetensors") for run in (first, second)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint_and_ends_in_the_same_bytes(
    small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    assert python("train", small_recipe, RUNS=str(tmp_path / "whole")).returncode == 0
    settings = {**os.environ, "RUNS": str(tmp_path / "killed"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "train", str(small_recipe)],
        cwd=ROOT,
        env=settings,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").rglob("checkpoint-2/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run = only_run(tmp_path / "killed")
    assert not (run / "adapter").exists()
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]["train"]["state"] == "running"

    answer = python("train", small_recipe, RUNS=str(tmp_path / "killed"))
    assert answer.returncode == 0, answer.stderr
    assert "going on with the unfinished run" in answer.stderr
    whole = only_run(tmp_path / "whole")
    assert only_run(tmp_path / "killed") == run
    name = "adapter/adapter_model.safetensors"
    assert files.sha256(run / name) == files.sha256(whole / name)
    assert [line["step"] for line in files.read_jsonl(run / "metrics.jsonl")] == [2, 4, 6]


@pytest.mark.slow
def test_rows_that_would_lose_their_answer_are_refused_before_training(
    small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    answer = python("train", small_recipe, "train.max_length=80")
    assert answer.returncode == 2
    assert "longer than train.max_length (80 tokens)" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list((tmp_path / "runs").rglob("adapter"))


@pytest.mark.slow
def test_without_packing_and_without_quantization_it_trains_as_well(small_recipe: Path, python: Command) -> None:
    answer = python("train", small_recipe, "train.packing=none", "model.quantization=none", "train.max_steps=2")
    assert answer.returncode == 0, answer.stderr
    assert "each row alone" in answer.stderr
