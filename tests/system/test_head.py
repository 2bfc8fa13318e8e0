"""A classification head from its training to the report, on a small trained run; a linear model replaces the tuned one.

No vLLM is started: the head is answered in transformers, and the other systems of this comparison need no server.
"""

import argparse
import shutil
from math import exp
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from compare import eval_dataset, stage
from compare.records import System
from compare.systems import catalog, classification_head
from insource.config import cli
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking import run as runs_module
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Scores, read_scores
from tests.helpers import commands
from train.head import folder as head_folder
from train.head import worker

pytestmark = pytest.mark.slow(minutes=3)


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.copy_exported_runs(tmp_path_factory, small_recipe, "head")


def run_in(runs: Path) -> Run:
    return Run((runs / "small" / "latest").resolve())


def recipe_with_head(small_recipe: Path, run: Run) -> Recipe:
    compare = load(str(small_recipe), ["compare.head=true"], "cpu").recipe.compare
    return run.recipe().model_copy(update={"compare": compare})


def compare_without_server(run: Run, recipe: Recipe) -> Scores:
    """Runs the comparison with a linear model in place of the tuned one."""
    systems = [system for system in catalog.list_systems(recipe, run) if system.kind in ("linear", "head")]
    assert [system.name for system in systems] == ["tfidf", "head"]
    runs_module.start_stage(run, "compare", {})
    return stage.run_comparison(
        run, "small", recipe, [System("tuned", "linear", "tuned (here a linear model)"), *systems], []
    )


def test_a_head_is_trained_once_and_what_it_depends_on_trains_another(
    runs: Path, small_recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(runs)
    arguments = cli.build_parser("compare", "").parse_args(
        [str(small_recipe), "compare.head=true", "--runs", str(runs)]
    )
    arguments.hardware = "cpu"
    # FRESH=1 of a comparison trains no head anew.
    monkeypatch.setenv("FRESH", "1")
    other = argparse.Namespace(**{**vars(arguments), "set": [*arguments.set, "compare.head_learning_rate=1e-3"]})
    classification_head.train_if_missing(other, run)
    assert "head      training a classification head" in capfd.readouterr().err
    other_record = head_folder.read_record(run)
    assert other_record["learning_rate"] == 1e-3
    classification_head.train_if_missing(arguments, run)
    trained = capfd.readouterr().err
    assert "head      training a classification head" in trained and "about as long as its adapter took" in trained
    assert "12 labels on pocket/model, LoRA r=32 and head" in trained and "2 of 16 examples" in trained
    assert "validated 2/2" in trained and "paired    " in trained

    folder = run.folder / "head"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "head.json", "metrics.jsonl", "SHA256SUMS"} <= names
    assert atomic_files.find_changes(folder) == [] and not list(run.folder.glob(".head-*"))
    record = head_folder.read_record(run)
    prompt = atomic_files.read_json(run.folder / "adapter" / "prompt.json")
    assert record["labels"] == list(prompt["task"]["labels"]) and record["base"] == prompt["base"]
    assert record["learning_rate"] == run.recipe().train.learning_rate and record["updates"] == 2
    assert str(runs) not in (folder / "adapter_config.json").read_text(encoding="utf-8")
    manifest = run.stage("head")
    assert manifest.state == "done" and manifest.metrics["validation"]["n"] == record["validation"]["n"]
    assert "head/adapter_model.safetensors" in manifest.outputs and "data/train.jsonl" in manifest.inputs
    validation = list(atomic_files.read_jsonl(run.folder / "data" / "validation.jsonl"))
    predicted = list(atomic_files.read_jsonl(run.folder / "head_validation.jsonl"))
    assert [line["id"] for line in predicted] == [row["id"] for row in validation]
    right = sum(line["label"] == row["target"] for line, row in zip(predicted, validation, strict=True))
    assert record["validation"]["accuracy"] == pytest.approx(right / len(validation))

    classification_head.train_if_missing(arguments, run)
    assert f"head      unchanged: run {run.id} has it" in capfd.readouterr().err
    assert head_folder.read_record(run)["digest"] == record["digest"] != other_record["digest"]


