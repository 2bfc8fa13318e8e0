"""Closed models as a recipe names them: the SDK against a provider on loopback whose answers depend on the prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compare import eval_dataset
from compare.records import System, SystemResponses
from compare.systems import api_models
from compare.systems.responses import ComparisonContext
from insource.config.load import load
from insource.config.schema.compare import Baseline, Compare, Primary
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tasks.rendering.chat_template import Rendering
from insource.tracking import run
from tests.helpers.provider.faulty_provider import Provider, run_provider
from train.export import adapter

LABELS = ("late", "lost", "broken")
VAGUE = "Say something about the message."
CLEAR = "Say what happened to the parcel, by one label."
ROWS = {"train": 3, "validation": 30, "test": 12}

Made = Callable[..., ComparisonContext]


@pytest.fixture
def make_context(tmp_path: Path, tokenizer: Any) -> Made:
    """Makes a comparison of a run that looks trained; the words are those of `compare:`."""
    recipe = load("classifier", (), "cpu").recipe

    def make(**compare: Any) -> ComparisonContext:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        for split, count in ROWS.items():
            rows = [{"id": f"{split}{index}", "input": {"text": f"{split} {index}: it is {LABELS[index % 3]}"},
                     "target": LABELS[index % 3]} for index in range(count)]  # fmt: skip
            (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        modified = recipe.model_copy(update={"compare": Compare(primary=Primary(baseline="other"), **compare)})
        created_run = run.create(tmp_path / "runs" / "classifier", modified, "digest", {}, data)
        (created_run.folder / "adapter").mkdir()
        spec = TASKS["classification"].make_spec(recipe.task, dict.fromkeys(LABELS, ""))
        atomic_files.write_json(
            created_run.folder / "adapter" / "prompt.json",
            adapter.build_prompt_spec(recipe, Rendering(tokenizer), spec, 16).to_json(),
        )
        return ComparisonContext(created_run, "classifier", modified, eval_dataset.load_test_dataset(created_run))

    return make


def sure_of_clear_prompts(prompt: str) -> str:
    """Right where the prompt is clear, and otherwise always the same."""
    target = next(label for label in LABELS if prompt.rstrip().endswith(f"it is {label}"))
    return json.dumps({"answer": target if prompt.startswith(CLEAR) else LABELS[0]})


def gathered(context: ComparisonContext, address: str, instruction: Any) -> SystemResponses:
    price = {"input_usd_per_million": 1, "output_usd_per_million": 10}
    baseline = Baseline(provider="openai", model="big", base_url=f"{address}/v1", instruction=instruction, price=price)
    (responses,) = api_models.collect_from_apis(context, [System("other", "closed", "big", baseline=baseline)]).values()
    return responses


def right(responses: SystemResponses, context: ComparisonContext) -> int:
    return sum(
        answer.output == row["target"] for answer, row in zip(responses.test_answers, context.dataset.test, strict=True)
    )


def test_of_several_instructions_the_best_on_validation_is_taken_and_paid_for(make_context: Made) -> None:
    provider, context = Provider(answer=sure_of_clear_prompts), make_context(budget_usd=1, choose_rows=6, repeat_rows=2)
    with run_provider(provider) as address:
        responses = gathered(context, address, [VAGUE, CLEAR])
        n_attempts = provider.attempts.total()
        repeated = gathered(context, address, [VAGUE, CLEAR])
        assert provider.attempts.total() == n_attempts, "called again it asks for nothing"
    assert right(responses, context) == right(repeated, context) == ROWS["test"]
    assert "instruction 2 of 2, chosen on 6 validation rows (accuracy 33.3%, 100.0%)" in responses.notes[0]
    assert sum("test" in prompt and prompt.startswith(VAGUE) for prompt in provider.attempts) == 0
    # Six rows with each of two instructions, twelve test rows, two of them a second time: all of it was paid for.
    assert n_attempts == 6 * 2 + 12 + 2 == len(provider.charged_tokens)
    usd = sum(input_tokens * 1e-6 + output_tokens * 1e-5 for input_tokens, output_tokens in provider.charged_tokens)
    assert responses.spent_usd == pytest.approx(usd) == repeated.spent_usd


def test_a_budget_that_ends_while_choosing_is_told(make_context: Made) -> None:
    provider, context = Provider(answer=sure_of_clear_prompts), make_context(budget_usd=0.004, choose_rows=20)
    with run_provider(provider) as address:
        responses = gathered(context, address, [VAGUE, CLEAR])
    assert "its first instruction was taken" in responses.notes[0] and "budget" in responses.notes[0]
    assert not responses.complete


def test_one_instruction_is_taken_as_it_is(make_context: Made) -> None:
    provider, context = Provider(answer=sure_of_clear_prompts, shutdown_date="2027-01-31"), make_context(budget_usd=1)
    with run_provider(provider) as address:
        responses = gathered(context, address, CLEAR)
        provider.shutdown_date = None
        repeated = gathered(context, address, CLEAR)
    assert right(responses, context) == ROWS["test"] and not responses.notes
    assert not any("validation" in prompt for prompt in provider.attempts)
    # As it said when it was last asked something: called again, nobody was.
    assert responses.shutdown_date == repeated.shutdown_date == "2027-01-31"
