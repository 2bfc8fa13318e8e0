"""The stage as a user calls it: one command, its exit codes, what it leaves on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from insource.config import hardware
from insource.config.load import load
from insource.system import atomic_files
from tests.conftest import ROOT, Command

ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "chat_template.jinja",
    "prompt.json",
    "SHA256SUMS",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
OFFLINE = "tracking.wandb.mode=offline"


def only_run(runs: Path) -> Path:
    (folder,) = [path.parent for path in runs.glob("*/*/manifest.json") if not path.parent.is_symlink()]
    return folder


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("clasifier", [], "Did you mean classifier?"),
        ("classifier", ["train.learning_rat=1"], "did you mean learning_rate?"),
        ("classifier", ["train.num_train_epochs=three", "lora.r=600"], "2 mistakes"),
        ("classifier", ["data.columns.text=mesage"], "did you mean 'message'?"),
        ("classifier", ["data.source.path=nowhere.csv"], "there is no file"),
        ("/nowhere/mine.yaml", [], "this recipe file does not exist"),
    ],
)
def test_a_wrong_call_exits_2_with_one_message_and_leaves_nothing(
    recipe: str, settings: list[str], message: str, python: Command, tmp_path: Path
) -> None:
    completed = python("train", recipe, *settings)
    assert completed.returncode == 2
    assert message in completed.stderr
    assert completed.stderr.count("error[") == 1
    assert "Traceback" not in completed.stderr
    assert completed.stdout == ""
    assert not list(tmp_path.rglob("*.json*"))


def test_make_shows_the_same_message_last(tmp_path: Path) -> None:
    # Under `make check` this make would call itself make[1].
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    settings["RUNS"] = str(tmp_path)
    completed = subprocess.run(
        ["make", "train", "RECIPE=clasifier"], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 2
    *message, last = completed.stderr.strip().splitlines()
    assert last.startswith("make: ***")
    assert "Did you mean classifier?" in message[-2]


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(python: Command, tmp_path: Path) -> None:
    completed = python("train", "classifier", "--dry-run")
    assert completed.returncode == 0
    assert "learning_rate: 0.002" in completed.stdout
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def finished_training(
    small_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """How `python -m train` on the small recipe ended, and where its runs are."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    completed = train(small_recipe, runs, OFFLINE)
    assert completed.returncode == 0, completed.stderr
    return completed, runs


def train(recipe: Path, runs: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "RUNS": str(runs), **environment}
    argv = [sys.executable, "-m", "train", str(recipe), *settings]
    return subprocess.run(argv, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_one_command_leaves_a_whole_run_and_the_second_call_leaves_it_unchanged(
    small_recipe: Path, finished_training: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    completed, runs = finished_training
    assert "untuned" in completed.stdout
    run = only_run(runs)
    assert {path.name for path in (run / "adapter").iterdir()} == ADAPTER_FILES
    manifest = atomic_files.read_json(run / "manifest.json")
    stage = manifest["stages"]["train"]
    assert stage["state"] == "done"
    assert set(stage["metrics"]["validation"]) == {"tuned", "base"}
    for name, sha256 in stage["outputs"].items():
        assert atomic_files.sha256(run / name) == sha256
    assert [line["step"] for line in atomic_files.read_jsonl(run / "metrics.jsonl")] == [2, 4, 6]
    assert (run.parent / "latest").resolve() == run
    assert list((run / "wandb").rglob("*.wandb"))
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    # Rows of the data lie beside the folder that people share, which has their hash.
    references = atomic_files.read_json(run / "adapter" / "prompt.json")["references"]
    assert references["sha256"] == atomic_files.sha256(run / "reference.jsonl") == stage["outputs"]["reference.jsonl"]
    assert references["sha256"] in (run / "adapter" / "README.md").read_text(encoding="utf-8")
    probes = list(atomic_files.read_jsonl(run / "reference.jsonl"))
    assert len(probes) == references["rows"]
    assert probes and all(probe["answer"] and probe["prompt_ids"] and probe["log_probability"] <= 0 for probe in probes)
    config = atomic_files.read_json(run / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "pocket/model"

    repeated = train(small_recipe, runs, OFFLINE)
    assert repeated.returncode == 0
    assert repeated.stdout == completed.stdout
    assert "data      unchanged" in repeated.stderr and "train     unchanged" in repeated.stderr
    assert only_run(runs) == run


@pytest.mark.slow
def test_the_same_recipe_and_seed_give_the_same_bytes_and_fresh_trains_anew(
    small_recipe: Path, finished_training: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    first = only_run(finished_training[1])
    shutil.copytree(first.parent, tmp_path / "runs" / first.parent.name, symlinks=True)
    assert train(small_recipe, tmp_path / "runs", FRESH="1").returncode == 0
    second = (tmp_path / "runs" / first.parent.name / "latest").resolve()
    assert second.name != first.name
    weights = [atomic_files.sha256(run / "adapter" / "adapter_model.safetensors") for run in (first, second)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(
    small_recipe: Path, finished_training: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    completed = train(small_recipe, tmp_path / "runs", HARDWARE="multi-cpu")
    assert completed.returncode == 0, completed.stderr
    assert "over 2 processes" in completed.stderr
    single_losses, parallel_losses = (
        [row["loss"] for row in atomic_files.read_jsonl(only_run(runs) / "metrics.jsonl")]
        for runs in (finished_training[1], tmp_path / "runs")
    )
    assert len(single_losses) == 3
    # Each process rounds products of its own shapes, to 8 bits where they are bfloat16.
    assert parallel_losses == pytest.approx(single_losses, rel=5e-3 if hardware.cpu_has_bfloat16() else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "message"), [("summarizer", "ROUGE-L"), ("preference", "preference accuracy")])
def test_the_other_kinds_train_too(recipe: str, message: str, tmp_path: Path) -> None:
    settings = load(recipe).recipe
    path = Path(str(settings.data.source.path))
    subset = tmp_path / path.name
    subset.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:160]), encoding="utf-8")
    completed = train(
        Path(recipe), tmp_path / "runs", f"data.source.path={subset}", "train.max_steps=2", "train.logging_steps=1",
        "train.batch_size=4", HARDWARE="cpu",
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert message in completed.stdout
    run = only_run(tmp_path / "runs")
    assert {path.name for path in (run / "adapter").iterdir()} == ADAPTER_FILES
    logged = list(atomic_files.read_jsonl(run / "metrics.jsonl"))
    assert len(logged) == 2
    assert ("rewards/accuracies" in logged[-1]) == (recipe == "preference")


@pytest.mark.slow
def test_rows_that_would_lose_their_answer_are_refused_before_training(
    small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    completed = python("train", small_recipe, "train.max_length=80")
    assert completed.returncode == 2
    assert (
        "but the prompt without an input has" in completed.stderr
        and "raise train.max_length above that" in completed.stderr
    )
    assert "Traceback" not in completed.stderr
    assert not list((tmp_path / "runs").rglob("adapter"))


@pytest.mark.slow
def test_without_packing_and_without_quantization_it_trains_as_well(small_recipe: Path, python: Command) -> None:
    completed = python("train", small_recipe, "train.packing=none", "model.quantization=none", "train.max_steps=2")
    assert completed.returncode == 0, completed.stderr
    assert "each row separately" in completed.stderr
