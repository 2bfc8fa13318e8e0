"""Examples in the prompts of training (`train.shots`): which rows, what is learnt, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from insource.config.base_models import POCKET
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.train import Train
from insource.system import atomic_files
from insource.tasks import TASKS, few_shot
from insource.tasks.rendering import chat_template
from insource.tracking import digests
from insource.tracking.prompt_spec import PROMPT_FILE, PromptExamples
from insource.tracking.run import Run
from tests.train.test_packing import (
    assert_equal,
    gradients,
    load_adapted_model,
    packs_of_update,
    separate_gradients,
)
from train import prompt_examples
from train.export import adapter, gptq
from train.packing import attention_blocks, dataset, packing_plan
from train.prompt_examples import RowExamples

TOPICS = {"late": "parcel is late by", "lost": "parcel was lost after", "broken": "cup was broken for"}
TRAIN: list[dict[str, Any]] = [
    {"id": f"T{at}", "input": {"text": f"my {text} {at} days"}, "target": label, "group": f"C{at % 5}"}
    for at, (label, text) in enumerate(list(TOPICS.items()) * 5)
]
VALIDATION = [
    {"id": f"V{at}", "input": {"text": f"the {text} {at} weeks"}, "target": label}
    for at, (label, text) in enumerate(TOPICS.items())
]
TASK = TASKS["classification"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of these few rows attend by several blocks, as packs of many rows do in training."""
    monkeypatch.setattr(attention_blocks, "MIN_BLOCKED_TOKENS", 1)
    monkeypatch.setattr(attention_blocks, "BLOCK_TOKENS", 16)


def load_recipe(*settings: str) -> Recipe:
    return load("classifier", ("task.labels=[late, lost, broken]", *settings), "cpu").recipe


def choose(recipe: Recipe, tokenizer: Any, max_answer_tokens: int = 64) -> RowExamples:
    spec = TASK.make_spec(recipe.task, dict.fromkeys(TOPICS, ""))
    examples = prompt_examples.choose_examples(recipe, TASK, spec, tokenizer, TRAIN, VALIDATION, max_answer_tokens)
    assert examples is not None
    return examples


def test_no_row_has_itself_its_group_or_a_held_out_row_as_example(tokenizer: Any) -> None:
    examples = choose(load_recipe("train.shots=3"), tokenizer)
    train_ids = {row["id"] for row in TRAIN}
    for row, row_examples in zip(TRAIN, examples.train, strict=True):
        assert len(row_examples) == 3 and row["id"] not in {example["id"] for example in row_examples}
        assert row["group"] not in {example["group"] for example in row_examples}
    for row_examples in (*examples.train, *examples.validation):
        assert {example["id"] for example in row_examples} <= train_ids
    # The nearest row, which comes last, is about the same.
    assert [row_examples[-1]["target"] for row_examples in examples.validation] == list(TOPICS)


def test_the_answer_is_learnt_after_the_prompt_with_its_examples(tokenizer: Any) -> None:
    recipe = load_recipe("train.shots=2")
    spec = TASK.make_spec(recipe.task, dict.fromkeys(TOPICS, ""))
    examples = choose(recipe, tokenizer)
    rows = dataset.tokenize_rows(TASK, spec, tokenizer, TRAIN, examples.train)
    plain = dataset.tokenize_rows(TASK, spec, tokenizer, TRAIN)
    for at, (row, row_examples) in enumerate(zip(rows, examples.train, strict=True)):
        messages = few_shot.messages(TASK, spec, row_examples, TRAIN[at]["input"])
        assert [row.prompt_ids] == chat_template.encode_prompts(tokenizer, [messages])
        text = tokenizer.decode(row.prompt_ids)
        assert all(text.count(example["input"]["text"]) == 1 for example in row_examples)
        # Only the row's own answer is learnt; the answers of the examples are part of the prompt.
        assert row.completions == plain[at].completions
    # Soft labels are learnt after the same prompts.
    probable = [{**row, "probabilities": {"late": 0.5, "lost": 0.3, "broken": 0.2}} for row in TRAIN]
    soft = dataset.apply_soft_labels(TASK, spec, tokenizer, rows, probable, examples.train)
    assert [row.prompt_ids for row in soft] == [row.prompt_ids for row in rows]
    assert {len(row.completions) for row in soft} == {3}


