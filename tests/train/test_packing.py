"""Packing: the gradients of separate rows, whatever the model, the packs and the number of processes."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from insource.config.base_models import POCKET
from insource.config.load import load
from train.loop import losses
from train.model import base
from train.packing import attention, attention_blocks, collate, model_support, packing_plan, sampler
from train.packing.attention_blocks import SHARED_PREFIX, Implementation
from train.packing.packing_plan import Pack, PackCost, TokenizedRow, UpdateShards

PREFIX = list(range(100, 160))
# Ragged, and the last one's own prompt is a single token.
SUFFIXES = ([7, 8, 9, 40], [11, 12], [13, 14, 15, 16, 17, 18, 41], [19], [20, 21, 22], [23] * 9, [24], [25, 26])
ROWS = [
    TokenizedRow(f"r{index}", PREFIX + suffix, ([50 + index, 60 + index, 2],), 1.0 + index % 2)
    for index, suffix in enumerate(SUFFIXES)
]
# One row that opens otherwise, so that nothing is shared by all.
STRANGER = TokenizedRow("stranger", [99, *PREFIX[1:], 7, 8], ([70, 71, 72, 2],))
PAIRS = [
    TokenizedRow(row.id, row.prompt_ids, (*row.completions, [80 + at, 2]), 1.0, (-3.0, -4.0 - at))
    for at, row in enumerate(ROWS)
]
TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**TINY),
    "qwen3": transformers.Qwen3Config(**TINY),
    # Of its layers five look at a window and the sixth at everything; here the window is longer than any row ...
    "gemma3": transformers.Gemma3TextConfig(**{**TINY, "num_hidden_layers": 6}, sliding_window=128),
    # ... and here it is shorter than most.
    "gemma3 of a short window": transformers.Gemma3TextConfig(**{**TINY, "num_hidden_layers": 6}, sliding_window=16),
    "mistral of a short window": transformers.MistralConfig(**TINY, sliding_window=16),
}
COST = PackCost(100.0, 200.0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of these few rows attend by several blocks, as packs of many rows do in training."""
    monkeypatch.setattr(attention_blocks, "MIN_BLOCKED_TOKENS", 1)
    monkeypatch.setattr(attention_blocks, "BLOCK_TOKENS", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models of CONFIGS, random weights, one folder each."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        torch.manual_seed(5)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return folder


def load_adapted_model(path: Path, quantization: str = "none", checkpointing: bool = False) -> Any:
    settings = load(
        "classifier", [f"model.base={path}", f"model.quantization={quantization}", "lora.r=4"], "cpu"
    ).recipe
    model = base.add_adapter(base.load_base_model(settings), settings.lora, seed=3)
    # LoRA starts with B at zero, where half of the gradients are zero: move it, so that they are compared too.
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def gradients(
    model: Any,
    kind: packing_plan.PackingMode,
    packs: Sequence[Pack],
    objective: str = "imitate",
    kernel: Implementation = SHARED_PREFIX,
) -> dict[str, Any]:
    model.zero_grad()
    for pack in packs:
        batch = collate.collate_pack(pack, kind, model.device, 0, kernel)
        assert kind != "shared_prefix" or (batch.attention == kernel and (kernel != SHARED_PREFIX or batch.blocks))
        with attention.pack_attention(model.config, batch):
            losses.OBJECTIVES[objective](model, batch, 0.1)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def separate_gradients(model: Any, rows: Sequence[TokenizedRow], objective: str = "imitate") -> dict[str, Any]:
    return gradients(model, "none", [Pack((row,), 0) for row in rows], objective)


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def packs_of_update(
    rows: Sequence[TokenizedRow], kind: packing_plan.PackingMode, pack_tokens: int, processes: int
) -> list[Pack]:
    """All packs of one update of all rows, over all processes."""
    plan = packing_plan.build_packing_plan(rows, kind, pack_tokens, len(rows) // processes, COST)
    shards = UpdateShards(rows, plan, [range(len(rows))], processes)
    return [pack for shard in shards for pack in shard.packs]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_what_differs_is_rounding_alone(name: str, folder: Path) -> None:
    model = load_adapted_model(folder / name).double()
    expected = separate_gradients(model, ROWS)
    for kernel in (SHARED_PREFIX, "sdpa"):
        actual = gradients(model, "shared_prefix", [Pack(tuple(ROWS), len(PREFIX))], kernel=kernel)
        # The loss itself is computed in float32.
        assert all(
            (actual[parameter_name] - gradient).norm() <= 1e-6 * gradient.norm()
            for parameter_name, gradient in expected.items()
        )


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_a_pack_has_the_gradients_of_separate_rows(
    name: str, quantization: str, checkpointing: bool, folder: Path
) -> None:
    assert model_support.supported_packing("shared_prefix", CONFIGS[name], 80) == ("shared_prefix", None)
    model = load_adapted_model(folder / name, quantization, checkpointing)
    pack, expected = Pack(tuple(ROWS), len(PREFIX)), separate_gradients(model, ROWS)
    assert_equal(gradients(model, "shared_prefix", [pack]), expected)
    assert_equal(gradients(model, "shared_prefix", [pack], kernel="sdpa"), expected)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("pack_tokens", "least_packs"), [(4096, 1), (78, 4)])
@pytest.mark.parametrize("rows", [ROWS, [*ROWS, STRANGER]], ids=["one prefix", "the last row has another"])
@pytest.mark.parametrize("kind", ["shared_prefix", "bfd", "none"])
def test_an_update_has_the_gradients_of_separate_rows(
    kind: packing_plan.PackingMode,
    rows: list[TokenizedRow],
    pack_tokens: int,
    least_packs: int,
    processes: int,
    folder: Path,
) -> None:
    model = load_adapted_model(folder / "llama")
    packs = packs_of_update(rows, kind, pack_tokens, processes)
    assert len([pack for pack in packs if pack.rows[0].weight]) >= least_packs
    assert_equal(gradients(model, kind, packs), separate_gradients(model, rows))


@pytest.mark.parametrize("name", ["gemma3 of a short window", "mistral of a short window"])
def test_a_window_shorter_than_a_row_falls_back_to_bfd_which_keeps_it(name: str, folder: Path) -> None:
    kind, reason = model_support.supported_packing("shared_prefix", CONFIGS[name], 80)
    assert kind == "bfd" and "a window of 16 tokens" in str(reason)
    model = load_adapted_model(folder / name)
    assert_equal(gradients(model, "bfd", [Pack(tuple(ROWS), 0)]), separate_gradients(model, ROWS))
    # What would have happened: the mask of a pack looks further back than the window.
    wrong_gradients = gradients(model, "shared_prefix", [Pack(tuple(ROWS), len(PREFIX))])
    with pytest.raises(AssertionError):
        assert_equal(wrong_gradients, separate_gradients(model, ROWS))


@pytest.mark.parametrize("kind", ["shared_prefix", "bfd", "none"])
@pytest.mark.parametrize("prefix", [0, len(PREFIX)])
def test_pairs_have_the_gradients_of_separate_pairs(kind: packing_plan.PackingMode, prefix: int, folder: Path) -> None:
    model = load_adapted_model(folder / "qwen3")
    packs = [Pack(tuple(PAIRS), prefix if kind == "shared_prefix" else 0)]
    assert_equal(gradients(model, kind, packs, "prefer"), separate_gradients(model, PAIRS, "prefer"))


def test_evaluating_in_between_leaves_the_gradients_of_an_nf4_model_alone() -> None:
    # bitsandbytes 0.50 repacks weights at the first evaluation forward on CPUs with AVX512_BF16.
    model, packs = load_adapted_model(POCKET, "nf4"), [Pack(tuple(ROWS), len(PREFIX))]
    expected = gradients(model, "shared_prefix", packs)
    model.eval()
    with torch.inference_mode():
        model(input_ids=torch.tensor([PREFIX]))
    model.train()
    actual = gradients(model, "shared_prefix", packs)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_the_blocks_of_flex_attention_hold_what_the_dense_mask_shows() -> None:
    unit = torch.tensor([0] * 100 + [1] * 60 + [2] * 90 + [-1] * 6)
    branch = torch.tensor([0] * 100 + [0] * 20 + [1] * 20 + [2] * 20 + [1] * 90 + [0] * 6)
    dense = collate.dense_mask(unit, branch)[0, 0]
    blocks = collate.block_mask(unit, branch)
    positions = torch.arange(256)
    visible = torch.vmap(torch.vmap(lambda query, key: blocks.mask_mod(0, 0, query, key), (None, 0)), (0, None))(
        positions, positions
    )
    assert torch.equal(dense, visible)
    computed_blocks = blocks.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert computed_blocks[dense].all(), "a block that holds something is left out"


def test_a_pack_is_one_sequence_with_one_prefix() -> None:
    batch = collate.collate_pack(Pack(tuple(ROWS), len(PREFIX)), "shared_prefix", "cpu", 0)
    own_tokens = sum(row.tokens_after_prefix(len(PREFIX)) for row in ROWS)
    assert batch.inputs["input_ids"].shape == (1, len(PREFIX) + own_tokens)
    assert (batch.labels != collate.IGNORE_INDEX).sum() == sum(row.answer_tokens for row in ROWS)
    assert batch.inputs["position_ids"][0, 60:67].tolist() == list(range(60, 67))
    mask = batch.inputs["attention_mask"][0, 0]
    assert mask[60:67, :60].all()
    assert not mask[67:, 60:67].any(), "a row sees another row"


def test_the_answers_of_a_pair_see_their_prompt_and_not_each_other() -> None:
    pair = TokenizedRow("p", [5, 6, 7, 8], ([10, 11, 2], [12, 2]))
    batch = collate.collate_pack(Pack((pair,), 2), "shared_prefix", "cpu", 0)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 10, 11, 2, 8, 12, 2]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5]]
    mask = batch.inputs["attention_mask"][0, 0]
    assert mask[7:, :3].all() and not mask[7:, 3:7].any()


