"""The whole comparison on a small trained run, with closed models that a second real vLLM stands in for."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking import dashboard, wandb_comparison
from insource.tracking.run import Run
from serve.vllm import client, launch_plan, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess
from tests.helpers import commands
from train import worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one trained, and merged beside it."""
    folder = commands.exported_runs(tmp_path_factory, small_recipe, "compare")
    shutil.rmtree(run_in(folder).folder / "quantized")
    return folder


def run_in(runs: Path) -> Run:
    return Run((runs / "small" / "latest").resolve())


@pytest.fixture(scope="module")
def stand_in(runs: Path) -> Iterator[str]:
    """The untuned base behind both wires, as a provider would be: the address of the server."""
    here = run_in(runs)
    served = ServedModel("small", here, here.recipe(), "adapter")
    address = Address("127.0.0.1", server_process.free_port())
    vllm = VllmProcess(launch_plan.plan_base_launch(served, here.recipe().serve), address, runs.parent / "stand-in.log")
    vllm.start()
    try:
        vllm.wait_ready()
        yield client.client_url(address)
    finally:
        vllm.stop()


def asked(runs: Path, address: str) -> list[str]:
    """What a recipe says of a comparison with two stand-ins, a file of answers, and a model that has no key."""
    here = run_in(runs)
    model = launch_plan.base_name(atomic_files.read_json(here.folder / "adapter" / "prompt.json"))
    rows = list(atomic_files.read_jsonl(here.folder / "data" / "test.jsonl"))
    known = here.folder.parent.parent / "known.jsonl"
    lines = [json.dumps({"id": row["id"], "output": row["target"]}) for row in rows[1:]]
    known.write_text("\n".join(lines) + "\n", encoding="utf-8")
    baselines = [
        f"{{provider: openai, model: {model}, base_url: '{address}/v1', name: through openai}}",
        f"{{provider: anthropic, model: {model}, base_url: '{address}', name: through anthropic, shots: 2}}",
        f"{{provider: file, path: '{known}', name: what we have}}",
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
    words = asked(runs, stand_in)
    answer = commands.run_command(runs, "compare", small_recipe, *words, OPENAI_API_KEY="")
    assert answer.returncode == 0, answer.stderr
    here = run_in(runs)
    scores = atomic_files.read_json(here.folder / "scores.json")
    n = scores["task"]["n_test"]
    names = ["tuned", "tuned:2-shot", "adapter", "base", "base:1-shot", "tfidf"]
    names += ["through openai", "through anthropic", "what we have"]
    assert list(scores["systems"]) == names
    for name, one in scores["systems"].items():
        assert one["n"] == n and one["complete"] is (name != "what we have"), name
        value = one["metrics"]["accuracy"]
        assert value["ci_low"] <= value["value"] <= value["ci_high"]
    assert scores["systems"]["what we have"]["metrics"]["accuracy"]["value"] == pytest.approx((n - 1) / n)
    for name in ("through openai", "through anthropic"):
        one = scores["systems"][name]
        assert one["stand_in"] and "stand-in" in one["title"] and one["answered"] == n
        assert one["validity"]["label"] == 1 and one["latency"]["n"] == n and one["repeats"]["rows"] == 50
    assert answer.stderr.count("vllm      starting") == 2, (
        "the adapter and its base by one server, the merged by another"
    )
    assert answer.stderr.rindex("vllm      starting") < answer.stderr.index(" up after "), "both before one is asked"
    # On a CPU the merged model is served; it has the weights that were trained.
    assert scores["systems"]["tuned"]["title"] == "tuned (merged)"
    assert scores["systems"]["tuned"]["parity"]["agreement"] >= 0.99
    # With examples it is the same weights, by the same server, and longer prompts.
    shown = scores["systems"]["tuned:2-shot"]
    assert (shown["title"], shown["shots"], shown["n_train"]) == (
        "tuned (merged), 2 similar examples",
        2,
        scores["systems"]["tuned"]["n_train"],
    )
    assert shown["tokens"]["input"] > scores["systems"]["tuned"]["tokens"]["input"]
    # The same model, greedy, held to the same labels by a schema and by a grammar.
    assert scores["agreement"]["tuned | adapter"] > 0.9
    assert scores["not_run"][0]["name"] == "openai:gpt-6-luna" and "OPENAI_API_KEY" in scores["not_run"][0]["why"]
    assert scores["verdict"]["choice"] == "inconclusive" and scores["plan"]["confirmatory"]
    assert (here.folder / "report.html").stat().st_size > 20_000
    ledger = list(atomic_files.read_jsonl(runs / "small" / "ledger.jsonl"))
    assert len(ledger) == 1 and ledger[0]["test_sha256"] == scores["integrity"]["test_sha256"]
    assert answer.stdout.splitlines()[0].startswith("verdict   INCONCLUSIVE")
    assert len(answer.stdout.splitlines()) <= 10 and "report.html" in answer.stdout
    predicted = list(atomic_files.read_jsonl(here.folder / "predictions" / "tuned.jsonl"))
    assert len(predicted) == n and all(0 <= row["confidence"] <= 1 for row in predicted)

    again = commands.run_command(runs, "compare", small_recipe, *words, OPENAI_API_KEY="", FRESH="1")
    assert again.returncode == 0, again.stderr
    assert "vllm      starting" not in again.stderr
    after = atomic_files.read_json(here.folder / "scores.json")
    assert metrics(after) == metrics(scores)
    assert len(list(atomic_files.read_jsonl(runs / "small" / "ledger.jsonl"))) == 1
    changed = commands.run_command(
        runs, "compare", small_recipe, *words, "compare.primary.margin=0.2", OPENAI_API_KEY=""
    )
    assert changed.returncode == 0, changed.stderr
    explored = atomic_files.read_json(here.folder / "scores.json")
    assert not explored["plan"]["confirmatory"] and "margin was 0.02" in explored["plan"]["why_not"]


def test_a_form_that_cannot_be_served_gives_way_and_other_weights_are_compared(runs: Path, small_recipe: Path) -> None:
    # The merged model is made of the base that was trained on, and the recipe asks for the published one.
    words = ("serve.base=published", "compare.primary=null", "compare.base_shots=0", "compare.explore_rows=50")
    words += ("compare.tuned_shots=1",)
    answer = commands.run_command(runs, "compare", small_recipe, *words)
    assert answer.returncode == 0, answer.stderr
    here = run_in(runs)
    scores = atomic_files.read_json(here.folder / "scores.json")
    assert (
        "fallback  tuned (merged) could not be served" in answer.stderr and "serve.base is published" in answer.stderr
    )
    assert any("tuned (adapter) is compared in its place" in told for told in here.stage("compare")["fallbacks"])
    assert [one["name"] for one in scores["not_run"]] == ["merged"]
    tuned = scores["systems"]["tuned"]
    assert tuned["title"] == "tuned (adapter)" and tuned["n"] == scores["task"]["n_test"]
    assert scores["systems"]["tuned:1-shot"]["title"] == "tuned (adapter), 1 similar examples"
    # What is lost on other weights is shown with its interval, and stops nothing.
    parity = tuned["parity"]
    assert parity["agreement"] is None and parity["ci_low"] <= parity["difference"] <= parity["ci_high"]
    assert "other weights than were trained" in (here.folder / "report.md").read_text(encoding="utf-8")
    # What only explores is asked a part of the rows, and compared on those.
    assert scores["systems"]["base"]["n"] == 50 < tuned["n"]
    assert {one["n"] for one in scores["comparisons"] if one["b"] == "base"} == {50}
    assert any("untuned base: asked 50 of" in told for told in scores["integrity"]["fallbacks"])


def test_every_panel_of_the_dashboard_reads_a_field_that_there_is(runs: Path, small_recipe: Path) -> None:
    here = run_in(runs)
    logged = {name for row in atomic_files.read_jsonl(here.folder / "metrics.jsonl") for name in row}
    scores, recipe = atomic_files.read_json(here.folder / "scores.json"), here.recipe()
    trained = worker.wandb_headline(TASKS[recipe.task.variant], here.stage("train")["metrics"]["validation"])
    there = logged | set(trained) | set(wandb_comparison.build_summary(scores))
    for title, panels in dashboard.build_sections(recipe).items():
        for panel in panels:
            assert set(panel.fields) <= there, (title, panel.title)
    answer = commands.run_command(runs, "insource.tracking.dashboard", small_recipe, WANDB_API_KEY="", HOME=str(runs))
    assert answer.returncode == 0, answer.stderr
    assert "not logged in to W&B" in answer.stderr
    told = (runs / "small" / "dashboard.json").read_text(encoding="utf-8")
    for panels in dashboard.build_sections(recipe).values():
        assert all(field in told for panel in panels for field in panel.fields)


def test_the_test_set_stays_shut_in_a_dry_run(runs: Path, small_recipe: Path) -> None:
    before = atomic_files.sha256(runs / "small" / "ledger.jsonl") if (runs / "small" / "ledger.jsonl").exists() else ""
    answer = commands.run_command(runs, "compare", small_recipe, "--dry-run", "compare.budget_usd=1")
    assert answer.returncode == 0, answer.stderr
    assert "would ask" in answer.stdout
    assert before == (atomic_files.sha256(runs / "small" / "ledger.jsonl") if before else "")


def test_a_test_set_that_was_touched_is_refused(runs: Path, small_recipe: Path) -> None:
    path = run_in(runs).folder / "data" / "test.jsonl"
    kept = path.read_bytes()
    try:
        path.write_bytes(kept + kept.splitlines(keepends=True)[0])
        answer = commands.run_command(runs, "compare", small_recipe)
    finally:
        path.write_bytes(kept)
    assert answer.returncode == 1 and "is not as `make data` wrote it" in answer.stderr


def metrics(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: one["metrics"] for name, one in scores["systems"].items()}
