"""A run that is trained with examples in its prompts: the comparison sends the same prompts, and nothing serves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compare import eval_dataset
from compare.systems import catalog, row_requests
from insource.system import atomic_files
from insource.tasks.rendering import chat_template
from insource.tracking.prompt_spec import PromptExamples, PromptSpec
from insource.tracking.reference_row import read_references
from insource.tracking.run import Run
from serve.parity import check
from serve.vllm.launch_plan import ServedModel
from tests.helpers import commands

pytestmark = pytest.mark.slow(minutes=2)

SHOTS = 2


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of runs with one trained with examples."""
    folder = tmp_path_factory.mktemp("shots") / "runs"
    settings = (*commands.TRAIN_SETTINGS, f"train.shots={SHOTS}", "train.max_train_rows=120")
    completed = commands.run_command(folder, "train", small_recipe, *settings)
    assert completed.returncode == 0, completed.stderr
    (folder / "stdout").write_text(completed.stdout, encoding="utf-8")
    yield folder


def run_in(runs: Path) -> Run:
    return Run((runs / "small" / "latest").resolve())


def test_training_records_its_examples_and_the_score_without_them(runs: Path) -> None:
    run = run_in(runs)
    prompt, stage = PromptSpec.read(run.folder / "adapter"), run.stage("train")
    limit = run.recipe().train.max_length - prompt.max_answer_tokens
    assert prompt.examples == PromptExamples(shots=SHOTS, max_prompt_tokens=limit)
    assert stage.state == "done" and stage.fallbacks == []
    scores = stage.metrics["validation"]
    assert scores.keys() == {"tuned", "base", "tuned_without_examples"}
    assert len({score["n"] for score in scores.values()}) == 1
    summary = (runs / "stdout").read_text(encoding="utf-8")
    assert f"each prompt with {SHOTS} similar train rows" in summary and "the same rows, without examples" in summary
    card = (run.folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"{SHOTS} similar train rows as turns" in card and "make serve" not in card


def test_comparison_and_parity_check_send_the_prompts_of_training(runs: Path) -> None:
    run = run_in(runs)
    recipe, dataset = run.recipe(), eval_dataset.load_validation_dataset(run)
    references = list(read_references(run.references_path))
    assert references and all(len(reference.examples) == SHOTS for reference in references)
    trained_ids = {row["id"] for row in dataset.train}
    assert len(trained_ids) == 120
    assert all(set(reference.examples) <= trained_ids for reference in references), "rows that are not trained on"

    tuned = catalog.list_systems(recipe, run)[0]
    assert (tuned.name, tuned.shots) == ("tuned", SHOTS) and tuned.uses_tuned_scale
    adapter = run.folder / "adapter"
    examples, n_shortened = row_requests.fit_examples(tuned, dataset, dataset.test, adapter, recipe.serve.max_model_len)
    conversations = row_requests.build_conversations(tuned, dataset, dataset.test, examples)
    tokenizer = chat_template.load_saved_tokenizer(str(adapter))
    prompts = chat_template.encode_prompts(tokenizer, conversations)
    expected = {reference.id: reference.prompt_ids for reference in references}
    assert {row["id"]: ids for row, ids in zip(dataset.test, prompts, strict=True)} == expected and n_shortened == 0

    probe = check.load_probe(ServedModel("small", run, recipe, "adapter"), 12, recipe.serve)
    probed = chat_template.encode_prompts(tokenizer, check.build_conversations(probe))
    assert probed == [reference.prompt_ids for reference in references[:12]]
    assert check.build_conversations(probe.head(3)) == check.build_conversations(probe)[:3]


def test_it_is_neither_served_nor_deployed_nor_used_for_predictions(
    runs: Path, small_recipe: Path, tmp_path: Path
) -> None:
    run = run_in(runs)
    (tmp_path / "rows.csv").write_text("message\nwhere is my parcel\n", encoding="utf-8")
    predict = ("predict", small_recipe, "--input", tmp_path / "rows.csv", "--output", tmp_path / "out.csv")
    for command in (("serve", small_recipe), ("deploy", small_recipe, "--force"), predict):
        completed = commands.run_command(runs, *command)
        assert completed.returncode == 2, completed.stderr
        assert "INS-E016" in completed.stderr and run.id in completed.stderr and "make compare" in completed.stderr
    assert not (runs.parent / "registry" / "small" / "current").exists() and not (tmp_path / "out.csv").exists()
    head = commands.run_command(runs, "train.head", small_recipe)
    assert head.returncode == 2 and "train.shots: 2 examples in each prompt" in head.stderr


@pytest.mark.nightly
def test_it_is_compared_with_its_examples(runs: Path, small_recipe: Path) -> None:
    settings = ("compare.base_shots=0", "compare.tuned_shots=0", "compare.forms=served", "compare.explore_rows=50")
    completed = commands.run_command(runs, "train.export", small_recipe)
    assert completed.returncode == 0, completed.stderr
    completed = commands.run_command(runs, "compare", small_recipe, *settings)
    assert completed.returncode == 0, completed.stderr
    run = run_in(runs)
    scores = atomic_files.read_json(run.folder / "scores.json")
    tuned = scores["systems"]["tuned"]
    assert (tuned["title"], tuned["shots"]) == (f"tuned (merged), {SHOTS} similar examples", SHOTS)
    assert tuned["parity"]["prompt_ids_equal"] == 1 and tuned["parity"]["agreement"] >= 0.99
    assert tuned["n"] == tuned["answered"] == scores["task"]["n_test"]
    assert tuned["tokens"]["input"] > scores["systems"]["base"]["tokens"]["input"]
    assert any("does not serve or deploy it" in note for note in scores["integrity"]["fallbacks"])