rows_of_lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=40)


@given(
    rows_of_lengths,
    st.integers(0, 100),
    st.integers(200, 600),
    st.integers(1, 4),
    st.sampled_from(["shared_prefix", "bfd", "none"]),
)
def test_every_row_of_an_update_is_learnt_once_and_packs_fit_their_budget(
    lengths: list[tuple[int, int]], prefix_tokens: int, pack_tokens: int, processes: int, kind: packing_plan.PackingMode
) -> None:
    rows = [
        TokenizedRow(f"r{index}", list(range(prefix_tokens)) + [1000 + index] * own_tokens, ([1] * answer_tokens,))
        for index, (own_tokens, answer_tokens) in enumerate(lengths)
    ]
    plan = packing_plan.build_packing_plan(rows, kind, pack_tokens, len(rows), COST)
    shards = list(UpdateShards(rows, plan, [range(len(rows))], processes))
    assert len({len(shard.packs) for shard in shards}) == 1, "a process would wait for another"
    weighted_ids = [row.id for shard in shards for row in shard.rows if row.weight]
    assert sorted(weighted_ids) == sorted(row.id for row in rows)
    assert {shard.normalizer for shard in shards} == {sum(row.answer_tokens for row in rows)}
    for pack in (pack for shard in shards for pack in shard.packs):
        assert len(pack.rows) == 1 or pack.tokens <= pack_tokens
        assert all(pack.prefix < len(row.prompt_ids) for row in pack.rows)
        assert all(row.prompt_ids[: pack.prefix] == pack.rows[0].prompt_ids[: pack.prefix] for row in pack.rows)


