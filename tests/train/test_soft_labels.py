"""Soft labels: the loss of a distribution over labels, whatever the packing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from insource.config.load import load
from insource.tasks import TASKS
from tests.train.test_packing import COST, ROWS, TINY, gradients, load_adapted_model, packs_of_update
from train.packing import attention_blocks, dataset, packing_plan
from train.packing.packing_plan import Pack, TokenizedRow

# Answers of one, two and three labels, of different lengths; two of the rows have a weight of 2.
SOFT_ROWS = [
    replace(row, completions=(*row.completions, [80 + at, 2]), probabilities=(0.7, 0.3)) if at % 2 else row
    for at, row in enumerate(ROWS)
]
SOFT_ROWS[4] = replace(
    ROWS[4], completions=(*ROWS[4].completions, [54, 90, 91, 2], [92, 2]), probabilities=(0.5, 0.3, 0.2)
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of these few rows attend by several blocks, as packs of many rows do in training."""
    monkeypatch.setattr(attention_blocks, "MIN_BLOCKED_TOKENS", 1)
    monkeypatch.setattr(attention_blocks, "BLOCK_TOKENS", 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("soft")
    torch.manual_seed(5)
    transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**TINY)).save_pretrained(folder)
    return load_adapted_model(folder)


def as_hard_rows(row: TokenizedRow) -> list[TokenizedRow]:
    """One row for each answer, with its probability as a factor of the weight."""
    return [
        replace(row, completions=(answer,), probabilities=(), weight=row.weight * probability)
        for answer, probability in zip(row.completions, row.probabilities or (1.0,), strict=True)
    ]


@pytest.mark.parametrize("kind", ["shared_prefix", "bfd", "none"])
def test_the_gradient_is_that_of_each_answer_weighted_by_its_probability(
    model: Any, kind: packing_plan.PackingMode
) -> None:
    expected = gradients(model, "none", [Pack((hard,), 0) for row in SOFT_ROWS for hard in as_hard_rows(row)])
    for pack_tokens in (4096, 160):
        actual = gradients(model, kind, packs_of_update(SOFT_ROWS, kind, pack_tokens, 1))
        for name, gradient in expected.items():
            assert (actual[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_an_update_is_divided_by_the_expected_number_of_answer_tokens() -> None:
    plan = packing_plan.build_packing_plan(SOFT_ROWS, "shared_prefix", 4096, len(SOFT_ROWS), COST)
    shard = packing_plan.UpdateShards(SOFT_ROWS, plan, [range(len(SOFT_ROWS))], 1)[0]
    expected = sum(hard.weight * hard.answer_tokens for row in SOFT_ROWS for hard in as_hard_rows(row))
    assert shard.normalizer == pytest.approx(expected)


def test_labels_without_probability_are_left_out_and_rows_of_people_stay_as_they_are(tokenizer: Any) -> None:
    recipe = load("classifier", ("task.labels=[late, lost, broken]",), "cpu").recipe
    task = TASKS["classification"]
    spec = task.make_spec(recipe.task, dict.fromkeys(("late", "lost", "broken"), ""))
    data = [
        {"id": "a", "input": {"text": "where is it"}, "target": "late"},
        {
            "id": "b",
            "input": {"text": "it fell apart"},
            "target": "broken",
            "probabilities": {"late": 0.004, "lost": 0.2, "broken": 0.796},
        },
    ]
    rows = dataset.tokenize_rows(task, spec, tokenizer, data)
    person, teacher = dataset.apply_soft_labels(task, spec, tokenizer, rows, data)
    assert person is rows[0] and dataset.apply_soft_labels(task, spec, tokenizer, rows[:1], data[:1]) == rows[:1]
    assert teacher.prompt_ids == rows[1].prompt_ids and teacher.completions[0] == rows[1].completions[0]
    assert [tokenizer.decode(answer[:-1]).strip() for answer in teacher.completions] == ["broken", "lost"]
    assert teacher.probabilities == pytest.approx((0.796 / 0.996, 0.2 / 0.996))
