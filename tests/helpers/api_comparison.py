"""A run with rows and prompt.json but without weights, for tests of API models, whose addresses are on loopback.

The comparison is that of `make compare`, with a linear model instead of the tuned one: these tests serve no model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compare import eval_dataset, stage
from compare.records import System
from compare.systems import catalog
from compare.systems.responses import ComparisonContext
from insource.backends.wire import anthropic_messages, openai_chat
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.compare import Compare
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tasks.rendering.chat_template import Rendering
from insource.tracking import run
from insource.tracking.scores.comparison import Scores
from tests.helpers.data_reports import write_data_report
from train.export import adapter

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
SUMMARY_TEXT = "The parcel is late; the customer wants it sent again."


def make_comparison(
    folder: Path, recipe: Recipe, tokenizer: Any, rows: Rows, labels: Sequence[str] = (), **compare: Any
) -> ComparisonContext:
    """Return a comparison of these rows {split: rows}; `compare` changes keys of that section."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, split_rows in rows.items():
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split_rows), encoding="utf-8")
    comparison_recipe = recipe.model_copy(
        update={"compare": Compare.model_validate(recipe.compare.model_dump() | compare)}
    )
    created_run = run.create(folder / "runs" / "mine", comparison_recipe, "digest", {}, data)
    (created_run.folder / "adapter").mkdir()
    label_texts = recipe.task.labels if isinstance(recipe.task.labels, dict) else dict.fromkeys(labels, "")
    spec = TASKS[recipe.task.task_name].make_spec(recipe.task, label_texts)
    atomic_files.write_json(
        created_run.folder / "adapter" / "prompt.json",
        adapter.build_prompt_spec(recipe, Rendering(tokenizer), spec, 16).to_json(),
    )
    return ComparisonContext(created_run, "mine", comparison_recipe, eval_dataset.load_test_dataset(created_run))


def redirect_sdks(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Redirect recipes without base_url to a provider on loopback, and set the API keys."""
    monkeypatch.setattr(openai_chat, "DEFAULT_BASE_URL", f"{address}/v1")
    monkeypatch.setattr(anthropic_messages, "DEFAULT_BASE_URL", address)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "secret")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def make_target(recipe: Recipe, index: int = 0) -> Any:
    """Return a valid target for the recipe; for classification, the label at `index`."""
    task = recipe.task
    if task.kind == "classification":
        return list(task.labels)[index] if isinstance(task.labels, dict) else ("late", "lost")[index]
    if task.kind == "generation":
        return SUMMARY_TEXT
    fields = (task.json_schema or {})["properties"]
    required = (task.json_schema or {}).get("required", ())
    return {name: (field.get("enum", ["x"])[0] if name in required else None) for name, field in fields.items()}


def make_shipped_comparison(
    name: str, folder: Path, tokenizer: Any, *overrides: str, labels: int = 1, **compare: Any
) -> ComparisonContext:
    """Return a comparison of a shipped recipe, with rows of `labels` different labels."""
    recipe = load(name, overrides, "gpu").recipe
    targets = [make_target(recipe, index) for index in range(labels)]
    rows = {
        split: [
            {"id": f"{split}{index}", "input": {"text": f"{split} {index}"}, "target": targets[index % labels]}
            for index in range(count)
        ]
        for split, count in (("train", 6), ("validation", 8), ("calibration", 4), ("test", 10))
    }
    return make_comparison(folder, recipe, tokenizer, rows, ("late", "lost"), **compare)


def make_correct_answerer(comparison: ComparisonContext) -> Callable[[str], str]:
    """Return a function that gives the right answer to a prompt that ends in the text of a row."""
    rows = [
        *comparison.dataset.train,
        *eval_dataset.load_validation_dataset(comparison.run).test,
        *comparison.dataset.test,
    ]
    targets = {row["input"]["text"]: row["target"] for row in [*rows, *comparison.dataset.calibration]}

    def answer(prompt: str) -> str:
        target = next(value for text, value in targets.items() if prompt.endswith(text))
        return target if isinstance(target, str) else json.dumps(target)

    return answer


def list_api_systems(comparison: ComparisonContext) -> list[System]:
    """Return the API models of a comparison."""
    return catalog.api_systems(comparison.recipe)


TWO_LABELS = ("billing_dispute", "refund_status")


def make_two_label_comparison(
    folder: Path,
    tokenizer: Any,
    settings: Sequence[str] = (),
    validation: int = 8,
    calibration: int = 4,
    test: int = 60,
    **compare: Any,
) -> ComparisonContext:
    """Return a comparison of the recipe `classifier` with rows of two labels, which end their texts.

    `settings` replace recipe keys; the next three are numbers of rows.
    """
    recipe = load("classifier", settings, "gpu").recipe
    counts = {"train": 20, "validation": validation, "calibration": calibration, "test": test}
    rows = {
        split: [
            {
                "id": f"{split}{index}",
                "input": {"text": f"{split} {index}: {TWO_LABELS[index % 2]}"},
                "target": TWO_LABELS[index % 2],
            }
            for index in range(count)
        ]
        for split, count in counts.items()
    }
    return make_comparison(folder, recipe, tokenizer, rows, **compare)


def run_comparison(comparison: ComparisonContext, systems: list[System]) -> Scores:
    """Return the scores of a comparison, with a linear model instead of the tuned one."""
    data = comparison.run.folder / "data"
    write_data_report(data, sha256={"test.jsonl": atomic_files.sha256(data / "test.jsonl")})
    run.start_stage(comparison.run, "compare", {})
    tuned = System("tuned", "linear", "tuned (here a linear model)")
    return stage.run_comparison(comparison.run, "mine", comparison.recipe, [tuned, *systems], [])
