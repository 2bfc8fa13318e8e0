"""The whole comparison on a small trained run, with closed models that a second real vLLM stands in for."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking import dashboard, wandb_comparison
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run
from insource.tracking.scores.comparison import read_scores
from serve.vllm import client, launch_plan, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess
from tests.helpers import commands
from train import worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one trained, and merged beside it."""
    folder = commands.copy_exported_runs(tmp_path_factory, small_recipe, "compare")
    shutil.rmtree(run_in(folder).folder / "quantized")
    return folder


def run_in(runs: Path) -> Run:
    return Run((runs / "small" / "latest").resolve())


@pytest.fixture(scope="module")
def stand_in(runs: Path) -> Iterator[str]:
    """The untuned base behind both wires, as a provider would be: the address of the server."""
    run = run_in(runs)
    served = ServedModel("small", run, run.recipe(), "adapter")
    address = Address("127.0.0.1", server_process.free_port())
    vllm = VllmProcess(launch_plan.plan_base_launch(served, run.recipe().serve), address, runs.parent / "stand-in.log")
    vllm.start()
    try:
        vllm.wait_ready()
        yield client.client_url(address)
    finally:
        vllm.stop()


@pytest.fixture(scope="module")
def published_comparison(runs: Path, small_recipe: Path) -> subprocess.CompletedProcess[str]:
    """Return the comparison of a recipe that asks for the published base; the merged model has the trained one."""
    args = ("serve.base=published", "compare.primary=null", "compare.base_shots=0", "compare.explore_rows=50")
    completed = commands.run_command(runs, "compare", small_recipe, *args, "compare.tuned_shots=1")
    assert completed.returncode == 0, completed.stderr
    return completed


def asked(runs: Path, address: str) -> list[str]:
    """What a recipe says of a comparison with two stand-ins, a file of answers, and a model that has no key."""
    run = run_in(runs)
    model = launch_plan.base_name(PromptSpec.read(run.folder / "adapter"))
    rows = list(atomic_files.read_jsonl(run.folder / "data" / "test.jsonl"))
    answers_path = run.folder.parent.parent / "known.jsonl"
    lines = [json.dumps({"id": row["id"], "output": row["target"]}) for row in rows[1:]]
    answers_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    baselines = [
        f"{{provider: openai, model: {model}, base_url: '{address}/v1', name: through openai}}",
        f"{{provider: anthropic, model: {model}, base_url: '{address}', name: through anthropic, shots: 2}}",
        f"{{provider: file, path: '{answers_path}', name: what we have}}",
        "{provider: openai, model: gpt-6-luna}",
    ]
    primary = "{system: tuned, baseline: through openai, metric: accuracy}"
    return [
        f"compare.baselines=[{', '.join(baselines)}]",
        f"compare.primary={primary}",
        "compare.base_shots=1",
        "compare.tuned_shots=2",
    ]


@pytest.mark.slow(minutes=5)
def test_every_system_is_asked_scored_and_reported_and_nothing_twice(
    runs: Path, small_recipe: Path, stand_in: str
) -> None:
    args = asked(runs, stand_in)
    completed = commands.run_command(runs, "compare", small_recipe, *args, OPENAI_API_KEY="")
    assert completed.returncode == 0, completed.stderr
    run = run_in(runs)
    scores = atomic_files.read_json(run.folder / "scores.json")
    n_test = scores["task"]["n_test"]
    names = ["tuned", "tuned:2-shot", "adapter", "base", "base:1-shot", "tfidf"]
    names += ["through openai", "through anthropic", "what we have"]
    assert list(scores["systems"]) == names
    for name, system in scores["systems"].items():
        assert system["n"] == n_test and system["complete"] is (name != "what we have"), name
        value = system["metrics"]["accuracy"]
        assert value["ci_low"] <= value["value"] <= value["ci_high"]
    assert scores["systems"]["what we have"]["metrics"]["accuracy"]["value"] == pytest.approx((n_test - 1) / n_test)
    for name in ("through openai", "through anthropic"):
        system = scores["systems"][name]
        assert system["stand_in"] and "stand-in" in system["title"] and system["answered"] == n_test
        assert system["validity"]["label"] == 1 and system["latency"]["n"] == n_test and system["repeats"]["rows"] == 50
    assert completed.stderr.count("vllm      starting") == 2, (
        "the adapter and its base by one server, the merged by another"
    )
    assert completed.stderr.rindex("vllm      starting") < completed.stderr.index(" up after "), (
        "both before one is asked"
    )
    # On a CPU the merged model is served; it has the weights that were trained.
    assert scores["systems"]["tuned"]["title"] == "tuned (merged)"
    assert scores["systems"]["tuned"]["parity"]["agreement"] >= 0.99
    # With examples it is the same weights, by the same server, and longer prompts.
    with_shots = scores["systems"]["tuned:2-shot"]
    assert (with_shots["title"], with_shots["shots"], with_shots["n_train"]) == (
        "tuned (merged), 2 similar examples",
        2,
        scores["systems"]["tuned"]["n_train"],
    )
    assert with_shots["tokens"]["input"] > scores["systems"]["tuned"]["tokens"]["input"]
    # The same model, greedy, held to the same labels by a schema and by a grammar.
    assert scores["agreement"]["tuned | adapter"] > 0.9
    assert scores["not_run"][0]["name"] == "openai:gpt-6-luna" and "OPENAI_API_KEY" in scores["not_run"][0]["why"]
    assert scores["verdict"]["choice"] == "inconclusive" and scores["plan"]["confirmatory"]
    assert (run.folder / "report.html").stat().st_size > 20_000
    ledger = list(atomic_files.read_jsonl(runs / "small" / "ledger.jsonl"))
    assert list((run.folder / "wandb").rglob("*-compare/*.wandb"))
    assert len(ledger) == 1 and ledger[0]["test_sha256"] == scores["integrity"]["test_sha256"]
    assert completed.stdout.splitlines()[0].startswith("verdict   INCONCLUSIVE")
    assert len(completed.stdout.splitlines()) <= 10 and "report.html" in completed.stdout
    predictions = list(atomic_files.read_jsonl(run.folder / "predictions" / "tuned.jsonl"))
    assert len(predictions) == n_test and all(0 <= row["confidence"] <= 1 for row in predictions)

    repeated = commands.run_command(runs, "compare", small_recipe, *args, OPENAI_API_KEY="", FRESH="1")
    assert repeated.returncode == 0, repeated.stderr
    assert "vllm      starting" not in repeated.stderr
    new_scores = atomic_files.read_json(run.folder / "scores.json")
    assert metrics(new_scores) == metrics(scores)
    assert len(list(atomic_files.read_jsonl(runs / "small" / "ledger.jsonl"))) == 1
    replanned = commands.run_command(
        runs, "compare", small_recipe, *args, "compare.primary.margin=0.2", OPENAI_API_KEY=""
    )
    assert replanned.returncode == 0, replanned.stderr
    explored = atomic_files.read_json(run.folder / "scores.json")
    assert not explored["plan"]["confirmatory"] and "margin was 0.02" in explored["plan"]["why_not"]