def test_several_prompts_are_several_groups() -> None:
    rows = [
        TokenizedRow(f"{first_token}{index}", [first_token] * 50 + [200 + index], ([1],))
        for first_token in (7, 9)
        for index in range(20)
    ]
    rows.append(TokenizedRow("loose", [11, 12, 13], ([1],)))
    plan = packing_plan.build_packing_plan(rows, "shared_prefix", 4096, 16, COST)
    assert sorted(plan.prefixes) == [0, 50, 50]
    assert len(set(plan.row_groups[:20])) == len(set(plan.row_groups[20:40])) == 1
    assert plan.row_groups[0] != plan.row_groups[20]


def test_prompts_that_share_most_and_go_on_in_a_few_ways_stay_one_group() -> None:
    # Twelve first words: packs of a twelfth of the rows would cost more prefixes than they save words.
    rows = [TokenizedRow(f"r{index}", [*PREFIX, 200 + index % 12, 230 + index % 7], ([1],)) for index in range(96)]
    assert packing_plan.build_packing_plan(rows, "shared_prefix", 4096, 16, COST).prefixes == (len(PREFIX),)


def test_texts_that_nest_a_thousand_deep_are_grouped_without_end() -> None:
    rows = [TokenizedRow(f"r{index}", [5] * index + [6], ([1],)) for index in range(1, 2000)]
    plan = packing_plan.build_packing_plan(rows, "shared_prefix", 4096, 16, COST)
    assert len(plan.row_groups) == len(rows)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 9))