def test_examples_that_do_not_fit_are_left_out_and_that_is_recorded(tokenizer: Any) -> None:
    recipe = load_recipe("train.shots=4")
    spec = TASK.make_spec(recipe.task, dict.fromkeys(TOPICS, ""))
    full = dataset.tokenize_rows(TASK, spec, tokenizer, TRAIN, choose(recipe, tokenizer).train)
    limit = min(len(row.prompt_ids) for row in full) - 1
    recipe = load_recipe("train.shots=4", f"train.max_length={limit + 64}")
    examples = choose(recipe, tokenizer)
    assert examples.setting.max_prompt_tokens == limit
    rows = dataset.tokenize_rows(TASK, spec, tokenizer, TRAIN, examples.train)
    assert all(len(row.prompt_ids) <= limit for row in rows)
    for kept, all_examples in zip(examples.train, choose(load_recipe("train.shots=4"), tokenizer).train, strict=True):
        assert 0 < len(kept) < 4 and kept == all_examples[-len(kept) :], "the least similar are left out"
    messages: list[str] = []
    examples.log(lambda _: None, messages.append)
    n_prompts = len(TRAIN) + len(VALIDATION)
    assert len(messages) == 1 and f"{n_prompts} of {n_prompts} prompts have fewer than 4" in messages[0]
    choose(load_recipe("train.shots=2"), tokenizer).log(lambda _: None, messages.append)
    assert len(messages) == 1


def test_the_input_of_an_example_may_contain_the_header_of_inputs(tokenizer: Any) -> None:
    """An example whose text has a line "Input:" is left out whole."""
    spec = TASK.make_spec(load_recipe().task, dict.fromkeys(TOPICS, ""))
    first: Any = {"id": "T0", "input": {"text": "my note\nInput:\nwas left out"}, "target": "lost"}
    row, second = VALIDATION[0], TRAIN[1]
    (expected,) = chat_template.encode_prompts(tokenizer, [few_shot.messages(TASK, spec, [second], row["input"])])
    fitted = few_shot.fit_examples(TASK, spec, tokenizer, [row], [[first, second]], len(expected))
    assert fitted == [[second]]


def test_the_number_of_examples_makes_another_run_and_none_keeps_the_digest_of_earlier_versions() -> None:
    plain, two, three = (load_recipe(f"train.shots={shots}") for shots in (0, 2, 3))
    computed = [digests.compute_training_digest(recipe, "data") for recipe in (plain, two, three)]
    assert len(set(computed)) == 3
    before = plain.model_copy(update={"train": Train.model_validate(plain.train.model_dump(exclude={"shots"}))})
    assert digests.compute_training_digest(before, "data") == computed[0]


@pytest.mark.parametrize("mode", ["shared_prefix", "bfd"])
def test_packs_of_prompts_with_different_examples_have_the_gradients_of_separate_rows(
    tokenizer: Any, mode: packing_plan.PackingMode
) -> None:
    """Such prompts share only the task's instruction and labels."""
    recipe = load_recipe("train.shots=2")
    spec = TASK.make_spec(recipe.task, dict.fromkeys(TOPICS, ""))
    rows = dataset.tokenize_rows(TASK, spec, tokenizer, TRAIN[:6], choose(recipe, tokenizer).train[:6])
    shared = chat_template.shared_prefix_length([row.prompt_ids for row in rows])
    assert 0 < shared < min(len(row.prompt_ids) for row in rows) - 20
    model = load_adapted_model(POCKET, "none")
    packs = packs_of_update(rows, mode, 4096, 1)
    assert max(len(pack.rows) for pack in packs) > 1, "rows are packed"
    if mode == "shared_prefix":
        assert all(pack.prefix >= shared for pack in packs if len(pack.rows) > 1)
    assert_equal(gradients(model, mode, packs), separate_gradients(model, rows))


def test_rows_that_calibrate_a_quantization_have_examples_too(tmp_path: Path) -> None:
    recipe = load_recipe("model.base=pocket", "train.shots=2", "export.calibration_rows=8")
    spec = TASK.make_spec(recipe.task, dict.fromkeys(TOPICS, ""))
    rendering = chat_template.load_rendering(recipe.model)
    merged, run = tmp_path / "merged", Run(tmp_path)
    rendering.tokenizer.save_pretrained(merged)
    (tmp_path / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in TRAIN)
    (tmp_path / "data" / "train.jsonl").write_text(lines, encoding="utf-8")
    prompt = adapter.build_prompt_spec(recipe, rendering, spec, 64)
    lengths = []
    for examples in (None, PromptExamples(shots=2, max_prompt_tokens=2000)):
        atomic_files.write_json(
            merged / PROMPT_FILE, prompt.model_copy(update={"examples": examples} if examples else {}).to_json()
        )
        lengths.append([len(ids) for ids in gptq.calibration_token_ids(run, recipe, merged)])
    assert len(lengths[0]) == len(lengths[1]) == 8
    assert all(with_examples > plain + 20 for plain, with_examples in zip(*lengths, strict=True))
