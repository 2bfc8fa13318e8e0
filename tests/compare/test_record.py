"""Answers of an API model are recorded while it lives: asked as a comparison asks, paid for once, no target read."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from compare import eval_dataset, first_request, record, stage
from compare.records import System
from compare.systems import api_models, catalog, responses
from insource.backends import failures
from insource.config.errors import RecipeError, StageError
from insource.config.load import load
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tasks.rendering.chat_template import Rendering
from insource.tracking import run
from insource.tracking.scores.comparison import Scores
from tests.helpers.api_comparison import redirect_sdks
from tests.helpers.errors import raises_error
from tests.helpers.importing import MODEL, QUEUES, SYSTEM, run_import, ticket_rows, ticket_text, write_lines
from tests.helpers.provider.faulty_provider import Provider
from train.export import adapter


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def recipe(tmp_path: Path, provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An imported recipe whose fine-tune answers on loopback: right but for every seventh row."""
    redirect_sdks(monkeypatch, address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = ticket_rows(150)
    write_lines(tmp_path / "heldout.jsonl", rows[110:])
    code, recipe_path = run_import(
        monkeypatch,
        write_lines(tmp_path / "train.jsonl", rows[:110]),
        "--test",
        tmp_path / "heldout.jsonl",
        "--model",
        MODEL,
    )
    assert code == 0
    targets = {ticket_text(index): QUEUES[(index + (index % 7 == 0)) % 3] for index in range(150)}
    provider.answer = lambda prompt: targets[prompt]
    return recipe_path


def recorded(recipe: Path, *overrides: str, name: str | None = None) -> int:
    call = {"recipe": str(recipe), "set": overrides, "hardware": "cpu", "runs": str(recipe.parent / "runs")}
    return record.main(Namespace(**call, system=name, dry_run=False))


def as_trained(recipe: Path, tokenizer: Any) -> tuple[run.Run, Any]:
    """A run that looks trained on the data that the recording prepared."""
    loaded = load(str(recipe), (), "cpu")
    folder = recipe.parent / "runs" / loaded.name
    (data,) = (path.parent for path in folder.glob(".data/*/data.json"))
    trained_run = run.create(folder, loaded.recipe, "digest", {}, data)
    labels = {
        label: entry["description"] for label, entry in atomic_files.read_json(data / "data.json")["labels"].items()
    }
    spec = TASKS[loaded.recipe.task.task_name].make_spec(loaded.recipe.task, labels)
    answer_tokens = atomic_files.read_json(data / "data.json")["tokens"]["served"]["for_the_answer"]
    prompt = adapter.build_prompt_spec(loaded.recipe, Rendering(tokenizer), spec, answer_tokens)
    (trained_run.folder / "adapter").mkdir()
    atomic_files.write_json(trained_run.folder / "adapter" / "prompt.json", prompt.to_json())
    return trained_run, loaded.recipe


def compared(trained_run: run.Run, recipe: Any, api_systems: list[System]) -> Scores:
    run.start_stage(trained_run, "compare", {})
    tuned = System("tuned", "linear", "tuned (here a linear model)")
    return stage.run_comparison(trained_run, "mine", recipe, [tuned, *api_systems], [])


def test_what_is_recorded_is_asked_as_the_model_was_taught_and_a_comparison_asks_for_nothing_again(
    recipe: Path, tokenizer: Any, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recorded(recipe) == 0
    captured = capsys.readouterr()
    path = Path(captured.out.strip())
    rows = list(atomic_files.read_jsonl(path))
    assert path.parent == recipe.parent and len(rows) == 40 and all(row["cost_usd"] > 0 for row in rows)
    assert "shuts it down on 2027-01-14" in captured.err
    body = provider.requests[-1][2]
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == SYSTEM and body["temperature"] == 0 and "response_format" not in body
    assert not provider.rule_violations

    ledger = list(atomic_files.read_jsonl(recipe.parent / "runs" / "mine" / "ledger.jsonl"))
    assert [(entry["system"], "opened" in entry) for entry in ledger] == [(f"openai:{MODEL}", False)]

    n_attempts = provider.attempts.total()
    assert recorded(recipe) == 0 and provider.attempts.total() == n_attempts, "called again it asks for nothing"
    trained_run, loaded = as_trained(recipe, tokenizer)
    assert trained_run.recipe().compare == loaded.compare, "a run's own recipe has the messages too"
    api_systems = [system for system in catalog.api_systems(loaded) if system.name == f"openai:{MODEL}"]
    scores = compared(trained_run, loaded, api_systems)
    assert provider.attempts.total() == n_attempts, "nor does a comparison"
    api_scores = scores.systems[f"openai:{MODEL}"]
    assert api_scores.complete and api_scores.metrics["accuracy"].value == pytest.approx(34 / 40)
    assert len(scores.integrity.openings) == 1, "what was recorded is no opening"

    (line,) = re.findall(r"- (\{provider: file.*\})", captured.err)
    recipe_text = re.sub(
        r"    - provider: openai.*?(?=    - \{provider)", f"    - {line}\n", recipe.read_text("utf-8"), flags=re.S
    )
    recipe.write_text(recipe_text, encoding="utf-8")
    updated = load(str(recipe), (), "cpu").recipe
    assert updated.compare.primary and updated.compare.primary.baseline == f"openai:{MODEL}", "the plan is as it was"
    (baseline,) = [candidate for candidate in updated.compare.baselines if candidate.provider == "file"]
    file_system = System(baseline.display_name, "file", baseline.display_name, baseline=baseline)
    context = responses.ComparisonContext(trained_run, "mine", updated, eval_dataset.load_test_dataset(trained_run))
    from_file = api_models.load_answer_file(context, file_system)
    systems, _ = first_request.send_first_requests(context, api_systems)
    from_api = api_models.collect_from_apis(context, systems)[f"openai:{MODEL}"]
    assert [answer.output for answer in from_file.test_answers] == [
        answer.output for answer in from_api.test_answers
    ] and from_file.complete
    assert from_file.price and from_file.price.input_usd_per_million == 0.3


def test_a_budget_holds_and_the_rest_is_asked_for_with_a_larger_one(
    recipe: Path, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    with raises_error(StageError, "INS-A009", match=r"budget_usd 0.0005; finished answers are kept"):
        recorded(recipe, "compare.budget_usd=0.0005")
    n_attempts = provider.attempts.total()
    assert 0 < n_attempts < 80 and not list(recipe.parent.glob("mine.openai*"))
    assert recorded(recipe, "compare.budget_usd=1") == 0
    assert provider.attempts.total() == 1 + 40 + 40, "a train row, the test rows, and those again that are repeated"
    assert max(provider.attempts.values()) == 2


def test_texts_of_test_rows_are_read_and_no_target(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"id": "1", "input": {"text": "late"}, "target": "delivery", "group": null}\n', encoding="utf-8")
    assert record.read_inputs(path) == [{"id": "1", "input": {"text": "late"}}]


def test_what_cannot_be_recorded_is_told_before_anybody_is_asked(
    recipe: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises_error(RecipeError, "INS-C010", match=r"SYSTEM: tfidf is not an API model .*there are openai:ft:"):
        recorded(recipe, name="tfidf")
    with raises_error(RecipeError, "INS-C010", match="returns label probabilities"):
        recorded(recipe, name="openai:gpt-6-luna:decisions")
    with pytest.raises(RecipeError, match=r"privacy\.data_may_leave is false"):
        recorded(recipe, "privacy.data_may_leave=false")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY is not set"):
        recorded(recipe)
    assert not provider.attempts


def test_a_baseline_with_messages_of_its_own_is_held_to_what_they_need(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    recipe_text = """\
task: {kind: classification, instruction: Route the message to one queue.}
data: {source: {path: rows.csv}}
model: {base: some/model}
compare: {baselines: [{provider: openai, model: x, MORE}]}
"""
    cases = {
        "messages: [{role: user, content: hello}]": "hold {input} once",
        'messages: [{role: user, content: "{input} {input}"}]': "hold {input} once",
        'messages: [{role: system, content: "{input}"}]': "must be of role user",
        'messages: [{role: user, content: "{input}"}], shots: 3': "leave out instruction and shots",
        'api: decisions, messages: [{role: user, content: "{input}"}]': "api: chat",
        "messages: []": "at least 1",
    }
    for extra, reason in cases.items():
        path.write_text(recipe_text.replace("MORE", extra), encoding="utf-8")
        with raises_error(RecipeError, "INS-R001", match=reason):
            load(str(path), (), "gpu")
    path.write_text(recipe_text.replace("MORE", 'messages: [{role: user, content: "Q: {input}"}]'), encoding="utf-8")
    (baseline,) = load(str(path), (), "gpu").recipe.compare.baselines
    assert baseline.build_messages("a {input}") == [{"role": "user", "content": "Q: a {input}"}]