def test_every_epoch_shows_every_row_once_in_an_order_of_its_own(
    rows: int, batch_size: int, epochs: int, seed: int
) -> None:
    updates = sampler.batch_indices(rows, batch_size, epochs, -1, seed)
    assert len(updates) == sampler.count_updates(rows, batch_size, epochs, -1)
    epoch_updates = len(updates) // epochs
    epoch_rows = [
        list(chain(*updates[start : start + epoch_updates])) for start in range(0, len(updates), epoch_updates)
    ]
    assert all(sorted(row_indices) == list(range(rows)) for row_indices in epoch_rows)
    assert rows < 8 or epochs < 2 or epoch_rows[0] != epoch_rows[1]
    assert updates == sampler.batch_indices(rows, batch_size, epochs, -1, seed)


def test_balanced_sampling_shows_every_class_as_often() -> None:
    classes = ["often"] * 90 + ["seldom"] * 9 + ["once"]
    sampled = list(chain(*sampler.batch_indices(100, 10, 1, -1, 3, classes)))
    counts = {name: sum(classes[index] == name for index in sampled) for name in set(classes)}
    assert len(sampled) == 100 and max(counts.values()) - min(counts.values()) <= 1
    assert {sampled.count(index) for index in range(90, 99)} <= {3, 4}, "rows of a class are drawn unevenly"


def test_balanced_weights_make_classes_count_the_same() -> None:
    from train.packing.dataset import apply_class_weights

    rows = [TokenizedRow(str(index), [5], ([6, 2],)) for index in range(8)]
    classes = ["a"] * 6 + ["b"] * 2
    balanced = apply_class_weights(rows, classes, "balanced")
    assert sum(row.weight for row in balanced[:6]) == pytest.approx(sum(row.weight for row in balanced[6:]))
    assert [row.weight for row in apply_class_weights(rows, classes, {"b": 3.0})] == [1.0] * 6 + [3.0] * 2


def test_halving_a_pack_keeps_all_its_rows() -> None:
    pack = Pack(tuple(ROWS[:5]), len(PREFIX))
    assert [row.id for half in pack.split_in_half() for row in half.rows] == [row.id for row in pack.rows]
    assert Pack((ROWS[0],), 0).split_in_half() == [Pack((ROWS[0],), 0)]