def test_the_head_is_compared_on_the_test_rows_that_the_plan_opens(
    runs: Path, small_recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_in(runs)
    if not (run.folder / "head").is_dir():
        assert commands.run_command(runs, "train.head", small_recipe).returncode == 0
    recipe = recipe_with_head(small_recipe, run)
    capfd.readouterr()
    scores = compare_without_server(run, recipe)
    assert "head      answers" in capfd.readouterr().err
    head, n_test = scores.systems["head"], scores.task.n_test
    assert (head.kind, head.n, head.answered, head.complete) == ("head", n_test, n_test, True)
    assert head.latency is not None and (head.latency.n, head.latency.concurrency) == (min(200, n_test), 1)
    assert head.throughput is not None and head.throughput.concurrency == recipe.compare.concurrency
    assert head.calibration is not None and head.calibration.fitted_on == "validation"
    assert head.n_train == scores.systems["tuned"].n_train and head.cost_usd_per_1k is None
    pairs = {(entry.a, entry.b): entry for entry in scores.comparisons if entry.metric == "accuracy"}
    assert pairs["tuned", "head"].n == n_test
    for name in ("report.md", "report.html"):
        text = (run.folder / name).read_text(encoding="utf-8")
        assert "Head or tokens: " in text and "no cost is computed for it" in text
    assert len(list(atomic_files.read_jsonl(runs / "small" / "ledger.jsonl"))) == 1
    assert read_scores(run.folder / "scores.json").systems["head"].kind == "head"

    test = eval_dataset.load_test_dataset(run).test
    labels = head_folder.read_record(run)["labels"]
    predictions = list(atomic_files.read_jsonl(run.folder / "predictions" / "head.jsonl"))
    assert [line["id"] for line in predictions] == [row["id"] for row in test]
    for line in predictions:
        assert list(line["probabilities"]) == labels and sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["output"] == max(labels, key=line["probabilities"].__getitem__)

    repeated = compare_without_server(run, recipe)
    assert "head      answers" not in capfd.readouterr().err
    assert repeated.systems["head"].metrics == head.metrics and repeated.systems["head"].reused == n_test
    assert repeated.systems["head"].latency == head.latency


def test_the_merged_model_in_padded_batches_answers_as_training_scored_it(runs: Path, small_recipe: Path) -> None:
    """Packs with LoRA beside the base while training, padded batches of the merged model afterwards."""
    run = run_in(runs)
    payload: dict[str, Any] = atomic_files.read_json(runs / "small" / ".answers" / f"{run.id}.head.json")
    for line in atomic_files.read_jsonl(run.folder / "head_validation.jsonl"):
        answer = classification_head.read_answer(payload, "validation", line["id"], reused=True)
        assert answer.log_probability == pytest.approx(line["log_probability"], abs=1e-3)
        assert answer.output == line["label"] or abs(exp(line["log_probability"]) - 1 / len(payload["labels"])) < 0.01


def test_the_head_is_trained_on_the_train_rows_of_the_adapter(runs: Path) -> None:
    run = run_in(runs)
    all_ids = [row.id for row in worker.load_data(run).train_rows]
    subset = Run(Path(shutil.copytree(run.folder, run.folder.with_name("subset"), symlinks=True)))
    yaml, recipe_path = YAML(), subset.folder / "recipe.yaml"
    values = yaml.load(recipe_path)
    values["train"]["max_train_rows"] = 50
    yaml.dump(values, recipe_path)
    assert subset.recipe().train.max_train_rows == 50
    ids = [row.id for row in worker.load_data(subset).train_rows]
    assert len(ids) == 50 < len(all_ids) and set(ids) < set(all_ids)
