"""Shared-prefix packing: the same gradients as separate rows, for a fraction of the tokens."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.load import POCKET, load
from recipes.schema import Recipe
from recipes.schema_train import Train
from tasks.render import Example
from train import base, packing

PREFIX = list(range(100, 160))
# Ragged, and the last one's own prompt is a single token.
SUFFIXES = ([7, 8, 9, 40], [11, 12], [13, 14, 15, 16, 17, 18, 41], [19])
EXAMPLES = [Example(PREFIX + own, [50 + at, 60 + at, 2]) for at, own in enumerate(SUFFIXES)]


def recipe(quantization: str) -> Recipe:
    return load("classifier", [f"model.quantization={quantization}", "lora.r=4"], "cpu").recipe


def adapted(quantization: str) -> Any:
    settings = recipe(quantization)
    model = base.with_adapter(base.base_model(settings), settings.lora, seed=3)
    # LoRA starts with B at zero, where half of the gradients are zero: move it, so that they are compared too.
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return base.float32_adapter(model).train()


def gradients(model: Any, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The gradient of the loss summed over labels, the batches added up."""
    model.zero_grad()
    for batch in batches:
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=packing.IGNORE, reduction="sum"
        ).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_separate_rows(quantization: str, checkpointing: bool) -> None:
    model = adapted(quantization)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = packing.features(EXAMPLES)
    packed = gradients(model, [packing.SharedPrefixCollator(len(PREFIX))(rows)])
    separate = gradients(model, [packing.PaddedCollator(0)([row]) for row in rows])
    for name, gradient in separate.items():
        assert (packed[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_padded_batch_has_the_gradients_of_separate_rows_too() -> None:
    model, rows = adapted("none"), packing.features(EXAMPLES)
    padded = gradients(model, [packing.PaddedCollator(0)(rows)])
    separate = gradients(model, [packing.PaddedCollator(0)([row]) for row in rows])
    for name, gradient in separate.items():
        assert (padded[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_evaluating_in_between_leaves_the_gradients_of_an_nf4_model_alone() -> None:
    # bitsandbytes 0.50 repacks weights at the first evaluation forward on CPUs with AVX512_BF16.
    model, rows = adapted("nf4"), packing.features(EXAMPLES)
    collate = packing.SharedPrefixCollator(len(PREFIX))
    before = gradients(model, [collate(rows)])
    model.eval()
    with torch.inference_mode():
        model(input_ids=torch.tensor([PREFIX]))
    model.train()
    after = gradients(model, [collate(rows)])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_pack_is_one_sequence_with_one_prefix() -> None:
    batch = packing.SharedPrefixCollator(len(PREFIX))(packing.features(EXAMPLES))
    own = sum(len(one.prompt_ids) - len(PREFIX) + len(one.completion_ids) for one in EXAMPLES)
    assert batch["input_ids"].shape == (1, len(PREFIX) + own)
    assert (batch["labels"] != packing.IGNORE).sum() == sum(len(one.completion_ids) for one in EXAMPLES)
    first_row = slice(len(PREFIX), len(PREFIX) + 7)
    assert batch["position_ids"][0, first_row].tolist() == list(range(60, 67))
    mask = batch["attention_mask"][0, 0]
    assert mask[60:67, :60].all()
    assert not mask[67:, 60:67].any(), "a row sees another row"


lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=40)


@given(lengths, st.integers(1, 64), st.integers(0, 100), st.integers(64, 400))
def test_a_plan_fits_its_budget_and_keeps_the_batch(
    rows: list[tuple[int, int]], batch_size: int, shared: int, pack_tokens: int
) -> None:
    examples = [Example(list(range(shared)) + [1000 + at] * own, [1] * answer) for at, (own, answer) in enumerate(rows)]
    plan = packing.plan(examples, Train(batch_size=batch_size, pack_tokens=pack_tokens, max_length=64))
    assert plan.rows_a_pack * plan.packs_an_update == batch_size
    assert all(plan.prefix_tokens < len(one.prompt_ids) for one in examples)
    own = sorted((len(one.prompt_ids) + len(one.completion_ids) - plan.prefix_tokens for one in examples), reverse=True)
    assert plan.rows_a_pack == 1 or plan.prefix_tokens + sum(own[: plan.rows_a_pack]) <= pack_tokens


def test_models_that_cannot_take_the_mask_are_told_apart() -> None:
    from transformers import AutoConfig, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

    assert packing.unshareable(AutoConfig.from_pretrained(POCKET)) is None
    assert packing.unshareable(LlamaConfig()) is None
    assert packing.unshareable(Qwen3Config()) is None
    assert "sliding_attention" in str(packing.unshareable(Gemma3TextConfig()))
    assert "sliding window" in str(packing.unshareable(MistralConfig(sliding_window=4096)))