def test_a_form_that_cannot_be_served_gives_way_and_other_weights_are_compared(
    runs: Path, published_comparison: subprocess.CompletedProcess[str]
) -> None:
    completed, run = published_comparison, run_in(runs)
    scores = atomic_files.read_json(run.folder / "scores.json")
    assert (
        "fallback  tuned (merged) could not be served" in completed.stderr
        and "serve.base is published" in completed.stderr
    )
    assert any("tuned (adapter) is compared in its place" in fallback for fallback in run.stage("compare").fallbacks)
    assert [entry["name"] for entry in scores["not_run"]] == ["merged"]
    tuned = scores["systems"]["tuned"]
    assert tuned["title"] == "tuned (adapter)" and tuned["n"] == scores["task"]["n_test"]
    assert scores["systems"]["tuned:1-shot"]["title"] == "tuned (adapter), 1 similar example"
    # What is lost on other weights is shown with its interval, and stops nothing.
    parity = tuned["parity"]
    assert parity["agreement"] is None and parity["ci_low"] <= parity["difference"] <= parity["ci_high"]
    assert "other weights than were trained" in (run.folder / "report.md").read_text(encoding="utf-8")
    # What only explores is asked a part of the rows, and compared on those.
    assert scores["systems"]["base"]["n"] == 50 < tuned["n"]
    assert {entry["n"] for entry in scores["comparisons"] if entry["b"] == "base"} == {50}
    assert any("untuned base: queried 50 of" in fallback for fallback in scores["integrity"]["fallbacks"])


@pytest.mark.usefixtures("published_comparison")
def test_every_panel_of_the_dashboard_reads_a_field_that_there_is(runs: Path, small_recipe: Path) -> None:
    run = run_in(runs)
    logged = {name for row in atomic_files.read_jsonl(run.folder / "metrics.jsonl") for name in row}
    scores, recipe = read_scores(run.folder / "scores.json"), run.recipe()
    trained = worker.wandb_headline(TASKS[recipe.task.task_name], run.stage("train").metrics["validation"])
    available = logged | set(trained) | set(wandb_comparison.build_summary(scores))
    for title, panels in dashboard.build_sections(recipe).items():
        for panel in panels:
            assert set(panel.fields) <= available, (title, panel.title)
    completed = commands.run_command(
        runs, "insource.tracking.dashboard", small_recipe, "tracking.wandb.mode=auto", WANDB_API_KEY="", HOME=str(runs)
    )
    assert completed.returncode == 0, completed.stderr
    assert "not logged in to W&B" in completed.stderr
    content = (runs / "small" / "dashboard.json").read_text(encoding="utf-8")
    for panels in dashboard.build_sections(recipe).values():
        assert all(field in content for panel in panels for field in panel.fields)


def test_the_test_set_stays_shut_in_a_dry_run(runs: Path, small_recipe: Path) -> None:
    ledger_sha256 = (
        atomic_files.sha256(runs / "small" / "ledger.jsonl") if (runs / "small" / "ledger.jsonl").exists() else ""
    )
    completed = commands.run_command(runs, "compare", small_recipe, "--dry-run", "compare.budget_usd=1")
    assert completed.returncode == 0, completed.stderr
    assert "would send" in completed.stdout
    assert ledger_sha256 == (atomic_files.sha256(runs / "small" / "ledger.jsonl") if ledger_sha256 else "")


def test_a_test_set_that_was_touched_is_refused(runs: Path, small_recipe: Path) -> None:
    path = run_in(runs).folder / "data" / "test.jsonl"
    original = path.read_bytes()
    try:
        path.write_bytes(original + original.splitlines(keepends=True)[0])
        completed = commands.run_command(runs, "compare", small_recipe)
    finally:
        path.write_bytes(original)
    assert completed.returncode == 1 and "INS-D033" in completed.stderr and "was changed after data" in completed.stderr


def metrics(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: system["metrics"] for name, system in scores["systems"].items()}