@given(st.integers(0, 900), st.lists(st.integers(1, 700), min_size=1, max_size=40))
def test_blocks_hold_whole_rows_one_behind_the_other(prefix: int, rows: list[int]) -> None:
    lengths = attention_blocks.block_lengths(prefix, rows)
    assert lengths is not None and sum(lengths) == sum(rows)
    assert {sum(lengths[:index]) for index in range(len(lengths))} <= {sum(rows[:index]) for index in range(len(rows))}
    assert all(0 < tokens <= max([*rows, attention_blocks.BLOCK_TOKENS]) for tokens in lengths)


def test_the_masks_of_blocks_are_what_the_dense_mask_shows() -> None:
    unit = torch.tensor([0] * 9 + [1] * 6 + [2] * 8 + [3] * 5)
    branch = torch.tensor([0] * 9 + [0, 0, 1, 1, 2, 2] + [1] * 8 + [0, 1, 1, 2, 2])
    dense, start, n_visible = collate.dense_mask(unit, branch), 9, 0
    for mask in collate.dense_block_masks(unit, branch, 9, [14, 5]):
        end = start + mask.shape[2]
        columns = [*range(9), *range(start, end)]
        assert torch.equal(mask, dense[:, :, start:end, columns])
        start, n_visible = end, n_visible + int(mask.sum())
    assert start == 28 and n_visible == dense[:, :, 9:].sum(), "no more is seen in the dense mask"


@pytest.mark.slow
def test_flex_attention_sees_what_the_dense_mask_shows(folder: Path) -> None:
    # Forward alone: FlexAttention has no backward pass on a CPU.
    model = load_adapted_model(folder / "qwen3").eval()
    long_rows = [TokenizedRow(f"r{index}", [*PREFIX, *range(5, 5 + index % 50)], ([50, 2],)) for index in range(96)]
    dense = collate.collate_pack(Pack(tuple(long_rows), len(PREFIX)), "shared_prefix", "cpu", 0)
    blocks = collate.collate_pack(Pack(tuple(long_rows), len(PREFIX)), "shared_prefix", "cpu", 0, "flex_attention")
    assert (dense.attention, blocks.attention) == ("sdpa", "flex_attention")
    assert blocks.inputs["input_ids"].shape[1] % collate.FLEX_BLOCK_SIZE == 0
    with torch.inference_mode():
        expected = losses.log_probabilities(model, dense)[0]
        with attention.pack_attention(model.config, blocks):
            actual = losses.log_probabilities(model, blocks)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_flex_attention_has_the_gradients_of_the_dense_mask_through_checkpointing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its kernels are for GPUs: here its mathematics is compiled by aot_eager, past the refusal of a CPU.
    from torch.nn.attention import flex_attention as flex
    from transformers.integrations.flex_attention import WrappedFlexAttention as Wrapped

    # What another test compiled of the same function is for another backend.
    torch.compiler.reset()
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    compiled = torch.compile(flex.flex_attention, backend="aot_eager")
    monkeypatch.setattr(Wrapped, "_compiled_flex_attention", staticmethod(compiled))
    # Another test may have left an instance with a compiled function of its own.
    monkeypatch.setattr(Wrapped, "_instance", None)
    monkeypatch.setattr(Wrapped, "_is_flex_compiled", True)
    monkeypatch.setattr(Wrapped, "training", True, raising=False)
    model = load_adapted_model(folder / "qwen3", checkpointing=True)
    for count in (90, 100, 120):
        rows = tuple(
            TokenizedRow(f"r{index}", [*PREFIX, *range(5, 5 + index % 50)], ([50, 2],)) for index in range(count)
        )
        dense, blocks = (
            gradients(model, "shared_prefix", [Pack(rows, len(PREFIX))], kernel=kernel)
            for kernel in ("sdpa", "flex_attention")
        )
        assert_equal(blocks, dense)
    torch.compiler.reset()
